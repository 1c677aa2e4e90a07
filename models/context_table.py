"""A baseline without a network: every pixel from a table of its neighbours and of the same place in a memory image.

    p(x|M) = 1/M sum_m prod_i p(x_i | the pixels before it near i, the pixels of m near i)

The table counts how often a pixel of the training images was ink after each context.  A context of few counts leans on
the shorter one that it begins with: p_l = (ink + s p_{l-1}) / (count + s), from p_0, the share of ink, on.

`P` pairs of a target and a memory image · `M` images in a memory · `H W` image · `L` lengths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# (row, column) from the pixel, the most telling ones first: "x" before it in the image, "m" in the memory image.
_NEIGHBOURS = (
    ("x", 0, -1), ("x", -1, 0), ("x", -1, 1), ("x", -1, -1), ("m", 0, 0), ("x", 0, -2), ("x", -2, 0), ("m", 0, 1),
    ("m", 1, 0), ("x", -1, 2), ("x", -2, 1), ("x", -2, -1), ("m", 0, -1), ("m", -1, 0), ("m", 1, 1), ("m", 1, -1),
    ("x", -1, -2), ("x", -2, 2), ("x", -2, -2), ("x", 0, -3), ("x", -3, 0), ("m", -1, 1), ("m", -1, -1), ("x", -3, 1),
    ("x", -3, -1), ("x", -1, 3), ("x", -1, -3), ("x", -3, 2), ("x", -3, -2),
)  # fmt: skip
_LENGTHS = (4, 8, 12, 16, 20, 23, 26, 29)  # of contexts, in neighbours
_PRIOR = (
    48.0  # counts that the shorter context is worth, s; best of 2 to 48 on held-out classes with four pairs a target
)
_BORDER = 3


def contexts(x: Tensor, m: Tensor) -> Tensor:
    """The neighbours of every pixel as one number each, the first one its highest bit: [P, H, W] twice -> the same."""
    height, width = x.shape[1:]
    source = {name: F.pad(image, 4 * (_BORDER,)).to(torch.int64) for name, image in (("x", x), ("m", m))}
    number = torch.zeros(x.shape, dtype=torch.int64)
    for name, row, column in _NEIGHBOURS:
        top, left = _BORDER + row, _BORDER + column
        number = 2 * number + source[name][:, top : top + height, left : left + width]
    return number


@dataclass(frozen=True)
class ContextTable:
    """Contexts of every length, sorted, with the probability of ink after each."""

    share: float  # of ink
    keys: Sequence[Tensor]  # L of int64 [n_l]
    ink: Sequence[Tensor]  # L of float64 [n_l]

    @classmethod
    def fit(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> "ContextTable":
        """Count the pixels of targets [P, H, W], each beside a memory image [P, H, W] of its class; 0 or 1."""
        seen = torch.cat([(2 * contexts(x, m) + x.long()).flatten() for x, m in pairs]).sort().values
        share = (seen & 1).double().mean()
        below, before, shorter_length = share.reshape(1), torch.zeros(1, dtype=torch.int64), 0
        keys: list[Tensor] = []
        ink: list[Tensor] = []
        for length in _LENGTHS:
            key, which, count = (seen >> (1 + len(_NEIGHBOURS) - length)).unique_consecutive(
                return_inverse=True, return_counts=True
            )
            inked = torch.zeros(len(key), dtype=torch.float64).index_add_(0, which, (seen & 1).double())
            shorter = torch.searchsorted(before, key >> (length - shorter_length))
            below = (inked + _PRIOR * below[shorter]) / (count + _PRIOR)
            keys.append(key)
            ink.append(below)
            before, shorter_length = key, length
        return cls(float(share), keys, ink)

    def log_prob(self, x: Tensor, m: Tensor) -> Tensor:
        """log p(x|m) in nats of pairs, [P, H, W] twice -> float64 [P].

        Where a context was never seen, the longest seen one that it begins with decides.
        """
        context = contexts(x, m).flatten(1)
        ink = torch.full(context.shape, self.share, dtype=torch.float64)
        for length, keys, probability in zip(_LENGTHS, self.keys, self.ink, strict=True):
            key = context >> (len(_NEIGHBOURS) - length)
            place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
            ink = torch.where(keys[place] == key, probability[place], ink)
        return torch.where(x.flatten(1) > 0, ink, 1 - ink).log().sum(1)
