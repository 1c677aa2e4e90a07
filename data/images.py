"""Images grouped by class: the one form in which every data set reaches the rest.

`N` images · `C` classes · `H W` image.  Images are uint8, ink = 1 and paper = 0.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.randomness import seed_of

Subset = Literal["train", "test"]
Resampling = Literal["nearest-exact", "nearest", "maxpool"]


@dataclass(frozen=True)
class ClassImages:
    """`images` uint8 [N, H, W], sorted by class; class c has `counts[c]` of them, and `names[c]` says which it is.

    Raises ValueError when the three do not fit together; pixel values are the reader's promise and are not scanned.
    """

    images: Tensor
    counts: Tensor  # [C] int64, on the CPU
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        images, counts = self.images, self.counts
        if images.dtype != torch.uint8 or images.dim() != 3:
            raise ValueError(f"images must be uint8 [N, H, W], not {images.dtype} {list(images.shape)}")
        if counts.dtype != torch.int64 or counts.dim() != 1 or counts.device.type != "cpu":
            found = f"{counts.dtype} {list(counts.shape)} on {counts.device}"
            raise ValueError(f"counts must be int64 [C] on the CPU, not {found}")
        if len(counts) and int(counts.min()) < 1:
            raise ValueError(f"every class needs an image; the smallest count is {int(counts.min())}")
        if int(counts.sum()) != len(images):
            raise ValueError(f"the counts add up to {int(counts.sum())}, but there are {len(images)} images")
        if len(self.names) != len(counts):
            raise ValueError(f"{len(self.names)} names for {len(counts)} classes")

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    @property
    def offsets(self) -> Tensor:
        """[C] int64 on the CPU: class c is `images[offsets[c] : offsets[c] + counts[c]]`."""
        return self.counts.cumsum(0) - self.counts

    def to(self, device: torch.device | str) -> "ClassImages":
        """The same with the images on `device`; the counts stay on the CPU."""
        return replace(self, images=self.images.to(device))

    def select(self, class_indices: Sequence[int]) -> "ClassImages":
        """The classes with these indices, in the order given.  Raises IndexError for a class that is not there."""
        chosen = torch.tensor(list(class_indices), dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.num_classes:
            raise IndexError(f"class indices must be in 0..{self.num_classes - 1}, not {class_indices}")
        counts = self.counts[chosen]
        # image j of the result is image j - (its class's start there) of the class here
        shift = (self.offsets[chosen] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        rows = torch.arange(int(counts.sum())) + shift
        return ClassImages(self.images[rows.to(self.images.device)], counts, tuple(self.names[int(c)] for c in chosen))

    def digest(self) -> str:
        """SHA-256 in hexadecimal over shape, counts and pixels (not the names): equal exactly when the data are."""
        sha = hashlib.sha256(repr((list(self.images.shape), self.counts.tolist())).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        return sha.hexdigest()


def resample(images: ClassImages, size: int, how: Resampling) -> ClassImages:
    """The images at `size` x `size`, still binary.

    nearest-exact  the pixel under the centre of each target pixel; equals PIL's NEAREST.
    nearest        the pixel under its upper left corner, floor(side / size * j).
    maxpool        ink wherever a block has ink.  Blocks have side // size pixels and begin at the upper left; what the
                   last block does not reach is cut off, as in the published 26 x 26 form (4 x 4 blocks over rows and
                   columns 0..103 of 105).  A size that would lose more than a tenth of the side this way raises
                   ValueError, and so does an enlargement.
    """
    if how not in get_args(Resampling):
        raise ValueError(f"unknown resampling {how!r}; one of {', '.join(get_args(Resampling))}")
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if how == "maxpool":
        return replace(images, images=_maxpool(images.images, size))
    if not len(images.images):  # interpolate refuses an empty batch
        return replace(images, images=images.images.new_empty(0, size, size))
    return replace(images, images=F.interpolate(images.images[:, None], (size, size), mode=how)[:, 0])


def _maxpool(images: Tensor, size: int) -> Tensor:
    """[N, H, W] -> [N, size, size]."""
    side = min(images.shape[1:])
    if not _pools(side, size):
        fitting = sorted((s for s in range(1, side + 1) if _pools(side, s)), key=lambda s: abs(s - size))[:4]
        raise ValueError(f"maxpool from {side} to {size} would lose over a tenth; use one of {sorted(fitting)}")
    block = side // size
    kept = images[:, : block * size, : block * size]
    return kept.unflatten(2, (size, block)).amax(3).unflatten(1, (size, block)).amax(2)


def _pools(side: int, size: int) -> bool:
    """Whether blocks of side // size pixels cover at least nine tenths of the side."""
    return 10 * (side // size) * size >= 9 * side


def hold_out(images: ClassImages, number: int, seed: int) -> tuple[ClassImages, ClassImages]:
    """(training classes, `number` held-out classes), chosen by the seed, each in the order they had.

    At least one class must be left for training, else ValueError.  `number` 0 gives the images and no classes.
    """
    if not 0 <= number < max(images.num_classes, 1):
        raise ValueError(f"cannot hold out {number} of {images.num_classes} classes")
    if number == 0:
        return images, images.select([])
    generator = torch.Generator().manual_seed(seed_of("hold_out", seed))
    order = torch.randperm(images.num_classes, generator=generator).tolist()
    return images.select(sorted(order[number:])), images.select(sorted(order[:number]))
