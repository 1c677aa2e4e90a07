"""Real signals to real processes: one checkpoint, the right status within ten seconds, and a run that can go on."""

import os
import queue
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.config import arguments
from helpers.logs import curves, logged, same_end
from helpers.program import (
    finish,
    fork_program,
    fork_waiting,
    main,
    process_restored,
    replaced,
    start_program,
    wait_for,
)

import evaluator
import run
from data.episodes import EpisodeLoader, Episodes
from runtime import checkpoints

LONG = ("train_spec.steps=30", "train_data.iter=15")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, "--train", *LONG) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_a_training_saves_it(tmp_path: Path, whole: Path, number: signal.Signals) -> None:
    process = fork_waiting(tmp_path, 9, "--train", *LONG)
    if number == signal.SIGTERM:
        assert main(tmp_path, "--train", *LONG) == 2  # the checkpoint is held by that process
    began = time.monotonic()
    process.send_signal(number)
    status, _, err = finish(process, 10)
    assert time.monotonic() - began < 10
    assert status == 128 + number
    assert "Traceback" not in err
    assert f"stopped by {number.name}; resume with: python run.py --config" in err
    assert (
        checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 9
    )  # before the step whose batch it was reading
    assert main(tmp_path, "--train", *LONG) == 0  # the lock died with the process
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)


def resume_line(err: str) -> list[str]:
    """The arguments of the command that is printed, as a shell takes them."""
    command = err.partition("resume with: ")[2].splitlines()[0]
    python, program, *line = shlex.split(command)
    assert (python, program) == ("python", "run.py")
    return line


def test_the_printed_command_goes_on_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It survives a shell, and it does not throw away what was trained."""
    folder = tmp_path / "a folder; it's odd"
    scheduler = "train_spec.scheduler={kind: StepLR, step_size: 9}"
    original = EpisodeLoader.at

    def at(loader: EpisodeLoader, step: int) -> Episodes:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(loader, step)

    monkeypatch.setattr(EpisodeLoader, "at", at)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments(folder, "--train", "--restart", scheduler)])
    with process_restored():
        assert run.main() == 143
    line = resume_line(capsys.readouterr().err)
    assert line == arguments(folder, "--train", scheduler)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    seldom = ("train_spec.steps=1000", "train_spec.val_every=1000", "train_spec.save_every=1000")
    process = fork_waiting(tmp_path, 3, "--train", *seldom, for_ever=True)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "heard").exists, process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 10)
    assert status == 130
    assert "Traceback" not in err
    state = checkpoints.load(tmp_path / "vma.last.pt")
    assert state["progress"]["step"] == 0  # the first signal alone would have saved what was reached


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["--test", "--sample"])
def test_a_signal_to_a_test_ends_it(tmp_path: Path, number: signal.Signals, what: str) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    grid = ("test_spec.targets=60", "test_spec.importance_num=100", "test_spec.test_params.timesteps=[1..19]")
    process = fork_program(tmp_path, what, *grid)
    written = tmp_path / ("table.csv" if what == "--test" else "samples/C1_M1.png")
    wait_for(written.exists, process, 120)
    process.send_signal(number)
    status, _, err = finish(process, 10)
    assert status == 128 + number
    assert "resume with" in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(8))
def test_a_signal_at_any_moment_of_the_start_ends_it(tmp_path: Path, moment: int) -> None:
    """Also while Python imports torch, and while the data is prepared."""
    process = start_program(
        tmp_path, "--train", "train_spec.steps=5000", "train_data.classes=200", "val_data.classes=200"
    )
    time.sleep(random.Random(moment).uniform(0.4, 6))
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process, 10)
    assert status in (143, -signal.SIGTERM)  # the latter before the program's first line
    assert "Traceback" not in err


@pytest.mark.slow
def test_only_one_of_two_trainings_that_start_together_goes_on(tmp_path: Path) -> None:
    both = [fork_program(tmp_path, "--train", "train_spec.steps=100000") for _ in range(2)]
    wait_for(lambda: any(process.poll() is not None for process in both), both[0], 120)
    refused, going_on = sorted(both, key=lambda process: process.poll() is None)
    status, _, err = finish(refused)
    assert status == 2 and "another training writes to it" in err
    wait_for(logged(tmp_path, 1), going_on)
    going_on.send_signal(signal.SIGTERM)
    assert finish(going_on)[0] == 143


class Torn:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def torn_in_a_cell() -> None:
    real = evaluator.importance_bounds
    replaced(evaluator, importance_bounds=lambda *given, **more: (Torn(), real(*given, **more))[1])


def test_a_signal_in_a_destructor_ends_a_test(tmp_path: Path, whole: Path) -> None:
    """Where Python swallows what is raised."""
    line = ("--test", "--checkpoint", str(whole / "vma.pt"))
    status, _, err = finish(fork_program(tmp_path, *line, first=torn_in_a_cell))
    assert status == 143
    assert "stopped by SIGTERM; resume with" in err and "Traceback" not in err and "ignored" not in err
    assert not (tmp_path / "table.csv").exists()


def signalled_while_locked() -> None:
    def put(events: queue.Queue[object], event: object) -> None:
        events.mutex.acquire()  # as if the signals came between this and the block that releases it
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        events.mutex.release()

    replaced(queue.Queue, put=put)


def test_signals_end_a_training_that_holds_a_lock_of_its_log(tmp_path: Path) -> None:
    """The end of the log would wait for it for ever."""
    status, _, err = finish(fork_program(tmp_path, "--train", first=signalled_while_locked), 60)
    assert status == 143 and "Traceback" not in err


_EARLY = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
import time; time.sleep(5)
"""


def test_ctrl_c_before_all_is_imported_ends_the_process(tmp_path: Path) -> None:
    """While run.py imports argparse."""
    (tmp_path / "argparse.py").write_text(_EARLY)
    command = [sys.executable, "run.py", *arguments(tmp_path, "--train")]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, b"", b"")
