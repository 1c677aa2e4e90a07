"""kill -9 before every call that concerns a state, in a recovery and the saves after it: a good one is always there."""

import shutil
from pathlib import Path

import pytest
from helpers.config import arguments
from helpers.faults import flipped
from helpers.logs import curves, same_end
from helpers.program import finish, main, start

from runtime import checkpoints
from runtime.errors import DataError

RUN = ("train_spec.steps=4", "train_spec.save_every=2", "--device", "cpu")

# The program, again and again from the same files, each time in a child of this process, which has imported
# everything; the n-th child dies before its n-th call that concerns a file.  What each leaves lies in a folder of its
# own, which takes the name of the run's while the child works.
_KILLED = """
import functools, os, shutil, signal, sys
from pathlib import Path
import run
from data import glyphs

folder, left = Path(sys.argv[1]), Path(sys.argv[2])
import torch._dynamo, torch.utils.tensorboard, matplotlib.figure, commands
glyphs.load = functools.cache(glyphs.load)
glyphs.load(subset="train", classes=8, seed=0)
CALLS = {"open", "os.rename", "os.link", "os.remove", "os.chmod", "os.fsync", "fcntl.flock"}
fsync = os.fsync
os.fsync = lambda number: (sys.audit("os.fsync", number), fsync(number))

def child(number):
    def count(event, args):
        nonlocal number
        if event in CALLS and (not isinstance(args[0], str | os.PathLike) or "vma.last" in os.fspath(args[0])):
            number -= 1
            if not number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    run.standalone(run.main, sys.argv[3:])

start, number, status = left / "start", 0, -1
folder.rename(start)
while status:
    number += 1
    shutil.copytree(start, folder)
    if not (process := os.fork()):
        child(number)
    status = os.waitpid(process, 0)[1]
    folder.rename(left / str(number))
    assert status in (0, signal.SIGKILL), status
"""


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
    status, _, err = finish(start("-c", _KILLED, str(folder), str(left), *arguments(folder, "--train", *RUN)), 500)
    assert status == 0, err
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
