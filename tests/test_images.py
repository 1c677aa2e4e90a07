"""Classes are found where the offsets say, resampling does what the literature did, holding out loses nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.images import ClassImages, hold_out, resample


def classes_of(*counts: int, side: int = 5) -> ClassImages:
    """Every image of class c is filled with the number c: pixels tell where they came from."""
    values = torch.arange(len(counts), dtype=torch.uint8).repeat_interleave(torch.tensor(counts))
    images = values[:, None, None].repeat(1, side, side)
    return ClassImages(images, torch.tensor(counts), tuple(f"c{c}" for c in range(len(counts))))


def drawings(number: int, side: int, seed: int = 0) -> ClassImages:
    """Random binary images, one class."""
    images = (torch.rand(number, side, side, generator=torch.Generator().manual_seed(seed)) < 0.3).to(torch.uint8)
    return ClassImages(images, torch.tensor([number]), ("all",))


@pytest.mark.parametrize(
    ("images", "counts", "names", "said"),
    [
        (torch.zeros(3, 4, 4), torch.tensor([3]), ("a",), "uint8"),
        (torch.zeros(3, 4, dtype=torch.uint8), torch.tensor([3]), ("a",), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.tensor([3], dtype=torch.int32), ("a",), "int64"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.tensor([2]), ("a",), "add up to 2"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.tensor([3, 0]), ("a", "b"), "needs an image"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.tensor([3]), ("a", "b"), "2 names for 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    images: torch.Tensor, counts: torch.Tensor, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ClassImages(images, counts, names)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.data())
@settings(max_examples=60, deadline=None)
def test_offsets_and_select_find_every_image_of_a_class(counts: list[int], data: st.DataObject) -> None:
    whole = classes_of(*counts)
    for c, (start, count) in enumerate(zip(whole.offsets.tolist(), counts, strict=True)):
        assert whole.images[start : start + count, 0, 0].tolist() == [c] * count
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    part = whole.select(chosen)
    assert part.images[:, 0, 0].tolist() == [c for c in chosen for _ in range(counts[c])]
    assert part.counts.tolist() == [counts[c] for c in chosen]
    assert part.names == tuple(f"c{c}" for c in chosen)


def test_select_refuses_a_class_that_is_not_there() -> None:
    for index in (-1, 2):
        with pytest.raises(IndexError):
            classes_of(2, 3).select([index])


def test_digest_changes_with_every_part_of_the_data() -> None:
    one = classes_of(2, 4)
    flipped = one.images.clone()
    flipped[3, 2, 2] ^= 1
    others = [
        ClassImages(flipped, one.counts, one.names),
        ClassImages(one.images, torch.tensor([3, 3]), one.names),
        ClassImages(one.images.reshape(6, 25, 1), one.counts, one.names),
    ]
    digests = {one.digest(), *(other.digest() for other in others)}
    assert len(digests) == 4
    assert classes_of(2, 4).digest() == one.digest() == ClassImages(one.images, one.counts, ("x", "y")).digest()


@pytest.mark.parametrize("size", [20, 26, 28, 32, 64])
def test_nearest_exact_is_nearest_of_pil(size: int) -> None:
    whole = drawings(20, 105)
    ours = resample(whole, size, "nearest-exact").images.numpy()
    for image, small in zip(whole.images.numpy(), ours, strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)), small)


def test_nearest_takes_row_and_column_floor_of_3_75_j_at_28() -> None:
    whole = drawings(20, 105)
    at = [int(3.75 * j) for j in range(28)]
    assert torch.equal(resample(whole, 28, "nearest").images, whole.images[:, at][:, :, at])


def test_nearest_enlarges_by_repetition() -> None:
    whole = drawings(3, 28)
    twice = whole.images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(resample(whole, 56, "nearest").images, twice)


def test_maxpool_at_26_is_the_published_form() -> None:
    whole = drawings(10, 105)
    pooled = resample(whole, 26, "maxpool").images.numpy()
    assert pooled.shape == (10, 26, 26)
    for i in range(26):
        for j in range(26):
            block = whole.images.numpy()[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            assert np.array_equal(pooled[:, i, j], block.max((1, 2)))


def test_maxpool_loses_no_ink_where_blocks_cover_the_image() -> None:
    single = torch.zeros(105, 105, 105, dtype=torch.uint8)
    single[torch.arange(105), torch.arange(105), torch.arange(105).flip(0)] = 1
    whole = ClassImages(single, torch.tensor([105]), ("dots",))
    assert resample(whole, 35, "maxpool").images.flatten(1).sum(1).tolist() == [1] * 105


@pytest.mark.parametrize("size", [28, 40, 106])
def test_maxpool_refuses_sizes_that_would_cut_the_drawing(size: int) -> None:
    with pytest.raises(ValueError, match=f"from 105 to {size} .* use one of"):
        resample(drawings(1, 105), size, "maxpool")


def test_unknown_ways_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="bilinear"):
        resample(drawings(1, 105), 26, "bilinear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        resample(drawings(1, 105), 0, "nearest")


@pytest.mark.parametrize("how", ["nearest", "nearest-exact", "maxpool"])
def test_no_images_stay_no_images(how: str) -> None:
    none = drawings(3, 105).select([])
    assert resample(none, 26, how).images.shape == (0, 26, 26)  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(0, 11), st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_hold_out_splits_the_classes_in_order(classes: int, number: int, seed: int) -> None:
    whole = classes_of(*range(1, classes + 1))
    if number >= classes:
        with pytest.raises(ValueError, match="cannot hold out"):
            hold_out(whole, number, seed)
        return
    kept, held = hold_out(whole, number, seed)
    assert held.num_classes == number
    assert sorted(kept.names + held.names) == sorted(whole.names)
    for part in (kept, held):
        ids = [int(name[1:]) for name in part.names]
        assert ids == sorted(ids)
        assert part.images[:, 0, 0].tolist() == [c for c in ids for _ in range(c + 1)]
    again = hold_out(whole, number, seed)
    assert again[1].names == held.names


def test_the_seed_decides_which_classes_are_held_out() -> None:
    whole = classes_of(*[1] * 40)
    assert len({hold_out(whole, 5, seed)[1].names for seed in range(20)}) == 20
