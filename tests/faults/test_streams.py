"""Standard streams that are closed, full, gone or of another encoding: the work is done, and its exit status counts."""

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.config import arguments
from helpers.logs import curves, logged, rows, same_end
from helpers.program import environment, fork_program, main, until_the_end_of_the_test, wait_for

from runtime import checkpoints

RUN = ("--train", "train_spec.steps=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose output was read."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, *RUN) == 0
    return folder


def in_shell(script: str, *line: str) -> subprocess.CompletedProcess[str]:
    """`script` with the program's command line as "$@"."""
    command = ["bash", "-c", script, "bash", sys.executable, "run.py", *line]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize(
    "script",
    [
        '"$@" >/dev/full 2>/dev/full',
        '"$@" <&- >&- 2>&-',
        pytest.param('"$@" 2>&-', marks=pytest.mark.slow),
        pytest.param('"$@" >&-', marks=pytest.mark.slow),
        pytest.param('"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}', marks=pytest.mark.slow),
        pytest.param('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', marks=pytest.mark.slow),
        pytest.param('"$@" 1</dev/null 2</dev/null', marks=pytest.mark.slow, id="only for reading"),
    ],
)
def test_a_training_whose_output_cannot_be_written(tmp_path: Path, whole: Path, script: str) -> None:
    done = in_shell(script, *arguments(tmp_path, *RUN))
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)


def test_other_encodings_show_characters_by_their_numbers(tmp_path: Path, whole: Path) -> None:
    """And what comes after the test is done."""
    line = arguments(tmp_path, "--test", "--sample", "--checkpoint", str(whole / "vma.pt"))
    done = in_shell('PYTHONIOENCODING=ascii "$@"', *line)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "| \\xb1 s.e. |" in done.stdout and "| ± s.e. |" in (tmp_path / "table.md").read_text()
    assert list(tmp_path.rglob("samples/*/C1_M1.png"))


def test_a_training_whose_terminal_vanishes(tmp_path: Path) -> None:
    """And with it the hang-up that was asked to be ignored."""
    ours, terminal = pty.openpty()
    line = [sys.executable, "run.py", *arguments(tmp_path, *RUN, "train_spec.steps=100000")]
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    ignoring = ["bash", "-c", "trap '' HUP; exec \"$@\"", "bash"]  # nohup would redirect the output
    process: subprocess.Popen[str] = subprocess.Popen(
        [*ignoring, *line],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        **streams,  # type: ignore[call-overload]
    )
    until_the_end_of_the_test(process)
    os.close(terminal)
    wait_for(logged(tmp_path, 1), process)
    os.close(ours)
    reached = max(step for _, step, _ in curves(tmp_path))
    wait_for(logged(tmp_path, reached + 20), process)
    process.terminate()
    assert process.wait(30) == 143
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] >= reached + 20


def test_a_training_whose_output_is_not_read_is_saved_by_a_signal(tmp_path: Path) -> None:
    """Ctrl-S, or a pager at its first page; until then it waits."""
    reading, writing = os.pipe()
    os.write(writing, bytes(14 * 4096))  # two pages are left

    def first() -> None:
        for stream in (1, 2):
            os.dup2(writing, stream)

    process = fork_program(tmp_path, "--train", "train_data.iter=1", "train_spec.steps=100000", first=first)
    wait_for(lambda: not select.select([], [writing], [], 0)[1], process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == rows(tmp_path, "train")[-1]["step"] > 0
    os.close(reading)
    os.close(writing)


def test_a_configuration_that_cannot_be_printed_is_no_success(tmp_path: Path) -> None:
    """It is all that was asked for; who reads only its beginning has it."""
    line = arguments(tmp_path, "--print-config")
    done = in_shell('"$@" >/dev/full', *line)
    assert (done.returncode, done.stderr) == (1, "standard output: No space left on device\n")
    done = in_shell('"$@" | true; exit ${PIPESTATUS[0]}', *line)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Where libraries would print into it."""
    source = "import os; from runtime import streams; streams.outlast(); print(os.open(os.devnull, os.O_RDONLY))"
    done = in_shell(f'PYTHONPATH=. "$1" -c "{source}" <&- 2>&-', *arguments(tmp_path))
    assert int(done.stdout) > 2
