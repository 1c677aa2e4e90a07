"""The results as a table and as a figure for people.  Reads the results, measures nothing."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from reports.plots import png

Results = Mapping[str, Any]
_START = {"to_first_step": "start of the program to its first step", "imports": "imports", "after_imports": "rest"}
_AXES = {"M": "images in a memory, M", "K": "samples, K", "side": "side of the images, pixels"}


def table(results: Results) -> str:
    """Markdown: the settings, then a table for each part that was measured."""
    hardware, software, settings = results["hardware"], results["software"], results["settings"]
    machine = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads")
    cuda = f", CUDA {software['cuda']}" if "cuda" in software else ""
    side, batch, memory, seconds = (settings[name]["value"] for name in ("side", "batch", "memory", "seconds"))
    lines = [
        f"{machine}; torch {software['torch']}{cuda}; {results['date']}",
        f"{settings['config']}: {settings['images']}, {side} x {side}, training with batch {batch}, M = {memory}; "
        f"medians of {settings['rounds']} rounds of {seconds:g} s",
    ]
    for name, rows_of in _TABLES.items():
        if part := results.get(name):
            failed = "error" in part
            lines += ["", f"{name}: not measured: {part['error']}"] if failed else ["", *_markdown(rows_of(part))]
    return "\n".join(lines) + "\n"


def _speed(part: Results) -> list[list[str]]:
    header = ["targets/s", "ours", "naive", "ours / naive", "networks alone", "share of the floor"]
    return [header, *(
        [row["title"], _number(row["ours"]["median"]), _number(row["naive"]["median"]) if row["naive"] else "",
         f"{row['times_naive']:.2f}" if row["naive"] else "", _number(row["networks_alone"]["median"]),
         f"{row['share_of_floor']:.3f}"]
        for row in part.values()
    )]  # fmt: skip


def _whole_runs(part: Results) -> list[list[str]]:
    rows = ([name, f"{row['targets']:,}", _number(row["value"])] for name, row in part.items())
    return [["the whole, at these rates", "targets", "hours"], *rows]


def _growth(part: Results) -> list[list[str]]:
    header = ["growth", "", "targets/s", "peak memory, MiB", "of it before the first step"]
    return [header, *(
        [one["fixed"], f"{one['axis']} = {p['value']}", _number(p["targets_per_s"]), f"{p['peak']:.0f}",
         f"{p['before']:.0f}"]
        for one in part.values() for p in one["points"]
    )]  # fmt: skip


def _start(part: Results) -> list[list[str]]:
    return [[part["note"], "seconds"], *([title, f"{part[name]['median']:.2f}"] for name, title in _START.items())]


def _processes(part: Results) -> list[list[str]]:
    times = part["times_one_process"]
    rows = ([count, _number(rate["median"]), f"{times[count]:.2f}"] for count, rate in part["rates"].items())
    return [[f"processes ({part['backend']})", "targets/s", "times one process"], *rows]


_TABLES = {"speed": _speed, "whole_runs": _whole_runs, "growth": _growth, "start": _start, "processes": _processes}


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns stand below each other in plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))] for row in rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    ruler = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return [lines[0], f"|{ruler}|", *lines[1:]]


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(results: Results) -> bytes:
    """Ratios to the naive program, shares of the floor, growth of rate and memory, where measured: a PNG."""
    from matplotlib.figure import Figure

    speed, growth = ({} if "error" in (part := results.get(name) or {}) else part for name in ("speed", "growth"))
    grown = [axis for axis in _AXES if any(one["axis"] == axis for one in growth.values())]
    figure = Figure((5 + 4 * len(grown), 8))
    axes = figure.subplots(2, 1 + len(grown), squeeze=False)
    _bars(axes[0, 0], speed, "times_naive", "times the naive program")
    _bars(axes[1, 0], speed, "share_of_floor", "share of the rate of the networks alone")
    for column, axis in enumerate(grown, start=1):
        for key, one in growth.items():
            if one["axis"] == axis:
                _line(axes[0, column], one, "targets_per_s", "o-", key, one["fixed"])
                _line(axes[1, column], one, "peak", "o-", key, one["fixed"])
                _line(axes[1, column], one, "before", ":", key, "  before the first step")
        for row, label in enumerate(("targets/s", "peak memory, MiB")):
            axes[row, column].set(xlabel=_AXES[axis], ylabel=label, yscale="linear" if row else "log")
            axes[row, column].legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1))
            axes[row, column].grid(alpha=0.3)
        axes[1, column].set_ylim(bottom=0)
    hardware = results["hardware"]
    figure.suptitle(f"{hardware.get('gpu', hardware['cpu'])}, torch {results['software']['torch']}, {results['date']}")
    return png(figure)


def _bars(axis: Any, rows: Results, quantity: str, label: str) -> None:
    bars = {row["title"]: row[quantity] for row in rows.values() if row[quantity] is not None}
    names = ["\n".join(line for part in title.split(", ") for line in textwrap.wrap(part, 14)) for title in bars]
    drawn = axis.bar(names, list(bars.values()), color=["C1" if "ELBO" in name else "C0" for name in names])
    axis.bar_label(drawn, [f"{value:.2f}" for value in bars.values()])
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_ylabel(label)


def _line(axis: Any, one: Results, quantity: str, style: str, key: str, label: str) -> None:
    x, y = ([point[name] for point in one["points"]] for name in ("value", quantity))
    axis.plot(x, y, style, color="C0" if key.startswith("train") else "C1", label=label)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
