"""Convolutional encoder and decoder of the published model; every size follows from the side of the image.

`N` images · `n` side of the image, `n1 n2 n3` after halving it (upwards) once, twice, three times: 26 -> 13, 7, 4.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def halved(side: int) -> int:
    """Side of a map after a 3 x 3 convolution with stride 2 and padding 1."""
    return (side + 1) // 2


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU(inplace=True))


def double(channels: int, side: int) -> nn.Sequential:
    """Transposed convolution with stride 2 that ends at `side`, whether odd or even."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=(side + 1) % 2),
        nn.ReLU(inplace=True),
    )


class Encoder(nn.Module):
    """Images [N, n, n] -> vector [N, outputs] and maps ([N, fine, n1, n1], [N, coarse, n2, n2])."""

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, outputs: int) -> None:
        super().__init__()
        fine, coarse = channels
        last = halved(halved(halved(side)))
        self.fine = nn.Sequential(conv(1, fine), conv(fine, fine, stride=2), conv(fine, fine))
        self.coarse = nn.Sequential(conv(fine, coarse, stride=2), conv(coarse, coarse))
        self.vector = nn.Sequential(
            conv(coarse, coarse, stride=2),
            nn.Flatten(),
            nn.Linear(coarse * last**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        fine = self.fine(images.unsqueeze(1))  # [N, fine, n1, n1]
        coarse = self.coarse(fine)  # [N, coarse, n2, n2]
        return self.vector(coarse), (fine, coarse)


class SkipConv(nn.ConvTranspose2d):
    """Convolution of the concatenation [state, skip], as the sum of a part on each.

    The part on the skip depends on the memory image alone, so it is computed once per image however often it is picked.
    """

    def __init__(self, state: int, skip: int, outputs: int) -> None:
        super().__init__(state + skip, outputs, 3, padding=1)
        self.state = state

    def project_skip(self, skip: Tensor) -> Tensor:
        return F.conv_transpose2d(skip, self.weight[self.state :], self.bias, padding=1)

    def forward(self, state: Tensor, skip_part: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(state, self.weight[: self.state], padding=1) + skip_part


class Decoder(nn.Module):
    """A code [N, inputs] and the skip parts of one memory image each -> likelihood parameters [N, n, n]."""

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, inputs: int) -> None:
        super().__init__()
        fine, coarse = channels
        n1, n2 = halved(side), halved(halved(side))
        n3 = halved(n2)
        self.expand = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, coarse * n3**2), nn.Unflatten(1, (coarse, n3, n3))
        )
        self.to_coarse = double(coarse, n2)
        self.with_coarse = SkipConv(coarse, coarse, coarse)
        self.to_fine = double(coarse, n1)
        self.with_fine = SkipConv(coarse, fine, fine)
        full = 2 * n1 - 1
        self.to_image = nn.Sequential(
            double(fine, full),
            nn.ConvTranspose2d(fine, fine, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(fine, 1, side - full + 1),
        )

    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the decoder needs of an encoded memory image: ([N, fine, n1, n1], [N, coarse, n2, n2])."""
        fine, coarse = maps
        return self.with_fine.project_skip(fine), self.with_coarse.project_skip(coarse)

    def forward(self, code: Tensor, precompute_skips: Sequence[Tensor]) -> Tensor:
        fine, coarse = precompute_skips
        h = self.to_coarse(self.expand(code))  # [N, coarse, n2, n2]
        h = self.to_fine(self.with_coarse(h, coarse).relu_())  # [N, coarse, n1, n1]
        h = self.with_fine(h, fine).relu_()  # [N, fine, n1, n1]
        return self.to_image(h).squeeze(1)  # [N, n, n]
