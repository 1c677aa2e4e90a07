"""The causal likelihood against enumeration of all images, its gradient at every pixel, and a pass without caches."""

import math
from itertools import product

import pytest
import torch
from helpers.weights import draw_weights
from torch import Tensor

from models import causal
from models.causal import CausalLikelihood, MaskedConv2d


def toy(gain: float = 1.0, dtype: torch.dtype = torch.float64) -> CausalLikelihood:
    """A likelihood whose weights are drawn such that signals neither die nor explode."""
    torch.manual_seed(0)
    likelihood = CausalLikelihood(6, 2, fusion_channels=4, fusion_blocks=2).to(dtype)
    draw_weights(likelihood, gain)
    return likelihood


def parameters_for(likelihood: CausalLikelihood, *shape: int) -> Tensor:
    """Parameters [*batch, 2 C, H, W] for a `shape` [*batch, H, W]."""
    return torch.randn(*shape[:-2], likelihood.channels, *shape[-2:], dtype=likelihood.logit.weight.dtype)


def all_images(height: int, width: int) -> Tensor:
    """[2^(H W), H, W]"""
    return torch.tensor(list(product((0.0, 1.0), repeat=height * width)), dtype=torch.float64).view(-1, height, width)


def all_log_probs(likelihood: CausalLikelihood, parameters: Tensor) -> Tensor:
    """Of every image given parameters [2 C, H, W]: [2^(H W)]."""
    x = all_images(*parameters.shape[-2:]).unsqueeze(0)  # [1, T, H, W]
    with torch.no_grad():
        every = parameters.expand(1, 1, x.shape[1], *parameters.shape)
        return likelihood.log_prob(every, x, likelihood.context(x)).flatten()


def test_no_pixel_depends_on_itself_or_later_ones() -> None:
    likelihood, (height, width) = toy(), (9, 10)  # higher and wider than any kernel
    parameters = parameters_for(likelihood, 1, height, width)
    x = torch.rand(1, 1, height, width, dtype=torch.float64)

    def logits(x: Tensor) -> Tensor:
        return likelihood.logits(parameters, likelihood.context(x).flatten(0, 1)).flatten()

    pixels = height * width
    gradient = torch.autograd.functional.jacobian(logits, x).view(pixels, pixels)  # [of a pixel, for a pixel]
    assert torch.equal(gradient, gradient.tril(-1))
    on_the_left = gradient.diagonal(-1)[torch.arange(pixels - 1) % width < width - 1]
    above = gradient.diagonal(-width)
    for neighbour in (on_the_left, above):
        assert (neighbour != 0).double().mean() > 0.9  # where no ReLU is shut


def test_new_blocks_change_nothing_and_can_learn() -> None:
    deep, shallow = toy(), CausalLikelihood(6, 1, fusion_channels=4, fusion_blocks=0).double()
    draw_weights(shallow, 1.0)
    deep.load_state_dict(deep.adapted(shallow.state_dict()))
    parameters, x = parameters_for(deep, 1, 1, 3, 5, 5), (torch.rand(1, 3, 5, 5) < 0.5).double()
    log_p, before = (of.log_prob(parameters, x, of.context(x)) for of in (deep, shallow))
    assert torch.equal(log_p, before)
    log_p.sum().backward()
    for block in (deep.trunk[1], *deep.fusion):
        assert block.mix.weight.grad.abs().max() > 1e-3, "a step moves it"
        assert block.masked.weight.abs().max() > 0, "and then the rest of it"
    with pytest.raises(RuntimeError, match=r"Missing.*trunk\.0\.mix\.bias"):  # no new block, but a damaged one
        damaged = {name: w for name, w in shallow.state_dict().items() if name != "trunk.0.mix.bias"}
        deep.load_state_dict(deep.adapted(damaged))


def test_probabilities_of_all_images_sum_to_one() -> None:
    likelihood = toy(gain=2.0)
    log_p = all_log_probs(likelihood, parameters_for(likelihood, 3, 4))
    assert len(log_p) == 4096
    assert abs(log_p.exp().sum().item() - 1) < 1e-12
    assert log_p.max() - log_p.min() > 5  # far from uniform


def test_masked_weights_never_matter() -> None:
    likelihood = toy()
    parameters = parameters_for(likelihood, 3, 4)
    before = all_log_probs(likelihood, parameters)
    for layer in likelihood.modules():
        if isinstance(layer, MaskedConv2d):
            layer.weight.data += 1e3 * (1 - layer.mask)
    assert torch.equal(all_log_probs(likelihood, parameters), before)


def test_targets_samples_and_chunks_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood = toy()
    k, g, t = 3, 2, 2
    parameters = parameters_for(likelihood, k, g, t, 5, 6)
    x = (torch.rand(g, t, 5, 6, dtype=torch.float64) < 0.3).double()
    together = likelihood.log_prob(parameters, x, likelihood.context(x))
    assert together.shape == (k, g, t)
    for i, j, n in product(range(k), range(g), range(t)):
        one = x[j : j + 1, n : n + 1]
        alone = likelihood.log_prob(parameters[i, j, n][None, None, None], one, likelihood.context(one))
        torch.testing.assert_close(together[i, j, n], alone.squeeze(), rtol=0, atol=1e-12)
    monkeypatch.setattr(causal, "PAIRS_AT_ONCE", {"cpu": 5})
    chunks = likelihood.log_prob(parameters, x, likelihood.context(x))
    torch.testing.assert_close(chunks, together, rtol=0, atol=1e-12)


def test_drawing_with_caches_equals_whole_passes() -> None:
    likelihood = toy()
    parameters, uniform = parameters_for(likelihood, 3, 9, 10), torch.rand(3, 9, 10, dtype=torch.float64)
    image, probability = likelihood.draw(parameters, uniform)
    whole = torch.zeros_like(uniform)
    for row, column in product(range(9), range(10)):
        with torch.no_grad():
            p = likelihood.logits(parameters, likelihood.context(whole.unsqueeze(1)).squeeze(1)).sigmoid()
        torch.testing.assert_close(probability[:, row, column], p[:, row, column], rtol=0, atol=1e-12)
        whole[:, row, column] = (uniform[:, row, column] < p[:, row, column]).double()
    assert torch.equal(image, whole)
    assert 0.1 < image.mean() < 0.9


def test_images_are_drawn_with_their_probabilities() -> None:
    likelihood, n = toy(), 20_000
    parameters = parameters_for(likelihood, 2, 3)
    log_p = all_log_probs(likelihood, parameters)
    image, _ = likelihood.draw(parameters.expand(n, -1, -1, -1), torch.rand(n, 2, 3, dtype=torch.float64))
    which = (image.flatten(1) @ 2.0 ** torch.arange(5, -1, -1, dtype=torch.float64)).long()
    p, found = log_p.exp(), torch.bincount(which, minlength=64) / n
    assert ((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all()  # 5 standard errors, 64 of them
    entropy = -(p * log_p).sum()
    deviation = (p * (log_p + entropy) ** 2).sum().sqrt()
    assert abs(-log_p[which].mean() - entropy) < 4 * deviation / math.sqrt(n)


def test_sample_and_mean_are_of_the_same_image() -> None:
    class Fixed:
        def uniform(self, name: str, *shape: int) -> Tensor:
            return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

        def normal(self, name: str, *shape: int) -> Tensor:
            raise AssertionError(name)

    likelihood = toy()
    parameters = parameters_for(likelihood, 2, 1, 3, 5, 6)
    image = likelihood.sample(parameters, Fixed())
    assert image.shape == (2, 1, 3, 5, 6)
    drawn, _ = likelihood.draw(parameters.flatten(0, 2), Fixed().uniform("", 6, 5, 6))
    assert torch.equal(image.flatten(0, 2), drawn)
    assert torch.equal(image, likelihood.picture(parameters, Fixed())) and likelihood.pictured == "drawn pixel by pixel"


def test_bf16_agrees_with_float32() -> None:
    likelihood = toy(gain=0.7, dtype=torch.float32)
    parameters = parameters_for(likelihood, 1, 1, 64, 26, 26)
    image, _ = likelihood.draw(parameters.flatten(0, 2), torch.rand(64, 26, 26))
    x = image.unsqueeze(0)
    with torch.no_grad():
        exact = likelihood.log_prob(parameters, x, likelihood.context(x))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = likelihood.log_prob(parameters, x, likelihood.context(x))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert abs((rounded - exact).mean()) < 0.05  # nats, of some hundred
