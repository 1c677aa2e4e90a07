"""The results as a figure.  Reads the results, measures nothing."""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from reports.tables import png

Results = Mapping[str, Any]

_AXES = {"M": "images in a memory, M", "K": "samples, K", "side": "side of the images, pixels"}
_COLOURS = {"train": "C0", "test": "C1"}


def draw(results: Results) -> bytes:
    """Ratios to the straightforward program, shares of the floor, growth of rate and memory, where measured: a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(17, 8))
    speed = _measured(results, "speed")
    _bars(axes[0, 0], speed, lambda row: row["times_naive"], "times the straightforward program")
    _bars(axes[1, 0], speed, lambda row: row["share_of_floor"], "share of the rate of the networks alone")
    growth = _measured(results, "growth")
    for column, axis in enumerate(_AXES, start=1):
        series = {name: one for name, one in growth.items() if one["axis"] == axis}
        _lines(axes[0, column], axis, series, "targets_per_s", "targets/s")
        _lines(axes[1, column], axis, series, "peak", "peak memory, MiB")
    hardware = results["hardware"]
    figure.suptitle(f"{hardware.get('gpu', hardware['cpu'])}, torch {results['software']['torch']}, {results['date']}")
    return png(figure)


def _measured(results: Results, part: str) -> Mapping[str, Any]:
    found = results.get(part) or {}
    return {} if "error" in found else found


def _bars(axis: Any, rows: Mapping[str, Any], value: Callable[[Any], float | None], label: str) -> None:
    bars = {_wrapped(row["title"]): found for row in rows.values() if (found := value(row)) is not None}
    if not bars:
        axis.set_axis_off()
        return
    drawn = axis.bar(list(bars), list(bars.values()), color=["C1" if "ELBO" in name else "C0" for name in bars])
    axis.bar_label(drawn, [f"{found:.2f}" for found in bars.values()])
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_ylabel(label)
    axis.margins(y=0.12)


def _wrapped(title: str) -> str:
    return "\n".join(line for part in title.split(", ") for line in textwrap.wrap(part, 14))


def _lines(axis: Any, name: str, series: Mapping[str, Any], quantity: str, label: str) -> None:
    if not series:
        axis.set_axis_off()
        return
    for key, one in series.items():
        x = [point["value"] for point in one["points"]]
        y = [point[quantity] for point in one["points"]]
        axis.plot(x, y, marker="o", color=_COLOURS[key.partition("_")[0]], label=one["fixed"])
        if quantity == "peak":
            before = [point["before"] for point in one["points"]]
            axis.plot(x, before, ":", color=_COLOURS[key.partition("_")[0]], label="  before the first step")
    axis.set_xscale("log", base=2)
    if quantity == "targets_per_s":
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    ticks = sorted({point["value"] for one in series.values() for point in one["points"]})
    apart = [tick for tick, before in zip(ticks, [0, *ticks], strict=False) if tick > 1.5 * before]
    axis.set_xticks(apart, [str(tick) for tick in apart])
    axis.tick_params(axis="x", labelrotation=45 if len(ticks) > 4 else 0)
    axis.minorticks_off()
    axis.set_xlabel(_AXES[name])
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1))  # above: lines may be anywhere
