"""The results as a table and as a figure for people.  Reads the results, measures nothing."""

import textwrap
from collections.abc import Mapping
from typing import Any

from reports.plots import png
from studies import program

Results = Mapping[str, Any]
_AXES = {"M": "images in a memory, M", "K": "samples, K", "side": "side of the images, pixels"}


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
            text += program.markdown("", header, lines_of(part))
    return text


def _speed(part: Results) -> list[str]:
    lines = []
    for row in part.values():
        naive = (_number(row["naive"]["median"]), f"{row['times_naive']:.2f}") if row["naive"] else ("", "")
        floor = _number(row["networks_alone"]["median"]), f"{row['share_of_floor']:.3f}"
        lines.append(" | ".join([row["title"], _number(row["ours"]["median"]), *naive, *floor]))
    return lines


def _whole_runs(part: Results) -> list[str]:
    return [f"{name} | {row['targets']:,} | {_number(row['value'])}" for name, row in part.items()]


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
    "whole_runs": ("the whole, at these rates | targets | hours", _whole_runs),
    "growth": ("growth | | targets/s | peak memory, MiB | of it before the first step", _growth),
    "start": ("to the end of the first step, data packed, without validation | seconds", _start),
    "processes": ("processes | targets/s | times one process", _processes),
}


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(results: Results) -> bytes:
    """Ratios to the naive program, shares of the floor, growth of rate and memory, where measured: a PNG."""
    from matplotlib.figure import Figure

    speed, growth = ({} if "error" in (part := results.get(name) or {}) else part for name in ("speed", "growth"))
    figure = Figure((5 + 3.5 * len(growth), 8))
    axes = figure.subplots(2, 1 + len(growth), squeeze=False)
    _bars(axes[0, 0], speed, "times_naive", "times the naive program")
    _bars(axes[1, 0], speed, "share_of_floor", "share of the rate of the networks alone")
    for (top, bottom), one in zip(axes.T[1:], growth.values(), strict=True):
        values = [point["value"] for point in one["points"]]
        for axis, name, label in (
            (top, "targets_per_s", "targets/s"),
            (bottom, "peak", "peak memory, MiB"),
            (bottom, "before", "before the first step"),
        ):
            axis.plot(values, [point[name] for point in one["points"]], "o-", label=label)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set(xlabel=_AXES[one["axis"]], ylim=(0, None))
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)
        top.set_title(one["fixed"], fontsize=7)
    hardware = results["hardware"]
    figure.suptitle(f"{hardware.get('gpu', hardware['cpu'])}, torch {results['software']['torch']}, {results['date']}")
    return png(figure)


def _bars(axis: Any, rows: Results, quantity: str, label: str) -> None:
    bars = {textwrap.fill(row["title"], 14): row[quantity] for row in rows.values() if row[quantity] is not None}
    axis.bar_label(axis.bar(list(bars), list(bars.values())), fmt="%.2f")
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_ylabel(label)
