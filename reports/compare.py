"""Several tables in one plot, and how much better each is than the first, target by target.

    python -m reports.compare results/vma_tuned/results.csv results/vma_causal_quick/results.csv --output compared.png

reads the bounds of all targets (.npz) and the configuration (.resolved.yaml) beside each table.  Differences are those
of cells that both tables have, paired: on the same targets with the same memories.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, cell_name
from reports.cells import Row, Stored, described, read_test
from reports.estimates import alphabets_of, estimate
from reports.plots import blank, draw_rows, memory_axis, png
from reports.tables import markdown_table
from runtime.errors import UserError, sentence, status_of
from runtime.files import write_atomically

_STYLES = ("-", "--", ":", "-.")  # of C
# What of an origin says which targets and memories those of a cell are, with what it means where it is left out; and
# whether bounds are those of densities.
_TARGETS = {"images": None, "targets": None, "seed": None, "own_class": True}


@dataclass(frozen=True)
class Table:
    """The cells of one test."""

    name: str
    config: Config
    stored: Stored
    targets: Mapping[str, object]  # what says which targets and memories these were, in which measure
    rows: Sequence[Row]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    p = argparse.ArgumentParser(prog="python -m reports.compare", description=(__doc__ or "").splitlines()[0])
    p.add_argument("table", type=Path, nargs="+", help="results.csv of a test; others are compared with the first")
    p.add_argument("--output", type=Path, metavar="PNG", help="where the plot goes (none without it)")
    args = p.parse_args(arguments)
    try:
        if args.output and args.output.suffix != ".png":
            raise UserError(f"--output {args.output}: the plot is a PNG, so the name must end in .png")
        tables = [read(path) for path in args.table]
        print(markdown(tables))
        if args.output:
            write_atomically(args.output, plot(tables))
            print(f"written: {args.output}")
    except (UserError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return status_of(error)
    return 0


def read(path: Path) -> Table:
    """The test whose table is `path`.  Raises UserError, DataError."""
    config, stored, rows = read_test(path.with_suffix(".npz"))
    targets = {key: stored.origin.get(key, default) for key, default in _TARGETS.items()}
    targets["likelihood"] = "normal" if config.model.likelihood == "normal" else "of binary pixels"
    return Table(str(path.with_suffix("")), config, stored, targets, rows)


def differences(first: Table, other: Table) -> list[Row]:
    """How many nats `other` is better than `first` in each cell that both have; none where the targets are others."""
    rows: list[Row] = []
    for c, m in first.config.test_cells:
        a, b = (table.stored.cells.get(cell_name(c, m)) for table in (first, other))
        if a is None or b is None or first.targets != other.targets:
            continue
        classes = a["target_class"]
        if not np.array_equal(classes, b["target_class"]):
            continue
        gain = estimate(b["bound"] - a["bound"], classes, alphabets_of(classes, first.stored.class_names))
        rows.append({
            "max_batch_cls": c, "timesteps": m, "gain": gain.mean, "stderr": gain.stderr,
            "stderr_new_classes": gain.stderr_new_classes, "targets": len(classes),
        })  # fmt: skip
    return rows


_LINE = "{max_batch_cls} | {timesteps} | {gain:z.2f} | {stderr:.2f} | {stderr_new_classes:.2f} | {targets}"


def markdown(tables: Sequence[Table]) -> str:
    """A table for each of the others beside the first, or why there is none."""
    first = tables[0]
    text = f"Compared with {first.name}: {first.config.test_spec.title}. {described(first.config)}.\n"
    for other in tables[1:]:
        title = f"\n{other.name}: {other.config.test_spec.title}. "
        if rows := differences(first, other):
            text += markdown_table(
                f"{title}Nats better, on the same targets and memories:",
                "C | M | better by | ± s.e. | ± new classes | targets",
                map(_LINE.format_map, rows),
            )
        else:
            unlike = [key for key, value in other.targets.items() if value != first.targets[key]] or ["cells"]
            text += f"{title}Other {', '.join(unlike)}, so no paired differences.\n"
    return text


def plot(tables: Sequence[Table]) -> bytes:
    """All tables, and beside them the paired differences to the first, against memory size -> a PNG file."""
    gains = [differences(tables[0], other) for other in tables[1:]]
    figure = blank(12 if any(gains) else 7, 4.5)
    axes = figure.subplots(1, 2 if any(gains) else 1, squeeze=False)[0]
    for number, table in enumerate(tables):
        spec = table.config.test_spec
        _draw(axes[0], table.rows, spec.column, number, f"{table.name}, {spec.title}")
    memory_axis(axes[0], [row for table in tables for row in table.rows])
    axes[0].set_ylabel("nats per image (lower is better)")
    for number, rows in enumerate(gains, 1):
        _draw(axes[-1], rows, "gain", number, tables[number].name)
    if any(gains):
        axes[1].axhline(0, color="0.4", linewidth=1)
        memory_axis(axes[1], [row for rows in gains for row in rows])
        axes[1].set_ylabel(f"nats better than {tables[0].name}, paired")
    settings = dict.fromkeys(described(table.config) for table in tables)
    figure.suptitle("\n".join([*settings, "bars: two standard errors each way"]), fontsize=8)
    return png(figure)


def _draw(axis: Any, rows: Sequence[Row], column: str, number: int, name: str) -> None:
    """A line for each C in the colour of the table `number`."""
    for which, classes in enumerate(dict.fromkeys(row["max_batch_cls"] for row in rows)):
        style, label = _STYLES[which % len(_STYLES)], f"{name}, C = {classes}"
        draw_rows(axis, rows, classes, column, 0.03 * number, color=f"C{number}", linestyle=style, label=label)


if __name__ == "__main__":
    sys.exit(main())
