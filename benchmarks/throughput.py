"""Throughput, share of the floor, peak memory, growth, start and processes, in one table.

    python -m benchmarks.throughput [--config configs/vma.yaml] [--device cpu] [--naive FILE]

writes `runs/throughput/<device>.json` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config as configuration
from run import Parser
from run import device as device_name
from runtime.errors import UserError
from runtime.files import write_atomically

if TYPE_CHECKING:
    from benchmarks.subjects import Benchmark

PARTS = ("speed", "growth", "start", "processes")
_CPU_BATCH = 32  # targets in a step, few enough for the naive program too


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m benchmarks.throughput", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=Path, default=Path("configs/vma.yaml"), metavar="YAML", help="what is measured")
    p.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda|cuda:N", help="where")
    p.add_argument("--naive", type=Path, metavar="FILE", help="a program to compare with, which prints its rates")
    p.add_argument("--seconds", type=_positive, default=5.0, metavar="S", help="length of a measurement (5)")
    p.add_argument("--rounds", type=int, default=3, metavar="R", help="measurements of each rate (3)")
    p.add_argument("--batch", type=int, metavar="B",
                   help=f"targets in a step of training ({_CPU_BATCH} on the CPU, else as configured)")  # fmt: skip
    p.add_argument("--parts", default=",".join(PARTS), metavar=",".join(PARTS), help="what is measured, all by default")
    p.add_argument("--output", type=Path, default=Path("runs/throughput"), metavar="DIR", help="where files go")
    p.add_argument("--quick", action="store_true", help="one short round of few sizes: a trial, not a measurement")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key of the configuration; may be repeated")  # fmt: skip
    return p


def _positive(text: str) -> float:
    if not 0 < float(text) < 1e6:
        raise ValueError(text)
    return float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    if unknown := set(args.parts.split(",")) - set(PARTS):
        p.error(f"--parts: {sorted(unknown)[0]!r} is none of {', '.join(PARTS)}")
    if args.rounds < 1:
        p.error(f"--rounds: {args.rounds} is not positive")
    if args.quick:
        args.rounds, args.seconds = 1, min(args.seconds, 0.5)
    try:
        return execute(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    except (OSError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def execute(args: argparse.Namespace) -> int:
    """The exit status: 1 where a part gave no numbers.  Raises UserError and OSError."""
    import torch

    import parsers
    from benchmarks import figure, hardware, report, speed, subjects

    device, say = parsers.device_of("auto", args.device), speaker()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs are captured on the current one
    batch = args.batch or (_CPU_BATCH if device.type == "cpu" else None)
    overrides = [*args.overrides, *([f"train_data.batch_size={batch}"] if batch else [])]
    benchmark = subjects.benchmark(args.config, overrides, device, args.rounds, args.seconds, args.quick)
    parts = chosen_parts(args, benchmark, say)
    whole = configuration.load(args.config, args.overrides)
    say(f"{hardware.name_of(device)}: images of kind {benchmark.config.train_data.kind}")
    path = args.output / f"{hardware.name_of(device)}.json"
    results: dict[str, Any] = {
        "complete": False,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "settings": settings(benchmark, args.naive),
        "hardware": hardware.hardware(device),
        "software": hardware.software(device),
    }
    for part, measure in parts.items():
        say(f"--- {part}")
        results[part] = attempted(measure)
        if part == "speed" and "error" not in results[part]:
            targets = whole.train_spec.steps * whole.train_data.batch_size
            results["whole_runs"] = speed.whole_runs(results[part], targets)
        write(path, results)  # what there is, should a later part be interrupted
    results["complete"] = not any("error" in results[part] for part in parts)
    write(path, results)
    write_atomically(path.with_suffix(".png"), figure.draw(results))
    print(report.table(results), end="")
    print(f"written: {path}, {path.with_suffix('.png')}")
    return 0 if results["complete"] else 1


def chosen_parts(
    args: argparse.Namespace, benchmark: Benchmark, say: Callable[[str], None]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be measured, in order.  Raises UserError where something would not work after minutes."""
    from benchmarks import growth, program, speed
    from benchmarks.naive import Naive

    data = benchmark.config.train_data
    naive = Naive(args.naive, benchmark.device, data.batch_size, data.timesteps, args.seconds) if args.naive else None
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed.measure(benchmark, naive, say),
        "growth": lambda: growth.measure(benchmark, say),
        "start": lambda: program.first_step(benchmark, say),
        "processes": lambda: program.processes_table(benchmark, say),
    }
    if "growth" in args.parts.split(","):
        growth.plan(benchmark)
    return {part: measure for part, measure in parts.items() if part in args.parts.split(",")}


def settings(benchmark: Benchmark, naive: Path | None) -> dict[str, Any]:
    """What was measured, and how."""
    data = benchmark.config.train_data
    return {
        "config": str(benchmark.path),
        "overrides": list(benchmark.overrides),
        "images": data.kind,
        "side": {"unit": "pixels", "value": data.resize},
        "batch": {"unit": "targets", "value": data.batch_size},
        "memory": {"unit": "images", "value": data.timesteps},
        "targets_per_memory": data.targets_per_memory,
        "importance_num": benchmark.config.model.importance_num,
        "precision": benchmark.config.train_spec.precision,
        "rounds": benchmark.rounds,
        "seconds": {"unit": "s", "value": benchmark.seconds},
        "quick": benchmark.quick,
        "naive": naive.name if naive else None,
    }


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The results, or the reason why there are none: what the other parts took minutes to measure is not lost."""
    from benchmarks.measure import BenchmarkError

    try:
        return measure()
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return {"error": str(error)}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """The results as JSON.  Raises OSError."""

    write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())


def speaker() -> Callable[[str], None]:
    """Prints lines with the seconds since now before them, for whoever waits."""
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
