"""The order of the pixels as a latent variable, against sums over all orders and all images."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.config import small_config
from helpers.program import main
from test_latent_free import Batch, batch, log_likelihood
from torch import Tensor

from config import ConfigError
from models.base import EpisodeBatch, Explanation, MemoryModel, Noise
from models.orders import EveryOrder, seen_from, seen_in
from models.vma.model import VMA
from runtime.randomness import Shard, StepNoise, TargetNoise

SIDE = 3
every_number = pytest.mark.parametrize("orders", [2, 4, 8])


def every_image() -> Tensor:
    """All images of 3 x 3 pixels, [512, 3, 3]."""
    bits = torch.arange(2 ** (SIDE * SIDE))[:, None] >> torch.arange(SIDE * SIDE) & 1
    return bits.view(-1, SIDE, SIDE).double()


def number_of(images: Tensor) -> Tensor:
    """Where images [..., 3, 3] stand in `every_image`."""
    return (images.flatten(-2).long() << torch.arange(SIDE * SIDE)).sum(-1)


class Table(MemoryModel):
    """p(x|M) = (p(x|m_0) + 3 p(x|m_1)) / 4, each a table; importance samples are off by a random factor of mean one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.log_p = (2 * torch.randn(512, 512, dtype=torch.float64)).log_softmax(1)
        self.log_p_a = torch.tensor([0.25, 0.75], dtype=torch.float64).log()

    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        m = self.encode_memory(episodes.memory)
        log_p, targets = self.log_likelihood(m, self.encode_targets(episodes.x, m))
        log_p = log_p.unflatten(0, (-1, orders))  # [G, O, T]
        accuracy = self.metrics(m, targets, episodes)["address_accuracy"].unflatten(0, (-1, orders))
        return log_p.logsumexp(1) - math.log(orders), {"address_accuracy": (log_p.softmax(1) * accuracy).sum(1)}

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> Tensor:
        return memory

    def encode_targets(self, x: Tensor, m: Tensor) -> dict[str, Tensor]:
        log_joint = self.log_p[number_of(m)].gather(2, number_of(x)[:, None].expand(-1, m.shape[1], -1))
        return {"log_joint": log_joint.transpose(1, 2) + self.log_p_a}  # [G, T, M]

    def log_likelihood(
        self, m: Tensor, targets: dict[str, Tensor], noise: Noise | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_joint = targets["log_joint"]
        return log_joint.logsumexp(-1), {"log_joint": log_joint, "p_a": log_joint.softmax(-1)}

    def metrics(self, m: Tensor, targets: dict[str, Tensor], episodes: EpisodeBatch) -> dict[str, Tensor]:
        return {"address_accuracy": targets["p_a"][..., 0]}

    def slot_posterior(self, m: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return targets["p_a"]

    def importance_samples(self, x: Tensor, m: Any, targets: dict[str, Tensor], noise: Noise, k: int) -> Any:
        factor = 2 * noise.uniform("factor", k, *x.shape[:2]).double()

        class Samples:
            log_w = targets["log_joint"].logsumexp(-1) + factor.log()
            kl_z = factor

        return Samples()

    def explain(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Explanation:
        log_p, targets = self.log_likelihood(memory, self.encode_targets(x, memory))
        return Explanation(log_p, targets["p_a"], None)

    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor | None]:
        slots = (noise.uniform("slot", n, len(memory), 1) > 0.25).long().squeeze(2)  # [n, G]
        pixels = noise.uniform("pixels", n, len(memory), 1).squeeze(2).double()
        picked = number_of(memory)[torch.arange(len(memory)), slots]
        drawn = torch.searchsorted(self.log_p[picked].exp().cumsum(-1), pixels.unsqueeze(-1)).squeeze(-1).clamp(max=511)
        return every_image()[drawn], slots

    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """The first image of the memory."""
        return memory[:, :1].expand_as(x), None


@pytest.fixture
def memory() -> Tensor:
    torch.manual_seed(2)
    return (torch.rand(1, 2, SIDE, SIDE) < 0.5).double()


def by_hand(order: int, image: Tensor) -> Tensor:
    """Pixel by pixel: the place (r, c) of the image in that order."""
    seen, last = torch.empty_like(image), image.shape[-1] - 1
    for r in range(last + 1):
        for c in range(last + 1):
            row, column = (c, r) if order & 4 else (r, c)
            seen[..., r, c] = image[..., last - row if order & 2 else row, last - column if order & 1 else column]
    return seen


def all_log_p(model: Table, memory: Tensor, orders: int) -> Tensor:
    """log p(o, a, x|M) of all images, [O, 2, 512], one order at a time."""
    rows = [
        torch.stack(
            [model.log_p[int(number_of(by_hand(o, m))), number_of(by_hand(o, every_image()))] for m in memory[0]]
        )
        for o in range(orders)
    ]
    return torch.stack(rows) + model.log_p_a[:, None] - math.log(orders)


def test_orders_are_the_eight_symmetries_of_the_square_and_can_be_undone() -> None:
    image = torch.arange(9.0).view(3, 3)
    seen = [seen_in(o, image) for o in range(8)]
    assert len({tuple(one.flatten().tolist()) for one in seen}) == 8
    for o, one in enumerate(seen):
        assert torch.equal(one, by_hand(o, image))
        assert torch.equal(seen_from(o, one), image)
    assert torch.equal(seen[0], image)


@every_number
def test_likelihood_is_the_mean_over_orders_and_sums_to_one(orders: int, memory: Tensor) -> None:
    model, x = Table(), every_image()[None]
    both = EveryOrder(model, orders)
    m = both.encode_memory(memory)
    log_p, targets = both.log_likelihood(m, both.encode_targets(x, m))
    expected = all_log_p(model, memory, orders)
    torch.testing.assert_close(log_p[0], expected.logsumexp((0, 1)), rtol=1e-12, atol=0)
    assert math.isclose(float(log_p.exp().sum()), 1, rel_tol=1e-12)
    joint = expected.flatten(0, 1).softmax(0).view_as(expected)  # p(o, a|x,M)
    found = both.metrics(m, targets, Batch(x, memory, x[..., 0, 0], memory[..., 0, 0]))["address_accuracy"]
    torch.testing.assert_close(found[0], joint[:, 0].sum(0))
    bound, metrics = both.bound(Batch(x, memory, x[..., 0, 0], memory[..., 0, 0]), StepNoise("cpu", 0))
    torch.testing.assert_close(bound, log_p)
    torch.testing.assert_close(metrics["address_accuracy"], found)
    p_a = both.explain(x, memory, StepNoise("cpu", 0), 1).p_a
    assert p_a is not None
    torch.testing.assert_close(p_a[0], joint.sum(0).T)
    by_slot = both.slot_posterior(m, targets)
    assert by_slot is not None
    torch.testing.assert_close(by_slot[0], joint.sum(0).T)


def test_with_all_orders_it_does_not_matter_how_target_and_memory_lie(memory: Tensor) -> None:
    model = EveryOrder(Table(), 8)
    m = model.encode_memory(memory)
    log_p, _ = model.log_likelihood(m, model.encode_targets(every_image()[None], m))
    for o in range(1, 8):
        turned = model.encode_memory(seen_in(o, memory))
        of_turned, _ = model.log_likelihood(turned, model.encode_targets(seen_in(o, every_image())[None], turned))
        torch.testing.assert_close(of_turned, log_p)


def test_importance_weights_are_unbiased_and_orders_have_noise_of_their_own(memory: Tensor) -> None:
    """4 standard errors of the mean of 4,000 samples of a sum of four factors U(0, 2)."""
    model, x = Table(), every_image()[None, :1]
    four = EveryOrder(model, 4)
    m = four.encode_memory(memory)
    targets = four.encode_targets(x, m)
    noise = TargetNoise(0, targets=torch.tensor([5]))  # the same numbers for the same name
    samples = four.importance_samples(x, m, targets, noise, 4000)
    parts = all_log_p(model, memory, 4)[:, :, 0].logsumexp(1).exp()  # [4]
    se = float(parts.square().sum().sqrt()) / math.sqrt(3 * 4000)
    assert abs(float(samples.log_w.exp().mean() - parts.sum())) < 4 * se
    variance = float(samples.log_w.exp().var())
    assert math.isclose(variance, float(parts.square().sum()) / 3, rel_tol=0.1)  # that of independent factors
    assert samples.kl_z is not None and abs(float(samples.kl_z.mean()) - 1) < 4 / math.sqrt(3 * 4 * 4000)


@every_number
def test_samples_follow_the_mean_over_orders(orders: int, memory: Tensor) -> None:
    """Of 20,000 samples, those at the 16 likeliest images and those of slot 1, each within 4 standard errors."""
    model, n = Table(), 20_000
    pictures, slots = EveryOrder(model, orders).sample(memory, StepNoise("cpu", 3), n)
    assert slots is not None
    p = all_log_p(model, memory, orders).exp().sum((0, 1))
    counts = torch.bincount(number_of(pictures[:, 0]), minlength=512)
    for i in p.topk(16).indices.tolist():
        assert abs(int(counts[i]) - n * p[i]) < 4 * math.sqrt(n * p[i] * (1 - p[i]))
    assert abs(float(slots.double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)


def test_reconstructions_are_those_of_the_order_of_the_model(memory: Tensor) -> None:
    pictures, slots = EveryOrder(Table(), 8).reconstruct(memory[:, 1:], memory, StepNoise("cpu", 0))
    assert torch.equal(pictures, memory[:, :1]) and slots is None


@torch.no_grad()
def test_of_a_causal_model_each_order_is_another_likelihood_with_the_same_weights(
    tiny_model: Callable[..., VMA],
) -> None:
    model, b = tiny_model(latent=0, likelihood="causal"), batch()
    each = torch.stack([log_likelihood(model, Batch(seen_in(o, b.x), seen_in(o, b.memory), b.x_class, b.memory_class))
                        for o in range(8)])  # fmt: skip
    assert each.std(0).min() > 0.01
    torch.testing.assert_close(log_likelihood(EveryOrder(model, 8), b), each.logsumexp(0) - math.log(8))  # type: ignore[arg-type]
    assert EveryOrder(model, 8).state_dict().keys() == model.state_dict().keys()


def test_training_follows_the_likelihood(tiny_model: Callable[..., VMA]) -> None:
    model, b = tiny_model(latent=0, likelihood="causal", objective="marginal"), batch(g=3)
    both = EveryOrder(model, 4)
    loss, metrics = both.loss(b, StepNoise("cpu", 0))
    exact = log_likelihood(both, b)  # type: ignore[arg-type]
    torch.testing.assert_close(metrics["bound"], exact.detach())
    learned = list(model.p_x.parameters())  # without those of q(a|M,x), which has an objective of its own
    for found, expected in zip(
        torch.autograd.grad(loss, learned, allow_unused=True),
        torch.autograd.grad(-exact.mean(), learned, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_vimco_follows_the_mean_over_orders(tiny_model: Callable[..., VMA], monkeypatch: pytest.MonkeyPatch) -> None:
    """Expectations over every tuple of the K O addresses of a target, with all parameters, those of q(a|M,x) too."""
    k, orders = 2, 2
    model, b = tiny_model(latent=0, likelihood="causal", importance_num=k, dummies=1), batch(g=1, t=1, m=1)
    tables = []
    for o in range(orders):
        m = model.encode_memory(seen_in(o, b.memory))
        targets = model.encode_targets(seen_in(o, b.x), m)
        s = model.samples_at(model.every_address(m, targets, 1), targets, StepNoise("cpu", 0))
        tables.append((s.log_p_x + s.log_p_a).flatten() / 20)  # closer together, so that no address says all
        tables.append(targets.q_a.logits.flatten())
    log_joint, log_q = torch.stack(tables[::2]), torch.stack(tables[1::2])  # [O, A]

    def flatter(*args: Any) -> Any:
        samples = samples_at(*args)
        return replace(samples, log_p_x=samples.log_p_x / 20, log_p_a=samples.log_p_a / 20)

    samples_at = model.samples_at
    monkeypatch.setattr(model, "samples_at", flatter)
    exact = found = torch.zeros((), dtype=torch.float64)
    for addresses in itertools.product(range(2), repeat=k * orders):
        a = torch.tensor(addresses).view(k, orders, 1)
        monkeypatch.setattr("models.vma.model.sample_categorical", lambda q, uniform, a=a: a)
        of_a = log_q.gather(1, a[..., 0].T)  # [O, K]
        p = of_a.sum().exp()
        log_w = log_joint.gather(1, a[..., 0].T) - of_a
        exact = exact + p * (log_w.flatten().logsumexp(0) - math.log(k * orders))
        found = found + p.detach() * EveryOrder(model, orders).bound(b, StepNoise("cpu", 0))[0].sum()
    torch.testing.assert_close(found, exact)
    weights = [p for p in model.parameters() if p.requires_grad]
    for f, e in zip(*(torch.autograd.grad(v, weights, allow_unused=True) for v in (found, exact)), strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize(("orders", "drawn"), [(8, 1), (8, 3), (4, 2)])
def test_a_training_draws_orders_for_each_memory_all_equally_often(orders: int, drawn: int, memory: Tensor) -> None:
    """The mean over all draws, against the mean over all subsets of so many orders; within 5 standard errors."""
    model, copies, images = EveryOrder(Table(), orders, drawn), 4000, [7, 300]
    b = Batch(*(v.expand(copies, *v.shape[1:]) for v in (every_image()[images][None], memory, *torch.zeros(2, 1, 2))))
    bound, metrics = model.bound(b, StepNoise("cpu", 0))
    each = all_log_p(Table(), memory, orders).logsumexp(1)[:, images] + math.log(orders)  # log p(x|M,o) [O, T]
    subsets = torch.stack([each[list(s)].logsumexp(0) for s in itertools.combinations(range(orders), drawn)])
    subsets -= math.log(drawn)
    error = bound.std(0) / math.sqrt(copies)
    assert ((bound.mean(0) - subsets.mean(0)).abs() < 5 * error).all() and (error > 0).all()
    assert ((bound - subsets.unsqueeze(1)).abs().amin(0) < 1e-9).all()  # [subsets, copies, T]
    assert all(value.shape == bound.shape for value in metrics.values())
    with torch.no_grad():  # a validation is of all orders
        torch.testing.assert_close(model.bound(b, StepNoise("cpu", 0))[0][0], each.logsumexp(0) - math.log(orders))


@pytest.mark.parametrize("drawn", [4, 2])
def test_processes_share_the_targets_out_with_all_their_orders(tiny_model: Callable[..., VMA], drawn: int) -> None:
    model, b = EveryOrder(tiny_model(latent=0, likelihood="causal"), 4, drawn), batch(g=4)
    whole, _ = model.bound(b, StepNoise("cpu", 0))
    parts = []
    for rank in range(2):
        shard = Shard(rank, 2)
        part = Batch(*(shard.of(v, 0) for v in (b.x, b.memory, b.x_class, b.memory_class)))
        parts.append(model.bound(part, StepNoise("cpu", 0, shard=shard))[0])
    torch.testing.assert_close(torch.cat(parts), whole)


CAUSAL = ("model.likelihood=causal", "model.latent_dim=0", "test_spec.metric=nll")


@pytest.mark.parametrize("trained", [1, 2])
def test_weights_are_tested_in_any_number_of_orders_and_no_table_is_taken_for_another(
    trained: int, tmp_path: Path
) -> None:
    assert main(tmp_path, "--train", *(f"--set={one}" for one in (*CAUSAL, f"model.orders={trained}"))) == 0
    bounds = []
    for orders in (1, 8):
        assert main(tmp_path, "--test", *(f"--set={one}" for one in (*CAUSAL, f"model.orders={orders}"))) == 0
        with np.load(tmp_path / "table.npz") as cells:
            bounds.append(np.concatenate([cells[name] for name in cells if name.endswith("bound")]))
    assert not np.allclose(bounds[0], bounds[1], atol=1e-3)
    assert (tmp_path / "table.before-1.csv").exists()


def test_likelihoods_without_an_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.orders: 8 orders .* bernoulli draws in none; use 1, or"):
        small_config(tmp_path, "model.orders=8")


def test_no_more_orders_are_drawn_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_spec\.orders: 8 orders cannot .* model\.orders 4; use up to 4"):
        small_config(tmp_path, *CAUSAL, "model.orders=4", "train_spec.orders=8")
