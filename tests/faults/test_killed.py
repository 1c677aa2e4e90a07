"""kill -9: the last good checkpoint loads, and the run that goes on is the run that was never killed."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.logs import curves, same_end
from helpers.program import finish, fork_program, fork_waiting, main, replaced, wait_for
from helpers.tensorboard import tensorboard_folder, tensorboard_scalars
from PIL import Image

from runtime import checkpoints

RUN = ("train_spec.steps=30", "train_data.iter=15", "train_spec.save_every=5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, "--train", *RUN) == 0
    return folder


def assert_the_same(folder: Path, whole: Path) -> None:
    assert curves(folder) == curves(whole)
    assert same_end(folder, whole)
    seen, expected = tensorboard_scalars(tensorboard_folder(folder)), tensorboard_scalars(tensorboard_folder(whole))
    assert {tag: [step for step, _ in curve] for tag, curve in seen.items()} == {
        tag: [step for step, _ in curve] for tag, curve in expected.items()
    }


def loads(folder: Path) -> None:
    """Whatever is there is whole."""
    for name in ("vma.pt", "vma.last.pt", "vma.last-but-one.pt"):
        if (folder / name).exists():
            checkpoints.load(folder / name)


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), 12, pytest.param(16, marks=pytest.mark.slow)]
)
def test_a_killed_training_goes_on(tmp_path: Path, whole: Path, step: int) -> None:
    process = fork_waiting(tmp_path, step, "--train", *RUN, for_ever=True)
    process.kill()
    assert finish(process)[0] == -9
    loads(tmp_path)
    assert main(tmp_path, "--train", *RUN) == 0
    assert_the_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_killed_at_twenty_moments_goes_on(tmp_path: Path, whole: Path) -> None:
    """Half of the moments are while the state is written: as soon as its temporary name is seen."""
    numbers = random.Random(0)
    always = ("train_data.iter=20", "train_spec.save_every=2")
    for attempt in range(20):
        process = fork_program(tmp_path, "--train", "train_spec.steps=100000", *always)
        wait_for(lambda: (tmp_path / "vma.resolved.yaml").exists(), process)
        if attempt % 2:
            time.sleep(numbers.uniform(0, 1.5))
        else:
            partial = set(tmp_path.glob(".vma.last.pt.*.part"))
            wait_for(lambda seen=partial: bool(set(tmp_path.glob(".vma.last.pt.*.part")) - seen), process)  # type: ignore[misc]
        process.kill()
        assert finish(process)[0] == -9
        loads(tmp_path)
    steps = f"train_spec.steps={checkpoints.load(tmp_path / 'vma.last.pt')['progress']['step'] + 10}"
    assert main(tmp_path, "--train", steps, *always) == 0
    assert main(tmp_path / "whole", "--train", steps, *always) == 0
    assert_the_same(tmp_path, tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_test_goes_on_with_the_next_cell(tmp_path: Path) -> None:
    grid = ("test_spec.targets=60", "test_spec.importance_num=200", "test_spec.test_params.timesteps=[1..6]")
    assert main(tmp_path / "whole", "--train", "--test", "train_spec.steps=3", *grid) == 0
    assert main(tmp_path, "--train", "train_spec.steps=3") == 0
    kills = 0
    for attempt in range(4):
        process = fork_program(tmp_path, "--test", *grid)
        cells = 2 * (attempt + 1)

        def done(cells: int = cells) -> bool:
            table = tmp_path / "table.csv"
            return table.exists() and len(table.read_text().splitlines()) > cells

        wait_for(done, process, 120)
        process.kill()
        finish(process)
        kills += 1
    assert main(tmp_path, "--test", *grid) == 0
    assert kills == 4
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "whole" / "table.csv").read_text()
    with np.load(tmp_path / "table.npz") as one, np.load(tmp_path / "whole" / "table.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in other.files)


@pytest.mark.slow
def test_partial_files_of_killed_processes_do_not_pile_up(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f".vma.last.pt.dead{n}.part").write_bytes(b"cut off")
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    assert not list(tmp_path.glob(".*.part"))


def on_a_slow_disk() -> None:
    fsync = os.fsync
    replaced(os, fsync=lambda handle: (time.sleep(0.2), fsync(handle)))  # type: ignore[func-returns-value]


@pytest.mark.slow
def test_killed_sampling_leaves_whole_pictures(tmp_path: Path) -> None:
    """Half of the kills are while a picture is written: as soon as its temporary name is seen."""
    grid = "test_spec.test_params.timesteps=[1..6]"
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    folder = tmp_path / "samples"
    folder.mkdir()  # else the program makes it, takes it away again and makes it, to see whether it can
    for attempt in range(4):
        pattern = ".*.part" if attempt % 2 else "C1_M*.png"
        already = set(folder.glob(pattern))
        process = fork_program(tmp_path, "--sample", grid, first=on_a_slow_disk)
        wait_for(lambda seen=already, now=pattern: bool(set(folder.glob(now)) - seen), process)  # type: ignore[misc]
        process.kill()
        assert finish(process)[0] == -9
        for path in folder.glob("*.png"):
            with Image.open(path) as image:
                image.load()
            path.unlink()
    assert main(tmp_path, "--sample", grid) == 0
    assert len(list(folder.glob("*.png"))) == 12 and not list(folder.glob(".*.part"))
