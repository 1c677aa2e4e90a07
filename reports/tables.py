"""The results table: a row for each finished cell, as csv, Markdown and plot.

    python -m reports.tables runs/vma/results.npz

writes the table again from the stored bounds of all targets and the configuration beside them.
"""

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from config import Config
from reports.cells import Row, described, metric_described, read_test
from reports.plots import result_plot
from reports.published import CAVEATS, published
from runtime.errors import UserError, sentence, status_of
from runtime.files import write_atomically

Fields = Mapping[str, str | int | float]  # of a row, by column

# Metrics of a row beside the bound, with their headers and digits in the table for people.
_METRICS = (
    ("stderr", "± s.e.", 2),
    ("stderr_new_classes", "± new classes", 2),
    ("kl_a", "KL(a)", 2),
    ("kl_z", "KL(z)", 2),
    ("address_accuracy", "address accuracy", 3),
)

_COUNTED = (
    "Every class counts the same. ± s.e.: standard error for the classes of this test; ± new classes: for other ones, "
    "clustered by alphabet where classes have one."
)


def write_table(output_file: Path, rows: Sequence[Row], config: Config, digest: str = "") -> None:
    """Write the rows as csv, and beside it the Markdown table and the plot.  Raises OSError."""
    write_files(output_file, rows, markdown(rows, config, digest), result_plot(rows, config))


def write_files(path: Path, rows: Sequence[Fields], text: str, figure: bytes | None = None) -> None:
    """Write the rows as csv into `path`, and beside it the text as .md and the figure as .png.  Raises OSError."""
    write_atomically(path, comma_separated(rows))
    write_atomically(path.with_suffix(".md"), text.encode())
    if figure is not None:
        write_atomically(path.with_suffix(".png"), figure)


def comma_separated(rows: Sequence[Fields]) -> bytes:
    """A csv file with the columns of the first row; numbers are rounded to four places."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def markdown_table(title: str, header: str, lines: Iterable[str]) -> str:
    """A paragraph and a table, in whose lines the columns are separated by |."""
    rule = "---|" * (header.count("|") + 1)
    return "\n".join([title, "", f"| {header} |", f"|{rule}", *(f"| {line} |" for line in lines), ""])


def markdown(rows: Sequence[Row], config: Config, digest: str = "") -> str:
    """The table for people, with the published numbers where the cell exists there, and the weights by their digest."""
    known = published(config)
    columns = [(config.test_spec.column, 2), *((name, digits) for name, _, digits in _METRICS)]
    header = ["C", "M", config.test_spec.title, *(title for _, title, _ in _METRICS), "targets", *known]
    lines = []
    for row in rows:
        numbers = [shown(row[name], digits) for name, digits in columns]
        cells = [row["max_batch_cls"], row["timesteps"], *numbers, row["targets"]]
        there = [column.get((int(row["max_batch_cls"]), int(row["timesteps"]))) for column in known.values()]
        cells += ["" if nats is None else f"{nats:.1f}" for nats in there]
        lines.append(" | ".join(map(str, cells)))
    title = f"{metric_described(config)}. {described(config)}. {_COUNTED}"
    text = markdown_table(title, " | ".join(header), lines)
    if known:
        text += "\n" + "".join(f"{CAVEATS[name]}\n" for name in known)
    return text + (f"\nWeights: `{config.test_checkpoint}`, SHA-256 of their values `{digest}`.\n" if digest else "")


def shown(value: float, digits: int) -> str:
    """The value in a table; a dash where a model has none."""
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"


def _rounded(value: str | int | float) -> str | int | float:
    return round(float(value), 4) + 0.0 if isinstance(value, float) else value  # no -0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    p = argparse.ArgumentParser(prog="python -m reports.tables", description="Write tables again.")
    p.add_argument("npz", type=Path, nargs="+", help="the bounds of a test, beside its .resolved.yaml")
    try:
        for path in p.parse_args(arguments).npz:
            write_again(path)
    except (UserError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return status_of(error)
    return 0


def write_again(npz: Path) -> None:
    """Write and print the table of the bounds in `npz`.  Raises UserError, DataError, OSError."""
    config, stored, rows = read_test(npz)
    write_table(npz.with_suffix(".csv"), rows, config, stored.weights_digest)
    print(markdown(rows, config, stored.weights_digest))


if __name__ == "__main__":
    sys.exit(main())
