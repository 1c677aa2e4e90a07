"""kill -9 before every call that concerns a state, in a recovery and the saves after it: a good one is always there."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import flipped
from helpers.logs import curves, same_end
from helpers.program import finish, fork_program, main, replaced

from runtime import checkpoints
from runtime.errors import DataError

RUN = ("train_spec.steps=4", "train_spec.save_every=2", "--device", "cpu")

CALLS = {"open", "os.rename", "os.link", "os.remove", "os.chmod", "os.fsync", "fcntl.flock"}


def killed_before(number: int) -> None:
    """Let this process die before its n-th call that concerns a file with a state."""
    fsync, left = os.fsync, iter(range(number - 1, -1, -1))

    def count(event: str, args: tuple[Any, ...]) -> None:
        concerns = event in CALLS and (not isinstance(args[0], str | os.PathLike) or "vma.last" in os.fspath(args[0]))
        if concerns and not next(left):
            os.kill(os.getpid(), signal.SIGKILL)

    replaced(os, fsync=lambda handle: (sys.audit("os.fsync", handle), fsync(handle)))  # type: ignore[func-returns-value]
    sys.addaudithook(count)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, "--train", *RUN) == 0
    return folder


def step_of(path: Path) -> int:
    """The step of a state that can be resumed; -1 for what cannot."""
    try:
        state = checkpoints.load(path)
    except DataError:
        return -1
    return int(state["progress"]["step"]) if "optimizer" in state else -1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("damage", ["one bit", "weights in its place"])
def test_a_good_state_survives_a_kill_at_every_call(tmp_path: Path, whole: Path, damage: str) -> None:
    folder, left = tmp_path / "run", tmp_path / "left"
    left.mkdir()
    assert main(folder, "--train", *RUN) == 0
    last = folder / "vma.last.pt"
    flipped(last) if damage == "one bit" else shutil.copy(folder / "vma.pt", last)
    assert step_of(last) == -1 and step_of(folder / "vma.last-but-one.pt") == 2
    folder.rename(left / "start")
    number, status = 0, -9
    while status:  # again and again from the same files
        number += 1
        shutil.copytree(left / "start", folder)
        status, _, err = finish(fork_program(folder, "--train", *RUN, first=lambda n=number: killed_before(n)))  # type: ignore[misc]
        assert status in (0, -9), err
        folder.rename(left / str(number))
    numbers = sorted(int(path.name) for path in left.glob("[0-9]*"))
    assert len(numbers) > 15
    best = [max(map(step_of, (left / str(number)).glob("vma.last*.pt"))) for number in numbers]
    assert best[0] == 2 and best[-1] == 4 and best == sorted(best), best
    for number in numbers[:: max(1, len(numbers) // 4)]:
        (left / str(number)).rename(folder)
        assert main(folder, "--train", *RUN) == 0
        assert curves(folder) == curves(whole)
        assert same_end(folder, whole)
        folder.rename(left / f"{number} resumed")
