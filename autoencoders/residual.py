"""Convolutional encoder and decoder of residual blocks, for a short training on a few cores.

Images enter by blocks of 2 x 2 pixels and leave the same way, so that nearly all work is done at half and quarter
resolution.

`N` images · `P` planes of an image · `R` codes · `C` parameters of a pixel · `n` side of the image, `n1 n2` after
halving it (upwards) once, twice: 26 -> 13, 7 · `full half quarter` channels at sides 2 n1, n1, n2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders import base
from autoencoders.base import by_planes, halved


@dataclass(frozen=True)
class Residual:
    """The architecture.  The encoder that addresses is a smaller one, since an address carries a few bits."""

    channels: tuple[int, int, int] = (12, 32, 64)  # full, half, quarter
    blocks: tuple[int, int] = (2, 2)  # of the decoder at half and quarter resolution
    encoder_blocks: tuple[int, int] = (1, 1)
    address_channels: tuple[int, int] = (16, 32)  # half, quarter

    def address_encoder(self, side: int, outputs: int) -> "Encoder":
        return Encoder(side, self.address_channels, (0, 1), outputs)

    def encoder(self, side: int, outputs: int, planes: int = 1) -> "Encoder":
        return Encoder(side, self.channels[1:], self.encoder_blocks, outputs, planes)

    def decoder(self, side: int, inputs: int, channels: int, planes: int = 1) -> "Decoder":
        return Decoder(side, self.channels, self.blocks, inputs, channels, planes)


class Block(nn.Module):
    """x + f(x), where f has two 3 x 3 convolutions (He et al. 2016, "Identity mappings in deep residual networks")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu_())


def stack(number: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels) for _ in range(number)))


class Encoder(base.Encoder):
    """Images [N, P, n, n] -> a vector [N, outputs] and maps.

    These are [N, P, 2 n1, 2 n1], [N, half, n1, n1] and [N, quarter, n2, n2].
    The first map is the image itself; where its side is odd, a row and a column of paper make it even.
    """

    def __init__(
        self, side: int, channels: tuple[int, int], blocks: tuple[int, int], outputs: int, planes: int = 1
    ) -> None:
        super().__init__()
        half, quarter = channels
        self.border = side % 2
        self.to_half = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * planes, half, 3, padding=1), stack(blocks[0], half)
        )
        self.to_quarter = nn.Sequential(
            nn.ReLU(), nn.Conv2d(half, quarter, 3, stride=2, padding=1), stack(blocks[1], quarter)
        )
        self.vector = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(quarter * halved(halved(side)) ** 2, outputs))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        image = F.pad(by_planes(images), (0, self.border, 0, self.border))  # [N, P, 2 n1, 2 n1]
        half = self.to_half(image)  # [N, half, n1, n1]
        quarter = self.to_quarter(half)  # [N, quarter, n2, n2]
        return self.vector(quarter), (image, half, quarter)


class Decoder(base.Decoder):
    """Codes [R, inputs] and the skips of one memory image each -> parameters [R, C, n, n].

    The maps of an encoder with the same channels are projected and added: what depends on the memory image alone is
    computed once for it, however often it is picked.
    """

    def __init__(
        self,
        side: int,
        channels: tuple[int, int, int],
        blocks: tuple[int, int],
        inputs: int,
        outputs: int = 1,
        planes: int = 1,
    ) -> None:
        super().__init__()
        full, half, quarter = channels
        self.side, self.side_half = side, halved(side)
        side_quarter = halved(self.side_half)
        self.skips = nn.ModuleList(
            [nn.Conv2d(planes, full, 5, padding=2), nn.Conv2d(half, half, 1), nn.Conv2d(quarter, quarter, 1)]
        )
        self.expand = nn.Sequential(
            nn.Linear(inputs, quarter * side_quarter**2), nn.Unflatten(1, (quarter, side_quarter, side_quarter))
        )
        self.blocks_quarter = stack(blocks[1], quarter)
        self.to_half = nn.Sequential(nn.ReLU(), nn.Conv2d(quarter, 4 * half, 1), nn.PixelShuffle(2))
        self.blocks_half = stack(blocks[0], half)
        self.to_full = nn.Sequential(nn.ReLU(), nn.Conv2d(half, 4 * full, 3, padding=1), nn.PixelShuffle(2))
        self.to_image = nn.Sequential(nn.ReLU(), nn.Conv2d(full, outputs, 3, padding=1))

    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """([N, full, 2 n1, 2 n1], [N, half, n1, n1], [N, quarter, n2, n2])"""
        return tuple(project(of) for project, of in zip(self.skips, maps, strict=True))

    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        full, half, quarter = skips
        h = self.blocks_quarter(self.expand(code) + quarter)  # [R, quarter, n2, n2]
        h = self.to_half(h)[..., : self.side_half, : self.side_half]  # [R, half, n1, n1]
        h = self.blocks_half(h + half)
        h = self.to_full(h)  # [R, full, 2 n1, 2 n1]
        return self.to_image(h + full)[..., : self.side, : self.side]  # [R, C, n, n]
