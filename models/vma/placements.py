"""Addresses that also say where and how large: by how many pixels the picked image is moved, and how it is stretched.

    p(a|M) = p(image|M) p(s)        q(a|M,x) = q(image|M,x) q(s|x,m)        a = (image, s)

Two people rarely draw a character at the same place, or equally large, and a pixel that copies its own place of the
memory image then copies the wrong one.  A dummy stays as it is.

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies ·
`N` images · `R` placements s, a stretch and a shift each · `A` addresses, M R and the dummies · `C H W` maps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

_SCALE, _OTHER_IMAGE = 2, 5  # as far as so many pixels


@dataclass(frozen=True)
class Placements:
    """All stretches by two of `scales`, of height and width, each with all shifts by up to `max_shift` pixels."""

    max_shift: int = 0
    scales: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return self.stretches * self.shifts

    @property
    def shifts(self) -> int:
        return (2 * self.max_shift + 1) ** 2

    @property
    def stretches(self) -> int:
        return len(self.scales) ** 2

    @property
    def identity(self) -> int:
        """The placement that leaves an image as it is."""
        one = self.scales.index(1)
        return (one * len(self.scales) + one) * self.shifts + self.shifts // 2

    def slot(self, a: Tensor, images: int) -> Tensor:
        """The slots of addresses among `images` images and the dummies."""
        return torch.where(a < images * len(self), a // len(self), a - images * (len(self) - 1))

    def placement(self, a: Tensor, images: int) -> Tensor:
        """The placements of addresses."""
        return torch.where(a < images * len(self), a % len(self), self.identity)

    def distances(self, a: Tensor, addresses: int, images: int) -> Tensor:
        """Of each of so many addresses to a [E, G, T]: the pixels and the scales between them, [G, T, addresses, E].

        Another image is `_OTHER_IMAGE` away.
        """

        def where(a: Tensor) -> Tensor:
            tall, wide, down, right = self._steps(self.placement(a, images))
            return torch.stack([tall * _SCALE, wide * _SCALE, down, right], -1).float()

        every, a = torch.arange(addresses, device=a.device), a.movedim(0, -1)
        other = self.slot(every, images)[:, None] != self.slot(a, images)[..., None, :]
        return torch.cdist(where(every), where(a), p=1) + other * _OTHER_IMAGE

    def of_slots(self, p: Tensor, images: int) -> Tensor:
        """Probabilities of addresses [..., A] -> of slots [..., S]."""
        placed, dummies = p.split([images * len(self), p.shape[-1] - images * len(self)], -1)
        return torch.cat([placed.unflatten(-1, (images, len(self))).sum(-1), dummies], -1)

    def joint(self, slots: Categorical, log_p: Tensor, images: int) -> Categorical:
        """Of slots (logits [..., S]) and log p(s) [..., M or 1, R] -> of addresses (logits [..., A])."""
        of_images, dummies = slots.logits.split([images, slots.logits.shape[-1] - images], -1)
        return Categorical(logits=torch.cat([(of_images.unsqueeze(-1) + log_p).flatten(-2), dummies], -1))

    def place(self, maps: Tensor, rows: Tensor, placement: Tensor, back: bool = False) -> Tensor:
        """Rows [P] of `maps` [N, C, H, W], each stretched about its centre and then moved, as its placement [P] says.

        With `back` the other way round, which undoes it but for what left the image and for rounding.  Pixels are those
        nearest; beyond the border lies what lies at it.  Returns [P, C, H, W], channels last in memory.
        """
        n, c, h, w = maps.shape
        tall, wide, down, right = self._steps(placement)
        row, column = self._sources(h, tall, down, back), self._sources(w, wide, right, back)  # [P, H], [P, W]
        place = (rows[:, None, None] * h + row[:, :, None]) * w + column[:, None]  # [P, H, W]
        # whose gradient adds up in a fixed order, fast where thousands of rows are short
        return F.embedding(place, maps.permute(0, 2, 3, 1).reshape(n * h * w, c)).permute(0, 3, 1, 2)

    def _steps(self, placement: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The numbers of the scales of height and width, and of the shifts down and right."""
        stretch, shift = placement // self.shifts, placement % self.shifts
        n, across = len(self.scales), 2 * self.max_shift + 1
        return stretch // n, stretch % n, shift // across, shift % across

    def _sources(self, size: int, scale: Tensor, shift: Tensor, back: bool) -> Tensor:
        """Along one axis: for each of `size` pixels the one that comes there, [P, size]."""
        i, centre = torch.arange(size, device=scale.device), (size - 1) / 2
        scales = torch.tensor(self.scales, device=scale.device, dtype=torch.float64)[scale, None]  # [P, 1]
        by = shift[:, None] - self.max_shift
        source = (i - centre) * scales + centre + by if back else (i - by - centre) / scales + centre
        return source.round().long().clamp(0, size - 1)

    def stretched(self, images: Tensor) -> Tensor:
        """Images [G, M, H, W] with each stretch, not moved: [G, M, stretches, H, W]."""
        each = torch.arange(self.stretches, device=images.device)
        flat = images.flatten(0, 1).unsqueeze(1)
        rows = torch.arange(len(flat), device=images.device).repeat_interleave(self.stretches)
        placed = self.place(flat, rows, (each * self.shifts + self.shifts // 2).repeat(len(flat)))
        return placed.view(*images.shape[:2], self.stretches, *images.shape[2:])


class PlacementPrior(nn.Module):
    """p(s), learned: that of the shift times that of the stretch."""

    def __init__(self, placements: Placements) -> None:
        super().__init__()
        self.shift_logits = nn.Parameter(torch.zeros(placements.shifts))
        self.stretch_logits = nn.Parameter(torch.zeros(placements.stretches)) if placements.stretches > 1 else None

    def forward(self) -> Tensor:
        """log p(s) [R]."""
        shift = self.shift_logits.log_softmax(0)
        if self.stretch_logits is None:
            return shift
        return (self.stretch_logits.log_softmax(0)[:, None] + shift).flatten()


class PlacementPosterior(nn.Module):
    """q(s|x,m): softmax of the correlation of features of x with features of m, placed by s, less their energy.

    f(x)·f(m) - e/2 |f(m)|² is a squared distance where e = 1; e is learned.  Shifts do not change the energy.
    """

    def __init__(self, placements: Placements, channels: int = 4) -> None:
        super().__init__()
        self.placements = placements
        self.features = nn.Conv2d(1, channels, 5, padding=2, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-1.4))  # a third of a nat for a pixel of ink on ink
        self.energy = nn.Parameter(torch.tensor(1.0)) if placements.stretches > 1 else None

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Targets [G, T, H, W] and memories [G, M, H, W] -> log q(s|x,m) [G, T, M, R]."""
        return self.of(x, self.features_of(memory))

    def features_of(self, memory: Tensor) -> Tensor:
        """Scaled features of memories [G, M, H, W] with each stretch: [G, M, stretches, C H W]."""
        features = self._features(self.placements.stretched(memory).flatten(1, 2)).flatten(2) * self.log_scale.exp()
        return features.unflatten(1, (memory.shape[1], self.placements.stretches))

    def of(self, x: Tensor, m: Tensor) -> Tensor:
        """As the call, from the features of the memories."""
        x = self._moved(self._features(x))  # [G, shifts, T, C H W]
        with torch.autocast(x.device.type, enabled=False):  # the products need all their digits
            flat = m.flatten(1, 2)
            products = (x.flatten(1, 2) @ flat.transpose(1, 2)).unflatten(1, x.shape[1:3])
            if self.energy is not None:
                products = products - self.energy / 2 * (flat.square().sum(2) / self.log_scale.exp())[:, None, None]
        by_image = products.unflatten(3, m.shape[1:3])  # [G, shifts, T, M, stretches]
        return by_image.permute(0, 2, 3, 4, 1).flatten(3).log_softmax(-1)

    def _features(self, images: Tensor) -> Tensor:
        """[G, n, H, W] -> [G, n, C, H, W]"""
        features = self.features(images.flatten(0, 1).unsqueeze(1)).to(images.dtype)  # under bf16, too
        return features.unflatten(0, images.shape[:2])

    def _moved(self, x: Tensor) -> Tensor:
        """Features x [G, T, C, H, W], moved by minus each shift: [G, shifts, T, C H W].

        x · (m moved by d) = (x moved by -d) · m, and there are fewer targets than images with all their stretches.
        """
        (h, w), most = x.shape[-2:], self.placements.max_shift
        padded = F.pad(x, (most,) * 4)
        by = range(2 * most + 1)
        return torch.stack([padded[..., i : i + h, j : j + w].flatten(2) for i in by for j in by], 1)
