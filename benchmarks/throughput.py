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
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import config as configuration
from run import Parser
from run import device as device_name
from runtime.errors import UserError
from runtime.files import write_atomically

PARTS = ("speed", "growth", "start", "processes")
_CPU_BATCH = 32  # targets in a step, few enough for the naive program too


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m benchmarks.throughput", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=Path, default=Path("configs/vma.yaml"), metavar="YAML", help="what is measured")
    p.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda|cuda:N", help="where")
    p.add_argument("--naive", type=Path, metavar="FILE", help="a program to compare with, which prints its rates")
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="length of a measurement (5)")
    p.add_argument("--rounds", type=int, default=3, metavar="R", help="measurements of each rate (3)")
    p.add_argument("--parts", default=",".join(PARTS), metavar=",".join(PARTS), help="what is measured, all by default")
    p.add_argument("--output", type=Path, default=Path("runs/throughput"), metavar="DIR", help="where files go")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help=f"override a key; without one train_data.batch_size is {_CPU_BATCH} on the CPU")  # fmt: skip
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    if unknown := set(args.parts.split(",")) - set(PARTS):
        p.error(f"--parts: {sorted(unknown)[0]!r} is none of {', '.join(PARTS)}")
    for name in ("rounds", "seconds"):
        if not 0 < getattr(args, name) < 1e6:
            p.error(f"--{name}: {getattr(args, name)} is not positive")
    if args.naive and not args.naive.is_file():
        print(f"--naive {args.naive}: there is no such file; name a program that prints its rates", file=sys.stderr)
        return 3
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
    from benchmarks import parts, report, work
    from runtime.devices import device_of

    device, started = device_of("auto", args.device), time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)

    batch = [f"train_data.batch_size={_CPU_BATCH}"] if device.type == "cpu" else []
    benchmark = work.benchmark(args.config, [*batch, *args.overrides], device, args.rounds, args.seconds)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: parts.measure_speed(benchmark, args.naive, say),
        "growth": lambda: parts.measure_growth(benchmark, say),
        "start": lambda: parts.measure_start(benchmark, say),
        "processes": lambda: parts.measure_processes(benchmark, say),
    }
    wanted = [name for name in PARTS if name in args.parts.split(",")]
    if "growth" in wanted:
        parts.plan(benchmark)  # what is wrong shows before minutes of measuring
    results = {"complete": False} | described(benchmark, args.naive)
    name = re.sub(r"[^a-z0-9]+", "-", results["hardware"].get("gpu", "cpu").lower()).strip("-")
    path = args.output / f"{name}.json"
    say(f"{name}: images of kind {benchmark.config.train_data.kind}")
    for part in wanted:
        say(f"--- {part}")
        try:
            results[part] = measures[part]()
        except parts.BenchmarkError as error:  # what the other parts took minutes to measure is not lost
            say(str(error))
            results[part] = {"error": str(error)}
        if part == "speed" and "error" not in results[part]:
            whole = configuration.load(args.config, args.overrides)
            targets = whole.train_spec.steps * whole.train_data.batch_size
            results["whole_runs"] = parts.whole_runs(results[part], targets)
        results["complete"] = all("error" not in results.get(name, "error") for name in wanted)
        write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
    write_atomically(path.with_suffix(".png"), report.draw(results))
    print(report.table(results), end="")
    print(f"written: {path}, {path.with_suffix('.png')}")
    return 0 if results["complete"] else 1


def described(benchmark: Any, naive: Path | None) -> dict[str, Any]:
    """What was measured, how, when and on what."""
    import torch

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
        "naive": naive.name if naive else None,
    }
    hardware: dict[str, Any] = {
        "cpu": next(iter(re.findall(r"^model name\s*: (.+)$", info, re.MULTILINE)), platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }
    software = {"python": platform.python_version(), "torch": torch.__version__}
    if benchmark.device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(benchmark.device)
        software["cuda"] = str(torch.version.cuda)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"date": date, "settings": settings, "hardware": hardware, "software": software}


if __name__ == "__main__":
    sys.exit(main())
