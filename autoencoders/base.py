"""The contract of an architecture: convolutional encoders of images, and a decoder that reads their maps.

`N` images · `n` their side · `D` vector · `R` rows that were picked from the N images · `C` parameters of a pixel ·
`c h w` channels and sides of a map.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Images [N, n, n] -> a vector [N, D] and maps [N, c, h, w] for the decoder, from fine to coarse."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]: ...


class Decoder(nn.Module, ABC):
    """A code and the maps of one memory image -> the parameters of every pixel."""

    @abstractmethod
    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What `forward` needs of the encoder's maps [N, c, h, w], again [N, ...]: computed once per memory image."""

    @abstractmethod
    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Codes [R, D] and one row of the skips for each, [R, ...] -> [R, C, n, n]."""


class Architecture(Protocol):
    """Builds networks for images of a side of n pixels.  The values of its own configuration are its fields."""

    def address_encoder(self, side: int, outputs: int) -> Encoder:
        """The encoder that addresses the memory: only its vector [N, outputs] is used, its maps may be ()."""

    def encoder(self, side: int, outputs: int) -> Encoder:
        """The encoder of features, with a vector [N, outputs]."""

    def decoder(self, side: int, inputs: int, channels: int) -> Decoder:
        """A decoder of codes [R, inputs] to `channels` parameters of a pixel."""
