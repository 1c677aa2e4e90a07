"""The results as a table for people.  Reads the results, measures nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def table(results: Results) -> str:
    """Markdown: the settings, then a table for each part that was measured."""
    lines = list(_heading(results))
    for name, write in (
        ("speed", _speed),
        ("whole_runs", _whole_runs),
        ("growth", _growth),
        ("start", _start),
        ("processes", _processes),
    ):
        part = results.get(name)
        if part is not None:
            lines += ["", f"{name}: not measured: {part['error']}"] if "error" in part else ["", *write(part)]
    return "\n".join(lines) + "\n"


def _heading(results: Results) -> Iterator[str]:
    hardware, software, settings = results["hardware"], results["software"], results["settings"]
    machine = hardware.get("gpu", f"{hardware['cpu']}, {hardware['threads']} threads")
    versions = f"torch {software['torch']}" + (f", CUDA {software['cuda']}" if "cuda" in software else "")
    side = settings["side"]["value"]
    yield f"{machine}; {versions}; {results['date']}"
    yield (
        f"{settings['config']}: {settings['images']}, {side} x {side}, training with batch "
        f"{settings['batch']['value']}, M = {settings['memory']['value']}; medians of {settings['rounds']} rounds of "
        f"{settings['seconds']['value']:g} s" + (", a trial, not a measurement" if settings["quick"] else "")
    )


def _speed(rows: Mapping[str, Any]) -> Iterator[str]:
    header = ["targets/s", "ours", "naive", "ours / naive", "networks alone", "share of the floor"]
    yield from _rows(header, ([
        row["title"],
        _number(row["ours"]["median"]),
        _number(row["naive"]["median"]) if row["naive"] else "",
        f"{row['times_naive']:.2f}" if row["naive"] else "",
        _number(row["networks_alone"]["median"]),
        f"{row['share_of_floor']:.3f}",
    ] for row in rows.values()))  # fmt: skip


def _whole_runs(rows: Mapping[str, Any]) -> Iterator[str]:
    yield from _rows(
        ["the whole, at these rates", "targets", "hours"],
        ([name, f"{row['targets']:,}", _number(row["value"])] for name, row in rows.items()),
    )


def _growth(series: Mapping[str, Any]) -> Iterator[str]:
    for number, one in enumerate(series.values()):
        points = one["points"]
        if number:
            yield ""
        yield from _rows(
            [one["fixed"], *(f"{one['axis']} = {point['value']}" for point in points)],
            [
                ["targets/s", *(_number(point["targets_per_s"]) for point in points)],
                ["peak memory, MiB", *(f"{point['peak']:.0f}" for point in points)],
                ["of it before the first step, MiB", *(f"{point['before']:.0f}" for point in points)],
            ],
        )


def _start(part: Mapping[str, Any]) -> Iterator[str]:
    names = {"to_first_step": "start of the program to its first step", "imports": "imports", "after_imports": "rest"}
    yield from _rows(
        [part["note"], "seconds"], ([title, f"{part[name]['median']:.2f}"] for name, title in names.items())
    )


def _processes(part: Mapping[str, Any]) -> Iterator[str]:
    yield from _rows(
        [f"processes ({part['backend']})", "targets/s", "times one process"],
        (
            [count, _number(rate["median"]), f"{part['times_one_process'][count]:.2f}"]
            for count, rate in part["rates"].items()
        ),
    )


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> Iterator[str]:
    """A Markdown table whose columns stand below each other in plain text too."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for number, row in enumerate(cells):
        padded = (
            text.ljust(w) if not i else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        yield f"| {' | '.join(padded)} |"
        if not number:
            yield f"|{'|'.join('-' * (w + 2) if not i else '-' * (w + 1) + ':' for i, w in enumerate(widths))}|"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
