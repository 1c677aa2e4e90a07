"""Episodes against a slow, obvious version of every rule.

The slow version is exact: it walks through everything that a rule may draw and adds up probabilities, so that sampled
frequencies are compared with numbers, not with other samples.  `G T M H W` as in data/episodes.py.
"""

import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, permutations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.composition import EpisodeSpec
from data.episodes import EpisodeLoader, Episodes, GridEpisodes, spread_targets
from data.images import ClassImages
from runtime.errors import UserError
from runtime.randomness import Shard

EQUAL, UNEQUAL = [4, 4, 4, 4], [4, 6, 5, 4]
Law = dict  # outcome -> probability


def class_images(counts: list[int], size: int = 5) -> ClassImages:
    """Images that differ: the pixels of image i are the binary digits of i."""
    number = sum(counts)
    bits = (torch.arange(number).unsqueeze(1) >> torch.arange(size * size)) & 1
    names = tuple(f"class {c}" for c in range(len(counts)))
    return ClassImages(bits.view(number, size, size).byte(), torch.tensor(counts), names)


def classes_of(counts: list[int]) -> list[range]:
    """The rows of each class."""
    ends = [sum(counts[: c + 1]) for c in range(len(counts))]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


# The slow version


def splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of so many positive numbers."""
    if parts == 0:
        yield from [()] if total == 0 else []
        return
    for first in range(1, total + 1):
        for tail in splits(total - first, parts - 1):
            yield first, *tail


def filled(left: int, limit: int) -> Iterator[tuple[tuple[int, ...], Fraction]]:
    """Classes that give U{1..min(limit, left)} one after another until nothing is left."""
    if left == 0:
        yield (), Fraction(1)
        return
    choices = range(1, min(limit, left) + 1)
    for given_ in choices:
        for tail, p in filled(left - given_, limit):
            yield (given_, *tail), p / len(choices)


def sizes_law(spec: EpisodeSpec) -> Law:
    """(images of the own class, images of the first other class, ...) -> probability."""
    m, c, size = spec.max_img_per_class, spec.max_batch_cls, spec.timesteps
    if size == 0:
        return {(): Fraction(1)}
    if m is not None:
        return {(m,) * (size // m): Fraction(1)} if spec.exact else dict(filled(size, m))
    assert c is not None
    if spec.exact:
        return {(size // c,) * c: Fraction(1)}
    law: Law = Counter()
    numbers = range(1, min(c, size) + 1)
    for n in numbers:
        owns = [size] if n == 1 else range(1, size - n + 2)
        for own in owns:
            rests = list(splits(size - own, n - 1))
            for rest in rests:
                law[(own, *rest)] += Fraction(1, len(numbers) * len(owns) * len(rests))
    return law


def memory_law(spec: EpisodeSpec, counts: list[int]) -> Law:
    """(row of the target, set of rows in its memory) -> probability."""
    law: Law = Counter()
    classes = classes_of(counts)
    for own, rows in enumerate(classes):
        for target in rows:
            for sizes, p_sizes in sizes_law(spec).items():
                orders = list(permutations([c for c in range(len(counts)) if c != own], max(len(sizes) - 1, 0)))
                for others in orders:
                    pools = [[row for row in rows if row != target], *(classes[c] for c in others)]
                    picks = [list(combinations(pool, n)) for pool, n in zip(pools, sizes, strict=False)]
                    p = p_sizes / (len(counts) * len(rows) * len(orders) * math.prod(map(len, picks)))
                    for parts in product(*picks):
                        law[target, frozenset().union(*parts)] += p
    assert sum(law.values()) == 1
    return law


# Comparing frequencies with a law


def assert_drawn_from(law: Law, seen: Counter) -> None:
    """Pearson's chi-square, 5 standard deviations allowed; nothing impossible, 5 of each to be expected."""
    assert set(seen) <= set(law)
    number = sum(seen.values())
    expected = {outcome: float(p) * number for outcome, p in law.items()}
    assert min(expected.values()) >= 5
    chi2, df = sum((seen[outcome] - mean) ** 2 / mean for outcome, mean in expected.items()), len(law) - 1
    assert chi2 < df + 5 * math.sqrt(2 * df) + 1e-9, f"chi-square {chi2:.1f} at {df} degrees of freedom"


def uniform(outcomes: range | list) -> Law:
    return {outcome: Fraction(1, len(outcomes)) for outcome in outcomes}


def outcomes(x_index: Tensor, memory_index: Tensor) -> Counter:
    """Counts of (target [G], set of rows [G, M])."""
    return Counter(zip(x_index.tolist(), map(frozenset, memory_index.tolist()), strict=True))


def assert_sound(episodes: Episodes, spec: EpisodeSpec, images: ClassImages) -> None:
    """What holds for every draw: shapes, types, distinct images, no target among them, right pixels and classes."""
    class_of = torch.arange(len(images.counts)).repeat_interleave(images.counts)
    groups = len(episodes.x)
    assert (
        episodes.x.shape == (groups, episodes.x_index.shape[1], *images.images.shape[1:])
        and episodes.x.dtype == torch.float32
    )
    assert (
        episodes.memory.shape == (groups, spec.timesteps, *images.images.shape[1:])
        and episodes.memory.dtype == torch.float32
    )
    assert torch.equal(episodes.x, images.images[episodes.x_index].float())
    assert torch.equal(episodes.memory, images.images[episodes.memory_index].float())
    assert torch.equal(episodes.x_class, class_of[episodes.x_index])
    assert torch.equal(episodes.memory_class, class_of[episodes.memory_index])
    together = torch.cat([episodes.x_index, episodes.memory_index], 1).sort(1).values
    assert (together.diff(dim=1) > 0).all()  # all distinct: images among themselves, and targets from them


SPECS = {
    "m exact": EpisodeSpec(4, True, max_img_per_class=2),
    "m exact, one class": EpisodeSpec(3, True, max_img_per_class=3),
    "m": EpisodeSpec(3, False, max_img_per_class=2),
    "m above timesteps": EpisodeSpec(2, False, max_img_per_class=9),
    "c exact": EpisodeSpec(3, True, max_batch_cls=3),
    "c = 1": EpisodeSpec(2, False, max_batch_cls=1),
    "c = 2": EpisodeSpec(3, False, max_batch_cls=2),
    "c = 3": EpisodeSpec(3, False, max_batch_cls=3),
    "c above timesteps": EpisodeSpec(2, False, max_batch_cls=4),
    "one image": EpisodeSpec(1, False, max_batch_cls=2),
    "empty": EpisodeSpec(0, False),
}


@pytest.mark.parametrize("counts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_targets_and_memories_follow_the_rule(spec: EpisodeSpec, counts: list[int]) -> None:
    law = memory_law(spec, counts)
    images = class_images(counts)
    episodes = EpisodeLoader(images, spec, int(8 / min(law.values())), 1, "train").at(0)
    assert_sound(episodes, spec, images)
    assert_drawn_from(law, outcomes(episodes.x_index[:, 0], episodes.memory_index))


@pytest.mark.parametrize("counts", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("timesteps, m, t", [(4, 2, 2), (2, 1, 4), (2, 2, 2)])
def test_every_target_that_shares_a_memory_sees_what_it_sees_alone(
    timesteps: int, m: int, t: int, counts: list[int]
) -> None:
    alone, shared = EpisodeSpec(timesteps, True, m), EpisodeSpec(timesteps, True, m, targets_per_memory=t)
    law = memory_law(alone, counts)
    images = class_images(counts)
    episodes = EpisodeLoader(images, shared, t * int(8 / min(law.values())), 2, "train").at(0)
    assert_sound(episodes, shared, images)
    for i in range(t):
        assert_drawn_from(law, outcomes(episodes.x_index[:, i], episodes.memory_index))


def test_every_class_of_a_shared_memory_has_equally_many_targets() -> None:
    spec = EpisodeSpec(32, True, max_img_per_class=4, targets_per_memory=16)
    images = class_images([20] * 40)
    episodes = EpisodeLoader(images, spec, 1600, 3, "train").at(7)
    assert_sound(episodes, spec, images)
    for x_class, memory_class in zip(episodes.x_class.tolist(), episodes.memory_class.tolist(), strict=True):
        assert Counter(memory_class) == dict.fromkeys(memory_class, 4)
        assert Counter(x_class) == dict.fromkeys(memory_class, 2)


# The same rules at the sizes of the experiments, where the joint law is too large to walk through

BIG = {"like omniglot": [20] * 60, "like mnist": [100, 430, 400, 410, 390, 360, 400, 420, 390, 400]}
BIG_SPECS = {
    "m exact": EpisodeSpec(16, True, max_img_per_class=4),
    "m": EpisodeSpec(8, False, max_img_per_class=4),
    "c exact": EpisodeSpec(16, True, max_batch_cls=8),
    "c = 2": EpisodeSpec(19, False, max_batch_cls=2),
    "c = 5": EpisodeSpec(10, False, max_batch_cls=5),
}


@pytest.mark.parametrize("counts", BIG.values(), ids=BIG.keys())
@pytest.mark.parametrize("spec", BIG_SPECS.values(), ids=BIG_SPECS.keys())
def test_sizes_classes_and_images_at_full_size(spec: EpisodeSpec, counts: list[int]) -> None:
    images, law, number = class_images(counts), sizes_law(spec), 20_000
    episodes = EpisodeLoader(images, spec, number, 4, "train").at(0)
    assert_sound(episodes, spec, images)
    assert_follows(
        law,
        [sizes_of(*row) for row in zip(episodes.x_class[:, 0].tolist(), episodes.memory_class.tolist(), strict=True)],
    )
    assert_follows(uniform(range(len(counts))), episodes.x_class[:, 0].tolist())
    # One place per memory, since images of one memory depend on each other.
    place = torch.randint(spec.timesteps, (number, 1), generator=torch.Generator().manual_seed(0))
    row, of_class = episodes.memory_index.gather(1, place)[:, 0], episodes.memory_class.gather(1, place)[:, 0]
    assert_follows(uniform(range(counts[0])), row[of_class == 0].tolist())
    step = (of_class - episodes.x_class[:, 0]) % len(counts)
    assert_follows(uniform(range(1, len(counts))), step[step > 0].tolist())


def sizes_of(x_class: int, memory_class: list[int]) -> tuple[int, ...]:
    """Images of each class in the order of appearance, the own class first."""
    assert memory_class[0] == x_class
    return tuple(Counter(memory_class).values())


def assert_follows(law: Law, values: list) -> None:
    """assert_drawn_from, with all outcomes of fewer than 10 expected put together where those are enough."""
    rare = {outcome for outcome, p in law.items() if p * len(values) < 10}
    merged = Counter({outcome: p for outcome, p in law.items() if outcome not in rare})
    assert set(values) <= set(law)
    for outcome in rare:
        merged["rare"] += law[outcome]
    assert_drawn_from(dict(merged), Counter("rare" if value in rare else value for value in values))


@st.composite
def fitting(draw: st.DrawFn) -> tuple[EpisodeSpec, list[int]]:
    """A spec and class sizes that are just large enough for it, or a little larger."""
    rule, number, size = draw(st.sampled_from(["m", "c"])), draw(st.integers(1, 5)), draw(st.integers(0, 12))
    exact = draw(st.booleans())
    size = size * number if exact else size
    spec = EpisodeSpec(size, exact, number if rule == "m" else None, number if rule == "c" else None)
    if rule == "m" and exact and size and draw(st.booleans()):
        spec = EpisodeSpec(size, exact, number, targets_per_memory=spec.most_classes * draw(st.integers(1, 3)))
    targets = max(1, spec.targets_per_memory // max(1, spec.most_classes))
    least = st.integers(0, 3).map(lambda extra: spec.most_images + targets + extra)
    fewest = max(spec.most_classes, 1)
    return spec, draw(st.lists(least, min_size=fewest, max_size=fewest + 3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fitting())
def test_any_spec_that_fits_gives_sound_episodes(case: tuple[EpisodeSpec, list[int]]) -> None:
    spec, counts = case
    images = class_images(counts)
    episodes = EpisodeLoader(images, spec, 8 * spec.targets_per_memory, 5, "train").at(0)
    assert_sound(episodes, spec, images)
    if spec.targets_per_memory == 1 and spec.timesteps:
        pairs = zip(episodes.x_class[:, 0].tolist(), episodes.memory_class.tolist(), strict=True)
        assert {sizes_of(*pair) for pair in pairs} <= set(sizes_law(spec))


# Addresses

TRAIN = EpisodeSpec(4, True, max_img_per_class=2, targets_per_memory=2)
ALONE = EpisodeSpec(3, False, max_batch_cls=3)


def same(a: Episodes, b: Episodes) -> bool:
    return all(torch.equal(value, getattr(b, name)) for name, value in vars(a).items())


@pytest.mark.parametrize("spec", [TRAIN, ALONE, SPECS["m"]])
def test_episodes_are_a_function_of_seed_split_and_step(spec: EpisodeSpec) -> None:
    images = class_images(UNEQUAL)
    first = EpisodeLoader(images, spec, 64, 1, "train")
    again = EpisodeLoader(images, spec, 64, 1, "train")
    torch.manual_seed(9)  # the global state has no say
    episodes = first.at(3)
    again.at(0)
    assert same(episodes, again.at(3)) and same(episodes, first.at(3))
    others = (
        first.at(4),
        EpisodeLoader(images, spec, 64, 2, "train").at(3),
        EpisodeLoader(images, spec, 64, 1, "val").at(3),
    )
    assert not any(torch.equal(episodes.memory_index, other.memory_index) for other in others)
    assert not any(torch.equal(episodes.x_index, other.x_index) for other in others)


@pytest.mark.parametrize("spec", [TRAIN, ALONE])
@pytest.mark.parametrize("world", [2, 3])
def test_slices_of_processes_make_up_the_batch(spec: EpisodeSpec, world: int) -> None:
    images = class_images(UNEQUAL)
    whole = EpisodeLoader(images, spec, 36, 1, "train").at(5)
    parts = [EpisodeLoader(images, spec, 36, 1, "train", Shard(rank, world)).at(5) for rank in range(world)]
    for name, value in vars(whole).items():
        assert torch.equal(value, torch.cat([getattr(part, name) for part in parts]))


@pytest.mark.parametrize("spec", [*SPECS.values()], ids=SPECS.keys())
def test_the_memory_of_a_test_target_depends_on_neither_batch_nor_company(spec: EpisodeSpec) -> None:
    images = class_images(UNEQUAL)
    everything = GridEpisodes(images, spec, spread_targets(images.counts, None), 1, "cell")
    assert len(everything) == sum(UNEQUAL)
    whole = everything.batch(slice(0, len(everything)))
    assert_sound(whole, spec, images)
    assert torch.equal(whole.x_index[:, 0], torch.arange(sum(UNEQUAL)))
    targets = torch.tensor([11, 2, 7, 18])
    some = GridEpisodes(images, spec, targets, 1, "cell")
    assert same(everything.batch(targets), some.batch(slice(None)))
    assert same(some.batch(torch.tensor([2, 0])), everything.batch(targets[[2, 0]]))


def test_the_memories_of_the_grid_depend_on_seed_and_cell() -> None:
    images = class_images(UNEQUAL)
    targets = spread_targets(images.counts, None)
    a, b, c = (GridEpisodes(images, ALONE, targets, *key).batch(slice(None)) for key in [(1, "a"), (1, "b"), (2, "a")])
    assert not torch.equal(a.memory_index, b.memory_index) and not torch.equal(a.memory_index, c.memory_index)


@pytest.mark.parametrize("spec", [ALONE, SPECS["m"], SPECS["c exact"]])
def test_the_grid_follows_the_same_rule(spec: EpisodeSpec) -> None:
    """Memories of one target over many cells."""
    images, target = class_images(UNEQUAL), 5
    law = {key: p * 4 * 6 for key, p in memory_law(spec, UNEQUAL).items() if key[0] == target}  # P(target) = 1/4 * 1/6
    merged: Law = Counter()
    seen: Counter = Counter()
    for (_, memory), p in law.items():
        merged[sum(row in classes_of(UNEQUAL)[1] for row in memory)] += p
    for cell in range(400):
        episodes = GridEpisodes(images, spec, torch.tensor([target]), 1, str(cell)).batch(slice(None))
        assert (target, frozenset(episodes.memory_index[0].tolist())) in law
        seen[int((episodes.memory_class == 1).sum())] += 1
    assert_drawn_from(merged, seen)


# Specs that do not fit


@pytest.mark.parametrize(
    "case",
    [
        (EpisodeSpec(30, True, 4), (9, 20), "timesteps: 30 is not a multiple of max_img_per_class 4", "use 28 or 32"),
        (EpisodeSpec(3, True, 4), (9, 20), "timesteps: 3 is not a multiple of max_img_per_class 4", "use 4"),
        (EpisodeSpec(7, True, None, 3), (9, 20), "timesteps: 7 is not a multiple of max_batch_cls 3", "use 6 or 9"),
        (EpisodeSpec(20, False, None, 2), (2, 20), "timesteps: 20 puts 20 images of a class into a memory", "use 19"),
        (EpisodeSpec(8, True, 4), (4, 4), "max_img_per_class: 4 puts 4 images", "beside a target of it", "use 2"),
        (EpisodeSpec(6, False, 4), (9, 4), "max_img_per_class: 4 puts 4 images", "a class has 4", "use 3"),
        (EpisodeSpec(12, True, 4), (2, 20), "timesteps: 12 may need 3 classes in a memory and 2 are there", "use 8"),
        (EpisodeSpec(12, False, 4), (10, 20), "timesteps: 12 may need 12 classes", "10 are there", "use 10"),
        (EpisodeSpec(12, True, None, 6), (5, 20), "max_batch_cls: 6 may need 6 classes", "5 are there", "use 4"),
        (EpisodeSpec(12, False, None, 6), (5, 20), "max_batch_cls: 6 may need 6 classes", "5 are there", "use 5"),
        (EpisodeSpec(8, True, None, 1), (5, 5), "timesteps: 8 puts 8 images of a class", "a class has 5", "use 4"),
        (EpisodeSpec(8, True, 4, targets_per_memory=5), (5, 20),
         "targets_per_memory: 5 is not a multiple of 2, the classes in a memory (timesteps 8 / ", "use 4 or 6"),
        (EpisodeSpec(8, True, 4, targets_per_memory=10), (5, 7),
         "targets_per_memory: 10 puts 4 images", "beside 5 targets of it, and a class has 7", "use 6"),
        (EpisodeSpec(8, True, 4, targets_per_memory=16), (9, 11),
         "max_img_per_class: 4 puts 4 images", "beside 8 targets of it", "use 2"),
        (EpisodeSpec(8, False, 4, targets_per_memory=2), (9, 20),
         "targets_per_memory: 2 targets can share a memory only with max_img_per_class, exact: true", "use 1"),
        (EpisodeSpec(0, True, 4, targets_per_memory=2), (9, 20),
         "targets_per_memory: 2 targets can share", "timesteps above 0", "use 1"),
        (EpisodeSpec(8, True, 4, targets_per_memory=0), (9, 20), "targets_per_memory: 0 is less than 1", "use 1"),
        (EpisodeSpec(-2, False, 4), (9, 20), "timesteps: -2 is less than 0", "use 0"),
        (EpisodeSpec(4, False, 0), (9, 20), "max_img_per_class: 0 is less than 1", "use 1"),
        (EpisodeSpec(4, False), (9, 20), "timesteps: 4 needs max_img_per_class or max_batch_cls", "set one"),
        (EpisodeSpec(4, False, 4, 4), (9, 20), "max_img_per_class: 4 is given beside max_batch_cls 4", "one of them"),
        (EpisodeSpec(4, True, 4), (1, 1), "max_img_per_class: 4", "no value of it works with the others as they are"),
        (EpisodeSpec(4, False, 4), (2, 0), "episodes cannot be drawn", "a class without images"),
    ],
)  # fmt: skip
def test_a_spec_that_does_not_fit_is_refused_with_what_would(case: tuple[Any, ...]) -> None:
    spec, (classes, smallest), *said = case
    with pytest.raises(UserError) as caught:
        spec.check(classes, smallest)
    for part in said:
        assert part in str(caught.value)


def test_every_value_that_a_problem_names_works() -> None:
    """Where there is one problem; each of several says what would solve it alone."""
    named = 0
    for m, size, t in product([1, 2, 3, 5], range(1, 9), [1, 2, 3, 4]):
        for spec in (EpisodeSpec(size, True, m, targets_per_memory=t), EpisodeSpec(size, False, None, m)):
            problems = list(spec.problems(3, 4))
            if len(problems) != 1:
                continue
            key, text = problems[0]
            way_out = text.split("; ")[-1]
            for value in way_out.removeprefix("use ").split(" or ") if way_out.startswith("use ") else []:
                named += 1
                assert not list(EpisodeSpec(**{**vars(spec), key: int(value)}).problems(3, 4))
    assert named > 100


def test_loader_and_grid_refuse_what_they_cannot_do() -> None:
    images = class_images(UNEQUAL)
    with pytest.raises(UserError, match="use 8 or 12"):
        EpisodeLoader(images, TRAIN, 10, 1, "train", Shard(0, 2))
    with pytest.raises(UserError, match="use 4"):
        EpisodeLoader(images, TRAIN, 0, 1, "train", Shard(0, 2))
    with pytest.raises(UserError, match="timesteps: 4"):
        EpisodeLoader(images, EpisodeSpec(4, False, None, 1), 8, 1, "train")
    with pytest.raises(UserError, match="timesteps: 4"):
        GridEpisodes(images, EpisodeSpec(4, False, None, 1), torch.arange(3), 1, "cell")
    with pytest.raises(UserError, match="the test grid needs 1"):
        GridEpisodes(images, TRAIN, torch.arange(3), 1, "cell")


# Targets of the test grid


def test_targets_are_spread_over_classes_and_drawers() -> None:
    rows = spread_targets(torch.full((659,), 20), 300)
    assert len(rows) == 300 and (rows.diff() > 0).all()
    gaps = (rows // 20).diff()
    assert set(gaps.tolist()) == {2, 3}  # 659 / 300 lies between: distinct, evenly spaced classes
    drawers = torch.bincount(rows % 20, minlength=20)
    assert drawers.min() >= 13 and drawers.max() <= 17


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_classes_give_as_equally_many_targets_as_they_can(counts: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, sum(counts)))
    rows = spread_targets(torch.tensor(counts), number).tolist()
    assert len(set(rows)) == number and rows == sorted(rows) and rows[0] >= 0 and rows[-1] < sum(counts)
    given_ = [len(set(rows) & set(of_class)) for of_class in classes_of(counts)]
    for n, count in zip(given_, counts, strict=True):
        assert n == count or n >= max(given_) - 1


def test_all_images_are_targets_where_no_number_is_given() -> None:
    assert torch.equal(spread_targets(torch.tensor(UNEQUAL), None), torch.arange(sum(UNEQUAL)))
    assert torch.equal(spread_targets(torch.tensor(UNEQUAL), sum(UNEQUAL)), torch.arange(sum(UNEQUAL)))


@pytest.mark.parametrize("number", [0, 20])
def test_an_impossible_number_of_targets_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"targets: {number} is not between 1 and 19"):
        spread_targets(torch.tensor(UNEQUAL), number)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "timesteps"), [(1, 5), (2, 5), (3, 4)])
def test_without_the_own_class_memories_hold_others_only(most: int, timesteps: int) -> None:
    images = ClassImages(torch.zeros(60, 4, 4, dtype=torch.uint8), torch.full((6,), 10), tuple("abcdef"))
    spec = EpisodeSpec(timesteps, exact=False, max_batch_cls=most, own_class=False)
    episodes = GridEpisodes(images, spec, torch.arange(60), 0, "control").batch(slice(0, 60))
    assert not (episodes.memory_class == episodes.x_class).any()
    for rows, classes in zip(episodes.memory_index, episodes.memory_class, strict=True):
        assert len(set(rows.tolist())) == timesteps
        assert 1 <= len(set(classes.tolist())) <= most
    used = {len(set(classes.tolist())) for classes in episodes.memory_class}
    assert used == set(range(1, most + 1))
    seen = torch.bincount(episodes.memory_class.flatten(), minlength=6)
    assert (seen > 0).all()


def test_the_control_needs_a_class_more() -> None:
    images = ClassImages(torch.zeros(20, 4, 4, dtype=torch.uint8), torch.full((2,), 10), ("a", "b"))
    with pytest.raises(UserError, match="max_batch_cls: 2 may need 2 classes in a memory beside that of the target"):
        GridEpisodes(images, EpisodeSpec(4, False, None, 2, own_class=False), torch.arange(20), 0, "control")
