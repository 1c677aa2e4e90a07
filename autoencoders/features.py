"""What an encoder makes of an image: a vector for the heads and maps for the decoder's skip connections.

`N` images or the rows that were picked from them · `D` vector · `C h w` a map's channels and sides.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """`vector` [N, D]; each of `maps` [N, C, h, w], from fine to coarse."""

    vector: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class FeaturesAt:
    """The features of `rows` [K, ...] of the N images, and the `placement` [K, ...] that each is to be given, if any.

    The vectors are gathered at once, the much larger maps only of the rows that are about to be decoded.
    """

    table: Features
    rows: Tensor
    placement: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """[K, ..., D]"""
        return self.table.vector.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """Each [R, C, h, w], where R is the number of rows."""
        return tuple(gather_maps(maps, self.rows.flatten()) for maps in self.table.maps)

    def take(self, k: Tensor) -> "FeaturesAt":
        """Those of sample k [1, ...] of the K."""
        placement = None if self.placement is None else self.placement.gather(0, k)
        return FeaturesAt(self.table, self.rows.gather(0, k), placement)

    def split(self, size: int) -> list["FeaturesAt"]:
        """Those of `size` of the K at a time."""
        rows = self.rows.split(size)
        placements = [None] * len(rows) if self.placement is None else self.placement.split(size)
        return [FeaturesAt(self.table, *part) for part in zip(rows, placements, strict=True)]


def gather_maps(maps: Tensor, rows: Tensor) -> Tensor:
    """Rows [R] of `maps` [N, C, h, w] -> [R, C, h, w], channels last in memory, which is fastest for convolutions."""
    n, c, h, w = maps.shape
    flat = maps.permute(0, 2, 3, 1).reshape(n, h * w * c)
    return flat.index_select(0, rows).view(-1, h, w, c).permute(0, 3, 1, 2)
