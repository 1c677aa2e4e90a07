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

    def gather(self, rows: Tensor) -> "Features":
        """The features of `rows` [R] of the N images, gathered."""
        return Features(self.vector.index_select(0, rows), tuple(gather_maps(m, rows) for m in self.maps))


def gather_maps(maps: Tensor, rows: Tensor) -> Tensor:
    """Rows of `maps` [N, C, h, w] -> [R, C, h, w], channels last in memory, as convolutions like it best."""
    n, c, h, w = maps.shape
    flat = maps.permute(0, 2, 3, 1).reshape(n, h * w * c)
    return flat.index_select(0, rows).view(-1, h, w, c).permute(0, 3, 1, 2)
