"""What is no file: a pipe that nobody writes to is not waited for, and a device that never ends is not read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data import folder, mnist, omniglot
from reports.cells import load_cells
from runtime import checkpoints
from runtime.errors import DataError
from runtime.files import write_atomically
from runtime.metric_logger import MetricLogger

READERS: dict[str, Callable[[Path], object]] = {
    "a checkpoint": checkpoints.load,
    "images_background.npz": lambda path: omniglot.load(path.parent, "train", "official"),
    "images_background.zip": lambda path: omniglot.load(path.parent, "train", "official"),
    "images_background/a/b/0001_01.png": lambda path: omniglot.load(path.parents[3], "train", "official"),
    "w.safetensors": checkpoints.load,
    "drawing.png": folder.read_grey,
    "MNIST/raw/train-images-idx3-ubyte": lambda path: mnist._read_idx(path, torch.load),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def enormous(path: Path) -> None:
    """Sparse: it takes no room, and reading it whole would take all memory."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [pipe, endless, enormous])
@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_a_file_of_this_kind_is_refused(tmp_path: Path, name: str, kind: Callable[[Path], None]) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(path)
    with pytest.raises(DataError) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)
    assert any(said in str(caught.value) for said in ("not a file", "larger than"))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [pipe, endless, enormous])
def test_cells_of_a_table_that_are_no_file_are_none(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "table.npz")
    assert load_cells(tmp_path / "table.npz").every == {}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [pipe, endless])
def test_a_log_that_is_no_file_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Callable[[Path], None]
) -> None:
    kind(tmp_path / "log.jsonl")
    logger = MetricLogger(tmp_path / "log.jsonl", None, None)
    for step in range(3):
        logger.log_scalars("train", step, {"bound": 0.0})
    logger.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "log.jsonl: not a file" in caplog.text


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    for kind in (pipe, endless):
        kind(path := tmp_path / kind.__name__)
        with pytest.raises(OSError, match="not a file"):
            write_atomically(path, b"content")
        assert path.exists() and not path.is_file()
