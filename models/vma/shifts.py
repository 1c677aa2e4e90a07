"""Addresses that also say where: by how many pixels the picked image is moved.

    p(a|M) = p(image|M) p(s)        q(a|M,x) = q(image|M,x) q(s|x,m)        a = (image, s)

Two people rarely draw a character at the same place, and a pixel that copies its own place of the memory image then
copies the wrong one.  A dummy is not moved.

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies ·
`N` images · `R` shifts, (2 r + 1)^2 · `A` addresses, M R and the dummies · `C H W` maps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical


@dataclass(frozen=True)
class Shifts:
    """All shifts by at most `most` pixels down and right; row by row, so that no shift is the middle one."""

    most: int

    def __len__(self) -> int:
        return (2 * self.most + 1) ** 2

    def slot(self, a: Tensor, images: int) -> Tensor:
        """The slots of addresses among `images` images and the dummies."""
        return torch.where(a < images * len(self), a // len(self), a - images * (len(self) - 1))

    def shift(self, a: Tensor, images: int) -> Tensor:
        """The shifts of addresses."""
        return torch.where(a < images * len(self), a % len(self), len(self) // 2)

    def inverse(self, shift: Tensor) -> Tensor:
        """The shifts that undo these."""
        return len(self) - 1 - shift

    def of_slots(self, p: Tensor, images: int) -> Tensor:
        """Probabilities of addresses [..., A] -> of slots [..., S]."""
        moved, dummies = p.split([images * len(self), p.shape[-1] - images * len(self)], -1)
        return torch.cat([moved.unflatten(-1, (images, len(self))).sum(-1), dummies], -1)

    def joint(self, slots: Categorical, log_p: Tensor, images: int) -> Categorical:
        """Of slots (logits [..., S]) and log p(s) [..., M or 1, R] -> of addresses (logits [..., A])."""
        of_images, dummies = slots.logits.split([images, slots.logits.shape[-1] - images], -1)
        return Categorical(logits=torch.cat([(of_images.unsqueeze(-1) + log_p).flatten(-2), dummies], -1))

    def move(self, maps: Tensor, rows: Tensor, shift: Tensor) -> Tensor:
        """Rows [P] of `maps` [N, C, H, W], each moved by its shift [P]: [P, C, H, W], channels last in memory.

        Beyond the border lies what lies at it.
        """
        n, c, h, w = maps.shape
        down, right = shift // (2 * self.most + 1) - self.most, shift % (2 * self.most + 1) - self.most
        row = (torch.arange(h, device=maps.device) - down[:, None]).clamp(0, h - 1)  # [P, H]
        column = (torch.arange(w, device=maps.device) - right[:, None]).clamp(0, w - 1)  # [P, W]
        place = (rows[:, None, None] * h + row[:, :, None]) * w + column[:, None]  # [P, H, W]
        # whose gradient adds up in a fixed order, fast where thousands of rows are short
        return F.embedding(place, maps.permute(0, 2, 3, 1).reshape(n * h * w, c)).permute(0, 3, 1, 2)


class ShiftPrior(nn.Module):
    """p(s), learned."""

    def __init__(self, shifts: Shifts) -> None:
        super().__init__()
        self.shift_logits = nn.Parameter(torch.zeros(len(shifts)))

    def forward(self) -> Tensor:
        """log p(s) [R]."""
        return self.shift_logits.log_softmax(0)


class ShiftPosterior(nn.Module):
    """q(s|x,m): softmax of the correlation of features of x with features of m moved by s."""

    def __init__(self, shifts: Shifts, channels: int = 4) -> None:
        super().__init__()
        self.most = shifts.most
        self.features = nn.Conv2d(1, channels, 5, padding=2, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-1.4))  # a third of a nat for a pixel of ink on ink

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Targets [G, T, H, W] and memories [G, M, H, W] -> log q(s|x,m) [G, T, M, R]."""
        h, w = x.shape[-2:]
        x, memory = (self.features(i.flatten(0, 1).unsqueeze(1)).unflatten(0, i.shape[:2]) for i in (x, memory))
        padded = F.pad(memory, (self.most,) * 4)
        with torch.autocast(x.device.type, enabled=False):  # the products need all their digits
            x, padded = x.flatten(2).to(padded.dtype), padded * self.log_scale.exp()
            # moved down by d: row i holds what was at row i - d
            places = [slice(2 * self.most - i, None) for i in range(2 * self.most + 1)]
            products = [
                x @ padded[..., down, right][..., :h, :w].flatten(2).transpose(1, 2)  # [G, T, M]
                for down in places
                for right in places
            ]
        return torch.stack(products, -1).log_softmax(-1)
