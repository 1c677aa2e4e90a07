"""Convolutional encoder and decoder of the published model; every size follows from the side of the image.

`N` images · `P` planes of an image · `R` codes · `C` parameters of a pixel · `n` side of the image, `n1 n2 n3` after
halving it (upwards) once, twice, three times: 26 -> 13, 7, 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders import base
from autoencoders.base import by_planes, halved


@dataclass(frozen=True)
class Published:
    """The architecture; both of its encoders are alike."""

    channels: tuple[int, int] = (48, 64)  # maps at the two finer scales and at the coarser ones
    hidden: tuple[int, int] = (100, 256)  # dense layers of the encoder and of the decoder

    def encoder(self, side: int, outputs: int, planes: int = 1) -> "Encoder":
        return Encoder(side, self.channels, self.hidden[0], outputs, planes)

    address_encoder = encoder

    def decoder(self, side: int, inputs: int, channels: int, planes: int = 1) -> "Decoder":
        return Decoder(side, self.channels, self.hidden[1], inputs, channels)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU(inplace=True))


def upsample(channels: int, side: int) -> nn.Sequential:
    """Transposed convolution with stride 2 that ends at `side`, whether odd or even."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=(side + 1) % 2),
        nn.ReLU(inplace=True),
    )


class Encoder(base.Encoder):
    """Images [N, n, n] or [N, P, n, n] -> vector [N, outputs] and maps ([N, fine, n1, n1], [N, coarse, n2, n2])."""

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, outputs: int, planes: int = 1) -> None:
        super().__init__()
        fine, coarse = channels
        last = halved(halved(halved(side)))
        self.fine = nn.Sequential(conv(planes, fine), conv(fine, fine, stride=2), conv(fine, fine))
        self.coarse = nn.Sequential(conv(fine, coarse, stride=2), conv(coarse, coarse))
        self.vector = nn.Sequential(
            conv(coarse, coarse, stride=2),
            nn.Flatten(),
            nn.Linear(coarse * last**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        fine = self.fine(by_planes(images))  # [N, fine, n1, n1]
        coarse = self.coarse(fine)  # [N, coarse, n2, n2]
        return self.vector(coarse), (fine, coarse)


class SkipConv(nn.ConvTranspose2d):
    """Convolution of the concatenation [state, map], as the sum of a convolution of each.

    The convolution of the map depends only on the memory image, so it is computed once per image, however often picked.
    """

    def __init__(self, state: int, skip: int, outputs: int) -> None:
        super().__init__(state + skip, outputs, 3, padding=1)
        self.state = state

    def project_skip(self, maps: Tensor) -> Tensor:
        return F.conv_transpose2d(maps, self.weight[self.state :], self.bias, padding=1)

    def forward(self, state: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(state, self.weight[: self.state], padding=1) + skip


class Decoder(base.Decoder):
    """Codes [R, inputs] and the skips of one memory image each -> parameters [R, C, n, n]."""

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, inputs: int, outputs: int = 1) -> None:
        super().__init__()
        fine, coarse = channels
        n1, n2 = halved(side), halved(halved(side))
        n3 = halved(n2)
        self.expand = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, coarse * n3**2), nn.Unflatten(1, (coarse, n3, n3))
        )
        self.to_coarse = upsample(coarse, n2)
        self.with_coarse = SkipConv(coarse, coarse, coarse)
        self.to_fine = upsample(coarse, n1)
        self.with_fine = SkipConv(coarse, fine, fine)
        full = 2 * n1 - 1
        self.to_image = nn.Sequential(
            upsample(fine, full),
            nn.ConvTranspose2d(fine, fine, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(fine, outputs, side - full + 1),
        )

    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """([N, fine, n1, n1], [N, coarse, n2, n2])"""
        fine, coarse = maps
        return self.with_fine.project_skip(fine), self.with_coarse.project_skip(coarse)

    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> Tensor:
        fine, coarse = skips
        h = self.to_coarse(self.expand(code))  # [R, coarse, n2, n2]
        h = self.to_fine(self.with_coarse(h, coarse).relu_())  # [R, coarse, n1, n1]
        h = self.with_fine(h, fine).relu_()  # [R, fine, n1, n1]
        return self.to_image(h)  # [R, C, n, n]
