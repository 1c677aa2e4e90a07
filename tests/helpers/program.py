"""The program in this process or in processes of its own."""

import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.distributions import Distribution

import run
from data import glyphs
from helpers import ROOT
from helpers.config import arguments
from runtime import launcher
from runtime.signals import StopRequest

# Drawing the glyphs takes most of the time of a small run.
glyphs_drawn_once = mock.patch.object(glyphs, "load", functools.cache(glyphs.load))


def main(folder: Path, *more: str) -> int:
    """The exit status of the program, run in this process."""
    with process_restored(), glyphs_drawn_once:
        return run.main(arguments(folder, *more))


def main_apart(folder: Path, *more: str) -> int:
    """The exit status of the program in a fork of this process, which a signal may end."""
    if not (process := os.fork()):
        status = 1
        try:
            status = main(folder, *more)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@contextmanager
def process_restored() -> Iterator[None]:
    """What the program changes in its process is put back: signal handlers, validation of distributions, TF32."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    validates = Distribution._validate_args
    level = logging.getLogger("data").level
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        Distribution.set_default_validate_args(validates)
        logging.getLogger("data").setLevel(level)
        torch.backends.cudnn.allow_tf32 = tf32
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """A request to stop that hears the signals of this process."""
    with process_restored():
        stop = StopRequest()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        stop.install()
        yield stop
        stop.ignore()


def environment() -> dict[str, str]:
    """Of the program, with as many threads as this process: sums depend on their number."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


def start(*command: str) -> subprocess.Popen[str]:
    """`python command...` from the folder of the project."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_program(folder: Path, *more: str) -> subprocess.Popen[str]:
    return start("run.py", *arguments(folder, *more))


_TOGETHER = """
import sys
from runtime import launcher
launcher.POLL, world, *command = float(sys.argv[1]), int(sys.argv[2]), sys.executable, *sys.argv[3:]
sys.exit(launcher.run(command, world))
"""


def start_together(world: int, *command: str, poll: float = launcher.POLL) -> subprocess.Popen[str]:
    """`python command...` in `world` processes that work on one run, looked at every `poll` seconds."""
    return start("-c", _TOGETHER, str(poll), str(world), *command)


_WAITING = """\
import signal, time
import run
from runtime import signals
from data.episodes import EpisodeLoader

at, install, stops = EpisodeLoader.at, signals.StopRequest.install, []

def installed(stop):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    stops.append(stop)
    install(stop)

def asked(loader, step):
    while step == {step} and loader.subset == "train" and (not stops[0].received or {for_ever}):
        time.sleep(0.01)
        if stops[0].received:
            open({folder!r} + "/heard", "w").close()
    return at(loader, step)

signals.StopRequest.install, EpisodeLoader.at = installed, asked
run.standalone(run.main)
"""


def waiting_program(folder: Path, step: int, *more: str, for_ever: bool = False) -> list[str]:
    """The program, which waits before `step` of its training for a signal (`heard` says that one came), or for ever."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "waiting.py"
    program.write_text(_WAITING.format(folder=str(folder), step=step, for_ever=for_ever))
    return [str(program), *arguments(folder, *more)]


def finish(process: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until `condition` holds; AssertionError where `process` ends before."""
    deadline = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None  # before the condition, which the process may have met at last
        if condition():
            return
        if ended:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
