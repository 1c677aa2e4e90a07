"""A data set is one record: what the configuration allows, what it is checked against, and what is read."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import CPU
from helpers.config import small_config

import parsers
from config import ConfigError
from data.images import ClassImages
from data.registry import DATA_SETS, Counts, DataSet
from runtime.errors import DataError

SECTIONS = ("train_data", "val_data", "test_data")


@pytest.mark.parametrize("subset", ["train", "test"])
def test_glyphs_are_as_many_as_the_record_says(tmp_path: Path, subset: str) -> None:
    data = small_config(tmp_path).train_data
    images = DATA_SETS["glyphs"].load(data, subset)
    there = Counts(images.num_classes, int(images.counts.min()), len(images.images))
    assert DATA_SETS["glyphs"].counts(data, subset) == there


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots: nine classes of five images to train on, four of six for the test; a new file and a new line."""

    def load(root: str, subset: str) -> ClassImages:
        assert root == "somewhere"
        classes, number = (9, 5) if subset == "train" else (4, 6)
        images = torch.zeros(classes * number, 40, 40, dtype=torch.uint8)
        images[torch.arange(len(images)), torch.arange(len(images)) % 40] = 1
        return ClassImages(images, torch.full((classes,), number), tuple(f"dot {c}" for c in range(classes)))

    module = ModuleType("dots")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dots", module)
    counts = {"train": Counts(9, 5, 45), "test": Counts(4, 6, 24)}
    monkeypatch.setitem(DATA_SETS, "dots", DataSet("dots", ("root",), lambda subset, root: counts[subset]))


def of_dots(*more: str) -> tuple[str, ...]:
    keys = ("kind=dots", "root=somewhere", "classes=200")
    return (*(f"{section}.{key}" for section in SECTIONS for key in keys), *more)


@pytest.mark.usefixtures("toy")
def test_one_record_carries_a_new_data_set_from_the_file_to_the_episodes(tmp_path: Path) -> None:
    c = small_config(tmp_path, *of_dots())
    images = parsers.training_images(c, CPU)
    assert (images.train.num_classes, images.held_out.num_classes) == (6, 3)
    assert parsers.train_loader(c, images).at(0).memory.shape == (2, 4, 20, 20)
    test = parsers.test_images(c, CPU)
    assert parsers.grid_episodes(c, test, 2, 3).batch(slice(0, 5)).memory.shape == (5, 3, 20, 20)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train_data.held_out_classes=9", "held_out_classes: 9 leaves nothing to train on, kind dots has 9 classes"),
        ("train_data.max_img_per_class=4", "max_img_per_class: 4 puts 4 images of a class into a memory"),
        ("test_spec.test_params.timesteps=[6]", "test_params.timesteps: 6 is more than 5"),
        ("test_spec.test_params.max_batch_cls=[5]", "test_params.max_batch_cls: 5 is more than 4"),
        ("test_spec.targets=25", "test_spec.targets: 25 is more than 24, the images"),
        ("train_data.root=null", "train_data.root: missing; kind dots needs the folder"),
        ("train_data.classes=9", "train_data.classes: 9 is for kind glyphs, this is kind dots"),
        ("train_data.kind=dost", "train_data.kind: value 'dost': expected one of omniglot, mnist, glyphs"),
    ],
)
def test_the_configuration_is_checked_against_the_record(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_config(tmp_path, *of_dots(override))
    assert said in str(caught.value)


@pytest.mark.usefixtures("toy")
def test_classes_that_are_tested_are_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = DataSet("dots", ("root",), DATA_SETS["dots"].count, same_classes=True)
    monkeypatch.setitem(DATA_SETS, "dots", same)
    with pytest.raises(ConfigError, match="3 classes cannot be held out where all classes of kind dots are tested"):
        small_config(tmp_path, *of_dots())
    assert small_config(tmp_path, *of_dots("train_data.held_out_classes=0")).train_data.held_out_classes == 0


def test_a_file_is_no_folder_of_data(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes")
    c = small_config(tmp_path, *(f"{name}_data.{of}" for name in ("train", "val", "test")
                                 for of in ("kind=omniglot", "classes=200", f"root={tmp_path / 'notes'}")))  # fmt: skip
    with pytest.raises(DataError, match="notes: a file, where the folder of the data is needed"):
        parsers.training_images(c, CPU)


@pytest.mark.usefixtures("toy")
def test_what_only_reading_tells_is_checked_by_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_SETS, "dots", DataSet("dots", ("root",)))
    c = small_config(tmp_path, *of_dots("train_data.max_img_per_class=4", "test_spec.test_params.timesteps=[6]"))
    with pytest.raises(Exception, match="max_img_per_class: 4 puts 4 images of a class into a memory"):
        parsers.train_loader(c, parsers.training_images(c, CPU))
