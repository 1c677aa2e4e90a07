"""Starts one process for each GPU of this machine, and ends them all when one fails.

It sets the variables that torchrun sets.  torchrun also works, and serves several machines; this one returns the exit
status of `run.py`.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from runtime.signals import STARTER_DIED, heeded

Process: TypeAlias = "subprocess.Popen[bytes]"

POLL = 0.05  # seconds between two polls of the processes
QUIET, GRACE = 3, 20  # seconds after a failure until the others are asked to end, and until they are ended


def run(command: Sequence[str], world: int) -> int:
    """Run `command` in `world` processes.  Returns 0, or the exit status of the first one that failed.

    Signals that ask to stop are passed on; the processes have sessions of their own, so Ctrl-C comes once.
    """
    with _port() as port:
        places = [_environment(rank, world, port) for rank in range(world)]
        processes = [
            subprocess.Popen(command, env=place, start_new_session=True, preexec_fn=end_with_parent) for place in places
        ]

        def pass_on(number: int, frame: FrameType | None) -> None:
            for process in processes:
                process.send_signal(number)

        handlers = {number: signal.signal(number, pass_on) for number in heeded()}
        listener = signal.set_wakeup_fd(-1)
        try:
            return _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            signal.set_wakeup_fd(listener)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def end_with_parent() -> None:
    """Ask the kernel for a signal to this process when the one that started it is killed."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, STARTER_DIED)  # PR_SET_PDEATHSIG


def _wait(processes: Sequence[Process]) -> int:
    """The first exit status that is not 0, when all have ended or their time is up."""
    running, status = True, 0
    while running and not status:
        time.sleep(POLL)
        running = _some_run(processes)
        status = _first_failure(processes)  # after that: the last one may fail in between
    _give_time(QUIET, processes)  # most know by themselves that one is missing
    for process in processes:
        process.terminate()
    _give_time(GRACE, processes)
    return status


def _give_time(seconds: float, processes: Sequence[Process]) -> None:
    end = time.monotonic() + seconds
    while _some_run(processes) and time.monotonic() < end:
        time.sleep(POLL)


def _some_run(processes: Sequence[Process]) -> bool:
    return any(process.poll() is None for process in processes)


def _first_failure(processes: Sequence[Process]) -> int:
    """The exit status of a process that failed; 128 + N for one that was ended by signal N.

    1, which is also that of a process that lost another one, counts only where nothing else does.
    """
    codes = sorted(filter(None, (process.poll() for process in processes)), key=lambda code: code == 1)
    return next((code if code > 0 else 128 - code for code in codes), 0)


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
    return {**threads, **inherited, **{name: str(value) for name, value in place.items()}}


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """A port reserved against other programs, at which one that shares addresses, as PyTorch does, may listen."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])


def python(arguments: Sequence[str]) -> list[str]:
    """run.py with these arguments."""
    return [sys.executable, str(Path(__file__).resolve().parent.with_name("run.py")), *arguments]
