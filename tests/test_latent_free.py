"""`latent_dim: 0`: the model without z, whose log-likelihood is an exact sum over addresses."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU
from helpers.config import small_config
from helpers.program import main
from torch import Tensor
from torch.distributions import Categorical

import evaluator
import parsers
from data.episodes import Episodes
from models.base import EpisodeBatch
from models.vma import likelihood
from models.vma.model import VMA
from runtime.randomness import StepNoise

SIDE = 20
both_likelihoods = pytest.mark.parametrize("kind", ["bernoulli", "causal"])


@dataclass
class Batch:
    x: Tensor
    memory: Tensor
    x_class: Tensor
    memory_class: Tensor


def batch(g: int = 2, t: int = 2, m: int = 3) -> Batch:
    torch.manual_seed(1)
    images = (torch.rand(g, t + m, SIDE, SIDE, dtype=torch.float64) < 0.3).double()
    classes = torch.arange(t + m).remainder(2).expand(g, -1)
    return Batch(images[:, :t], images[:, t:], classes[:, :t], classes[:, t:])


def log_likelihood(model: VMA, b: Batch) -> Tensor:
    m = model.encode_memory(b.memory)
    return model.log_likelihood(m, model.encode_targets(b.x, m))[0]


def one_by_one(model: VMA, b: EpisodeBatch) -> Tensor:
    """log sum_a p(a) p(x|m_a), one target and one image at a time."""
    slots, p_x = model.slot_images(b.memory), model.p_x
    log_p = torch.zeros(b.x.shape[:2], dtype=torch.float64)
    for g, t in ((g, t) for g in range(b.x.shape[0]) for t in range(b.x.shape[1])):
        x, joint = b.x[g : g + 1, t : t + 1], []
        log_p_a = model.p_a(1, b.memory.shape[1]).logits.flatten()
        for a, image in enumerate(slots[g]):
            vector, maps = model.encoder(image.unsqueeze(0))
            parameters = p_x.decoder(p_x.memory_code(vector.relu()), p_x.decoder.precompute_skips(maps))
            of_pixels = p_x.likelihood.log_prob(parameters[None, None], x, p_x.likelihood.context(x))
            joint.append(log_p_a[a] + of_pixels.squeeze())
        log_p[g, t] = torch.stack(joint).logsumexp(0)
    return log_p


@both_likelihoods
def test_log_likelihood_is_the_sum_over_addresses(kind: str, tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0, likelihood=kind, learned_prior=True), batch()
    with torch.no_grad():
        exact = log_likelihood(model, b)
        torch.testing.assert_close(exact, one_by_one(model, b), rtol=1e-12, atol=0)
    assert exact.dtype == torch.float64


@both_likelihoods
def test_marginal_loss_is_minus_the_mean_log_likelihood(kind: str, tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0, likelihood=kind, objective="marginal"), batch()
    loss, metrics = model.loss(b, StepNoise("cpu", 0))
    exact = log_likelihood(model, b)
    torch.testing.assert_close(metrics["bound"], exact.detach(), rtol=1e-12, atol=0)
    generator = [p for name, p in model.named_parameters() if not name.startswith("address_encoder")]
    found = torch.autograd.grad(loss, generator, allow_unused=True)
    wanted = torch.autograd.grad(-exact.mean(), generator, allow_unused=True)
    for f, w in zip(found, wanted, strict=True):
        assert (f is None) == (w is None)
        if f is not None:
            torch.testing.assert_close(f, w, rtol=1e-8, atol=1e-12)
    assert "kl_z" not in metrics


def test_exact_posterior_is_that_of_bayes(tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0, likelihood="causal", learned_prior=True, gain=0.8), batch(m=4)
    with torch.no_grad():
        m = model.encode_memory(b.memory)
        log_p, targets = model.log_likelihood(m, model.encode_targets(b.x, m))
        for a in range(4):  # p(a|M,x) = p(a) p(x|m_a) / p(x|M)
            only = model.encode_memory(b.memory[:, a : a + 1])
            certain = Categorical(logits=torch.zeros(2, 1, 1, dtype=torch.float64))
            only = replace(only, slots=only.slots[:, :1], embeddings=only.embeddings[:, :1], p_a=certain)
            log_p_x, _ = model.log_likelihood(only, model.encode_targets(b.x, only))
            expected = m.p_a.logits[..., a] + log_p_x - log_p
            torch.testing.assert_close(targets.q_a.logits[..., a], expected, rtol=1e-10, atol=1e-10)
    metrics = model.metrics(m, targets, b)
    assert (metrics["kl_a"] > 0).all() and (metrics["address_accuracy"] < 1).all()


@both_likelihoods
def test_weights_of_many_samples_average_to_the_sum(kind: str, tiny_model: Callable[..., VMA]) -> None:
    model, b, k = tiny_model(latent=0, likelihood=kind, gain=0.3), batch(), 4000
    with torch.no_grad():
        log_w = model.log_weights(b.x, b.memory, StepNoise("cpu", 0), k)
        ratio = (log_w - log_likelihood(model, b)).exp()
    assert ((ratio.mean(0) - 1).abs() <= 4.5 * ratio.std(0) / math.sqrt(k) + 1e-9).all()


def test_images_are_decoded_once_and_pairs_fused_once(tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0, likelihood="causal"), batch()
    decoded: list[int] = []
    model.p_x.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    paired: list[int] = []
    plain = model.p_x.likelihood.log_prob

    def counted(parameters: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        paired.append(parameters.shape[:3].numel())
        return plain(parameters, x, context)

    model.p_x.likelihood.log_prob = counted  # type: ignore[method-assign]
    with torch.no_grad():
        model.log_weights(b.x, b.memory, StepNoise("cpu", 0), 200)  # K much larger than the number of addresses
    assert decoded and sum(decoded) <= 2 * 3 + 2  # the images of both memories and the dummies
    assert sum(paired) <= 4 * (3 + 2)  # targets x addresses


def test_chunks_of_pairs_change_neither_value_nor_gradient(
    tiny_model: Callable[..., VMA], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, b = tiny_model(latent=0, likelihood="causal"), batch()

    def value_and_gradient() -> tuple[Tensor, Tensor]:
        value = log_likelihood(model, b).sum()
        return value.detach(), torch.autograd.grad(value, model.dummies)[0]

    whole = value_and_gradient()
    monkeypatch.setitem(likelihood.PAIRS_STORED, "cpu", 3)
    for part, one in zip(value_and_gradient(), whole, strict=True):
        torch.testing.assert_close(part, one, rtol=1e-10, atol=1e-12)


def test_with_z_there_are_only_bounds(tiny_model: Callable[..., VMA]) -> None:
    with pytest.raises(NotImplementedError, match="bounds"):
        log_likelihood(tiny_model(latent=2), batch())


@pytest.mark.parametrize("latent", [0, 2])
def test_pictures_of_the_causal_likelihood(latent: int, tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=latent, likelihood="causal"), batch()
    samples, a = model.sample(b.memory, StepNoise("cpu", 0), 3)
    image, slots = model.reconstruct(b.x, b.memory, StepNoise("cpu", 1))
    assert samples.shape == (3, 2, SIDE, SIDE)
    assert a.shape == (3, 2)
    assert image.shape == (2, 2, SIDE, SIDE)
    assert slots.shape == (2, 2)
    assert ((samples >= 0) & (samples <= 1)).all()


def test_causal_with_z_trains(tiny_model: Callable[..., VMA]) -> None:
    model = tiny_model(latent=2, likelihood="causal")
    loss, metrics = model.loss(batch(), StepNoise("cpu", 0))
    loss.backward()
    assert metrics["kl_z"].shape == (2, 2)
    assert all(p.grad is not None for p in model.p_x.likelihood.parameters())


@torch.no_grad()
def test_without_a_z_there_is_no_divergence_of_it(tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0), batch(t=1)
    episodes = Episodes(b.x, b.memory, b.x_class, b.memory_class, torch.zeros_like(b.x_class), b.memory_class)
    found = evaluator.importance_bounds(model, episodes, ("test", 0), 3, 3)
    assert found["kl_z"].isnan().all() and found["bound"].isfinite().all()
    assert "kl_z" not in model.loss(b, StepNoise("cpu", 0))[1]


def test_the_program_trains_tests_and_draws_it(tmp_path: Path) -> None:
    overrides = (
        "model.likelihood=causal", "model.latent_dim=0", "test_spec.metric=nll", "train_spec.objective=marginal",
        "train_spec.gradient_samples=1", "train_spec.steps=2", "test_spec.test_params.timesteps=[0, 3]",
    )  # fmt: skip
    assert main(tmp_path, "--train", "--test", "--sample", *overrides) == 0
    header, *rows = (tmp_path / "table.csv").read_text().splitlines()
    assert header == "max_batch_cls,timesteps,NLL,stderr,stderr_new_classes,kl_a,kl_z,address_accuracy,targets"
    assert len(rows) == 4
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("NLL: minus the log-likelihood, an exact sum over addresses, nats per image")
    assert "ELBO" not in text
    with np.load(tmp_path / "table.npz") as file:
        config = small_config(tmp_path, *overrides)
        model = parsers.build_model(config, CPU).eval()
        model.load_state_dict(torch.load(tmp_path / "vma.pt", weights_only=True)["model"])
        episodes = parsers.grid_episodes(config, parsers.test_images(config, CPU), 2, 3)
        b = episodes.batch(slice(None))
        assert isinstance(model, VMA)
        with torch.no_grad():
            expected = one_by_one(model, b)
        assert np.abs(file["C=2 M=3/bound"] - expected[:, 0].numpy()).max() < 1e-3
