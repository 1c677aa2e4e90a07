"""`read: soft`: the memory is read by soft attention of z."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import CPU
from helpers.config import small_config
from helpers.program import main
from helpers.weights import draw_weights
from test_latent_free import Batch, batch
from torch import Tensor
from torch.distributions import Normal

import parsers
from autoencoders.features import Features, FeaturesAt
from config import ConfigError
from models.vma.soft_read import SoftRead
from runtime.randomness import StepNoise

both_likelihoods = pytest.mark.parametrize("kind", ["bernoulli", "causal"])


def soft(kind: str = "bernoulli", gain: float = 0.7) -> SoftRead:
    """With a handful of channels, and weights such that every term matters."""
    small = ("model.latent_dim=2", "model.matching_dim=3", "model.channels=[3, 4]", "model.hidden=[6, 7]")
    overrides = ("model.read=soft", f"model.likelihood={kind}", "model.importance_num=3", *small)
    model = parsers.build_model(small_config(Path("runs"), *overrides), CPU).double()
    assert isinstance(model, SoftRead)
    torch.manual_seed(7)
    draw_weights(model, gain)
    return model


def log_joint(model: SoftRead, b: Batch, g: int, t: int, z: Tensor) -> Tensor:
    """log p(x|z,M) + log p(z) of one z [Z], from the equations and one image at a time."""
    slots = [*b.memory[g], *model.dummies]
    key = [model.address_encoder(image[None])[0][0] for image in slots]
    products = torch.stack([model.query(z) @ k for k in key]) / math.sqrt(len(key[0]))
    vector, *maps = (torch.zeros(()) for _ in range(1 + len(model.encoder(slots[0][None])[1])))
    for weight, image in zip(products.softmax(0), slots, strict=True):
        of, of_maps = model.encoder(image[None])
        vector = vector + weight * of
        maps = [m + weight * one for m, one in zip(maps, model.p_x.decoder.precompute_skips(of_maps), strict=True)]
    read = FeaturesAt(Features(vector, tuple(maps)), torch.zeros(1, 1, 1, dtype=torch.long))
    x = b.x[g : g + 1, t : t + 1]
    log_p_x = model.p_x.log_prob(x, model.p_x.context(x), z[None, None, None], read)
    return log_p_x.squeeze() + Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum()


@both_likelihoods
@torch.no_grad()
def test_weights_are_those_of_the_equations(kind: str) -> None:
    model, b, k = soft(kind), batch(), 3
    log_w, noise = model.log_weights(b.x, b.memory, StepNoise("cpu", 0), k), StepNoise("cpu", 0)
    normal = noise.normal("z", k, 2, 2, 2)
    for g, t, i in itertools.product(range(2), range(2), range(k)):
        q_z = model.q_z(model.encoder(b.x[g, t][None])[0][0]).base_dist
        z = q_z.mean + q_z.stddev * normal[i, g, t]
        wanted = log_joint(model, b, g, t, z) - q_z.log_prob(z).sum()
        torch.testing.assert_close(log_w[i, g, t], wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_many_weights_average_to_the_integral_over_a_grid_of_z() -> None:
    """So the bound is one of log p(x|M)."""
    model, b, k = soft(gain=0.4), batch(g=1, t=1), 20_000
    axis = torch.linspace(-6, 6, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    m = model.encode_memory(b.memory)
    read, _ = model.read(grid[:, None, None], m)
    log_p_x = model.p_x.log_prob(b.x, None, grid[:, None, None], read)
    log_p_z = Normal(torch.zeros_like(grid), torch.ones_like(grid)).log_prob(grid).sum(1)[:, None, None]
    exact = (log_p_x + log_p_z).logsumexp(0) + 2 * math.log(0.1)
    ratio = (model.log_weights(b.x, b.memory, StepNoise("cpu", 0), k) - exact).exp()
    assert ((ratio.mean(0) - 1).abs() <= 4.5 * ratio.std(0) / math.sqrt(k) + 1e-6).all()


@torch.no_grad()
def test_the_order_of_the_memory_does_not_matter_and_its_images_do() -> None:
    model, b = soft(), batch()
    log_w = model.log_weights(b.x, b.memory, StepNoise("cpu", 0), 2)
    torch.testing.assert_close(model.log_weights(b.x, b.memory.flip(1), StepNoise("cpu", 0), 2), log_w)
    assert (model.log_weights(b.x, 1 - b.memory, StepNoise("cpu", 0), 2) - log_w).abs().min() > 1e-6


def test_loss_is_minus_the_mean_importance_weighted_bound_and_every_part_learns() -> None:
    model, b = soft(), batch()
    loss, metrics = model.loss(b, StepNoise("cpu", 0))
    log_w = model.log_weights(b.x, b.memory, StepNoise("cpu", 0), 3)
    torch.testing.assert_close(loss, -(log_w.logsumexp(0) - math.log(3)).mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert ((metrics["address_accuracy"] > 0) & (metrics["address_accuracy"] < 1)).all()


def test_it_trains_tests_and_draws(tmp_path: Path) -> None:
    grid = "test_spec.test_params.timesteps=[0, 3]"
    assert main(tmp_path, "--train", "--test", "--sample", "model.read=soft", grid) == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 5
    assert main(tmp_path, "--test") == 2  # weights of another model


@pytest.mark.parametrize(
    "change",
    [
        "model.latent_dim=0",
        "train_spec.objective=marginal",
        "train_spec.gradient_samples=1",
        "train_spec.z_gradient=dreg",
    ],
)
def test_what_needs_addresses_is_refused(change: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"soft .*; use (address|vimco|all|standard)"):
        small_config(tmp_path, "model.read=soft", change)
