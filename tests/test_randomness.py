"""Numbers are a function of their address: not of batch, chunk, order, process or of what was drawn before."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.randomness import Shard, StepNoise, TargetNoise, generator, philox, seed_of

PART = st.one_of(st.integers(), st.text(max_size=3))


def test_seed_is_the_same_in_every_process_and_version() -> None:
    assert seed_of("noise", 0, 17) == 2488220415967349250
    assert seed_of() != seed_of(0)


@settings(deadline=None)
@given(st.lists(st.lists(PART, max_size=4).map(tuple), min_size=2, max_size=8, unique=True))
def test_different_keys_have_different_seeds(keys: list[tuple[int | str, ...]]) -> None:
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_of_a_key_do_not_run_together() -> None:
    keys: list[tuple[int | str, ...]] = [
        ("a", 1, 23),
        ("a", 12, 3),
        ("a", 123),
        ("a", "1", 23),
        ("a1", 23),
        ("a, 1", 23),
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_generator_stands_at_the_beginning_of_its_stream() -> None:
    torch.rand(3)
    first, again, other = (torch.rand(5, generator=generator("cpu", *key)) for key in (("a", 1), ("a", 1), ("a", 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def draws(noise: StepNoise, groups: int) -> list[Tensor]:
    """What a step draws: addresses, latents, and both again."""
    return [
        noise.uniform("a", 3, groups, 2),
        noise.normal("b", 3, groups, 2, 4),
        noise.uniform("a", 2, groups),
        noise.normal("b", 2, groups),
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_take_slices_of_the_same_numbers(world: int) -> None:
    whole = draws(StepNoise("cpu", "key", 5), 2 * world)
    parts = [draws(StepNoise("cpu", "key", 5, shard=Shard(rank, world)), 2) for rank in range(world)]
    for drawn, *of_ranks in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(of_ranks, 1), drawn)


def test_successive_steps_and_calls_are_fresh() -> None:
    noise = StepNoise("cpu", "key", 5)
    numbers = [noise.normal("z", 2, 3), noise.normal("z", 2, 3), StepNoise("cpu", "key", 6).normal("z", 2, 3)]
    assert len({tuple(n.flatten().tolist()) for n in numbers}) == 3


def target_noise(targets: list[int], first: int = 0, key: str = "cell") -> TargetNoise:
    return TargetNoise("test", key, targets=torch.tensor(targets), first=first)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("rest", [(), (3,), (8,)])
def test_a_targets_noise_does_not_depend_on_batch_order_or_chunk(kind: str, rest: tuple[int, ...]) -> None:
    def drawn(targets: list[int], first: int, k: int) -> Tensor:
        return getattr(target_noise(targets, first), kind)("name", k, len(targets), 1, *rest)

    whole = drawn([7, 3, 11], 0, 200)
    assert whole.shape == (200, 3, 1, *rest)
    assert torch.equal(drawn([11, 7], 0, 200), whole[:, [2, 0]])
    for chunk in (1, 64, 150):
        parts = [drawn([7, 3, 11], first, min(chunk, 200 - first)) for first in range(0, 200, chunk)]
        assert torch.equal(torch.cat(parts), whole)
    for k in (1, 30, 70):
        assert torch.equal(drawn([7, 3, 11], 0, k), whole[:k])


def test_targets_cells_blocks_and_kinds_have_numbers_of_their_own() -> None:
    a, b = target_noise([1, 2]), target_noise([1, 2], key="other cell")
    normals = torch.cat([noise.normal(name, 100, 2, 1).flatten() for noise in (a, b) for name in ("z", "other")])
    uniforms = a.uniform("address", 100, 2, 1).flatten()
    assert len(normals.unique()) == len(normals)
    assert len(uniforms.unique()) == len(uniforms)


def test_the_first_numbers_of_longer_samples_are_those_of_shorter_ones() -> None:
    whole = target_noise([5, 9]).normal("z", 10, 2, 1, 9)
    for width in (1, 4, 6):
        assert torch.equal(target_noise([5, 9]).normal("z", 10, 2, 1, width), whole[..., :width])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: int, words: str) -> None:
    """The known answers that its authors publish with Random123."""
    assert " ".join(f"{int(word):08x}" for word in philox(key, [torch.tensor(c) for c in counter])) == words


def test_normal_numbers_are_normal() -> None:
    """Kolmogorov and Smirnov's distance of 100,000 numbers; 1.95 / sqrt(n) is exceeded once in a thousand times."""
    values = target_noise(list(range(100))).normal("z", 1000, 100, 1).flatten().double().sort().values
    n = len(values)
    exact = torch.special.ndtr(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    assert max((exact - steps[:-1]).abs().max(), (exact - steps[1:]).abs().max()) < 1.95 / math.sqrt(n)
    assert values.isfinite().all()


@pytest.mark.parametrize("source", ["step", "target"])
def test_moments(source: str) -> None:
    """Within four standard errors."""
    shape = (500, 20, 1, 4)
    noise = StepNoise("cpu", "moments") if source == "step" else target_noise(list(range(20)))
    u, e = noise.uniform("address", *shape).double(), noise.normal("z", *shape).double()
    assert u.min() >= 0 and u.max() < 1
    for values, expected, variance in [
        (u, 1 / 2, 1 / 12),
        (u**2, 1 / 3, 4 / 45),
        (e, 0, 1),
        (e**2, 1, 2),
        (e**4, 3, 96),
        (u * e, 0, 1 / 3),
        (e[:, 1:] * e[:, :-1], 0, 1),
        (e[1:] * e[:-1], 0, 1),
    ]:
        assert abs(values.mean().item() - expected) < 4 * math.sqrt(variance / values.numel())
