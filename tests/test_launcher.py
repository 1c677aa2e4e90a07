"""The launcher: children know their place, and one that fails ends the others."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import ROOT

from runtime import launcher


def launched(tmp_path: Path, source: str, world: int = 2) -> int:
    path = tmp_path / "child.py"
    path.write_text("import os, sys, time\nrank = int(os.environ['RANK'])\n" + source)
    return launcher.run([sys.executable, str(path), str(tmp_path)], world)


def test_the_program_is_started_whichever_module_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/elsewhere/studies/ablations.py", "list.yaml"])
    assert launcher.python(["--config", "a"]) == [sys.executable, str(ROOT / "run.py"), "--config", "a"]


def test_children_know_their_place(tmp_path: Path) -> None:
    source = "open(f'{sys.argv[1]}/{rank}', 'w').write(' '.join(os.environ[n] for n in "
    source += "('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')))"
    assert launched(tmp_path, source, 3) == 0
    places = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [place[:3] for place in places] == [["3", str(rank), "127.0.0.1"] for rank in range(3)]
    assert len({place[3] for place in places}) == 1


def test_the_first_failure_counts_and_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "QUIET", 0.2)
    began = time.monotonic()
    assert launched(tmp_path, "sys.exit(3) if rank else time.sleep(60)") == 3
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("cause", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_cause_counts_where_those_that_lost_it_have_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, cause: str
) -> None:
    wait = launcher._wait

    def when_all_have_ended(processes: Sequence[launcher.Process]) -> int:
        for process in processes:
            process.wait()
        return wait(processes)

    monkeypatch.setattr(launcher, "_wait", when_all_have_ended)
    source = f"{cause} if rank == {first} else sys.exit(1)"
    assert launched(tmp_path, source) == (3 if "3" in cause else 137)


def test_a_child_that_ignores_signals_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "QUIET", 0.5)
    monkeypatch.setattr(launcher, "GRACE", 0.5)
    source = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsys.exit(4) if rank else time.sleep(60)"
    began = time.monotonic()
    assert launched(tmp_path, source) == 4
    assert time.monotonic() - began < 10
