"""The program in this process or in processes of its own."""

import contextlib
import functools
import importlib
import logging
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias, TypeVar
from unittest import mock

import torch
from torch.distributions import Distribution
from tqdm import tqdm

import run
from data import glyphs
from data.episodes import EpisodeLoader, Episodes
from helpers import ROOT
from helpers.config import arguments
from reports import pictures, plots, tables
from runtime import launcher
from runtime.signals import REQUESTS, STARTER_DIED, StopRequest


def _first_kept(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw`, which gives its first result again and again."""
    first: list[Any] = []
    return lambda *given: (first or first.append(draw(*given)) or first)[0]  # type: ignore[func-returns-value]


_DRAWN = (
    (glyphs, "load", functools.cache(glyphs.load)),
    (pictures, "episode_picture", _first_kept(pictures.episode_picture)),
    (plots, "curve_plot", _first_kept(plots.curve_plot)),
    (tables, "result_plot", _first_kept(tables.result_plot)),
)


@contextmanager
def drawn_once() -> Iterator[None]:
    """Glyphs, pictures, curves and plots, which take most of the time of a small run."""
    with contextlib.ExitStack() as stack:
        for module, name, draw in _DRAWN:
            stack.enter_context(mock.patch.object(module, name, draw))
        yield


def main(folder: Path, *more: str) -> int:
    """The exit status of the program, run in this process."""
    with process_restored(), drawn_once():
        return run.main(arguments(folder, *more))


def main_apart(folder: Path, *more: str) -> int:
    """The exit status of the program in a fork of this process, which a signal may end; it prints what that did."""
    status, out, err = finish(fork_program(folder, *more))
    print(out, end="")
    print(err, end="", file=sys.stderr)
    return status


@contextmanager
def process_restored() -> Iterator[None]:
    """What the program changes in its process is put back: signal handlers, validation of distributions, TF32."""
    handlers = {number: signal.getsignal(number) for number in (*REQUESTS, STARTER_DIED)}
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
    return until_the_end_of_the_test(
        subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment(), stdout=PIPE, stderr=PIPE, text=True)
    )


def start_program(folder: Path, *more: str) -> subprocess.Popen[str]:
    return start("run.py", *arguments(folder, *more))


def own_lock() -> None:
    """tqdm's would be shared with all forks, and stay held by one that is killed."""
    tqdm.set_lock(threading.RLock())


class Fork:
    """`work` in a fork of this process, which has imported everything; used as a `subprocess.Popen`."""

    def __init__(self, work: Callable[[], object], captured: bool = True) -> None:
        for module in ("commands", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure"):
            importlib.import_module(module)  # no thread may be at it while this process forks
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2 * captured)]  # noqa: SIM115
        self.pid = os.fork()
        if not self.pid:
            self._child(work)

    def _child(self, work: Callable[[], object]) -> NoReturn:
        status = 1
        try:
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            os.chdir(ROOT)
            own_lock()
            logging.getLogger().handlers.clear()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in the first line of the program
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
            with drawn_once():
                work()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = math.inf) -> int:
        """Raises TimeoutExpired."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("run.py", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = math.inf) -> tuple[str, str]:
        """What was written to stdout and stderr.  Raises TimeoutExpired."""
        self.wait(timeout)
        for file in self._files:
            file.seek(0)
        out, err = (file.read() for file in self._files)
        return out, err


Process: TypeAlias = "subprocess.Popen[str] | Fork"
P = TypeVar("P", bound="Process")
_started: list[Process] = []


def until_the_end_of_the_test(process: P) -> P:
    """`process`, which is killed then if it still runs."""
    _started.append(process)
    return process


def kill_started() -> None:
    """At the end of a test, which may have failed."""
    while _started:
        _started.pop().kill()


def fork_program(folder: Path, *more: str, first: Callable[[], object] = lambda: None) -> Fork:
    """The program in a fork, which does `first` before."""
    line = arguments(folder, *more)
    return until_the_end_of_the_test(Fork(lambda: (first(), run.standalone(run.main, line))))


def _popen(
    command: Sequence[str], env: dict[str, str], start_new_session: bool, preexec_fn: Callable[[], object]
) -> Fork:
    """`python command...`, as the launcher starts it."""

    def work() -> None:
        os.setsid()
        preexec_fn()
        os.environ.update(env)
        sys.argv = list(command[1:])
        runpy.run_path(command[1], run_name="__main__")

    assert start_new_session
    return Fork(work, captured=False)


def start_together(world: int, *command: str, poll: float = launcher.POLL) -> Fork:
    """`python command...` in `world` processes that work on one run, looked at every `poll` seconds."""

    def work() -> None:
        replaced(launcher, POLL=poll, subprocess=SimpleNamespace(Popen=_popen))
        sys.exit(launcher.run([sys.executable, *command], world))

    return until_the_end_of_the_test(Fork(work))


def replaced(where: object, **what: Any) -> None:
    """Attributes of a module or class, to the end of this process."""
    mock.patch.multiple(where, **what).start()


def wait_before(step: int, folder: Path, for_ever: bool) -> None:
    """Let the program of this process wait before `step` of its training for a signal, or for ever.

    The files `waits` and `heard` say that it has come so far, and that a signal came.
    """
    at, install, stops = EpisodeLoader.at, StopRequest.install, list[StopRequest]()

    def installed(stop: StopRequest) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        stops.append(stop)
        install(stop)

    def asked(loader: EpisodeLoader, number: int) -> Episodes:
        while number == step and loader.subset == "train" and (not stops[0].received or for_ever):
            (folder / "waits").touch()
            time.sleep(0.01)
            if stops[0].received:
                (folder / "heard").touch()
        return at(loader, number)

    replaced(EpisodeLoader, at=asked)
    replaced(StopRequest, install=installed)


_WAITING = """
import sys
sys.path.append("tests")
from pathlib import Path
from helpers import program
program.wait_before({step}, Path({folder!r}), for_ever=False)
program.run.standalone(program.run.main)
"""


def waiting_program(folder: Path, step: int, *more: str) -> list[str]:
    """The command line of a program that waits before `step` of its training for a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "waiting.py"
    program.write_text(_WAITING.format(folder=str(folder), step=step))
    return [str(program), *arguments(folder, *more)]


def fork_waiting(folder: Path, step: int, *more: str, for_ever: bool = False) -> Fork:
    """The program, which has come to `step` and waits there."""
    process = fork_program(folder, *more, first=lambda: wait_before(step, folder, for_ever))
    wait_for((folder / "waits").exists, process)
    return process


def finish(process: Process, seconds: float = 180) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], process: Process, seconds: float = 120) -> None:
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
