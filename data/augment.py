"""Class-level augmentation: one random linear map for all images of a class in an episode.

A class drawn through one map is a new class, whose images vary as real ones do.  Pixels are fetched from the drawings
at full size, nearest neighbours composed with the resampling, so images stay binary and the identity changes nothing.

`G` memories · `C` classes · `n` images · `H W` image · `S` side of the drawings.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import ClassImages, Resampling


@dataclass(frozen=True)
class Augment:
    """How maps are drawn: left alone with probability `keep`, else flips and quarter turns, then a small change.

    `rotation` U(-r, r) in degrees; `scale` s: two factors, log-uniform in 1 / (1 + s) .. 1 + s, along the axes;
    `shear` U(-h, h).
    """

    keep: float = 0.5
    flips: bool = True
    turns: bool = True
    rotation: float = 15.0
    scale: float = 0.15
    shear: float = 0.15

    def maps(self, number: int, source: torch.Generator) -> Tensor:
        """Random maps [number, 2, 2] from (row, column) in the image to that in the drawing, both from the centre."""
        u = torch.rand(8, number, generator=source, device=source.device)
        angle = (2 * u[0] - 1) * math.radians(self.rotation)
        row_scale, column_scale = ((2 * u[1:3] - 1) * math.log1p(self.scale)).exp()
        shear = (2 * u[3] - 1) * self.shear
        signs = 1 - 2 * (u[4:6] < 0.5) * float(self.flips)
        turned = angle + math.pi / 2 * (4 * u[6]).floor() * float(self.turns)
        # rotation @ flips @ [[row_scale, shear], [0, column_scale]]
        cos, sin = turned.cos(), turned.sin()
        left = torch.stack([cos * signs[0], -sin * signs[1], sin * signs[0], cos * signs[1]], -1).view(-1, 2, 2)
        right = torch.stack([row_scale, shear, torch.zeros_like(shear), column_scale], -1).view(-1, 2, 2)
        identity = torch.eye(2, device=u.device)
        return torch.where((u[7] < self.keep).view(-1, 1, 1), identity, left @ right)


class Warp:
    """Draws images of `drawings` [N, S, S] through linear maps, resampled to `size` as `data.images.resample` does."""

    def __init__(self, drawings: ClassImages, size: int, how: Resampling) -> None:
        if how not in get_args(Resampling):
            raise ValueError(f"unknown resampling {how!r}; one of {', '.join(get_args(Resampling))}")
        images = drawings.images
        self._flat, self._side = images.flatten(1), images.shape[-1]
        self._block = self._side // size if how == "maxpool" else 1  # pixels of the drawing in one of the image
        self._centre = (self._side - 1) / 2
        ramp = torch.arange(float(self._side), device=images.device)
        places = (
            ramp[: self._block * size] if how == "maxpool" else F.interpolate(ramp[None, None], size, mode=how)[0, 0]
        )
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1) - self._centre
        self._grid = grid.flatten(0, 1)  # [size^2 block^2, 2], from the centre of the drawing
        self._size = size

    def __call__(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Images `rows` [...] through `maps` [..., 2, 2]: float32 [..., size, size]; outside of a drawing is paper."""
        row, column = (self._grid @ maps.flatten(0, -3).mT + self._centre).round().long().unbind(-1)  # [n, pixels]
        inside = (row >= 0) & (row < self._side) & (column >= 0) & (column < self._side)
        pixel = torch.where(inside, row * self._side + column, 0)
        found = self._flat.flatten()[pixel + rows.reshape(-1, 1) * self._flat.shape[1]] * inside
        side, block = self._size, self._block
        return found.view(-1, side, block, side, block).amax((2, 4)).view(*rows.shape, side, side).float()
