"""Randomness with an address: every random number is a function of a key, so no random state is ever stored.

`K` importance samples, `G` memories, `T` targets that share one memory.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
class Shard:
    """Which slice of a global batch one process computes."""

    rank: int = 0
    world: int = 1

    def of(self, values: Tensor, dim: int) -> Tensor:
        """The `rank`-th of `world` equal parts of `values` along `dim`."""
        return values.chunk(self.world, dim)[self.rank]


class StepNoise:
    """Noise of one training or validation step, a function of its key and of the place in the global batch."""

    def __init__(self, device: torch.device | str, *key: int | str, shard: Shard = Shard()) -> None:
        self._generator = generator(device, *key)
        self._shard = shard

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) of the local shape [K, G, ...]; successive calls give fresh ones, whatever their names."""
        whole = torch.rand(self._whole(shape), generator=self._generator, device=self._generator.device)
        return self._shard.of(whole, 1)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers of the local shape [K, G, ...]; successive calls give fresh ones."""
        whole = torch.randn(self._whole(shape), generator=self._generator, device=self._generator.device)
        return self._shard.of(whole, 1)

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], shape[1] * self._shard.world, *shape[2:])


class TargetNoise:
    """Noise of samples `first .. first + K - 1` of each of G targets [G] with a memory of their own (T = 1).

    A number is a function of (key, name, target, sample, place in the sample), computed on the device of `targets`, so
    that neither the batch a target stands in nor the chunks of K nor the device change it; asked again, it is the same.
    """

    _STREAMS: ClassVar = {"address": "uniform", "z": "normal"}  # of the numbers that the stored results were made with

    def __init__(self, *key: int | str, targets: Tensor, first: int = 0) -> None:
        self._key, self._targets, self._first = key, targets, first

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Numbers in [0, 1), shape [K, G, 1, ...]."""
        return (self._words(name, shape) >> 8).float() * 2.0**-24

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers, shape [K, G, 1, ...], by the transform of Box and Muller (1958)."""
        even = (*shape[:-1], shape[-1] + shape[-1] % 2) if len(shape) > 3 else (*shape, 2)
        radius, angle = (
            ((self._words(name, even).double() + 0.5) * 2.0**-32).unflatten(-1, (even[-1] // 2, 2)).unbind(-1)
        )
        radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)
        return both[..., : shape[-1]].float() if len(shape) > 3 else both[..., 0].float()

    def _words(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Random numbers of 32 bits, int64 of `shape` [K, G, 1, ...]."""
        k, _, _, *rest = shape
        width, device = math.prod(rest), self._targets.device
        sample = torch.arange(self._first, self._first + k, device=device).view(-1, 1, 1)
        place = torch.arange(-(-width // 4), device=device)
        seed = seed_of(*self._key, self._STREAMS.get(name, name))
        words = philox(seed, (place, sample, self._targets.view(-1, 1), torch.zeros_like(place)))
        return torch.stack(words, -1).flatten(-2)[..., :width].reshape(shape)


def philox(key: int, counter: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        key: 64 bits.
        counter: four int64 tensors of 32-bit numbers that can be broadcast.

    Returns:
        Four int64 tensors of 32-bit numbers, each a random function of key and counter.
    """
    a, b, c, d = torch.broadcast_tensors(*counter)
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(10):
        (a_high, a_low), (c_high, c_low) = _product(0xD2511F53, a), _product(0xCD9E8D57, c)
        a, b, c, d = c_high ^ b ^ k0, c_low, a_high ^ d ^ k1, a_low
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return a, b, c, d


_LOW = 0xFFFFFFFF


def _product(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of a product of two 32-bit numbers, which int64 cannot hold whole."""
    upper, lower = (x >> 16) * factor, (x & 0xFFFF) * factor
    return (upper + (lower >> 16)) >> 16, ((upper << 16) + lower) & _LOW
