"""The model against a slow, obvious version of itself, exact sums over addresses, and a case known in closed form.

The slow version treats one sample of one target at a time, encodes every image anew wherever it is used and writes
every density out.  Dimensions as in models/vma/model.py; float64 unless said otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_placements import every_placement, placed, placed_back
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal

import config as configuration
import models.vma.model as vma_module
from autoencoders import base
from autoencoders.published import Decoder, Encoder
from data.episodes import Episodes
from models.likelihoods import BernoulliPixels, NormalPixels
from models.objectives import log_mean_exp, marginal, vimco
from models.orders import EveryOrder
from models.vma.distributions import AddressPosterior, AddressPrior, DiagonalNormalHead, LatentPosterior, LatentPrior
from models.vma.likelihood import ImageLikelihood
from models.vma.model import VMA
from models.vma.sampling import sample_categorical
from parsers import build_model
from runtime.randomness import StepNoise

Build = Callable[..., VMA]
VMA_YAML = Path(__file__).parents[1] / "configs" / "vma.yaml"


@dataclass(frozen=True)
class GivenNoise:
    """Noise that was drawn before; single numbers stand for all."""

    address: Tensor
    z: Tensor

    def uniform(self, name: str, *shape: int) -> Tensor:
        return self.address.reshape(shape) if self.address.dim() else self.address.expand(shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        return self.z.reshape(shape) if self.z.dim() else self.z.expand(shape)


def given_noise(k: int, g: int, t: int, latent: int = 2) -> GivenNoise:
    source = torch.Generator().manual_seed(1)
    address = torch.rand(k, g, t, generator=source, dtype=torch.float64)
    address[0] = 0.999  # the last slot, which is a dummy
    return GivenNoise(address, torch.randn(k, g, t, latent, generator=source, dtype=torch.float64))


def images(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).double()


def episodes(x: Tensor, memory: Tensor, classes: int = 2) -> Episodes:
    """Classes take turns among the targets and in the memory."""
    x_index, memory_index = (torch.arange(v.shape[1]).expand(v.shape[:2]) for v in (x, memory))
    return Episodes(x, memory, x_index % classes, memory_index % classes, x_index, memory_index)


# --- the slow version -------------------------------------------------------------------------------------------------


def encode(network: Encoder, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One image [H, W]: its vector [D] and its maps [C, h, w], fine and coarse."""
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    hidden, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    h, found = image.unsqueeze(0), []
    for layer, stride in zip(convolutions, (1, 2, 1, 2, 1, 2), strict=True):
        h = F.conv2d(h, layer.weight, layer.bias, stride=stride, padding=1).relu()
        found.append(h)
    return last.weight @ (hidden.weight @ h.flatten() + hidden.bias).relu() + last.bias, found[2], found[4]


def up(h: Tensor, layer: nn.ConvTranspose2d, side: int) -> Tensor:
    """[C, h, h] -> [C, side, side]"""
    missing = side - (2 * h.shape[-1] - 1)
    return F.conv_transpose2d(h, layer.weight, layer.bias, stride=2, padding=1, output_padding=missing).relu()


def decode(network: Decoder, code: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
    """One code [2 Z] and the encoder's maps [C, h, w]: likelihood parameters [H, W]."""
    transposed = [layer for layer in network.modules() if isinstance(layer, nn.ConvTranspose2d)]
    up1, joint1, up2, joint2, up3, smooth, last = transposed
    hidden, spread = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    h = spread.weight @ (hidden.weight @ code + hidden.bias).relu() + spread.bias
    h = h.view(len(coarse), (coarse.shape[1] + 1) // 2, -1)
    h = torch.cat([up(h, up1, coarse.shape[1]), coarse])
    h = F.conv_transpose2d(h, joint1.weight, joint1.bias, padding=1).relu()
    h = torch.cat([up(h, up2, fine.shape[1]), fine])
    h = F.conv_transpose2d(h, joint2.weight, joint2.bias, padding=1).relu()
    h = up(h, up3, 2 * fine.shape[1] - 1)
    h = F.conv_transpose2d(h, smooth.weight, smooth.bias, padding=1).relu()
    return F.conv_transpose2d(h, last.weight, last.bias).squeeze(0)


def linear_normal(head: DiagonalNormalHead, features: Tensor) -> tuple[Tensor, Tensor]:
    for layer in head.hidden:
        features = layer.weight @ features + layer.bias if isinstance(layer, nn.Linear) else features.relu()
    loc, raw = (head.loc_and_scale.weight @ features + head.loc_and_scale.bias).chunk(2)
    return loc, (1 + raw.exp()).log()


def log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-((value - loc) ** 2) / (2 * scale**2) - scale.log() - math.log(2 * math.pi) / 2).sum()


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return -(x * (1 + (-logits).exp()).log() + (1 - x) * (1 + logits.exp()).log()).sum()


def every_place(model: VMA, images: int) -> list[tuple]:
    """What each address names: the slot, and how it is placed."""
    of_images = [(image, *where) for image in range(images) for where in every_placement(model.placements)]
    return [*of_images, *((images + dummy, 0, 0) for dummy in range(len(model.dummies)))]


@dataclass(frozen=True)
class SlowSample:
    """Everything about one sample of one target."""

    q_a: Tensor  # [A] log-probabilities
    p_a: Tensor  # [A] log-probabilities
    z: Tensor
    mean: Tensor  # [H, W] of p(x|z,m_a)
    log_p_x: Tensor
    log_p_z: Tensor
    log_q_z: Tensor


def slow_sample(model: VMA, x: Tensor, memory: Tensor, a: int, noise_z: Tensor, from_prior: bool = False) -> SlowSample:
    """Target x [H, W], memory [M, H, W], address a; z is q(z|x,m_a), or p(z|m_a), at `noise_z`."""
    slots = [*memory, *model.dummies]
    query = encode(model.address_encoder, x)[0]  # type: ignore[arg-type]
    logits = torch.stack([query @ encode(model.address_encoder, slot)[0] for slot in slots])  # type: ignore[arg-type]
    if model.q_a.scaled:
        logits = logits / math.sqrt(len(query))
    prior = torch.zeros(len(slots), dtype=x.dtype)
    prior[len(memory) :] = model.p_a.dummy_logits

    q_a, p_a = (logits.exp() / logits.exp().sum()).log(), (prior.exp() / prior.exp().sum()).log()
    places = every_place(model, len(memory))
    if len(model.placements) > 1 and len(memory):
        log_q_s, log_p_s = model.q_s(x[None, None], memory[None])[0, 0].flatten(), model.p_s()
        number = torch.arange(len(memory)).repeat_interleave(len(log_p_s))
        q_a = torch.cat([q_a[number] + log_q_s, q_a[len(memory) :]])
        p_a = torch.cat([p_a[number] + log_p_s.repeat(len(memory)), p_a[len(memory) :]])
    slot, *where = places[a]

    target = encode(model.encoder, placed_back(x, *where))[0]  # type: ignore[arg-type]
    vector, fine, coarse = encode(model.encoder, slots[slot])  # type: ignore[arg-type]
    prior_z, posterior_z = (
        linear_normal(model.p_z.head, vector),
        linear_normal(model.q_z.head, torch.cat([target, vector])),
    )
    loc, scale = prior_z if from_prior else posterior_z
    z = loc + scale * noise_z
    code = model.p_x.memory_code.weight @ vector.relu() + model.p_x.memory_code.bias
    parameters = decode(model.p_x.decoder, torch.cat([z, code]), fine, coarse)  # type: ignore[arg-type]
    parameters = placed(parameters, *where)
    bernoulli = isinstance(model.p_x.likelihood, BernoulliPixels)
    return SlowSample(
        q_a=q_a,
        p_a=p_a,
        z=z,
        mean=1 / (1 + (-parameters).exp()) if bernoulli else parameters,
        log_p_x=log_bernoulli(x, parameters) if bernoulli else log_normal(x, parameters, torch.ones_like(x)),
        log_p_z=log_normal(z, *prior_z),
        log_q_z=log_normal(z, *posterior_z),
    )


def slow_pick(log_probs: Tensor, uniform: Tensor) -> int:
    below = 0.0
    for a, p in enumerate(log_probs.exp().tolist()):
        below += p
        if uniform < below:
            return a
    raise AssertionError("probabilities do not sum to one")


CASES = [  # likelihood, learned prior, T, M, side, more
    ("bernoulli", False, 1, 3, 20),
    ("bernoulli", True, 2, 2, 21),
    ("normal", False, 2, 1, 22),
    ("normal", True, 1, 0, 20),
    ("bernoulli", True, 2, 3, 20, "model.address_scale=sqrt", "model.head_hidden=5"),
    ("bernoulli", True, 2, 2, 20, "model.max_shift=1"),
    ("bernoulli", True, 1, 2, 20, "model.scales=[1,1.5]"),
]


def case(
    build: Build, likelihood: str, learned: bool, t: int, m: int, side: int, *more: str
) -> tuple[VMA, Tensor, Tensor]:
    """A model, targets x [2, T, H, W] and memories [2, M, H, W]."""
    model = build(*more, side=side, likelihood=likelihood, learned_prior=learned)
    with torch.no_grad():  # q(a) that leaves something to every slot
        for value in model.address_encoder.vector[-1].parameters():  # type: ignore[index,union-attr]
            value *= 0.3
    return model, images(2, t, side, side), images(2, m, side, side, seed=1)


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_samples_and_their_gradients_equal_the_slow_version(tiny_model: Build, arguments: tuple) -> None:
    """Addresses and all terms of log w to 1e-10; gradients of a random sum of the terms to 1e-9 of the largest."""
    model, x, memory = case(tiny_model, *arguments)
    k, (g, t), addresses = 4, x.shape[:2], len(every_place(model, memory.shape[1]))
    noise = given_noise(k, g, t)
    m = model.encode_memory(memory)
    samples = model.importance_samples(x, m, model.encode_targets(x, m), noise, k)
    assert (samples.a >= addresses - 2).any()  # a dummy
    assert memory.shape[1] == 0 or (samples.a < addresses - 2).any()

    names = ("log_p_x", "log_p_z", "log_p_a", "log_q_z", "log_q_a")
    slow = {name: torch.empty(k, g, t, dtype=torch.float64) for name in names}
    for i, j, n in product(range(k), range(g), range(t)):
        expected = slow_sample(model, x[j, n], memory[j], int(samples.a[i, j, n]), noise.z[i, j, n])
        assert slow_pick(expected.q_a, noise.address[i, j, n]) == samples.a[i, j, n]
        log_p_a, log_q_a = (log_probs[samples.a[i, j, n]] for log_probs in (expected.p_a, expected.q_a))
        terms = (expected.log_p_x, expected.log_p_z, log_p_a, expected.log_q_z, log_q_a)
        for name, value in zip(names, terms, strict=True):
            slow[name][i, j, n] = value

    for name in names:
        torch.testing.assert_close(getattr(samples, name), slow[name], rtol=0, atol=1e-10)
    slow_w = slow["log_p_x"] + slow["log_p_z"] + slow["log_p_a"] - slow["log_q_z"] - slow["log_q_a"].detach()
    torch.testing.assert_close(samples.log_w, slow_w, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.log_weights(x, memory, noise, k), slow_w, rtol=0, atol=1e-10)

    weights = torch.randn(2, k, g, t, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.numel()]
    fast_gradients, slow_gradients = (
        torch.autograd.grad((weights[0] * log_w + weights[1] * log_q_a).sum(), parameters)
        for log_w, log_q_a in [(samples.log_w, samples.log_q_a), (slow_w, slow["log_q_a"])]
    )
    for fast_one, slow_one in zip(fast_gradients, slow_gradients, strict=True):
        assert (fast_one - slow_one).abs().max() <= 1e-9 * max(1, slow_one.abs().max().item())


@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_losses_equal_the_slow_version(tiny_model: Build, arguments: tuple) -> None:
    """Bound and metrics of both objectives, from sums over everything that may be picked."""
    model, x, memory = case(tiny_model, *arguments)
    k, (g, t), addresses = 2, x.shape[:2], len(every_place(model, memory.shape[1]))
    model.importance_num = k
    batch = episodes(x, memory)
    for objective, rows in (("vimco", k), ("marginal", k * addresses)):
        noise = given_noise(rows, g, t)
        model.objective = objective
        loss, metrics = model.loss(batch, noise)
        assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
        for j, n in product(range(g), range(t)):
            expected = slow_metrics(model, batch, noise, k, j, n)
            assert {name: v[j, n].item() for name, v in metrics.items()} == pytest.approx(expected, abs=1e-10)
        torch.testing.assert_close(loss, -metrics["bound"].mean(), rtol=0, atol=1e-12)


@torch.no_grad()
def slow_metrics(model: VMA, batch: Episodes, noise: GivenNoise, k: int, g: int, t: int) -> dict[str, float]:
    """Noise runs over samples for vimco; for marginal over samples, and within them over addresses."""
    x, memory, noise_z = batch.x[g, t], batch.memory[g], noise.z[:, g, t]
    any_one = slow_sample(model, x, memory, 0, noise_z[0])
    q_a, places = any_one.q_a.exp().tolist(), every_place(model, len(memory))
    of_class = [slot < len(memory) and batch.memory_class[g, slot] == batch.x_class[g, t] for slot, *_ in places]
    if model.objective == "vimco":
        picks = [slow_pick(any_one.q_a, uniform) for uniform in noise.address[:, g, t]]
        rows = [(1 / k, slow_sample(model, x, memory, a, noise_z[i]), a) for i, a in enumerate(picks)]
        log_w = [slow.log_p_x + slow.log_p_z + slow.p_a[a] - slow.log_q_z - slow.q_a[a] for _, slow, a in rows]
    else:
        every = list(product(range(k), range(len(places))))
        rows = [(q_a[a] / k, slow_sample(model, x, memory, a, noise_z[i * len(places) + a]), a) for i, a in every]
        log_w = [slow.log_p_x + slow.log_p_z + slow.p_a[a] - slow.log_q_z for _, slow, a in rows]
    return {
        "bound": torch.stack(log_w).logsumexp(0).item() - math.log(k),
        "kl_z": float(sum(share * (slow.log_q_z - slow.log_p_z) for share, slow, _ in rows)),
        "reconstruction": float(sum(share * slow.log_p_x for share, slow, _ in rows)),
        "kl_a": sum(q * math.log(q / p) for q, p in zip(q_a, any_one.p_a.exp().tolist(), strict=True)),
        "address_accuracy": sum(q for q, same in zip(q_a, of_class, strict=True) if same),
    }


@pytest.mark.parametrize("arguments", CASES, ids=str)
@torch.no_grad()
def test_pictures_equal_the_slow_version(tiny_model: Build, arguments: tuple) -> None:
    model, x, memory = case(tiny_model, *arguments)
    g, t = x.shape[:2]
    noise = given_noise(4, g, 1)
    means, slots = model.sample(memory, noise, 4)
    places, log_p_a = every_place(model, memory.shape[1]), model.encode_memory(memory).p_a.logits
    for i, j in product(range(4), range(g)):
        a = slow_pick(log_p_a[j, 0], noise.address[i, j, 0])
        expected = slow_sample(model, x[j, 0], memory[j], a, noise.z[i, j, 0], from_prior=True)
        torch.testing.assert_close(log_p_a[j, 0], expected.p_a)
        assert slots[i, j] == places[a][0]
        torch.testing.assert_close(means[i, j], expected.mean, rtol=0, atol=1e-10)

    noise = given_noise(1, g, t)
    means, slots = model.reconstruct(x, memory, noise)
    for j, n in product(range(g), range(t)):
        a = slow_pick(slow_sample(model, x[j, n], memory[j], 0, noise.z[0, j, n]).q_a, noise.address[0, j, n])
        expected = slow_sample(model, x[j, n], memory[j], a, noise.z[0, j, n])
        assert slots[j, n] == places[a][0]
        torch.testing.assert_close(means[j, n], expected.mean, rtol=0, atol=1e-10)


# --- the published model ----------------------------------------------------------------------------------------------


def test_published_configuration_builds_the_published_networks() -> None:
    model = build_model(configuration.load(VMA_YAML), torch.device("cpu"))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes == {
        "address_encoder": 246_116 + 101 * 200,
        "encoder": 246_116 + 101 * 128,
        "p_a": 0,
        "p_z": 128 * 128 + 128,
        "p_x": 534_033 + 128 * 64 + 64,  # the decoder, and Linear(ReLU(features)) beside z
        "q_a": 0,
        "q_z": 256 * 128 + 128,
    }
    assert model.get_parameter("dummies").shape == (2, 26, 26)
    assert sum(p.numel() for p in model.parameters()) == 1_118_409
    assert isinstance(model, VMA) and isinstance(model.p_x.likelihood, BernoulliPixels)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    cpu = torch.device("cpu")
    overrides = ["model.channels=[2,2]", "model.hidden=[3,3]"]
    first = build_model(configuration.load(VMA_YAML, overrides), cpu)
    torch.manual_seed(5)
    expected = torch.Generator().manual_seed(5)
    again = build_model(configuration.load(VMA_YAML, overrides), cpu)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))  # the global stream was left alone
    other = build_model(configuration.load(VMA_YAML, [*overrides, "train_spec.seed=1"]), cpu)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


def test_likelihoods() -> None:
    x, parameters = images(3, 4, 4), torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    ones = torch.ones(())
    for likelihood, slow in ((BernoulliPixels(), log_bernoulli), (NormalPixels(), lambda v, m: log_normal(v, m, ones))):
        found = likelihood.log_prob(parameters.unsqueeze(1), x, None)
        for i in range(3):
            torch.testing.assert_close(found[i], slow(x[i], parameters[i]), rtol=0, atol=1e-12)


# --- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_the_order_of_a_memory_means_nothing(tiny_model: Build, learned: bool) -> None:
    """q(a) is permuted with the images; the marginal bound, with the noise of each image kept, stays as it was."""
    model, x, memory = case(tiny_model, "bernoulli", learned, 2, 4, 20)
    model.objective = "marginal"
    order = torch.tensor([2, 0, 3, 1])
    slots = torch.cat([order, torch.tensor([4, 5])])
    noise = given_noise(3 * 6, 2, 2)
    moved = GivenNoise(noise.address, noise.z.view(3, 6, 2, 2, 2)[:, slots].flatten(0, 1))

    before, after = model.encode_memory(memory), model.encode_memory(memory[:, order])
    q, moved_q = model.encode_targets(x, before).q_a.logits, model.encode_targets(x, after).q_a.logits
    torch.testing.assert_close(moved_q, q[..., slots], rtol=0, atol=1e-12)

    bounds = [model.loss(episodes(x, m), n)[1]["bound"] for m, n in ((memory, noise), (memory[:, order], moved))]
    torch.testing.assert_close(bounds[0], bounds[1], rtol=0, atol=1e-10)


def test_targets_and_memories_do_not_see_each_other(tiny_model: Build) -> None:
    """Targets that share a memory get the weights that each gets alone with it."""
    model, x, memory = case(tiny_model, "bernoulli", False, 3, 2, 20)
    noise = given_noise(4, 2, 3)
    shared = model.log_weights(x, memory, noise, 4)
    for g, t in product(range(2), range(3)):
        alone = GivenNoise(noise.address[:, g : g + 1, t : t + 1], noise.z[:, g : g + 1, t : t + 1])
        found = model.log_weights(x[g : g + 1, t : t + 1], memory[g : g + 1], alone, 4)
        torch.testing.assert_close(found[:, 0, 0], shared[:, g, t], rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_same_noise_same_values_and_every_parameter_learns(tiny_model: Build, objective: str) -> None:
    model = tiny_model(learned_prior=True, objective=objective)
    batch = episodes(images(3, 2, 20, 20), images(3, 2, 20, 20, seed=1))
    gradients = []
    for _ in range(2):
        model.zero_grad()
        loss, _ = model.loss(batch, StepNoise("cpu", "a key"))
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name, _ in model.named_parameters())
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all(), name
        assert gradient.flatten(1).any(1).all() if name == "dummies" else gradient.any(), name


def test_dummies_that_start_equal_would_stay_equal(tiny_model: Build) -> None:
    """Under the exact sum, with the same noise for every address, so that only the images can tell slots apart."""
    model = tiny_model(objective="marginal")
    batch = episodes(images(2, 2, 20, 20), images(2, 1, 20, 20, seed=1))
    noise = GivenNoise(torch.zeros(()), torch.ones(()))

    def gradient() -> Tensor:
        (found,) = torch.autograd.grad(model.loss(batch, noise)[0], model.dummies)
        return found

    assert (model.dummies[0] != model.dummies[1]).double().mean() > 0.9  # as shipped: small noise
    assert model.dummies.min() >= 0 and model.dummies.max() <= 0.1
    first, second = gradient()
    assert (first - second).abs().max() > 1e-3
    with torch.no_grad():
        model.dummies[1] = model.dummies[0]
    first, second = gradient()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    assert first.abs().max() > 1e-3


# --- addresses --------------------------------------------------------------------------------------------------------


def test_sampled_addresses_follow_the_probabilities() -> None:
    """Chi-square below its mean plus five of its standard deviations; impossible slots are never picked."""
    probs = torch.tensor([[0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1]])
    n = 40_000
    u = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    a = sample_categorical(Categorical(probs=probs), u)
    for row in range(2):
        counts = a[:, row].bincount(minlength=7)
        possible = probs[row] > 0
        assert not counts[~possible].any()
        expected = n * probs[row][possible]
        chi_square, df = ((counts[possible] - expected) ** 2 / expected).sum().item(), int(possible.sum()) - 1
        assert chi_square < df + 5 * math.sqrt(2 * df)


def test_sampled_addresses_keep_to_possible_slots_at_the_ends() -> None:
    """At the smallest and the largest number that a generator gives."""
    q = Categorical(probs=torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]))
    assert sample_categorical(q, torch.tensor([0.0, 0.25, 0.75, 1 - 2**-24])).tolist() == [1, 3, 4, 4]
    certain = Categorical(probs=torch.tensor([0.0, 1.0, 0.0]))
    assert sample_categorical(certain, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [1, 1, 1]
    assert sample_categorical(Categorical(probs=torch.ones(1)), torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, 0]


def test_sampled_addresses_never_take_impossible_slots_where_probabilities_round_below_one() -> None:
    """float32 sums of probabilities may end below one: what is missing must not fall to a slot of probability zero."""
    logits = 3 * torch.randn(2000, 34, generator=torch.Generator().manual_seed(0))
    logits[:, -2:] = -200
    q = Categorical(logits=logits)
    assert not q.probs[:, -2:].any()
    assert sample_categorical(q, torch.full((1, 2000), 1 - 2**-24)).max() < 32


def test_divergence_and_accuracy_of_addresses(tiny_model: Build) -> None:
    """Against sums over all slots; the dummies count against the accuracy."""
    model, x, memory = case(tiny_model, "bernoulli", True, 2, 3, 20)
    m = model.encode_memory(memory)
    targets = model.encode_targets(x, m)
    x_class, memory_class = torch.tensor([[0, 1], [2, 9]]), torch.tensor([[0, 1, 0], [2, 2, 2]])
    batch = replace(episodes(x, memory), x_class=x_class, memory_class=memory_class)
    metrics = model.metrics(m, targets, batch)
    divergence, accuracy = metrics["kl_a"], metrics["address_accuracy"]
    prior = [0.0, 0.0, 0.0, *model.p_a.dummy_logits.tolist()]
    p = [math.exp(v) / sum(map(math.exp, prior)) for v in prior]
    for g, t in product(range(2), range(2)):
        q = targets.q_a.logits[g, t].exp().tolist()
        own = [s for s in range(3) if memory_class[g, s] == x_class[g, t]]
        assert divergence[g, t].item() == pytest.approx(sum(q[s] * math.log(q[s] / p[s]) for s in range(5)), abs=1e-12)
        assert accuracy[g, t].item() == pytest.approx(sum(q[s] for s in own), abs=1e-12)
    assert accuracy[1, 1] == 0
    assert accuracy[1, 0] < 1


# --- extreme inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
@pytest.mark.parametrize(
    ("objective", "m", "k"),
    [("vimco", 1, 2), ("vimco", 60, 2), ("vimco", 1, 500), ("marginal", 60, 2), ("vimco", 0, 2)],
)
@pytest.mark.parametrize("sure", [1, 1000], ids=["unsure", "sure"])
def test_extreme_inputs_stay_finite(
    tiny_model: Build, likelihood: str, objective: str, m: int, k: int, sure: float
) -> None:
    """All ink and no ink, in float32; q(a|M,x) may be sure by hundreds of nats."""
    model = tiny_model(
        likelihood=likelihood, objective=objective, importance_num=k, dtype=torch.float32, learned_prior=True
    )
    with torch.no_grad():
        model.address_encoder.vector[-1].weight *= sure  # type: ignore[index,union-attr]
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 20, 20)
    memory = (torch.arange(m) % 2).float().view(1, m, 1, 1).expand(1, m, 20, 20)
    loss, metrics = model.loss(episodes(x, memory), StepNoise("cpu", "extreme"))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(value.isfinite().all() for value in [loss, *metrics.values(), *gradients])


# --- a case in closed form --------------------------------------------------------------------------------------------
# All networks linear and p(x|z,m_a) Normal: p(x|m_a) is Normal, and log p(x|M) a sum over the few addresses.

PIXELS, LATENT, SIDE = 4, 2, 2


class LinearEncoder(base.Encoder):
    """An image is its own vector, or a linear map of it; there are no maps."""

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.vector = nn.Linear(PIXELS, outputs) if outputs else nn.Identity()

    def forward(self, pictures: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.vector(pictures.flatten(1)), ()


class LinearDecoder(base.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(2 * LATENT, PIXELS)

    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(maps)

    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        return self.image(code).view(-1, 1, SIDE, SIDE)


def linear_gaussian() -> VMA:
    """With q(z|x,m_a) exact and q(a|M,x) not.  Pictures are positive: the ReLU before the code changes nothing."""
    torch.manual_seed(3)
    model = VMA(
        address_encoder=LinearEncoder(3),
        encoder=LinearEncoder(),
        p_a=AddressPrior(2, learned=True),
        p_z=LatentPrior(PIXELS, LATENT),
        p_x=ImageLikelihood(LinearDecoder(), NormalPixels(), PIXELS, LATENT),
        q_a=AddressPosterior(),
        q_z=LatentPosterior(PIXELS, LATENT),
        side=SIDE,
        num_dummies=2,
        importance_num=1,
        objective="marginal",
    ).double()
    model.requires_grad_(False)
    for name, value in model.named_parameters():
        if name != "dummies":
            nn.init.normal_(value, std=0.4 if name.startswith("address") else 0.7)
    make_latent_posterior_exact(model)
    return model


def evidence(model: VMA, x: Tensor, memory: Tensor) -> Tensor:
    """log p(x|m_a) [S, T] in closed form, for x [1, T, 2, 2] and memory [1, M, 2, 2]."""
    image = model.p_x.decoder.image
    from_z, from_code = image.weight.split(LATENT, 1)  # type: ignore[union-attr,operator]
    rows = []
    for slot in [*memory[0], *model.dummies]:
        loc, scale = linear_normal(model.p_z.head, slot.flatten())
        code = model.p_x.memory_code.weight @ slot.flatten() + model.p_x.memory_code.bias
        mean = from_z @ loc + from_code @ code + image.bias  # type: ignore[union-attr]
        covariance = from_z @ (scale**2).diag() @ from_z.T + torch.eye(PIXELS, dtype=torch.float64)
        rows.append(MultivariateNormal(mean, covariance).log_prob(x[0].flatten(1)))
    return torch.stack(rows)


def make_latent_posterior_exact(model: VMA) -> None:
    """Give the generator a diagonal posterior and q(z|x,m_a) its parameters."""
    network: nn.Linear = model.p_x.decoder.image  # type: ignore[assignment]
    from_z, from_code = network.weight.split(LATENT, 1)
    network.weight[:, 1] -= from_z[:, 0] * (from_z[:, 0] @ from_z[:, 1]) / (from_z[:, 0] @ from_z[:, 0])
    prior, code, posterior = model.p_z.head.loc_and_scale, model.p_x.memory_code, model.q_z.head.loc_and_scale
    prior.weight[LATENT:] = 0  # a scale that does not depend on the image
    precision = (1 + prior.bias[LATENT:].exp()).log() ** -2
    variance = 1 / (precision + (from_z**2).sum(0))
    # mean = variance (precision mu(m) + W_z^T (x - W_c c(m) - b))
    posterior.weight[:LATENT, :PIXELS] = variance[:, None] * from_z.T
    of_memory = precision[:, None] * prior.weight[:LATENT] - from_z.T @ from_code @ code.weight
    posterior.weight[:LATENT, PIXELS:] = variance[:, None] * of_memory
    constant = precision * prior.bias[:LATENT] - from_z.T @ (from_code @ code.bias + network.bias)
    posterior.bias[:LATENT] = variance * constant
    posterior.weight[LATENT:] = 0
    posterior.bias[LATENT:] = (variance.sqrt().exp() - 1).log()


def linear_targets(t: int, m: int = 2) -> tuple[Tensor, Tensor]:
    """x [1, T, 2, 2] real-valued and a memory [1, M, 2, 2] of positive pictures."""
    source = torch.Generator().manual_seed(4)
    memory = torch.rand(1, m, SIDE, SIDE, generator=source, dtype=torch.float64)
    return torch.randn(1, t, SIDE, SIDE, generator=source, dtype=torch.float64), memory


def test_with_the_exact_posterior_of_z_one_sample_gives_the_evidence() -> None:
    model = linear_gaussian()
    x, memory = linear_targets(6)
    log_p_x = evidence(model, x, memory)  # [S, T]
    m = model.encode_memory(memory)
    targets = model.encode_targets(x, m)

    whole = (log_p_x + m.p_a.logits[0].T).logsumexp(0)
    bound = model.loss(episodes(x, memory), StepNoise("cpu", "z"))[1]["bound"][0]
    torch.testing.assert_close(bound, whole, rtol=0, atol=1e-10)

    samples = model.importance_samples(x, m, targets, StepNoise("cpu", "z and a"), 20)
    at = samples.a[:, 0]
    expected = log_p_x.gather(0, at) + m.p_a.logits[0, 0][at] - targets.q_a.logits[0].T.gather(0, at)
    torch.testing.assert_close(samples.log_w[:, 0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", ["sampled addresses", "exact sum"])
def test_bound_converges_to_the_evidence_from_below(path: str) -> None:
    """Gap = bound - log p(x|M), averaged over 300 targets; four standard errors are allowed everywhere."""
    model = linear_gaussian()
    x, memory = linear_targets(300)
    posterior = model.q_z.head.loc_and_scale
    posterior.weight[:LATENT] += 0.1 * torch.randn(LATENT, 2 * PIXELS, generator=torch.Generator().manual_seed(5))
    posterior.bias[LATENT:] += 0.5  # wider than the true one, so that weights have a variance
    m = model.encode_memory(memory)
    targets = model.encode_targets(x, m)
    whole = (evidence(model, x, memory) + m.p_a.logits[0].T).logsumexp(0)
    gaps = []
    for k in (1, 4, 16, 64, 256):
        noise = StepNoise("cpu", "linear", path, k)
        if path == "exact sum":
            samples = model.samples_at(model.every_address(m, targets, k), targets, noise)
            bound = marginal(samples.log_w.unflatten(0, (k, -1)), targets.q_a.logits.permute(2, 0, 1))
        else:
            bound = log_mean_exp(model.importance_samples(x, m, targets, noise, k).log_w)
        gaps.append(bound[0] - whole)
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / math.sqrt(len(gap)) for gap in gaps]
    for mean, error in zip(means, errors, strict=True):
        assert mean < 4 * error
    for less, more in pairwise(gaps):  # the same targets with fresh noise: paired differences
        gain = more - less
        assert gain.mean() > -4 * gain.std() / math.sqrt(len(gain))
    assert means[0] < -0.25  # there is something to gain, and it is gained:
    assert errors[-1] < 0.015
    assert means[-1] > -0.01 - 4 * errors[-1]


def test_vimco_value_is_the_sampled_bound_of_the_model(tiny_model: Build) -> None:
    model, x, memory = case(tiny_model, "bernoulli", False, 2, 2, 20)
    noise, m = given_noise(3, 2, 2), model.encode_memory(memory)
    samples = model.importance_samples(x, m, model.encode_targets(x, m), noise, 3)
    _, metrics = model.loss(episodes(x, memory), noise)
    torch.testing.assert_close(metrics["bound"], vimco(samples.log_w, samples.log_q_a), rtol=0, atol=1e-12)


def test_features_computed_when_picked_or_ahead_are_the_same(
    tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are the gradients; ahead all images are encoded, else each picked one once."""
    found, encoded = [], []
    for ahead in (False, True):
        model, x, memory = case(tiny_model, "bernoulli", True, 2, 6, 20)
        encode_memory = model.encode_memory
        monkeypatch.setattr(model, "encode_memory", partial(encode_memory, precompute_features=ahead))
        sizes: list[int] = []
        model.encoder.register_forward_pre_hook(lambda module, images, sizes=sizes: sizes.append(len(images[0])))
        loss, _ = model.loss(episodes(x, memory), given_noise(3, 2, 2))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        encoded.append(sorted(sizes))
    for picked, all_of_them in zip(*found, strict=True):
        torch.testing.assert_close(picked, all_of_them, rtol=0, atol=1e-12)

    model, x, memory = case(tiny_model, "bernoulli", True, 2, 6, 20)
    m = model.encode_memory(memory)
    a = model.importance_samples(x, m, model.encode_targets(x, m), given_noise(3, 2, 2), 3).a  # [K, G, T]
    distinct = len({(int(i), g) if i < 6 else (int(i), -1) for k in a for g, row in enumerate(k) for i in row})
    assert 1 < distinct < 12
    assert encoded == [sorted([4, distinct]), sorted([4, 14])]  # targets, and images of the memories


@pytest.mark.parametrize("use_dreg", [False, True])
@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_decoding_in_parts_changes_nothing(
    tiny_model: Build, monkeypatch: pytest.MonkeyPatch, objective: str, use_dreg: bool
) -> None:
    found, decoded = [], []
    for at_once in (8192, 9, 1):
        monkeypatch.setattr(vma_module, "DECODES_AT_ONCE", at_once)
        model, x, memory = case(tiny_model, "bernoulli", True, 2, 3, 20)
        model.objective, model.use_dreg = objective, use_dreg
        sizes: list[int] = []
        model.p_x.decoder.register_forward_pre_hook(lambda module, args, sizes=sizes: sizes.append(len(args[0])))
        loss, _ = model.loss(episodes(x, memory), StepNoise("cpu", "parts"))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        decoded.append(max(sizes))
    for whole, parts, singly in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(singly, whole, rtol=0, atol=1e-12)
    assert decoded == [(12 if objective == "vimco" else 60), 8, 4]  # 4 targets; K = 3, times 5 slots for the exact sum


# --- the gradient through one sample ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choosing:
    """Noise that was drawn before, but for the one sample [G, T] that the gradient goes through."""

    drawn: GivenNoise
    chosen: Tensor  # [G, T] in [0, 1)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return self.chosen.reshape(shape) if name == "gradient sample" else self.drawn.uniform(name, *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        return self.drawn.normal(name, *shape)


def gradient_of(
    model: VMA, batch: Episodes, noise: GivenNoise | Choosing
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    loss, metrics = model.loss(batch, noise)
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters()))), metrics


@pytest.mark.parametrize("use_dreg", [False, True])
@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_the_gradient_through_one_sample_is_that_through_all_in_expectation(
    tiny_model: Build, monkeypatch: pytest.MonkeyPatch, objective: str, use_dreg: bool
) -> None:
    """The mean over every way to choose, weighed by its probability, to 1e-10; value and metrics are the same."""
    model, x, memory = case(tiny_model, "bernoulli", True, 1, 3, 20)
    model.objective, model.use_dreg, model.importance_num = objective, use_dreg, 3 if objective == "vimco" else 2
    batch = episodes(x, memory)
    samples = 3 if objective == "vimco" else 10
    drawn = given_noise(samples, 2, 1)
    seen: list[Tensor] = []
    weigh = VMA._samples_for_backward

    def watched(self: VMA, *args: Any) -> Any:
        result = weigh(self, *args)
        seen.append(result[1].detach().softmax(0).squeeze(2))  # [K, G]
        return result

    monkeypatch.setattr(VMA, "_samples_for_backward", watched)
    loss, expected, metrics = gradient_of(model, batch, drawn)
    shares = seen[0]
    assert (shares > 1e-4).sum(0).min() > 1  # else there is nothing to choose
    model.gradient_samples = 1
    ends, mean = shares.cumsum(0), [torch.zeros_like(p) for p in expected]
    for k in product(range(samples), repeat=2):
        middle = torch.stack([ends[k[g], g] - shares[k[g], g] / 2 for g in range(2)]).view(2, 1)
        one_loss, found, one_metrics = gradient_of(model, batch, Choosing(drawn, middle))
        torch.testing.assert_close(one_loss, loss, rtol=0, atol=1e-12)
        for name, value in metrics.items():
            torch.testing.assert_close(one_metrics[name], value, rtol=0, atol=1e-12)
        for total, gradient in zip(mean, found, strict=True):
            total += shares[k[0], 0] * shares[k[1], 1] * gradient
    for total, gradient in zip(mean, expected, strict=True):
        torch.testing.assert_close(total, gradient, rtol=0, atol=1e-10)


def test_with_the_gradient_through_one_sample_validation_decodes_once(tiny_model: Build) -> None:
    model, x, memory = case(tiny_model, "bernoulli", True, 2, 3, 20)
    model.gradient_samples = 1
    decoded: list[int] = []
    model.p_x.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    loss, _ = model.loss(episodes(x, memory), StepNoise("cpu", "one"))
    assert decoded == [12, 4]  # 4 targets: K = 3 without gradient, one with it
    with torch.no_grad():
        assert torch.equal(model.loss(episodes(x, memory), StepNoise("cpu", "one"))[0], loss)
    assert decoded == [12, 4, 12]


# --- the doubly reparameterised gradient ------------------------------------------------------------------------------


def gradients(objective: str, use_dreg: bool, perturbed: float, seeds: int, orders: int = 1) -> dict[str, Tensor]:
    """[seeds, ...] gradients of the loss of `linear_gaussian`, its q(z|x,m_a) off the posterior by `perturbed`."""
    model = linear_gaussian().requires_grad_(True)
    model.objective, model.use_dreg, model.importance_num = objective, use_dreg, 3
    with torch.no_grad():
        model.q_z.head.loc_and_scale.bias.add_(torch.tensor([1.0, -1.0, 0.5, 0.5]), alpha=perturbed)
    x, memory = linear_targets(4)
    found: dict[str, list[Tensor]] = {}
    for seed in range(seeds):
        model.zero_grad()
        EveryOrder(model, orders).loss(episodes(x, memory), StepNoise("cpu", "use_dreg", seed))[0].backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                found.setdefault(name, []).append(p.grad.clone())
    return {name: torch.stack(grads) for name, grads in found.items()}


@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_dreg_has_no_noise_where_the_posterior_is_exact(objective: str) -> None:
    """log w does not depend on z there, so every sample's gradient for q(z|x,m_a) vanishes; others are untouched."""
    standard, dreg = (gradients(objective, way, 0.0, 1) for way in (False, True))
    for name in standard:
        if name.startswith("q_z"):
            assert dreg[name].abs().max() < 1e-10 < 1e-3 < standard[name].abs().max()
        elif name != "dummies":  # which q(z|x,m_a) sees too
            torch.testing.assert_close(dreg[name], standard[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("orders", [1, 4])
@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_dreg_has_the_same_mean_and_less_variance(objective: str, orders: int) -> None:
    standard, dreg = (gradients(objective, way, 0.4, 300, orders) for way in (False, True))
    for name in ("q_z.head.loc_and_scale.bias", "q_z.head.loc_and_scale.weight", "dummies"):
        difference = (dreg[name] - standard[name]).flatten(1)
        error = difference.std(0) / math.sqrt(len(difference))
        assert (difference.mean(0).abs() <= 4.5 * error).all()
        assert dreg[name].flatten(1).mean(0).norm() > 10 * error.norm()
    name = "q_z.head.loc_and_scale.bias"
    assert dreg[name].var(0).sum() < 0.7 * standard[name].var(0).sum()


def test_gradients_are_the_same_on_every_run_with_two_threads(tiny_model: Callable[..., VMA]) -> None:
    """Where rows of a memory are gathered, gradients of equal rows must add up in a fixed order: dummies are in all."""
    model = tiny_model("model.matching_dim=64", dtype=torch.float32)
    memory = (torch.rand(64, 16, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    weights = torch.randn(64, 18, 64, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(2)
    found = set()
    for _ in range(8):
        model.zero_grad()
        (model.encode_memory(memory).embeddings * weights).sum().backward()
        assert model.dummies.grad is not None
        found.add(model.dummies.grad.numpy().tobytes())
    assert len(found) == 1
