"""The order in which a causal likelihood draws the pixels, as one more latent variable.

    p(x|M) = 1/O sum_o p(x|M, o)        p(x|M, o) = p(o(x) | o(M))

A model that draws row by row draws in another order where target and memory are flipped or transposed together, and
gives another, as good a distribution of the same image.  No orders need their own weights.

`O` orders · `K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots · `H W` image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.base import EpisodeBatch, Explanation, MemoryModel, Noise


def seen_in(order: int, images: Tensor) -> Tensor:
    """Images [..., H, W] with H = W, such that row by row is now that order, 0 to 7; 0 leaves them as they are."""
    flipped = images.flip([dim for dim, bit in ((-1, 1), (-2, 2)) if order & bit])
    return flipped.transpose(-1, -2).contiguous() if order & 4 else flipped


def seen_from(order: int, images: Tensor) -> Tensor:
    """What undoes `seen_in`."""
    upright = images.transpose(-1, -2) if order & 4 else images
    return upright.flip([dim for dim, bit in ((-1, 1), (-2, 2)) if order & bit])


@dataclass(frozen=True)
class _OrderNoise:
    """Noise whose draws in one order are not those in another."""

    noise: Noise
    order: int

    def uniform(self, name: str, *shape: int) -> Tensor:
        return self.noise.uniform(self._name(name), *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        return self.noise.normal(self._name(name), *shape)

    def _name(self, name: str) -> str:
        return f"{name} in order {self.order}" if self.order else name


@dataclass(frozen=True)
class _Samples:
    """K samples of the latents of each target, in every order."""

    log_w: Tensor  # [K, G, T]
    kl_z: Tensor | None  # [K, G, T]


@dataclass(frozen=True)
class _Targets:
    """Encoded targets in every order, and p(o|M,x), or the prior where it is not known."""

    each: Sequence[Any]
    p_o: Tensor  # [O, G, T]


class EveryOrder(MemoryModel):
    """The mean over `orders` of what `model` says of each image; only for evaluation and samples.

    Its weights are those of `model`, which learns in all orders where its training turns and flips classes.
    """

    def __init__(self, model: MemoryModel, orders: int) -> None:
        super().__init__()
        self.model, self.orders, self.pictured = model, orders, model.pictured

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """That of the model."""
        return self.model.state_dict(*args, **kwargs)

    def loss(self, episodes: EpisodeBatch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the model, in its own order."""
        return self.model.loss(episodes, noise)

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> list[Any]:
        """The memories [G, M, H, W] in every order."""
        return [self.model.encode_memory(seen_in(o, memory), precompute_features) for o in range(self.orders)]

    def encode_targets(self, x: Tensor, m: list[Any]) -> _Targets:
        """The targets x [G, T, H, W] in every order."""
        each = [self.model.encode_targets(seen_in(o, x), m_o) for o, m_o in enumerate(m)]
        return _Targets(each, x.new_full((self.orders, *x.shape[:2]), 1 / self.orders))

    def importance_samples(self, x: Tensor, m: list[Any], targets: _Targets, noise: Noise, k: int) -> _Samples:
        """K samples in every order, whose weights are averaged: as good an estimate of p(x|M) as that of one order."""
        each = [
            self.model.importance_samples(seen_in(o, x), m_o, targets_o, _OrderNoise(noise, o), k)
            for o, (m_o, targets_o) in enumerate(zip(m, targets.each, strict=True))
        ]
        kl_z = [s.kl_z for s in each if s.kl_z is not None]
        return _Samples(
            torch.stack([s.log_w for s in each]).logsumexp(0) - math.log(self.orders),
            torch.stack(kl_z).mean(0) if kl_z else None,
        )

    def log_likelihood(self, m: list[Any], targets: _Targets) -> tuple[Tensor, _Targets]:
        """log p(x|M) [G, T] in nats, exact where that of the model is."""
        log_p, exact = zip(*map(self.model.log_likelihood, m, targets.each), strict=True)
        of_all = torch.stack(log_p) - math.log(self.orders)  # [O, G, T]
        return of_all.logsumexp(0), replace(targets, each=exact, p_o=of_all.softmax(0))

    def metrics(self, m: list[Any], targets: _Targets, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Those of the model, averaged over p(o|M,x)."""
        each = [self.model.metrics(m_o, targets_o, episodes) for m_o, targets_o in zip(m, targets.each, strict=True)]
        return {name: (targets.p_o * torch.stack([metrics[name] for metrics in each])).sum(0) for name in each[0]}

    def explain(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Explanation:
        """p(a|x,M) = sum_o p(o|M,x) p(a|x,M,o)."""
        each = [
            self.model.explain(seen_in(o, x), seen_in(o, memory), _OrderNoise(noise, o), k) for o in range(self.orders)
        ]
        of_all = torch.stack([one.log_p for one in each]) - math.log(self.orders)
        p_o = of_all.softmax(0).unsqueeze(-1)
        p_a = [p * one.p_a for p, one in zip(p_o, each, strict=True) if one.p_a is not None]
        return Explanation(of_all.logsumexp(0), torch.stack(p_a).sum(0) if p_a else None, each[0].k)

    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor | None]:
        """n samples for each memory, the n-th of all of them in the same order."""
        drawn = (noise.uniform("order", n, 1, 1).flatten() * self.orders).long()  # [n]
        pictures, slots = memory.new_empty(n, len(memory), *memory.shape[2:]), None
        for o in drawn.unique().tolist():
            which = (drawn == o).nonzero().flatten()
            seen, picked = self.model.sample(seen_in(o, memory), _OrderNoise(noise, o), len(which))
            pictures[which] = seen_from(o, seen)
            if picked is not None:
                slots = picked.new_empty(n, len(memory)) if slots is None else slots
                slots[which] = picked
        return pictures, slots

    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Those of the model, in its own order."""
        return self.model.reconstruct(x, memory, noise)

    def slot_images(self, memory: Tensor) -> Tensor:
        """Those of the model."""
        return self.model.slot_images(memory)
