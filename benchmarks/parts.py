"""The parts of the benchmark: speed, growth with M and K, start, and two processes.

The naive program that speed is compared with is another one, an obvious implementation that is not part of this
repository.  It is called with `--device cpu|cuda:N --batch B --memory M --seconds S` and must print
`train_targets_per_s RATE` and, for memories of 1 and 19, `eval_targets_per_s memory=M RATE`.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.work import Benchmark, Floor, Work, rate, scoring, training
from runtime.errors import DataError

Rates = Mapping[str, float]  # name of what was measured -> targets per second


class BenchmarkError(Exception):
    """A part of the benchmark did not give its numbers."""


def say(line: str) -> None:
    """What has been measured so far, for those who wait."""
    print(line, file=sys.stderr, flush=True)


def quantity(unit: str, rounds: Sequence[float]) -> dict[str, Any]:
    """One quantity, measured in several rounds."""
    return {"unit": unit, "median": statistics.median(rounds), "rounds": list(rounds)}


# --- speed ------------------------------------------------------------------------------------------------------------

TEST_MEMORIES = (1, 19)
TEST_SAMPLES = 1000  # K of the published test

_NUMBER = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)"


def measure_speed(benchmark: Benchmark) -> dict[str, Any]:
    """Everything in turn, round after round.  Raises DataError where the naive program does not do as it should."""
    works = subjects(benchmark)
    tasks: dict[str, Callable[[], Rates]] = {}
    if benchmark.naive:
        tasks["naive"] = partial(naive_rates, benchmark)  # first, so that its mistakes show at once
    for key, (*_, work) in works.items():
        for name, call in ((key, work), (f"{key} floor", Floor(work))):
            tasks[name] = partial(lambda name, *of: {name: rate(*of)}, name, call, work.targets, benchmark.seconds)
    rates = {name: quantity("targets/s", values) for name, values in in_turn(tasks, benchmark.rounds).items()}
    return {
        key: {
            "title": title,
            "ours": (ours := rates[key]),
            "networks_alone": (floor := rates[f"{key} floor"]),
            "share_of_floor": ours["median"] / floor["median"],
            "naive": (other := rates.get(beside)),
            "times_naive": ours["median"] / other["median"] if other else None,
        }
        for key, (title, beside, _) in works.items()
    }


def subjects(benchmark: Benchmark) -> dict[str, tuple[str, str, Work]]:
    """Title, rate of the naive program to compare with, and work; training shares memories as configured, and not."""
    precision, found = benchmark.config.train_spec.precision, {}
    for t in {benchmark.config.train_data.targets_per_memory: None, 1: None}:
        work = training(benchmark.variant(f"train_data.targets_per_memory={t}"), benchmark.device)
        title = f"training, {f'{t} targets share a memory' if t > 1 else 'no sharing'}, {precision}"
        found["train_shared" if t > 1 else "train_unshared"] = title, "naive train", work
    for m in TEST_MEMORIES:
        work = scoring(benchmark.config, benchmark.device, m, TEST_SAMPLES)
        found[f"test_M{m}"] = f"ELBO@{TEST_SAMPLES}, M = {m}", f"naive test M={m}", work
    return found


def in_turn(tasks: Mapping[str, Callable[[], Rates]], rounds: int) -> dict[str, list[float]]:
    """Run every task once a round, every other round in reverse order -> each value of each round, by its name.

    The reversal cancels a drift of the machine's speed to first order.
    """
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in list(tasks) if number % 2 == 0 else reversed(list(tasks)):
            for key, value in tasks[name]().items():
                found.setdefault(key, []).append(value)
                say(f"round {number + 1} of {rounds}: {key}: {value:.4g}")
    return found


def naive_rates(benchmark: Benchmark) -> Rates:
    """Run the naive program once, with as many threads as this process.  Raises DataError where it fails."""
    data, path = benchmark.config.train_data, benchmark.naive
    command = [str(path), "--device", str(benchmark.device), "--batch", str(data.batch_size)]
    command += ["--memory", str(data.timesteps), "--seconds", str(benchmark.seconds)]
    try:
        output = run_python(command, torch.get_num_threads())
    except BenchmarkError as error:
        raise DataError(f"--naive {error}") from None
    names = {"naive train": "train_targets_per_s"}
    names |= {f"naive test M={m}": f"eval_targets_per_s memory={m}" for m in TEST_MEMORIES}
    found = {name: re.findall(rf"^{line} {_NUMBER}$", output, re.MULTILINE) for name, line in names.items()}
    if any(len(values) != 1 or float(values[0]) <= 0 for values in found.values()):
        expected = ", ".join(f"`{line} RATE`" for line in names.values())
        raise DataError(f"--naive {path}: it printed {output.strip()[:200]!r} and not once each of {expected}")
    return {name: float(values[0]) for name, values in found.items()}


# --- growth -----------------------------------------------------------------------------------------------------------

MIB = 2**20
_SECONDS = 2.0  # a measurement, at most
_SELF = Path("/proc/self")


class Point(NamedTuple):
    """A training with these overrides or, where K is given, a test with this M and K."""

    overrides: tuple[str, ...]
    memory: int = 0
    k: int = 0


class Series(NamedTuple):
    """Points along an axis, M or K, and what stays the same."""

    axis: str
    fixed: str
    points: dict[int, Point]


def plan(benchmark: Benchmark) -> dict[str, Series]:
    """The series by name.  Raises UserError where batch and sharing do not fit their memories."""
    batch, t = benchmark.config.train_data.batch_size, benchmark.config.train_data.targets_per_memory
    few, memories, many = (4, 16, 64), (8, 32, 128, 512), (50, 1000, 4000)
    unshared = f"training, no sharing, batch {max(1, batch // 4)}, K = 4"
    shared = f"training, {t} targets share a memory, batch {batch}, M = 32"
    series = {
        "train_M": Series("M", unshared, {m: _training(max(1, batch // 4), 1, m=m) for m in memories}),
        "train_K": Series("K", shared, {k: _training(batch, t, k=k) for k in few}),
        "test_M": Series("M", f"test, K = {many[1]}", {m: Point((), m, many[1]) for m in memories}),
        "test_K": Series("K", "test, M = 19", {k: Point((), 19, k) for k in many}),
    }
    for one in series.values():
        for point in one.points.values():
            benchmark.variant(*point.overrides)
    return series


def _training(batch: int, t: int, m: int = 32, k: int = 4) -> Point:
    data = {"max_batch_cls": "null", "max_img_per_class": 4, "exact": "true", "timesteps": m, "batch_size": batch}
    data["targets_per_memory"] = t
    return Point((*(f"train_data.{key}={value}" for key, value in data.items()), f"model.importance_num={k}"))


def measure_growth(benchmark: Benchmark) -> dict[str, Any]:
    """Targets/s and peak MiB of every point.  Raises BenchmarkError."""
    found: dict[str, Any] = {}
    for name, (axis, fixed, plans) in plan(benchmark).items():
        points = []
        for value, point in plans.items():
            values = in_fresh_process(at, point, benchmark, torch.get_num_threads())
            points.append({"value": value, **values})
            say(f"{name} = {value}: {values['targets_per_s']:.4g} targets/s, peak {values['peak']:.0f} MiB")
        found[name] = {"axis": axis, "fixed": fixed, "points": points}
    return found


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives in a process of its own.  Raises BenchmarkError where that does not come to its end."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise BenchmarkError(f"the process that measures {arguments[0]} was ended, maybe for want of RAM") from None


def at(point: Point, benchmark: Benchmark, threads: int) -> dict[str, float]:
    """Targets/s, and memory in MiB: the peak, allocated on a GPU or else the largest resident set, and that before."""
    torch.set_num_threads(threads)
    config, device = benchmark.variant(*point.overrides), benchmark.device
    work = scoring(config, device, point.memory, point.k) if point.k else training(config, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / MIB
    else:
        if not _SELF.exists():
            raise BenchmarkError("the RAM of a process is read from /proc, which only Linux has")
        ctypes.CDLL(None).malloc_trim(0)  # what reading the data took has been freed, but not yet given back
        (_SELF / "clear_refs").write_text("5")  # VmHWM starts anew
        before = _resident("VmRSS")
    speed = rate(work, work.targets, min(benchmark.seconds, _SECONDS))
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else _resident("VmHWM")
    return {"targets_per_s": speed, "peak": peak, "before": before}


def _resident(name: str) -> float:
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


# --- start and processes ----------------------------------------------------------------------------------------------

_ROOT = Path(__file__).resolve().parent.parent
_ROWS = 4  # of the log; the first holds the start and is left out
_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")  # torchrun


def measure_start(benchmark: Benchmark) -> dict[str, Any]:
    """Seconds until the first step is done, and of them until everything is imported.  Raises BenchmarkError."""

    def seconds(name: str) -> Rates:
        started = ended = time.time()
        if name == "imports":
            run_python(["-P", "-c", "import commands"])
            ended = time.time()
        else:
            _, ended = _trained([], benchmark, rows=1, every=1)
        return {name: ended - started}

    tasks = {name: partial(seconds, name) for name in ("imports", "to_first_step")}
    return {name: quantity("s", values) for name, values in in_turn(tasks, benchmark.rounds).items()}


def measure_processes(benchmark: Benchmark) -> dict[str, Any]:
    """Targets/s of the same training in one process and in two, each with one thread, or with a GPU of its own.

    Two are left out where there is one GPU.  Raises BenchmarkError.
    """
    gpu = benchmark.device.type == "cuda"
    rates = {}
    for count in (1, 2) if not gpu or torch.cuda.device_count() > 1 else (1,):
        rows, _ = _trained([*_LAUNCHER, str(count)], benchmark, _ROWS, 100 if gpu else 4)
        rates[str(count)] = quantity("targets/s", [row["targets_per_s"] for row in rows[1:]])
        say(f"{count} processes: {rates[str(count)]['median']:.4g} targets/s")
    times = {count: rate["median"] / rates["1"]["median"] for count, rate in rates.items()}
    backend = "nccl" if gpu else "gloo, one thread a process"
    return {"backend": backend, "rates": rates, "times_one_process": times}


def _trained(launcher: Sequence[str], benchmark: Benchmark, rows: int, every: int) -> tuple[list[Any], float]:
    """The rows of the log of a training, one for `every` steps, and when the last was written."""
    on_cpu = benchmark.device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "train.jsonl")
        spec: dict[str, object] = {"steps": rows * every, "log_every": every}
        sets = (*benchmark.overrides, *(f"train_spec.{key}={json.dumps(value)}" for key, value in spec.items()))
        given = ["--config", str(benchmark.path), "--train", "--output", folder]
        given += ["--device", str(benchmark.device)] if on_cpu or not launcher else []  # else a GPU for each process
        command = [*launcher, str(_ROOT / "run.py"), *given]
        run_python([*command, *(part for one in sets for part in ("--set", one))], 1 if launcher and on_cpu else None)
        lines = log.read_text().splitlines() if log.exists() else []
        found = [row for row in map(json.loads, lines) if row["subset"] == "train"]
        if len(found) != rows:
            raise BenchmarkError(f"the log of a training has {len(found)} rows, not {rows}")
        return found, log.stat().st_mtime


def run_python(arguments: Sequence[str], threads: int | None = None) -> str:
    """Run Python to its end, with this many threads; what it printed.  Raises BenchmarkError."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no reason"])[-1]
        raise BenchmarkError(f"{' '.join(arguments[:5])} ...: exit status {done.returncode}: {last}")
    return done.stdout
