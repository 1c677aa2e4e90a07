"""kill -9 at every stage of a save and while validating: what was saved loads, and the run goes on exactly."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.logs import curves, rows, same_end
from helpers.program import finish, fork_program, main, replaced

from data.episodes import EpisodeLoader, Episodes
from runtime import checkpoints


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(stage: str, number: int) -> None:
    """Let this process kill itself in the `number`-th save.

    When the temporary file was made, when it is written and not yet safe, when it is safe, when the old state has its
    second name, when the new one has its place.
    """
    real_save, saves = checkpoints.save, iter(range(1, 1000))

    def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        if next(saves) == number:
            if stage == "made":
                replaced(os, fchmod=die)
            elif stage == "written":
                replaced(os, fsync=die)
            elif stage == "safe":
                real_fsync = os.fsync
                replaced(os, fsync=lambda handle: (real_fsync(handle), die()))  # type: ignore[func-returns-value]
            else:
                left = iter(range({"kept": 1, "in place": 2 if previous and path.exists() else 1}[stage] - 1, -1, -1))
                real_replace = Path.replace

                def replace(path: Path, target: Path) -> None:
                    real_replace(path, target)
                    if not next(left):
                        die()

                replaced(Path, replace=replace)
        real_save(path, state, previous)

    replaced(checkpoints, save=save)


RUN = ("train_spec.steps=12", "train_spec.save_every=2")
STAGES = ("made", "written", "safe", "kept", "in place")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, "--train", *RUN) == 0
    return folder


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        pytest.param(stage, number, marks=[] if (stage, number) == ("kept", 4) else pytest.mark.slow)
        for number in (4, 5)
        for stage in STAGES
    ],
)
def test_a_training_killed_while_it_saves_goes_on(tmp_path: Path, whole: Path, stage: str, number: int) -> None:
    status, _, err = finish(fork_program(tmp_path, "--train", *RUN, first=lambda: killed(stage, number)))
    assert status == -9, err
    saved = [checkpoints.load(path) for path in tmp_path.glob("vma*.pt")]
    assert saved and all(0 <= state["progress"]["step"] < 12 for state in saved)
    if stage == "kept":
        assert (tmp_path / "vma.last.pt").samefile(tmp_path / "vma.last-but-one.pt")  # never without a last one
    assert bool(list(tmp_path.glob(".vma*.part"))) == (stage != "in place")
    assert main(tmp_path, "--train", *RUN) == 0
    assert not list(tmp_path.glob(".*.part"))
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)


def killed_validating(number: int) -> None:
    """Let this process kill itself at the `number`-th batch of a validation."""
    real, left = EpisodeLoader.at, iter(range(number - 1, -1, -1))

    def at(loader: EpisodeLoader, step: int) -> Episodes:
        if loader.subset == "validation" and not next(left):
            die()
        return real(loader, step)

    replaced(EpisodeLoader, at=at)


@pytest.mark.parametrize("batch", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_training_killed_while_it_validates_goes_on(tmp_path: Path, whole: Path, batch: int) -> None:
    """At the second batch of the first validation and of the one after it, which are two batches and a picture each."""
    status, _, err = finish(fork_program(tmp_path, "--train", *RUN, first=lambda: killed_validating(batch)))
    assert status == -9, err
    assert len(rows(tmp_path, "validation")) == batch // 3
    assert main(tmp_path, "--train", *RUN) == 0
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)
