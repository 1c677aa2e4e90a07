"""How memories are composed, and what keeps them from being composed, with the values that would work.

No torch here, so that a mistake in a configuration is answered at once.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from runtime.errors import UserError


class _Broken(NamedTuple):
    rule: str  # names the rule, whatever the values are
    reasons: Mapping[str, str]  # by the key that may be at fault, the likeliest first


@dataclass(frozen=True)
class EpisodeSpec:
    """How a memory of `timesteps` images is composed; it never holds its target, and its images are distinct.

    Exactly one of the two keys is given, unless the memory is empty:

    `max_img_per_class: m`, exact      m images of the target's class and m of each of timesteps/m - 1 other classes.
    `max_img_per_class: m`, not exact  U{1..min(m, timesteps)} of the own class, then U{1..min(m, what is left)} of one
                                       other class after another until the memory is full.
    `max_batch_cls: c`, exact          timesteps/c images of the own class and of each of c - 1 other classes.
    `max_batch_cls: c`, not exact      n ~ U{1..min(c, timesteps)} classes.  n = 1: all of the own class.  Otherwise the
                                       own class gives U{1..timesteps - n + 1} and n - 1 other classes share the rest,
                                       each at least one, all splits equally likely.

    `targets_per_memory: T` above 1 needs the first rule: each class in the memory is the own class of T/(timesteps/m)
    targets, so that every single target sees the distribution of memories that it sees with T = 1.

    Without `own_class`, a control, another class stands where the target's own would.
    """

    timesteps: int
    exact: bool
    max_img_per_class: int | None = None
    max_batch_cls: int | None = None
    targets_per_memory: int = 1
    own_class: bool = True

    @property
    def most_classes(self) -> int:
        """P, the largest number of classes that a memory may need."""
        if not self.timesteps:
            return 0
        if self.max_img_per_class is not None:
            return self.timesteps // self.max_img_per_class if self.exact else self.timesteps
        limit = self.max_batch_cls or 0
        return limit if self.exact else min(limit, self.timesteps)

    @property
    def most_images(self) -> int:
        """R, the largest number of images that a memory may need of one class."""
        if self.max_img_per_class is not None:
            return self.max_img_per_class if self.exact else min(self.max_img_per_class, self.timesteps)
        return self.timesteps // (self.max_batch_cls or 1) if self.exact else self.timesteps

    def check(self, classes: int, smallest: int) -> None:
        """Raise a UserError, which names values that work, unless so many classes of `smallest` images suffice."""
        if smallest < 1:
            raise UserError("episodes cannot be drawn: there is no class, or a class without images")
        for key, text in self.problems(classes, smallest):
            raise UserError(f"{key}: {text}")

    def problems(
        self, classes: int, smallest: int, batch_size: int | None = None, fixed: Collection[str] = ()
    ) -> Iterator[tuple[str, str]]:
        """Keys at fault, and what is wrong with them and would work: the nearest values, all else unchanged.

        `smallest` is the number of images of the smallest class; `batch_size` that of targets, where it is known;
        `fixed` names keys that stand elsewhere.  What solves all problems at once goes before what solves one.
        """
        given = {**vars(self), "batch_size": batch_size}
        broken = list(self._broken(classes, smallest, batch_size))
        for one in broken:
            keys = [key for key in one.reasons if key not in fixed]
            others = {other.rule for other in broken} - {one.rule}
            tries = (
                (key, _working(given, key, allowed, classes, smallest)) for allowed in ((), others) for key in keys
            )
            key, found = next((found for found in tries if found[1]), (keys[0], []))
            values = " or ".join(map(str, found))
            way_out = f"use {values}" if values else "no value of it works with the others as they are"
            yield key, f"{given[key]} {one.reasons[key]}" + (f"; {way_out}" if one.rule != "choice" else "")

    def _broken(self, classes: int, smallest: int, batch_size: int | None) -> Iterator[_Broken]:
        targets = self.targets_per_memory
        negative = [key for key, least in _LEAST.items() if (value := getattr(self, key)) is not None and value < least]
        for key in negative:
            yield _Broken(key, {key: f"is less than {_LEAST[key]}"})
        if negative:
            return
        if batch_size is not None and batch_size % targets:
            reasons = {
                "batch_size": f"is not a multiple of targets_per_memory {targets}",
                "targets_per_memory": f"does not divide batch_size {batch_size}",
            }
            yield _Broken("batch", reasons)
        if targets > 1 and not (self.timesteps and self.max_img_per_class and self.exact and self.own_class):
            text = "targets can share a memory only with max_img_per_class, exact: true and timesteps above 0"
            yield _Broken("sharing", {"targets_per_memory": text})
        if self.max_img_per_class and self.max_batch_cls:
            text = f"is given beside max_batch_cls {self.max_batch_cls}; set one of them to null"
            yield _Broken("choice", {"max_img_per_class": text})
        elif self.timesteps and not self.max_img_per_class and not self.max_batch_cls:
            text = "needs max_img_per_class or max_batch_cls and has neither; set one"
            yield _Broken("choice", {"timesteps": text})
        elif self.timesteps:
            yield from self._broken_sizes(classes, smallest)

    def _broken_sizes(self, classes: int, smallest: int) -> Iterator[_Broken]:
        """Where there is a memory, composed by one rule."""
        key = "max_img_per_class" if self.max_img_per_class else "max_batch_cls"
        number, targets = getattr(self, key), self.targets_per_memory
        if self.exact and self.timesteps % number:
            text = f"is not a multiple of {key} {number}, which exact: true needs"
            yield _Broken("multiple", {"timesteps": text})
            return
        most, own = self.most_classes, self.most_images
        by_images = key == "max_img_per_class"
        if targets > 1 and by_images and self.exact and targets % most:
            text = f"is not a multiple of {most}, the classes in a memory (timesteps {self.timesteps} / {key} {number})"
            yield _Broken("targets", {"targets_per_memory": text})
        if most + (not self.own_class) > classes:
            of = "classes in a memory" if self.own_class else "classes in a memory beside that of the target"
            text = f"may need {most} {of} and {classes} are there"
            yield _Broken("classes", {"timesteps" if by_images else key: text})
        beside = max(1, targets // most)
        if own + beside > smallest:
            beside_it = f"{beside} targets of it" if beside > 1 else "a target of it"
            text = f"puts {own} images of a class into a memory beside {beside_it}, and a class has {smallest}"
            shared = f" (targets_per_memory {targets})" if beside > 1 else ""
            keys = (key, "targets_per_memory") if by_images else ("timesteps",)
            yield _Broken("images", dict.fromkeys(keys, text + shared))


_LEAST = {"timesteps": 0, "targets_per_memory": 1, "max_img_per_class": 1, "max_batch_cls": 1}


def _working(
    given: dict[str, int | bool | None], key: str, allowed: Collection[str], classes: int, smallest: int
) -> list[int]:
    """The nearest lower and the nearest higher value of `key` that break no rule but those `allowed`."""

    def works(number: int) -> bool:
        changed = {**given, key: number}
        batch_size = changed.pop("batch_size")
        broken = EpisodeSpec(**changed)._broken(classes, smallest, batch_size)  # type: ignore[arg-type]
        return all(other.rule in allowed for other in broken)

    value = int(given[key] or 0)
    below = next((n for n in range(min(value, 2048) - 1, 0, -1) if works(n)), None)
    above = next((n for n in range(max(value + 1, 0), value + 257) if works(n)), None)
    return [n for n in (below, above) if n is not None]
