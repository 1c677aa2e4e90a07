"""Augmentation: exactly the resampled image through the identity, exact symmetries, one map for a class in a memory."""

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from data import glyphs
from data.augmentation import Augmentation, RandomMaps, Warp
from data.composition import EpisodeSpec
from data.episodes import EpisodeLoader, MixedLoader
from data.images import ClassImages, resample
from runtime.randomness import Shard

STILL = RandomMaps(keep=0, rotation=0, scale=0, shear=0)
SPEC = EpisodeSpec(timesteps=8, exact=True, max_img_per_class=4, targets_per_memory=4)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawings() -> ClassImages:
    """Ten classes of 105 x 105 drawings, as Omniglot has them."""
    images = (torch.rand(200, 105, 105, generator=source()) < 0.1).to(torch.uint8)
    return ClassImages(images, torch.full((10,), 20), tuple(map(str, range(10))))


def same_map(number: int, matrix: list[list[float]]) -> Tensor:
    return torch.tensor(matrix, dtype=torch.float32).expand(number, 2, 2)


@pytest.mark.parametrize(
    ("how", "size"),
    [("nearest-exact", 26), ("nearest-exact", 64), ("nearest-exact", 20), ("nearest", 28), ("nearest", 26),
     ("maxpool", 26), ("maxpool", 35)],
)  # fmt: skip
def test_the_identity_gives_the_resampled_image(drawings: ClassImages, how: str, size: int) -> None:
    rows = torch.arange(200).view(4, 50)
    seen = Warp(drawings, size, how)(rows, torch.eye(2).expand(4, 50, 2, 2))  # type: ignore[arg-type]
    assert torch.equal(seen.flatten(0, 1), resample(drawings, size, how).images.float())  # type: ignore[arg-type]


def test_the_identity_gives_the_image_where_drawings_have_an_even_side() -> None:
    images = glyphs.load("train", classes=3)
    seen = Warp(images, 26, "nearest-exact")(torch.arange(60), torch.eye(2).expand(60, 2, 2))
    assert torch.equal(seen, resample(images, 26, "nearest-exact").images.float())


@pytest.mark.parametrize("side", [105, 35])
def test_symmetries_of_the_square_are_exact(drawings: ClassImages, side: int) -> None:
    """At sizes whose grid of pixels is symmetric about the centre."""
    plain = resample(drawings, side, "nearest-exact").images[:5].float()
    warp, rows = Warp(drawings, side, "nearest-exact"), torch.arange(5)
    assert torch.equal(warp(rows, same_map(5, [[-1, 0], [0, 1]])), plain.flip(1))
    assert torch.equal(warp(rows, same_map(5, [[1, 0], [0, -1]])), plain.flip(2))
    assert torch.equal(warp(rows, same_map(5, [[0, 1], [1, 0]])), plain.mT)
    assert torch.equal(warp(rows, same_map(5, [[0, 1], [-1, 0]])), plain.rot90(1, (1, 2)))


def test_a_pixel_is_fetched_from_where_the_map_says(drawings: ClassImages) -> None:
    """The loop that reads like the definition; what lies outside of the drawing is paper."""
    matrix = [[1.3, 0.4], [-0.2, 0.9]]
    seen = Warp(drawings, 26, "nearest-exact")(torch.tensor([7]), same_map(1, matrix))[0]
    for i in range(26):
        for j in range(26):
            r, c = math.floor((i + 0.5) * 105 / 26) - 52, math.floor((j + 0.5) * 105 / 26) - 52
            row = round(matrix[0][0] * r + matrix[0][1] * c) + 52
            column = round(matrix[1][0] * r + matrix[1][1] * c) + 52
            inside = 0 <= row < 105 and 0 <= column < 105
            assert seen[i, j] == (drawings.images[7, row, column] if inside else 0)


def test_without_small_changes_maps_are_the_eight_symmetries_equally_often() -> None:
    n = 8000
    maps = STILL.draw(n, source()).round(decimals=4) + 0.0  # no -0
    found, counts = maps.flatten(1).unique(dim=0, return_counts=True)
    assert len(found) == 8
    assert set(found.abs().sum(1).tolist()) == {2.0}  # two entries of 1 or -1
    chi2 = ((counts - n / 8) ** 2 / (n / 8)).sum()
    assert chi2 < 24.3  # the 0.999 quantile of chi-square with 7 degrees of freedom


@pytest.mark.parametrize(("switches", "number"), [(("flips",), 4), (("turns",), 4), ((), 1)])
def test_flips_and_turns_are_switches(switches: tuple[str, ...], number: int) -> None:
    on = {name: name in switches for name in ("flips", "turns")}
    maps = replace(STILL, **on).draw(500, source()).round(decimals=4) + 0.0
    assert len(maps.flatten(1).unique(dim=0)) == number


def test_small_changes_keep_their_limits() -> None:
    limits = RandomMaps(keep=0, flips=False, turns=False, rotation=20, scale=0.25, shear=0.1)
    maps = limits.draw(4000, source())
    area = torch.linalg.det(maps)
    assert 1 / 1.25**2 < area.min() < 0.7 < 1.4 < area.max() < 1.25**2
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()  # the first axis is only turned and stretched
    assert -20 < angle.min() < -19 < 19 < angle.max() < 20
    stretched = maps[:, :, 0].norm(dim=1)
    assert 1 / 1.25 < stretched.min() < 0.81 < 1.23 < stretched.max() < 1.25
    sheared = (maps[:, :, 0] * maps[:, :, 1]).sum(1) / stretched
    assert -0.1 < sheared.min() < -0.095 < 0.095 < sheared.max() < 0.1


def test_the_share_of_classes_left_alone_is_keep() -> None:
    n, keep = 10_000, 0.3
    alone = (RandomMaps(keep=keep).draw(n, source()) == torch.eye(2)).flatten(1).all(1)
    assert abs(alone.float().mean() - keep) < 4 * math.sqrt(keep * (1 - keep) / n)  # standard errors


# --- in episodes ------------------------------------------------------------------------------------------------------


def loader(
    drawings: ClassImages, augment: RandomMaps | None, shard: Shard = Shard(), spec: EpisodeSpec = SPEC
) -> EpisodeLoader:
    images = resample(drawings, 35, "nearest-exact")
    augmentation = Augmentation(augment, Warp(drawings, 35, "nearest-exact")) if augment else None
    return EpisodeLoader(images, spec, 16, 1, "train", shard, augmentation)


def test_a_class_in_a_memory_has_one_map_and_other_memories_and_steps_other_maps(drawings: ClassImages) -> None:
    plain = resample(drawings, 35, "nearest-exact").images.float()
    orbit = torch.stack(
        [p for i in plain.unsqueeze(1) for q in (i, i.mT) for p in [q.rot90(k, (1, 2)) for k in range(4)]]
    )
    orbit = orbit.view(len(plain), 8, 35, 35)

    def symmetry(image: Tensor, row: Tensor) -> int:
        return int((orbit[row] == image).flatten(1).all(1).nonzero()[0])

    maps: dict[tuple[int, int, int], set[int]] = {}
    for step, g in product(range(4), range(4)):
        e = loader(drawings, STILL).at(step)
        for images, rows, classes in ((e.x, e.x_index, e.x_class), (e.memory, e.memory_index, e.memory_class)):
            for image, row, c in zip(images[g], rows[g], classes[g], strict=True):
                maps.setdefault((int(c), step, g), set()).add(symmetry(image, row))
    assert all(len(found) == 1 for found in maps.values())
    pairs = [(a, b) for a, b in combinations(maps, 2) if a[0] == b[0]]  # of one class
    for of in (
        [(a, b) for a, b in pairs if a[1] == b[1]],  # in memories of one step
        [(a, b) for a, b in pairs if a[1] != b[1] and a[2] == b[2]],  # in the same place of two steps
    ):
        same = sum(maps[a] == maps[b] for a, b in of)
        assert len(of) > 8 and same < len(of) / 2  # an eighth of them is expected


def test_episodes_are_the_same_but_for_their_pixels(drawings: ClassImages) -> None:
    plain, mapped = loader(drawings, None).at(5), loader(drawings, RandomMaps()).at(5)
    assert torch.equal(plain.x_index, mapped.x_index) and torch.equal(plain.memory_index, mapped.memory_index)
    assert not torch.equal(plain.x, mapped.x)
    alone = loader(drawings, RandomMaps(keep=1)).at(5)
    assert torch.equal(plain.x, alone.x) and torch.equal(plain.memory, alone.memory)


def test_pixels_stay_binary_and_steps_have_an_address(drawings: ClassImages) -> None:
    e = loader(drawings, RandomMaps(keep=0)).at(2)
    assert set(e.memory.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(loader(drawings, RandomMaps(keep=0)).at(2).memory, e.memory)
    assert not torch.equal(loader(drawings, RandomMaps(keep=0)).at(1).memory, e.memory)


def test_processes_share_the_maps_out(drawings: ClassImages) -> None:
    whole = loader(drawings, RandomMaps()).at(4)
    shards = [loader(drawings, RandomMaps(), Shard(rank, 2)).at(4) for rank in range(2)]
    assert torch.equal(torch.cat([shard.x for shard in shards]), whole.x)
    assert torch.equal(torch.cat([shard.memory for shard in shards]), whole.memory)


def test_a_mixture_draws_compositions_by_their_weights(drawings: ClassImages) -> None:
    single = EpisodeSpec(timesteps=1, exact=True, max_img_per_class=1, targets_per_memory=16)
    mixed = MixedLoader([loader(drawings, None), loader(drawings, None, spec=single)], [1.0, 0.25], seed=7)
    n, share = 600, 0.2
    sizes = [mixed.at(step).memory.shape[1] for step in range(n)]
    assert set(sizes) == {1, 8}
    assert abs(sizes.count(1) / n - share) < 4 * math.sqrt(share * (1 - share) / n)  # standard errors
    again = MixedLoader([loader(drawings, None), loader(drawings, None, spec=single)], [1.0, 0.25], seed=7)
    assert [again.at(step).memory.shape[1] for step in range(50)] == sizes[:50]
    assert mixed.batch_size == 16
