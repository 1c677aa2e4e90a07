"""kill -9 at every stage of a save and while validating: what was saved loads, and the run goes on exactly."""

from pathlib import Path

import pytest
from helpers.config import arguments
from helpers.logs import curves, rows, same_end
from helpers.program import finish, main, start

from runtime import checkpoints

# The program, which kills itself in the `number`-th save: when the temporary file was made, when it is written and not
# yet safe, when it is safe, when the old state has its second name, when the new one has its place.
_KILLED = """
import os, signal, sys
from pathlib import Path
import run
from runtime import checkpoints

stage, number, saves = sys.argv[1], int(sys.argv[2]), 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(real):
    return lambda *args: (real(*args), die())

def save(*args):
    global saves
    saves += 1
    if saves == number:
        if stage == "made":
            os.fchmod = die
        elif stage == "written":
            os.fsync = die
        elif stage == "safe":
            os.fsync = then_die(os.fsync)
        else:
            left = [{"kept": 1, "in place": 2 if args[2:] and args[0].exists() else 1}[stage]]
            real_replace = Path.replace

            def replace(path, target):
                real_replace(path, target)
                left[0] -= 1
                if not left[0]:
                    die()

            Path.replace = replace
    return real(*args)

real, checkpoints.save = checkpoints.save, save
run.standalone(run.main, sys.argv[3:])
"""

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
    status, _, err = finish(start("-c", _KILLED, stage, str(number), *arguments(tmp_path, "--train", *RUN)))
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


_KILLED_VALIDATING = """
import os, signal, sys
import run
from data.episodes import EpisodeLoader

number, real = int(sys.argv[1]), EpisodeLoader.at

def at(loader, step):
    global number
    if loader.subset == "validation":
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(loader, step)

EpisodeLoader.at = at
run.standalone(run.main, sys.argv[2:])
"""


@pytest.mark.parametrize("batch", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_training_killed_while_it_validates_goes_on(tmp_path: Path, whole: Path, batch: int) -> None:
    """At the second batch of the first validation and of the one after it, which are two batches and a picture each."""
    status, _, err = finish(start("-c", _KILLED_VALIDATING, str(batch), *arguments(tmp_path, "--train", *RUN)))
    assert status == -9, err
    assert len(rows(tmp_path, "validation")) == batch // 3
    assert main(tmp_path, "--train", *RUN) == 0
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)
