"""The order in which a causal likelihood draws the pixels, as one more latent variable.

    p(x|M) = 1/O sum_o p(x|M, o)        p(x|M, o) = p(o(x) | o(M))

A model that draws row by row draws in another order where target and memory are flipped or transposed together, and
gives another distribution of the same image.  All orders share the weights.

`O` orders · `K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots · `H W` image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
class _Episodes:
    """Episodes in every order, or those that were drawn, [G O, ...], the order running fastest."""

    x: Tensor
    memory: Tensor
    x_class: Tensor
    memory_class: Tensor


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


def _averaged(p_o: Tensor, each: Sequence[Tensor | None]) -> Tensor | None:
    """sum_o p(o|M,x) p(a|x,M,o): p_o [O, G, T] and O times [G, T, S], or None -> [G, T, S]."""
    known = [p * one for p, one in zip(p_o.unsqueeze(-1), each, strict=True) if one is not None]
    return torch.stack(known).sum(0) if known else None


class EveryOrder(MemoryModel):
    """The mean over `orders` of what `model` says of each image.  Its weights are those of `model`.

    With gradients the mean over `drawn` of them, chosen anew for each memory: a bound on average, and less to compute.
    """

    def __init__(self, model: MemoryModel, orders: int, drawn: int | None = None) -> None:
        super().__init__()
        self.model, self.orders, self.drawn, self.pictured = model, orders, drawn or orders, model.pictured

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(*args, **kwargs)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.model.adapted(weights)

    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's, of every memory in every order."""
        groups = torch.arange(len(episodes.x), device=episodes.x.device).unsqueeze(1)  # [G, 1]
        chosen = torch.arange(self.orders, device=episodes.x.device).expand(len(groups), -1)  # [G, O]
        if torch.is_grad_enabled() and self.drawn < self.orders:
            chosen = noise.uniform("orders", 1, *chosen.shape).squeeze(0).topk(self.drawn).indices

        def turned(images: Tensor) -> Tensor:
            every = torch.stack([seen_in(o, images) for o in range(self.orders)], 1)
            return every[groups, chosen].flatten(0, 1)

        def repeated(classes: Tensor) -> Tensor:
            return classes.repeat_interleave(chosen.shape[1], 0)

        seen = _Episodes(turned(episodes.x), turned(episodes.memory),
                         repeated(episodes.x_class), repeated(episodes.memory_class))  # fmt: skip
        return self.model.bound(seen, noise, orders * chosen.shape[1])

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

    def log_likelihood(self, m: list[Any], targets: _Targets, noise: Noise | None = None) -> tuple[Tensor, _Targets]:
        """log p(x|M) [G, T] in nats, exact where that of the model is."""
        each = [
            self.model.log_likelihood(m_o, targets_o, noise and _OrderNoise(noise, o))
            for o, (m_o, targets_o) in enumerate(zip(m, targets.each, strict=True))
        ]
        of_all = torch.stack([log_p for log_p, _ in each]) - math.log(self.orders)  # [O, G, T]
        return of_all.logsumexp(0), _Targets([exact for _, exact in each], of_all.softmax(0))

    def metrics(self, m: list[Any], targets: _Targets, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Those of the model, averaged over p(o|M,x)."""
        each = [self.model.metrics(m_o, targets_o, episodes) for m_o, targets_o in zip(m, targets.each, strict=True)]
        return {name: (targets.p_o * torch.stack([metrics[name] for metrics in each])).sum(0) for name in each[0]}

    def slot_posterior(self, m: list[Any], targets: _Targets) -> Tensor | None:
        """p(a|x,M) = sum_o p(o|M,x) p(a|x,M,o)."""
        each = [self.model.slot_posterior(m_o, targets_o) for m_o, targets_o in zip(m, targets.each, strict=True)]
        return _averaged(targets.p_o, each)

    def explain(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Explanation:
        """p(a|x,M) = sum_o p(o|M,x) p(a|x,M,o)."""
        each = [
            self.model.explain(seen_in(o, x), seen_in(o, memory), _OrderNoise(noise, o), k) for o in range(self.orders)
        ]
        of_all = torch.stack([one.log_p for one in each]) - math.log(self.orders)
        return Explanation(of_all.logsumexp(0), _averaged(of_all.softmax(0), [one.p_a for one in each]), each[0].k)

    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor | None]:
        """n samples for each memory; the k-th of every memory is drawn in the same order."""
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
