"""How memories are composed, and what keeps them from being composed, with the values that would work.

No torch here, so that a mistake in a configuration is answered at once.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from runtime.errors import UserError


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

    @property
    def in_words(self) -> str:
        """What a memory holds, such as "32 images, 4 of each of 8 classes"."""
        images = f"{self.timesteps} image{'' if self.timesteps == 1 else 's'}"
        classes, most = self.most_classes, self.most_images
        if classes <= 1:
            return f"{images} of one class" if classes else "no images"
        if self.exact:
            return f"{images}, {most} of each of {classes} classes"
        return (
            f"{images}, at most {most} of a class" if self.max_img_per_class else f"{images} of 1 to {classes} classes"
        )

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
        case = _Case(self, batch_size, classes, smallest)
        broken = list(case.broken())
        for one in broken:
            keys = [key for key in one.reasons if key not in fixed]
            others = {other.rule for other in broken} - {one.rule}
            tries = ((key, case.working(key, allowed)) for allowed in (set(), others) for key in keys)
            key, found = next((found for found in tries if found[1]), (keys[0], []))
            text = f"{case.value(key)} {one.reasons[key]}"
            values = " or ".join(map(str, found))
            way_out = f"use {values}" if values else "no value of it works with the others as they are"
            yield key, text if one.rule == "choice" else f"{text}; {way_out}"


class _Broken(NamedTuple):
    rule: str  # names the rule, whatever the values are
    reasons: Mapping[str, str]  # by the key that may be at fault, the likeliest first


_BELOW, _ABOVE = 2048, 256  # how far down and up a way out is searched for
_LEAST = {"timesteps": 0, "targets_per_memory": 1, "max_img_per_class": 1, "max_batch_cls": 1}


@dataclass(frozen=True)
class _Case:
    """A composition and what it must fit."""

    spec: EpisodeSpec
    batch_size: int | None
    classes: int
    smallest: int

    def value(self, key: str) -> int | None:
        return self.batch_size if key == "batch_size" else getattr(self.spec, key)

    def changed(self, key: str, value: int) -> "_Case":
        change: dict[str, Any] = {key: value}
        return replace(self, **change) if key == "batch_size" else replace(self, spec=replace(self.spec, **change))

    def working(self, key: str, allowed: Collection[str]) -> list[int]:
        """The nearest lower and the nearest higher value of `key` that break no rule but those `allowed`.

        One value after another is tried on the rules themselves, so that a way out cannot contradict them.
        """

        def works(number: int) -> bool:
            return all(one.rule in allowed for one in self.changed(key, number).broken())

        value = self.value(key) or 0
        below = next(filter(works, range(min(value, _BELOW) - 1, 0, -1)), None)
        above = next(filter(works, range(max(value + 1, 0), value + _ABOVE + 1)), None)
        return [n for n in (below, above) if n is not None] or list(filter(works, [_LEAST.get(key, 1)]))

    def broken(self) -> Iterator[_Broken]:
        spec, targets = self.spec, self.spec.targets_per_memory
        negative = [key for key, least in _LEAST.items() if (value := self.value(key)) is not None and value < least]
        for key in negative:
            yield _Broken(key, {key: f"is less than {_LEAST[key]}"})
        if negative:
            return
        if self.batch_size is not None and self.batch_size % targets:
            reasons = {
                "batch_size": f"is not a multiple of targets_per_memory {targets}",
                "targets_per_memory": f"does not divide batch_size {self.batch_size}",
            }
            yield _Broken("batch", reasons)
        if targets > 1 and not (spec.timesteps and spec.max_img_per_class and spec.exact and spec.own_class):
            text = "targets can share a memory only with max_img_per_class, exact: true and timesteps above 0"
            yield _Broken("sharing", {"targets_per_memory": text})
        if spec.max_img_per_class and spec.max_batch_cls:
            text = f"is given beside max_batch_cls {spec.max_batch_cls}; set one of them to null"
            yield _Broken("choice", {"max_img_per_class": text})
        elif spec.timesteps and not spec.max_img_per_class and not spec.max_batch_cls:
            text = "needs max_img_per_class or max_batch_cls and has neither; set one"
            yield _Broken("choice", {"timesteps": text})
        elif spec.timesteps:
            yield from self._broken_sizes("max_img_per_class" if spec.max_img_per_class else "max_batch_cls")

    def _broken_sizes(self, key: str) -> Iterator[_Broken]:
        """Where there is a memory, composed by the rule of `key` alone."""
        spec, number, targets = self.spec, self.value(key) or 0, self.spec.targets_per_memory
        by_images = key == "max_img_per_class"
        if spec.exact and spec.timesteps % number:
            text = f"is not a multiple of {key} {number}, which exact: true needs"
            yield _Broken("multiple", {"timesteps": text})
            return
        most, own = spec.most_classes, spec.most_images
        if by_images and spec.exact and targets > 1 and targets % most:
            text = f"is not a multiple of {most}, the classes in a memory (timesteps {spec.timesteps} / {key} {number})"
            yield _Broken("targets", {"targets_per_memory": text})
        others = 0 if spec.own_class else 1  # classes that must be there beside those in the memory
        if most + others > self.classes:
            of = "classes in a memory beside that of the target" if others else "classes in a memory"
            text = f"may need {most} {of} and {self.classes} are there"
            yield _Broken("classes", {"timesteps" if by_images else key: text})
        beside = max(1, targets // most)
        if own + beside > self.smallest:
            beside_it = f"{beside} targets of it" if beside > 1 else "a target of it"
            text = f"puts {own} images of a class into a memory beside {beside_it}, and a class has {self.smallest}"
            shared = f" (targets_per_memory {targets})" if beside > 1 else ""
            keys = (key, "targets_per_memory") if by_images else ("timesteps",)
            yield _Broken("images", dict.fromkeys(keys, text + shared))
