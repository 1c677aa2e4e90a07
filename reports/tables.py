"""The results table: a row for each finished cell, as csv, Markdown and plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import Config
from reports.cells import Row, metric
from reports.plots import result_plot
from reports.published import CAVEATS, SIZES, published
from runtime.files import write_atomically

COLUMNS = (
    "max_batch_cls",
    "timesteps",
    "ELBO",
    "NLL",
    "stderr",
    "kl_a",
    "kl_z",
    "address_accuracy",
    "targets",
    "importance_num",
)


def write_table(output_file: Path, rows: Sequence[Row], config: Config) -> None:
    """Write the rows as csv, and beside it the Markdown table and the plot.  Raises OSError."""
    write_atomically(output_file, comma_separated(rows, [name for name in COLUMNS if name in rows[0]]))
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
    header = ["C", "M", metric(rows), "± s.e.", "KL(a)", "KL(z)", "address accuracy", "targets", *known]
    exact = "NLL" in rows[0]
    of = "the log-likelihood, an exact sum over addresses" if exact else "the importance-weighted bound"
    lines = [
        f"{metric(rows)}: minus {of}, nats per image, lower is better. {described(config)}.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for row in rows:
        cells = [
            f"{row['max_batch_cls']}",
            f"{row['timesteps']}",
            f"{row['NLL' if exact else 'ELBO']:.2f}",
            f"{row['stderr']:.2f}",
        ]
        cells += [f"{row['kl_a']:.2f}", f"{row['kl_z']:.2f}", f"{row['address_accuracy']:.3f}", f"{row['targets']}"]
        cells += [_known(table, row) for table in known.values()]
        lines.append(f"| {' | '.join(cells)} |")
    if known:
        lines += ["", *(CAVEATS[column] for column in known)]
        lines += ["These numbers are ELBO@1000, bounds from above on NLL."] if exact else []
    return "\n".join(lines) + "\n"


def described(config: Config) -> str:
    """Of which images, targets and memories the numbers of a test speak."""
    data, spec = config.test_data, config.test_spec
    of = {"test": "", "train": "targets of training classes; ", "held_out": "targets of held-out classes; "}[
        spec.subset
    ]
    images = "never the target" if spec.own_class else "all of other classes than the target's (a control)"
    return (
        f"{data.kind}, {data.split} split, {data.resize} x {data.resize} by {data.resample}; "
        f"{of}C = up to that many classes in a memory, M = images in it, {images}"
    )


def _known(table: Mapping[int, Sequence[float]], row: Row) -> str:
    classes, size = int(row["max_batch_cls"]), int(row["timesteps"])
    return f"{table[classes][SIZES.index(size)]:.1f}" if classes in table and size in SIZES else ""


def _rounded(value: str | int | float) -> str | int | float:
    return round(float(value), 4) if isinstance(value, float) else value
