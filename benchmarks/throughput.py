"""Throughput, share of the floor, peak memory, growth, start and processes, in one table.

    python -m benchmarks.throughput [--config configs/vma.yaml] [--device cpu] [--naive FILE]

prints the table, and writes all that was measured into `runs/throughput/<device>.json`.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import parts
from benchmarks.work import Benchmark
from reports.tables import markdown_table
from run import Parser, standalone
from run import device as device_name
from runtime.devices import device_of
from runtime.errors import DataError, UserError, sentence, status_of
from runtime.files import write_atomically

Results = Mapping[str, Any]

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
        print(sentence(error), file=sys.stderr)
        return status_of(error)


def execute(args: argparse.Namespace) -> int:
    """The exit status.  Raises UserError, OSError."""
    if args.naive and not args.naive.is_file():
        raise DataError(f"--naive {args.naive}: there is no such file; name a program that prints its rates")
    device = device_of("auto", args.device)
    batch = [f"train_data.batch_size={_CPU_BATCH}"] if device.type == "cpu" else []
    benchmark = Benchmark(args.config, (*batch, *args.overrides), device, args.rounds, args.seconds, args.naive)
    if benchmark.config.train_data.mixture:
        raise UserError("train_data.mixture: its steps differ in work; measure with --set train_data.mixture=null")
    if "growth" in args.parts:
        parts.plan(benchmark)  # what is wrong shows before minutes of measuring
    results = {"complete": False} | described(benchmark)
    name = re.sub(r"[^a-z0-9]+", "-", results["hardware"].get("gpu", "cpu").lower()).strip("-")
    path = args.output / f"{name}.json"
    for part in args.parts:
        parts.say(f"--- {part}")
        try:
            results[part] = getattr(parts, f"measure_{part}")(benchmark)
        except parts.BenchmarkError as error:  # what the other parts took minutes to measure is not lost
            results[part] = {"error": str(error)}
        results["complete"] = all("error" not in results.get(one, "error") for one in args.parts)
        write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
    print(f"{table(results)}written: {path}")
    return 0 if results["complete"] else 1


def described(benchmark: Benchmark) -> dict[str, Any]:
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


# --- the table for people ---------------------------------------------------------------------------------------------


def table(results: Results) -> str:
    """Markdown: the settings, then a table for each part that was measured."""
    hardware, software, settings = results["hardware"], results["software"], results["settings"]
    machine = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads")
    cuda = f", CUDA {software['cuda']}" if "cuda" in software else ""
    side, batch, memory, seconds = (settings[name]["value"] for name in ("side", "batch", "memory", "seconds"))
    text = (
        f"{machine}; torch {software['torch']}{cuda}; {results['date']}\n"
        f"{settings['config']}: {settings['images']}, {side} x {side}, training with batch {batch}, M = {memory}; "
        f"medians of {settings['rounds']} rounds of {seconds:g} s\n"
    )
    for name, (header, lines_of) in _TABLES.items():
        if "error" in (part := results.get(name, {})):
            text += f"\n{name}: not measured: {part['error']}\n"
        elif part:
            text += markdown_table("", header, lines_of(part))
    return text


def _speed(part: Results) -> list[str]:
    lines = []
    for row in part.values():
        naive = (_number(row["naive"]["median"]), f"{row['times_naive']:.2f}") if row["naive"] else ("", "")
        floor = _number(row["networks_alone"]["median"]), f"{row['share_of_floor']:.3f}"
        lines.append(" | ".join([row["title"], _number(row["ours"]["median"]), *naive, *floor]))
    return lines


def _growth(part: Results) -> list[str]:
    form = "{fixed} | {axis} = {value} | {rate} | {peak:.0f} | {before:.0f}"
    points = [(one, point) for one in part.values() for point in one["points"]]
    return [form.format_map({**one, **point, "rate": _number(point["targets_per_s"])}) for one, point in points]


def _start(part: Results) -> list[str]:
    whole, imports = part["to_first_step"]["median"], part["imports"]["median"]
    return [f"whole | {whole:.2f}", f"imports | {imports:.2f}", f"rest | {whole - imports:.2f}"]


def _processes(part: Results) -> list[str]:
    times = part["times_one_process"]
    return [f"{n} ({part['backend']}) | {_number(r['median'])} | {times[n]:.2f}" for n, r in part["rates"].items()]


_TABLES = {
    "speed": ("targets/s | ours | naive | ours / naive | networks alone | share of the floor", _speed),
    "growth": ("growth | | targets/s | peak memory, MiB | of it before the first step", _growth),
    "start": ("to the end of the first step, data packed, without validation | seconds", _start),
    "processes": ("processes | targets/s | times one process", _processes),
}


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    standalone(main)
