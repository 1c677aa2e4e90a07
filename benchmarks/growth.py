"""How rates and peak memory grow with the memory size M, the samples K and the side of the images.

Each point is measured in a fresh process (on a GPU all in one): `python -m benchmarks.growth` reads a list of points as
JSON from its input and prints a line of JSON for each.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import config as configuration
from benchmarks import subjects
from benchmarks.measure import BenchmarkError, timer
from benchmarks.naive import only
from benchmarks.subjects import Benchmark

MIB = 2**20
_ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 2.0  # a measurement, at most
_TEST_MEMORY = 19  # M of the test where something else grows


@dataclass(frozen=True)
class Point:
    """What one measurement is of; `memory` and `samples` are M and K of the test."""

    training: bool
    overrides: tuple[str, ...]
    memory: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Series:
    """Points along an axis, and what stays the same."""

    axis: str
    fixed: str
    points: Mapping[int, Point]


def plan(benchmark: Benchmark) -> dict[str, Series]:
    """The series by name.  Raises UserError where batch and sharing do not fit their memories."""
    data = benchmark.config.train_data
    batch, shared = data.batch_size, data.targets_per_memory
    memories = (8, 32) if benchmark.quick else (8, 32, 128, 512)
    few, many = ((4, 16), (50, 100)) if benchmark.quick else ((4, 16, 64), (50, 1000, 4000))
    sides, samples, alone = (26, 52), many[1], max(1, batch // 4)
    sharing = f"training, {shared} targets share a memory, batch {batch}, M = 32"
    series = {
        "train_M": Series(
            "M", f"training, no sharing, batch {alone}, K = 4", {m: _training(alone, 1, m=m) for m in memories}
        ),
        "train_K": Series("K", sharing, {k: _training(batch, shared, k=k) for k in few}),
        "train_side": Series("side", f"{sharing}, K = 4", {n: _training(batch, shared, side=n) for n in sides}),
        "test_M": Series("M", f"test, K = {samples}", {m: _test(samples, m=m) for m in memories}),
        "test_K": Series("K", f"test, M = {_TEST_MEMORY}", {k: _test(k) for k in many}),
        "test_side": Series("side", f"test, M = {_TEST_MEMORY}, K = {samples}", {n: _test(samples, n) for n in sides}),
    }
    for one in series.values():
        for point in one.points.values():
            benchmark.variant(*point.overrides)
    return series


def _training(batch: int, shared: int, *, m: int = 32, k: int = 4, side: int = 26) -> Point:
    composition = {"max_batch_cls": "null", "max_img_per_class": 4, "exact": "true", "timesteps": m}
    values = {**composition, "batch_size": batch, "targets_per_memory": shared}
    overrides = (*(f"train_data.{key}={value}" for key, value in values.items()), f"model.importance_num={k}")
    return Point(True, (*_resized(side), *overrides))


def _test(k: int, side: int = 26, m: int = _TEST_MEMORY) -> Point:
    return Point(False, _resized(side), m, k)


def _resized(side: int) -> tuple[str, ...]:
    return tuple(f"{section}.resize={side}" for section in subjects.SECTIONS)


def measure(benchmark: Benchmark, say: Callable[[str], object]) -> dict[str, Any]:
    """Targets/s and peak MiB of every point; a point of several series is measured once.  Raises BenchmarkError."""
    plans = plan(benchmark)
    named: dict[Point, str] = {}
    for name, series in plans.items():
        for value, point in series.points.items():
            named.setdefault(point, f"{name} = {value}")
    groups = [list(named)] if benchmark.device.type == "cuda" else [[point] for point in named]
    found: dict[Point, dict[str, float]] = {}
    for group in groups:
        for point, values in zip(group, _measured(group, benchmark), strict=True):
            found[point] = values
            say(f"{named[point]}: {values['targets_per_s']:.4g} targets/s, peak {values['peak']:.0f} MiB")
    return {
        name: {
            "axis": series.axis,
            "fixed": series.fixed,
            "units": {"targets_per_s": "targets/s", "peak": "MiB", "before": "MiB"},
            "points": [{"value": value, **found[point]} for value, point in series.points.items()],
        }
        for name, series in plans.items()
    }


def _measured(points: Sequence[Point], benchmark: Benchmark) -> Iterator[dict[str, float]]:
    """The values of each point, from one child process."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {"PYTHONPATH": str(_ROOT), **threads, **only(benchmark.device)}
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.growth"],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin as orders:  # a child that ended says so below
            orders.write(json.dumps(_order(points, benchmark)))
        for _ in points:
            line = child.stdout.readline()
            if not line:
                raise BenchmarkError(f"the process that measures {points[0]} ended with {child.wait()}")
            yield json.loads(line)
    finally:
        child.stdout.close()
        if child.poll() is None:
            child.terminate()
        child.wait()


def _order(points: Sequence[Point], benchmark: Benchmark) -> dict[str, Any]:
    """What the child is told."""
    return {
        "path": str(benchmark.path),
        "overrides": benchmark.overrides,
        "device": benchmark.device.type,
        "threads": torch.get_num_threads(),
        "seconds": min(benchmark.seconds, _SECONDS),
        "points": [dataclasses.asdict(point) for point in points],
    }


# --- in the child -----------------------------------------------------------------------------------------------------


def main() -> None:
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    device = torch.device(order["device"], 0) if order["device"] == "cuda" else torch.device("cpu")
    for values in order["points"]:
        point = Point(**{**values, "overrides": tuple(values["overrides"])})
        config = configuration.load(Path(order["path"]), (*order["overrides"], *point.overrides))
        print(json.dumps(_at(point, config, device, order["seconds"])), flush=True)


def _at(point: Point, config: configuration.Config, device: torch.device, seconds: float) -> dict[str, float]:
    """Targets/s, and memory in MiB: the peak, and what was in use before the first step."""
    call: Callable[[], object]
    warm_up: Callable[[], object]
    if point.training:
        call = warm_up = subjects.training(config, device).step
        targets = config.train_data.batch_size
    else:
        batch = subjects.scoring(config, device, point.memory, point.samples)
        targets, call = batch.targets, batch
        warm_up = dataclasses.replace(batch, samples=min(point.samples, batch.chunk))
    before = _start_of_peak(device)
    for _ in range(1 if device.type == "cpu" else 5):
        warm_up()
    rate = targets / timer(device, seconds).seconds_per_call(call)
    return {"targets_per_s": rate, "peak": _peak(device), "before": before}


def _start_of_peak(device: torch.device) -> float:
    """From here on the peak counts; MiB in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MIB
    ctypes.CDLL(None).malloc_trim(0)  # what reading the data took has been freed, but not yet given back
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    return _status("VmRSS")


def _peak(device: torch.device) -> float:
    """MiB since `_start_of_peak`: allocated on a GPU, else the largest resident set of this process."""
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    main()
