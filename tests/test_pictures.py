"""Pictures show what they say: the images themselves, the nearest neighbours, black ink on white paper."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU
from helpers.config import small_config
from PIL import Image

import parsers
from models.base import MemoryModel
from reports import pictures
from runtime.randomness import StepNoise


@pytest.fixture
def model(tmp_path: Path) -> MemoryModel:
    return parsers.build_model(small_config(tmp_path), CPU)


def noise() -> StepNoise:
    return StepNoise(CPU, "test")


def test_the_nearest_image_has_the_smallest_angle() -> None:
    numbers = torch.Generator().manual_seed(0)
    images = (torch.rand(30, 6, 6, generator=numbers) < 0.3).to(torch.uint8)
    samples = torch.rand(5, 3, 6, 6, generator=numbers)
    found = pictures.nearest(samples, images)
    assert found.shape == samples.shape and found.dtype == samples.dtype
    for n in range(5):
        for g in range(3):
            a = samples[n, g].double()
            cosines = [float((a * b).sum() / a.norm() / b.norm()) for b in images.double()]
            assert torch.equal(found[n, g], images[int(np.argmax(cosines))].float())


def test_every_training_image_is_its_own_nearest() -> None:
    images = (torch.rand(30, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.3).to(torch.uint8)
    assert torch.equal(pictures.nearest(images[:, None].float(), images)[:, 0], images.float())


def test_slots_are_the_memory_and_then_the_dummies(model: MemoryModel) -> None:
    memory = torch.rand(3, 4, 20, 20)
    slots = model.slot_images(memory)
    assert torch.equal(slots[:, :4], memory)
    assert all(torch.equal(slots[g, 4:], model.get_parameter("dummies").detach()) for g in range(3))
    assert model.slot_images(memory[:, :0]).shape == (3, 2, 20, 20)


@pytest.mark.parametrize(("targets", "shown"), [("1", 1), ("4", 4), ("12", 6), ("null", 6)])
def test_a_few_targets_from_all_over_are_shown(tmp_path: Path, targets: str, shown: int) -> None:
    small = small_config(tmp_path, f"test_spec.targets={targets}")
    grid = parsers.grid_episodes(small, parsers.test_images(small, CPU), 1, 3)
    rows = pictures.spread(grid).x_index[:, 0].tolist()
    every = grid.batch(slice(None)).x_index[:, 0].tolist()
    assert len(set(rows)) == shown
    assert rows[0] == every[0] and (shown == 1 or rows[-1] == every[-1])


def test_a_sheet_holds_the_images_black_on_white_under_titles(tmp_path: Path, model: MemoryModel) -> None:
    small = small_config(tmp_path, "train_data.targets_per_memory=1")
    episodes = parsers.train_loader(small, parsers.training_images(small, CPU)).at(0)
    first = pictures.first_targets(episodes)
    figure = pictures._sheet(model, first, noise(), None)
    assert [axis.get_title() for axis in figure.axes] == [
        "memory", "target, picked,\nreconstruction", "samples of p(x|M), pixel means",
    ]  # fmt: skip
    memory, inferred, _ = (np.asarray(axis.images[0].get_array()) for axis in figure.axes)
    assert memory.shape == (6 * 22, 4 * 22) and memory.dtype == np.uint8
    for g in range(6):
        for place, image in enumerate(episodes.memory[g]):
            tile = memory[g * 22 : (g + 1) * 22, place * 22 : (place + 1) * 22]
            assert np.array_equal(tile[1:-1, 1:-1], 255 * (1 - image.numpy().astype(np.uint8)))
            assert {*tile[0], *tile[-1], *tile[:, 0], *tile[:, -1]} == {153}
        assert np.array_equal(
            inferred[g * 22 + 1 : g * 22 + 21, 1:21], 255 * (1 - episodes.x[g, 0].numpy().astype(np.uint8))
        )


def test_tensorboard_gets_the_same_picture_of_the_same_weights(tmp_path: Path, model: MemoryModel) -> None:
    """Of the first target of each of the first memories; in colour, with white between the blocks."""
    small = small_config(tmp_path)
    episodes = parsers.train_loader(small, parsers.training_images(small, CPU)).at(0)
    assert pictures.first_targets(episodes).x.shape[:2] == (2, 1)
    picture = pictures.episode_picture(model, episodes, noise())
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert np.array_equal(picture, pictures.episode_picture(model, episodes, noise()))
    middle = picture[picture.shape[0] * 2 // 3].mean(1)  # a line through the images
    gaps = np.diff(np.flatnonzero(np.diff((middle == 255).astype(int), prepend=0) == 1))
    assert len(gaps) >= 2


def test_every_class_of_a_memory_is_shown() -> None:
    """Of 32 images, 8 classes x 4 or 1 of one class and 31 of another, 16 are shown in their order."""
    classes = torch.stack([torch.arange(8).repeat_interleave(4), torch.tensor([5] * 31 + [7])])
    memory = torch.arange(2 * 32).view(2, 32, 1, 1).float()
    shown = pictures._of_every_class(memory, classes)[..., 0, 0].long()
    assert shown.shape == (2, 16) and (shown.diff(dim=1) > 0).all()
    assert classes[0][shown[0]].bincount().tolist() == [2] * 8
    assert classes[1][shown[1] - 32].tolist() == [5] * 15 + [7]


def test_the_sheet_of_a_memory_has_a_caption_for_every_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, png = [], pictures.png
    monkeypatch.setattr(pictures, "png", lambda figure, dpi: figures.append(figure) or png(figure, dpi))  # type: ignore[func-returns-value]
    images = torch.rand(19, 20, 20)
    sheet = pictures.MemorySheet(
        "mine", images[:4], ["a", "b", "c" * 30], images[4:], torch.tensor([0, 3] * 7 + [2]), "samples"
    )
    sheet.target["$x^.png: NLL $3 nats"], sheet.p_a = images[0], torch.tensor([0.25, 0.125, 0.5, 0.125])
    sheet.write(tmp_path / "sheet.png")
    (figure,) = figures
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    named = {"1: a": "0.25", "2: b": "0.12", "3: " + "c" * 14: "0.50", "dummy 1": "0.12"}
    assert titles[:4] == [f"{name}\np(a|x,M) = {p}" for name, p in named.items()]
    assert titles[4:19] == ["from 1", "from dummy 1"] * 7 + ["from 3"]
    assert [part.get_suptitle() for part in figure.subfigs] == ["mine", "samples", r"\$x^.png: NLL \$3 nats"]


@pytest.mark.parametrize("timesteps", [0, 12])
def test_the_sample_sheet_is_written_for_every_memory_size(tmp_path: Path, model: MemoryModel, timesteps: int) -> None:
    small = small_config(tmp_path)
    grid = parsers.grid_episodes(small, parsers.test_images(small, CPU), 1, timesteps)
    training = parsers.training_images(small, CPU).train.images
    path = tmp_path / "new" / "sheet.png"
    pictures.write_samples(path, model, pictures.spread(grid), training, noise())
    with Image.open(path) as image:
        assert min(image.size) > 100
        assert image.convert("L").getextrema() == (0, 255)
