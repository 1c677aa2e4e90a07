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


def test_the_grid_holds_the_images_black_on_white(tmp_path: Path, model: MemoryModel) -> None:
    small = small_config(tmp_path)
    episodes = parsers.train_loader(small, parsers.training_images(small, CPU)).at(0)
    grid = pictures.episode_grid(model, episodes, noise())
    assert grid.dtype == np.uint8 and grid.shape == (2 * 22, (4 + 1 + 1 + 8) * 22)
    for g in range(2):
        for place, image in enumerate([*episodes.memory[g], episodes.x[g, 0]]):
            tile = grid[g * 22 : (g + 1) * 22, place * 22 : (place + 1) * 22]
            assert np.array_equal(tile[1:-1, 1:-1], 255 * (1 - image.numpy().astype(np.uint8)))
            assert {*tile[0], *tile[-1], *tile[:, 0], *tile[:, -1]} == {153}
    assert np.array_equal(grid, pictures.episode_grid(model, episodes, noise()))


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
