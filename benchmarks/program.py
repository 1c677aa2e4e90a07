"""The program as a whole: seconds from its start to its first step, and its rate with one process and with two."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import BenchmarkError, Series
from benchmarks.subjects import Benchmark

_ROOT = Path(__file__).resolve().parent.parent
_LONGEST = 300  # seconds until a program that has written nothing is given up
_LINES = 4  # lines of the log; the first holds the start and is left out


def first_step(benchmark: Benchmark, say: Callable[[str], object]) -> dict[str, Any]:
    """Seconds until the first step is done, and of them until everything is imported.  Raises BenchmarkError."""
    whole, imports = [], []
    for number in range(benchmark.rounds):
        imports.append(_seconds_of([sys.executable, "-c", "import commands"]))
        whole.append(_first_row(benchmark))
        of = f"round {number + 1} of {benchmark.rounds}"
        say(f"{of}: first step after {whole[-1]:.2f} s, of them imports {imports[-1]:.2f} s")
    return {
        "to_first_step": Series("s", tuple(whole)).as_json(),
        "imports": Series("s", tuple(imports)).as_json(),
        "after_imports": {"unit": "s", "median": statistics.median(whole) - statistics.median(imports)},
        "note": "to the end of the first step, data packed, without validation",
    }


def _seconds_of(command: Sequence[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {_last_line(done.stderr)}")
    return time.perf_counter() - started


def _first_row(benchmark: Benchmark) -> float:
    program = [sys.executable, str(_ROOT / "run.py"), "--device", str(benchmark.device)]
    with tempfile.TemporaryDirectory() as name:
        command = _training(program, Path(name), benchmark, steps=1, log_every=1)
        started = time.perf_counter()
        with _running(command, Path(name), {}) as process:
            while not _rows(Path(name)):
                if process.poll() is not None and not _rows(Path(name)):
                    raise BenchmarkError(f"the training ended before its first step: {_last_words(Path(name))}")
                if time.perf_counter() - started > _LONGEST:
                    raise BenchmarkError(f"no first step within {_LONGEST} s")
                time.sleep(0.005)
            return time.perf_counter() - started


def processes_table(
    benchmark: Benchmark, say: Callable[[str], object], counts: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    """Targets/s of the same training, the batch shared out over each number of processes.

    On the CPU every process has one thread.  On GPUs every process needs one of its own; a number for which there are
    too few is left out.  Raises BenchmarkError.
    """
    device = benchmark.device
    if device.type == "cuda":
        counts = [count for count in counts if count <= torch.cuda.device_count()]
    rates = {}
    for count in counts:
        rates[count] = _rate(count, benchmark)
        say(f"{count} processes: {rates[count].median:.4g} targets/s")
    return {
        "backend": "nccl" if device.type == "cuda" else "gloo, one thread a process",
        "rates": {str(count): rate.as_json() for count, rate in rates.items()},
        "times_one_process": {str(count): rate.median / rates[1].median for count, rate in rates.items()},
    }


def _rate(count: int, benchmark: Benchmark) -> Series:
    cpu = benchmark.device.type == "cpu"
    program = [*_launcher(count), str(_ROOT / "run.py"), *(["--device", "cpu"] if cpu else [])]
    threads = {"OMP_NUM_THREADS": "1"} if cpu else {}
    log_every = 1 if benchmark.quick else 4 if cpu else 100
    with tempfile.TemporaryDirectory() as name:
        command = _training(program, Path(name), benchmark, steps=_LINES * log_every, log_every=log_every)
        with _running(command, Path(name), threads) as process:
            try:
                status = process.wait(timeout=_LONGEST)
            except subprocess.TimeoutExpired:
                raise BenchmarkError(f"{count} processes: no end within {_LONGEST} s") from None
        rows = _rows(Path(name))
        if status or len(rows) != _LINES:
            raise BenchmarkError(f"{count} processes: exit status {status}, {_last_words(Path(name))}")
        return Series("targets/s", tuple(row["targets_per_s"] for row in rows[1:]))


def _launcher(count: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


def _training(program: Sequence[str], folder: Path, benchmark: Benchmark, *, steps: int, log_every: int) -> list[str]:
    """The command of a training that writes into `folder` only."""
    files = {"checkpoint_path": folder / "vma.pt", "log_file": folder / "log.jsonl"}
    values = {"steps": steps, "log_every": log_every, **{key: json.dumps(str(file)) for key, file in files.items()}}
    sets = (*benchmark.overrides, *(f"train_spec.{key}={value}" for key, value in values.items()))
    return [*program, "--config", str(benchmark.path), "--train", *(part for one in sets for part in ("--set", one))]


@contextlib.contextmanager
def _running(command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program with more environment, its words in `folder`, ended at the latest when the block is left."""
    with (folder / "words").open("wb") as words:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=words, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the training in the log, as far as they are written."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [row for line in lines if line.endswith("\n") and (row := json.loads(line))["subset"] == "train"]


def _last_words(folder: Path) -> str:
    return _last_line((folder / "words").read_text(errors="replace"))


def _last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "without a word")
