"""The results table: a row for each finished cell, as csv, Markdown and plot."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import Config
from reports.cells import Row, metric
from reports.plots import result_plot
from reports.published import CAVEATS, SIZES, published
from runtime.files import write_atomically

# Metrics of a row beside the bound, with their headers and digits in the table for people.
_METRICS = (
    ("stderr", "± s.e.", 2),
    ("kl_a", "KL(a)", 2),
    ("kl_z", "KL(z)", 2),
    ("address_accuracy", "address accuracy", 3),
)


def write_table(output_file: Path, rows: Sequence[Row], config: Config) -> None:
    """Write the rows as csv, and beside it the Markdown table and the plot.  Raises OSError."""
    write_atomically(output_file, comma_separated(rows, list(rows[0])))
    write_atomically(output_file.with_suffix(".md"), markdown(rows, config).encode())
    write_atomically(output_file.with_suffix(".png"), result_plot(rows, config))


def comma_separated(rows: Sequence[Mapping[str, str | int | float]], columns: Sequence[str]) -> bytes:
    """A csv file with these columns; numbers are rounded to four places."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(row[name]) for name in columns} for row in rows)
    return text.getvalue().encode()


def markdown(rows: Sequence[Row], config: Config) -> str:
    """The table for people, with the published numbers where the cell exists there."""
    known = published(config)
    exact = "NLL" in rows[0]
    header = ["C", "M", metric(rows), *(title for _, title, _ in _METRICS), "targets", *known]
    of = "the log-likelihood, an exact sum over addresses" if exact else "the importance-weighted bound"
    lines = [
        f"{metric(rows)}: minus {of}, nats per image, lower is better. {described(config)}.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for row in rows:
        numbers = [_shown(row["NLL" if exact else "ELBO"], 2)]
        numbers += [_shown(row[name], digits) for name, _, digits in _METRICS]
        cells = [row["max_batch_cls"], row["timesteps"], *numbers, row["targets"]]
        cells += [_known(table, row) for table in known.values()]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if known:
        lines += ["", *(CAVEATS[column] for column in known)]
        lines += ["These numbers are ELBO@1000, bounds from above on NLL."] if exact else []
    return "\n".join(lines) + "\n"


def described(config: Config) -> str:
    """Of which images, targets and memories the numbers of a test speak."""
    data, spec = config.test_data, config.test_spec
    of = {"train": "targets of training classes; ", "held_out": "targets of held-out classes; "}.get(spec.subset, "")
    images = "never the target" if spec.own_class else "all of other classes than the target's (a control)"
    return (
        f"{data.kind}, {data.split} split, {data.resize} x {data.resize} by {data.resample}; "
        f"{of}C = up to that many classes in a memory, M = images in it, {images}"
    )


def _known(table: Mapping[int, Sequence[float]], row: Row) -> str:
    classes, size = int(row["max_batch_cls"]), int(row["timesteps"])
    return f"{table[classes][SIZES.index(size)]:.1f}" if classes in table and size in SIZES else ""


def _shown(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _rounded(value: str | int | float) -> str | int | float:
    return round(float(value), 4) if isinstance(value, float) else value
