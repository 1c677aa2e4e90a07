"""Throughput, share of the floor, peak memory, growth, start and processes, in one table.

    python -m benchmarks.throughput [--config configs/vma.yaml] [--device cpu] [--naive FILE]

writes `runs/throughput/<device>.json` and `.png`.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import config as configuration
from benchmarks import parts, report, work
from run import Parser, standalone
from run import device as device_name
from runtime.devices import device_of
from runtime.errors import DataError, UserError, status_of
from runtime.files import write_atomically

PARTS = ("speed", "growth", "start", "processes")
_CPU_BATCH = 32  # targets in a step, few enough for the naive program too


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a part gave no numbers."""
    p = Parser(prog="python -m benchmarks.throughput", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=Path, default=Path("configs/vma.yaml"), metavar="YAML", help="what is measured")
    p.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda|cuda:N", help="where")
    p.add_argument("--naive", type=Path, metavar="FILE", help="a program to compare with, which prints its rates")
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="length of a measurement (5)")
    p.add_argument("--rounds", type=int, default=3, metavar="R", help="measurements of each rate (3)")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured, all by default")
    p.add_argument("--output", type=Path, default=Path("runs/throughput"), metavar="DIR", help="where files go")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help=f"override a key; without one train_data.batch_size is {_CPU_BATCH} on the CPU")  # fmt: skip
    args = p.parse_args(arguments)
    if not (args.rounds > 0 and args.seconds > 0):
        p.error("--rounds and --seconds must be positive")
    try:
        return execute(args)
    except (UserError, OSError, MemoryError) as error:
        print(error if isinstance(error, UserError) else f"{type(error).__name__}: {error}", file=sys.stderr)
        return status_of(error)


def execute(args: argparse.Namespace) -> int:
    """The exit status.  Raises UserError and OSError."""
    if args.naive and not args.naive.is_file():
        raise DataError(f"--naive {args.naive}: there is no such file; name a program that prints its rates")
    device = device_of("auto", args.device)
    batch = [f"train_data.batch_size={_CPU_BATCH}"] if device.type == "cpu" else []
    overrides = [*batch, *args.overrides]
    benchmark = work.benchmark(args.config, overrides, device, args.rounds, args.seconds, args.naive)
    if "growth" in args.parts:
        parts.plan(benchmark)  # what is wrong shows before minutes of measuring
    results = {"complete": False} | described(benchmark)
    name = re.sub(r"[^a-z0-9]+", "-", results["hardware"].get("gpu", "cpu").lower()).strip("-")
    path = args.output / f"{name}.json"
    for part in args.parts:
        parts.say(f"--- {part}")
        try:
            results[part] = getattr(parts, f"measure_{part}")(benchmark)
            if part == "speed":
                whole = configuration.load(args.config, args.overrides)
                targets = whole.train_spec.steps * whole.train_data.batch_size
                results["whole_runs"] = parts.whole_runs(results[part], targets)
        except parts.BenchmarkError as error:  # what the other parts took minutes to measure is not lost
            results[part] = {"error": str(error)}
        results["complete"] = all("error" not in results.get(one, "error") for one in args.parts)
        write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
    write_atomically(path.with_suffix(".png"), report.draw(results))
    print(report.table(results), end="")
    print(f"written: {path}, {path.with_suffix('.png')}")
    return 0 if results["complete"] else 1


def described(benchmark: work.Benchmark) -> dict[str, Any]:
    """What was measured, how, when and on what."""
    config, data = benchmark.config, benchmark.config.train_data
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    settings = {
        "config": str(benchmark.path),
        "overrides": list(benchmark.overrides),
        "images": data.kind,
        "side": {"unit": "pixels", "value": data.resize},
        "batch": {"unit": "targets", "value": data.batch_size},
        "memory": {"unit": "images", "value": data.timesteps},
        "precision": config.train_spec.precision,
        "rounds": benchmark.rounds,
        "seconds": {"unit": "s", "value": benchmark.seconds},
        "naive": benchmark.naive.name if benchmark.naive else None,
    }
    hardware: dict[str, Any] = {
        "cpu": next(iter(re.findall(r"^model name\s*: (.+)$", info, re.MULTILINE)), platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),  # macOS
        "threads": torch.get_num_threads(),
    }
    software = {"python": platform.python_version(), "torch": torch.__version__}
    if benchmark.device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(benchmark.device)
        software["cuda"] = str(torch.version.cuda)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"date": date, "settings": settings, "hardware": hardware, "software": software}


if __name__ == "__main__":
    standalone(main)
