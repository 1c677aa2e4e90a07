"""Class-level augmentation: one random linear map for all images of a class in an episode.

A class drawn through one map is a new class, whose images vary as real ones do.  Pixels are fetched from the drawings
at full size, nearest neighbours composed with the resampling, so images stay binary and the identity changes nothing.

`G` memories · `C` classes · `n` images · `H W` image · `S` side of the drawings.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import ClassImages, Resampling


@dataclass(frozen=True)
class RandomMaps:
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

    def draw(self, number: int, source: torch.Generator) -> Tensor:
        """Random maps [number, 2, 2] from (row, column) in the image to that in the drawing, both from the centre."""
        u = torch.rand(8, number, generator=source, device=source.device)
        angle = (2 * u[0] - 1) * math.radians(self.rotation)
        row_scale, column_scale = ((2 * u[1:3] - 1) * math.log1p(self.scale)).exp()
        shear = (2 * u[3] - 1) * self.shear
        row_sign, column_sign = torch.where(u[4:6] < 0.5, -1.0, 1.0) if self.flips else torch.ones_like(u[4:6])
        if self.turns:
            angle = angle + math.pi / 2 * (4 * u[6]).floor()
        # rotation @ flips @ [[row_scale, shear], [0, column_scale]]
        cos, sin = angle.cos(), angle.sin()
        left = torch.stack([cos * row_sign, -sin * column_sign, sin * row_sign, cos * column_sign], -1).view(-1, 2, 2)
        right = torch.stack([row_scale, shear, torch.zeros_like(shear), column_scale], -1).view(-1, 2, 2)
        identity = torch.eye(2, device=u.device)
        return torch.where((u[7] < self.keep).view(-1, 1, 1), identity, left @ right)


class Warp:
    """Draws images of `drawings` [N, S, S] through linear maps, resampled to `size` as `data.images.resample` does."""

    def __init__(self, drawings: ClassImages, size: int, how: Resampling) -> None:
        self._drawings, self._size = drawings.images, size
        self._side = side = self._drawings.shape[-1]
        self._centre = (side - 1) / 2
        # a pixel is the maximum over `block` x `block` places in the drawing
        self._block = side // size if how == "maxpool" else 1
        places = torch.arange(float(side), device=self._drawings.device)
        if how == "maxpool":
            places = places[: self._block * size]
        else:
            places = F.interpolate(places[None, None], size, mode=how)[0, 0]
        self._places = torch.cartesian_prod(places, places) - self._centre  # [size^2 block^2, 2], from the centre

    def __call__(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Images `rows` [...] through `maps` [..., 2, 2]: float32 [..., size, size]; outside of a drawing is paper."""
        mapped = self._places @ maps.flatten(0, -3).mT + self._centre  # [n, places, 2]
        row, column = mapped.round().long().unbind(-1)  # [n, places]
        last = self._side - 1
        inside = (row >= 0) & (row <= last) & (column >= 0) & (column <= last)
        ink = self._drawings[rows.reshape(-1, 1), row.clamp(0, last), column.clamp(0, last)] * inside  # [n, places]
        blocks = ink.view(-1, self._size, self._block, self._size, self._block)
        return blocks.amax((2, 4)).view(*rows.shape, self._size, self._size).float()


@dataclass(frozen=True)
class Augmentation:
    """How the maps of classes are drawn, and the drawings that are seen through them."""

    maps: RandomMaps
    warp: Warp
