"""Randomness with an address: every random number is a function of a key, so no random state is ever stored.

`K` importance samples, `G` memories, `T` targets that share one memory.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on `device` that stands at the beginning of the stream named by `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))


@dataclass(frozen=True)
class Slice:
    """The part of a global batch that belongs to one process."""

    rank: int = 0
    world: int = 1

    def of(self, values: Tensor, dim: int) -> Tensor:
        """The `rank`-th of `world` equal parts of `values` along `dim`."""
        return values.chunk(self.world, dim)[self.rank]


class StepNoise:
    """Noise of one training or validation step, a function of its key and of the place in the global batch."""

    def __init__(self, device: torch.device | str, *key: int | str, part: Slice = Slice()) -> None:
        self._generator = generator(device, *key)
        self._part = part

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) of the local shape [K, G, ...]; successive calls give fresh ones."""
        whole = torch.rand(self._whole(shape), generator=self._generator, device=self._generator.device)
        return self._part.of(whole, 1)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of the local shape [K, G, ...]; successive calls give fresh ones."""
        whole = torch.randn(self._whole(shape), generator=self._generator, device=self._generator.device)
        return self._part.of(whole, 1)

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], shape[1] * self._part.world, *shape[2:])


class TargetNoise:
    """Noise of samples `first .. first + K - 1` of each of G targets with a memory of their own (T = 1).

    Samples come in blocks of `BLOCK`; a block is a function of (key, target, block), so that neither the batch a
    target stands in nor the chunks of K change its numbers; asked again, it gives the same ones.  `first` must be a
    multiple of `BLOCK`.
    """

    BLOCK = 50

    def __init__(self, device: torch.device | str, *key: int | str, targets: Sequence[int], first: int) -> None:
        if first % self.BLOCK:
            raise ValueError(f"first sample {first} is not a multiple of {self.BLOCK}")
        self._device, self._key, self._targets, self._first = device, key, targets, first

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), shape [K, G, 1, ...]."""
        return self._draw(torch.rand, "uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, shape [K, G, 1, ...]."""
        return self._draw(torch.randn, "normal", shape)

    def _draw(self, draw, kind: str, shape: tuple[int, ...]) -> Tensor:  # type: ignore[no-untyped-def]
        k, _, *rest = shape
        blocks = range(self._first // self.BLOCK, -(-(self._first + k) // self.BLOCK))
        columns = []
        for target in self._targets:
            streams = (generator(self._device, *self._key, kind, target, block) for block in blocks)
            parts = [draw(self.BLOCK, *rest, generator=stream, device=self._device) for stream in streams]
            columns.append(torch.cat(parts)[:k])
        return torch.stack(columns, 1)
