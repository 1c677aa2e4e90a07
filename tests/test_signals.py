"""Signals: at once where nothing is at stake, at the next safe point while training; a second one always at once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.program import finish, listening, start

from runtime.signals import Stopped

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

_LISTENING = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from runtime import files
from runtime.signals import StopRequest
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
stop = StopRequest(lambda stopped: print("left by", stopped, flush=True))
stop.install()
"""


def outcome(source: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that listens to signals and then runs `source`."""
    return finish(start("-c", f"{_LISTENING}\n{source}\nprint('went on')", *arguments), 30)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    assert outcome(f"signal.raise_signal({number})") == (128 + number, f"left by {number.name}\n", "")


def test_a_signal_in_a_destructor_ends_the_process() -> None:
    """Where an exception would be swallowed."""
    source = "class Torn:\n  def __del__(self): signal.raise_signal(signal.SIGTERM)\nTorn()\ntime.sleep(1)"
    assert outcome(source) == (143, "left by SIGTERM\n", "")


def test_a_signal_ends_a_process_that_waits_in_other_code() -> None:
    """A mutex of C that is never unlocked: Python's own handlers would not be called."""
    source = "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\nc = ctypes.CDLL(None)\n"
    source += "mutex = ctypes.create_string_buffer(64)\nwhile True: c.pthread_mutex_lock(mutex)"
    assert outcome(source) == (143, "left by SIGTERM\n", "")


def test_a_signal_ends_a_process_whose_last_words_nobody_reads() -> None:
    source = f"{_LISTENING}\nstop._report = lambda stopped: os.write(2, bytes(1 << 20))\nsignal.raise_signal(15)"
    process = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stderr=subprocess.PIPE)
    assert process.wait(30) == 143


def test_a_signal_ends_a_sleep() -> None:
    began = time.monotonic()
    source = "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\ntime.sleep(60)"
    assert outcome(source)[0] == 143
    assert time.monotonic() - began < 30


def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    """A file and a folder; what is finished stays."""
    file, folder, kept = tmp_path / "a.part", tmp_path / "b", tmp_path / "c"
    source = f"""
file, folder, kept = (Path(sys.argv[1]) / name for name in ("a.part", "b", "c"))
with files.unfinished(kept):
    pass
kept.touch()
with files.unfinished(file), files.unfinished(folder):
    file.touch()
    (folder / "in").mkdir(parents=True)
    signal.raise_signal({signal.SIGTERM})
"""
    assert outcome(source, str(tmp_path))[0] == 143
    assert (file.exists(), folder.exists(), kept.exists()) == (False, False, True)


def test_what_cannot_be_removed_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    source = f"""
file, other = Path(sys.argv[1]) / "folder" / "a.part", Path(sys.argv[1]) / "b.part"
file.parent.mkdir()
with files.unfinished(file), files.unfinished(other):
    other.touch()
    file.parent.rmdir()
    file.parent.touch()
    signal.raise_signal({signal.SIGTERM})
"""
    assert outcome(source, str(tmp_path))[0] == 143
    assert not (tmp_path / "b.part").exists()


def test_a_hang_up_that_is_ignored_from_the_start_stays_ignored() -> None:
    """As nohup asks."""
    source = _LISTENING.replace("SIG_DFL", "SIG_IGN") + "signal.raise_signal(signal.SIGHUP); print('went on')"
    assert finish(start("-c", source), 30) == (0, "went on\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_for_the_check(number: signal.Signals) -> None:
    reached = False
    with listening() as stop, pytest.raises(Stopped, match=number.name) as caught, stop.deferred():
        stop.check()
        signal.raise_signal(number)
        reached = True
        stop.check()
    assert reached
    assert caught.value.status == 128 + number
    assert not isinstance(caught.value, Exception)  # so that `except Exception` lets it pass


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_wait(second: signal.Signals) -> None:
    source = f"with stop.deferred():\n  signal.raise_signal(2)\n  print('waited')\n  signal.raise_signal({second})"
    assert outcome(source) == (128 + second, f"waited\nleft by {second.name}\n", "")


def test_what_started_it_dies_only_once() -> None:
    """The kernel says so for every one of its threads."""
    source = "try:\n  with stop.deferred():\n    for _ in range(3): signal.raise_signal(signal.SIGUSR2)\n"
    source += "    print('waited')\nexcept BaseException as stopped: print(stopped, stopped.status)"
    assert outcome(source) == (0, "waited\nSIGTERM 143\nwent on\n", "")


def test_a_burst_of_signals_is_told_of_once() -> None:
    source = "stop._report = lambda stopped: (print('left by', stopped, flush=True), time.sleep(0.5))\n"
    source += "for _ in range(6): threading.Thread(target=signal.raise_signal, args=(15,)).start()\ntime.sleep(60)"
    assert outcome(source) == (143, "left by SIGTERM\n", "")


def test_a_signal_at_the_end_changes_nothing() -> None:
    assert outcome("stop.ignore()\nfor number in (2, 15, 1): signal.raise_signal(number)") == (0, "went on\n", "")


def test_without_a_signal_nothing_happens() -> None:
    with listening() as stop:
        with stop.deferred():
            stop.check()
        stop.check()


def test_after_the_deferred_part_signals_act_at_once_again() -> None:
    source = "with stop.deferred(): pass\nsignal.raise_signal(signal.SIGTERM)"
    assert outcome(source) == (143, "left by SIGTERM\n", "")


def test_a_signal_that_came_after_the_last_check_is_not_lost() -> None:
    with listening() as stop, pytest.raises(Stopped), stop.deferred():
        signal.raise_signal(signal.SIGTERM)
