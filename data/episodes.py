"""Episodes: targets, and the memories they are to be explained with, drawn by vectorised tensor code.

`G` memories · `T` targets that share one memory · `M` images in a memory · `P` classes in a memory, at most ·
`R` images of one class in a memory, at most · `C` classes and `N` images in the data set · `H W` image.

A *row* is an index into `ClassImages.images`.  First a small table of rows is drawn for the whole global batch; then
the images are gathered, for the shard of this process only.  Nothing here waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.augmentation import Augmentation
from data.composition import EpisodeSpec
from data.images import ClassImages
from runtime.errors import UserError
from runtime.randomness import Shard, generator


@dataclass(frozen=True)
class Episodes:
    """Targets and their memories.  Images of a class stand together in a memory, so their order means nothing."""

    x: Tensor  # [G, T, H, W] float32, 0 or 1
    memory: Tensor  # [G, M, H, W] float32, 0 or 1
    x_class: Tensor  # [G, T] int64
    memory_class: Tensor  # [G, M] int64
    x_index: Tensor  # [G, T] row
    memory_index: Tensor  # [G, M] row


class _Numbers:
    """Random integers from one generator."""

    def __init__(self, source: torch.Generator) -> None:
        self._source = source

    def below(self, high: Tensor) -> Tensor:
        """U{0..high - 1} for every entry of `high`, of its shape.  The bias of the remainder is below high / 2^62."""
        return torch.randint(1 << 62, high.shape, generator=self._source, device=high.device) % high

    def subsets(self, count: Tensor, size: Tensor, width: int) -> Tensor:
        """Random subsets of {0..count - 1}: [..., width], whose first `size` entries are the subset, the others void.

        `count` and `size` [...].  Floyd's method (Bentley and Floyd, "A sample of brilliance", 1987), whose work does
        not depend on `count`.  All subsets are equally likely, but not all orders: high values tend to come late.
        """
        last = (count - size).unsqueeze(-1) + torch.arange(width, device=count.device)  # [..., width]
        picked = self.below((last + 1).clamp(min=1))  # void entries may have an empty range
        for r in range(1, width):
            taken = (picked[..., :r] == picked[..., r : r + 1]).any(-1)
            picked[..., r] = torch.where(taken, last[..., r], picked[..., r])
        return picked

    def parts(self, total: Tensor, number: Tensor, width: int) -> Tensor:
        """Every `total` [G] as a sum of `number` [G] positive numbers: [G, width], zeros after them.

        All such sums are equally likely: they are the gaps between number - 1 cuts in {1..total - 1}.
        """
        end, needed, most = total.unsqueeze(1), (number - 1).clamp(min=0), max(width - 1, 0)
        cuts = 1 + self.subsets(total - 1, needed, most)
        cuts = torch.where(torch.arange(most, device=total.device) < needed.unsqueeze(1), cuts, end)  # void ones: zeros
        return torch.cat([torch.zeros_like(end), cuts.sort(1).values, end], 1).diff(dim=1)[:, :width]

    def shuffled(self, values: Tensor) -> Tensor:
        """`values` in random order along the last dimension."""
        keys = torch.rand(values.shape, generator=self._source, device=values.device)
        return values.gather(-1, keys.argsort(-1))


class _Sampler:
    """Draws tables of rows of `images`; it lives on `device`."""

    def __init__(self, spec: EpisodeSpec, images: ClassImages, device: torch.device | str) -> None:
        self.spec = spec
        self.class_of = torch.arange(images.num_classes).repeat_interleave(images.counts).to(device)  # [N]
        self._counts = images.counts.to(device)  # [C]
        self._offsets = images.offsets.to(device)  # [C]
        self.classes = images.num_classes

    def targets(self, groups: int, numbers: _Numbers) -> Tensor:
        """Rows [G]: a uniform class and a uniform image of it; where classes are equally large, a uniform image."""
        classes = numbers.below(torch.full((groups,), self.classes, device=self._counts.device))
        return self._offsets[classes] + numbers.below(self._counts[classes])

    def memories(self, target: Tensor, numbers: _Numbers) -> Tensor:
        """Rows [G, M] of a memory of its own for every target row [G]."""
        own = self.class_of[target]
        if self.spec.timesteps == 0:
            return target.new_empty(len(target), 0)
        sizes = self._sizes(len(target), numbers)  # [G, P]
        if self.spec.own_class:
            classes = torch.cat([own.unsqueeze(1), self._others(own, self.spec.most_classes - 1, numbers)], 1)
            count = self._counts[classes]  # [G, P]
            count[:, 0] -= 1  # all but the target
            picked = numbers.subsets(count, sizes, self.spec.most_images)  # [G, P, R]
            picked[:, 0] = _skipping(target - self._offsets[own], picked[:, 0])
        else:
            classes = self._others(own, self.spec.most_classes, numbers)
            picked = numbers.subsets(self._counts[classes], sizes, self.spec.most_images)
        return self._first(self._offsets[classes].unsqueeze(-1) + picked, sizes)

    def shared(self, groups: int, numbers: _Numbers) -> tuple[Tensor, Tensor]:
        """Rows [G, T] of targets and rows [G, M] of the memories that they share."""
        classes = self._classes(groups, self.classes, self.spec.most_classes, numbers)
        size = self.spec.most_images + self.spec.targets_per_memory // self.spec.most_classes
        picked = numbers.subsets(self._counts[classes], torch.full_like(classes, size), size)
        rows = self._offsets[classes].unsqueeze(-1) + numbers.shuffled(picked)  # [G, P, R + T / P]
        memory, x = rows[..., : self.spec.most_images], rows[..., self.spec.most_images :]
        return x.flatten(1), memory.flatten(1)

    def _sizes(self, groups: int, numbers: _Numbers) -> Tensor:
        """[G, P], how many images each class gives: the own class first; the sum is M."""
        if self.spec.exact:
            shape = groups, self.spec.most_classes
            return torch.full(shape, self.spec.most_images, device=self._counts.device)
        if self.spec.max_batch_cls is None:
            return self._up_to_m_images_a_class(groups, numbers)
        return self._up_to_c_classes(groups, numbers)

    def _up_to_m_images_a_class(self, groups: int, numbers: _Numbers) -> Tensor:
        """One class after another gives U{1..min(m, what is left)} images."""
        left = torch.full((groups,), self.spec.timesteps, device=self._counts.device)
        sizes = []
        for _ in range(self.spec.most_classes):
            given = 1 + numbers.below(left.clamp(1, self.spec.most_images))
            sizes.append(torch.where(left > 0, given, 0))
            left = left - sizes[-1]
        return torch.stack(sizes, 1)

    def _up_to_c_classes(self, groups: int, numbers: _Numbers) -> Tensor:
        """A uniform number n of classes; the own one gives U{1..M - n + 1}, the others share the rest."""
        whole = torch.full((groups,), self.spec.timesteps, device=self._counts.device)
        n = 1 + numbers.below(torch.full_like(whole, self.spec.most_classes))
        own = torch.where(n > 1, 1 + numbers.below(whole - n + 1), whole)
        return torch.cat([own.unsqueeze(1), numbers.parts(whole - own, n - 1, self.spec.most_classes - 1)], 1)

    def _others(self, own: Tensor, number: int, numbers: _Numbers) -> Tensor:
        """Distinct classes other than `own` [G], in random order: [G, number]."""
        return _skipping(own, self._classes(len(own), self.classes - 1, number, numbers))

    def _classes(self, groups: int, classes: int, size: int, numbers: _Numbers) -> Tensor:
        """`size` distinct numbers of {0..classes - 1} in random order: [G, size]."""
        count = torch.full((groups,), classes, device=self._counts.device)
        return numbers.shuffled(numbers.subsets(count, torch.full_like(count, size), size))

    def _first(self, rows: Tensor, sizes: Tensor) -> Tensor:
        """[G, M]: of `rows` [G, P, R] the first `sizes` [G, P] of every class, one class after another."""
        ends = sizes.cumsum(1)
        places = torch.arange(self.spec.timesteps, device=sizes.device).expand(len(sizes), -1).contiguous()
        which = torch.searchsorted(ends, places, right=True)  # [G, M], passes over classes that give nothing
        rank = places - (ends - sizes).gather(1, which)
        return rows.flatten(1).gather(1, which * self.spec.most_images + rank)


def _skipping(one: Tensor, numbers: Tensor) -> Tensor:
    """`numbers` [G, n] of {0..k - 1} as numbers of {0..k} without `one` [G]."""
    return torch.where(numbers < one.unsqueeze(1), numbers, numbers + 1)


def _gathered(images: Tensor, class_of: Tensor, x_index: Tensor, memory_index: Tensor) -> Episodes:
    """The images [N, H, W] and classes at rows [G, T] and [G, M]."""
    return Episodes(
        x=_rows(images, x_index),
        memory=_rows(images, memory_index),
        x_class=class_of[x_index],
        memory_class=class_of[memory_index],
        x_index=x_index,
        memory_index=memory_index,
    )


def _rows(images: Tensor, index: Tensor) -> Tensor:
    """float32 [..., H, W]; index_select copies whole images, ten times faster on the CPU than images[index]."""
    return images.index_select(0, index.flatten()).view(*index.shape, *images.shape[1:]).float()


class EpisodeLoader:
    """Endless, addressed episodes for training and validation, drawn on the device of the images.

    `batch_size` counts the targets of the global batch.  A step is a function of (seed, subset, step): nothing needs to
    be stored to resume.  One of several processes gets its shard along G of the same numbers.
    """

    def __init__(
        self,
        images: ClassImages,
        spec: EpisodeSpec,
        batch_size: int,
        seed: int,
        subset: str,
        shard: Shard = Shard(),
        augmentation: Augmentation | None = None,
    ) -> None:
        """Raises a UserError where the spec does not fit the classes or the batch does not divide."""
        spec.check(images.num_classes, int(images.counts.min()))
        unit = spec.targets_per_memory * shard.world
        if batch_size < 1 or batch_size % unit:
            lower = batch_size // unit * unit
            use = f"{lower} or {lower + unit}" if lower else f"{unit}"
            raise UserError(
                f"batch_size: {batch_size} is not a positive multiple of {unit} (targets_per_memory "
                f"{spec.targets_per_memory}, processes {shard.world}); use {use}"
            )
        self._images, self._seed, self.subset, self._shard = images.images, seed, subset, shard
        self._augmentation = augmentation
        self.batch_size = batch_size
        self._groups = batch_size // spec.targets_per_memory
        self._sampler = _Sampler(spec, images, images.images.device)

    def at(self, step: int) -> Episodes:
        """The episodes of a step: this process's slice along G of the global batch."""
        numbers = _Numbers(generator(self._images.device, "episodes", self._seed, self.subset, step))
        x, memory = (self._shard.of(rows, 0) for rows in self._drawn(numbers))
        episodes = _gathered(self._images, self._sampler.class_of, x, memory)
        return episodes if self._augmentation is None else self._augmented(episodes, self._augmentation, step)

    def _augmented(self, episodes: Episodes, augmentation: Augmentation, step: int) -> Episodes:
        """The episodes with every class drawn through a map of its own in every memory."""
        source = generator(self._images.device, "augment", self._seed, self.subset, step)
        classes = self._sampler.classes
        maps = augmentation.maps.draw(self._groups * classes, source).view(self._groups, classes, 2, 2)
        local = self._shard.of(maps, 0)  # [G, C, 2, 2]
        group = torch.arange(len(local), device=local.device).unsqueeze(1)
        return replace(
            episodes,
            x=augmentation.warp(episodes.x_index, local[group, episodes.x_class]),
            memory=augmentation.warp(episodes.memory_index, local[group, episodes.memory_class]),
        )

    def _drawn(self, numbers: _Numbers) -> tuple[Tensor, Tensor]:
        """Rows [G, T] and [G, M] of the global batch."""
        if self._sampler.spec.targets_per_memory > 1:
            return self._sampler.shared(self._groups, numbers)
        target = self._sampler.targets(self._groups, numbers)
        return target.unsqueeze(1), self._sampler.memories(target, numbers)


class MixedLoader:
    """Draws one of several loaders for every step, as a function of (seed, step), with probabilities ~ `weights`."""

    def __init__(self, loaders: Sequence[EpisodeLoader], weights: Sequence[float], seed: int) -> None:
        self._loaders, self._weights, self._seed = loaders, torch.tensor(weights), seed
        self.batch_size = loaders[0].batch_size

    def at(self, step: int) -> Episodes:
        """The episodes of a step, all with memories of one composition."""
        source = generator("cpu", "mixture", self._seed, step)
        chosen = int(self._weights.multinomial(1, generator=source))
        return self._loaders[chosen].at(step)


class GridEpisodes:
    """The episodes of one cell of the test grid: every target has a memory of its own (T = 1).

    A target's memory is a function of (seed, cell, row of the target): the rows of all images' memories are drawn at
    once, on the CPU so that every device sees the same ones, and those of `targets` [n] are kept.
    """

    def __init__(self, images: ClassImages, spec: EpisodeSpec, targets: Tensor, seed: int, cell: str) -> None:
        """Raises a UserError where the spec does not fit the classes."""
        if spec.targets_per_memory != 1:
            raise UserError(f"targets_per_memory: {spec.targets_per_memory} is for training; the test grid needs 1")
        spec.check(images.num_classes, int(images.counts.min()))
        numbers = _Numbers(generator("cpu", "grid", seed, cell))
        sampler = _Sampler(spec, images, "cpu")
        memories = sampler.memories(torch.arange(len(sampler.class_of)), numbers)  # [N, M]
        self._images = images.images
        self._class_of = sampler.class_of.to(self._images.device)
        self._targets = targets.to(self._images.device)
        self._memories = memories[targets.cpu()].to(self._images.device)  # [n, M]

    def __len__(self) -> int:
        """The number of targets, n."""
        return len(self._targets)

    def batch(self, positions: slice | Tensor) -> Episodes:
        """The episodes of the targets that stand at `positions` of the list of targets, G = number of positions."""
        return _gathered(self._images, self._class_of, self._targets[positions].unsqueeze(1), self._memories[positions])


def spread_targets(counts: Tensor, number: int | None) -> Tensor:
    """Rows of all images, or of `number` of them spread evenly, sorted, int64 [n] on the CPU; nothing here is random.

    Classes of `counts` [C] give equally many, or differ by one (but give no more than they have), and those that give
    one more are evenly spaced.  Within a class the images are evenly spaced, from a start that differs between classes.
    """
    sizes: list[int] = counts.tolist()
    if number is None:
        return torch.arange(sum(sizes))
    if not 1 <= number <= sum(sizes):
        raise UserError(f"targets: {number} is not between 1 and {sum(sizes)}, the number of images; use null for all")
    golden = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 fill [0, 1) evenly, however many there are
    rows, offset, used = [], 0, 0
    for size, quota in zip(sizes, _quotas(sizes, number), strict=True):
        start = int(used * golden % 1 * size)
        rows += [offset + (start + i * size // quota) % size for i in range(quota)]
        offset, used = offset + size, used + (quota > 0)
    return torch.tensor(sorted(rows))


def _quotas(sizes: list[int], number: int) -> list[int]:
    """How many of `number` each class gives: as equal as `sizes` allow, classes that give one more evenly spaced."""
    quotas = [0] * len(sizes)
    while number:
        open_classes = [c for c, size in enumerate(sizes) if quotas[c] < size]
        given = min(number, len(open_classes))
        for i in range(given):
            quotas[open_classes[i * len(open_classes) // given]] += 1
        number -= given
    return quotas
