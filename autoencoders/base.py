"""The contract of an architecture: convolutional encoders of images, and a decoder that reads their maps.

`N` images · `P` planes of an image · `n` their side · `D` vector · `R` rows that were picked from the N images ·
`C` parameters of a pixel · `c h w` channels and sides of a map.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Images [N, n, n] -> a vector [N, D] and maps [N, c, h, w] for the decoder, from fine to coarse.

    One for several planes has images [N, P, n, n], of which the first plane is the image itself.
    """

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]: ...


class Decoder(nn.Module, ABC):
    """A code and the maps of one memory image -> the parameters of every pixel."""

    @abstractmethod
    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Projections [N, ...] of the encoder's maps [N, c, h, w] for `forward`, computed once per memory image."""

    @abstractmethod
    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Codes [R, D] and one row of the skips for each, [R, ...] -> [R, C, n, n]."""


class Architecture(Protocol):
    """Builds networks for images of n x n pixels.  Its fields are the keys of its section in the configuration."""

    def address_encoder(self, side: int, outputs: int) -> Encoder:
        """The encoder of embeddings [N, outputs] for addressing; its maps are not used and may be ()."""

    def encoder(self, side: int, outputs: int, planes: int = 1) -> Encoder:
        """The encoder of features, with a vector [N, outputs]."""

    def decoder(self, side: int, inputs: int, channels: int, planes: int = 1) -> Decoder:
        """A decoder of codes [R, inputs] and of maps of such an encoder to `channels` parameters of a pixel."""


def by_planes(images: Tensor) -> Tensor:
    """[N, n, n] or [N, P, n, n] -> [N, P, n, n]"""
    return images.unsqueeze(1) if images.dim() == 3 else images


def halved(side: int) -> int:
    """Side of a map after a 3 x 3 convolution with stride 2 and padding 1."""
    return (side + 1) // 2
