"""The results table (csv, Markdown), its plot, and the curves of a training.  Reads numbers, never a model.

ELBO is minus the mean bound in nats per image: lower is better.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Config
from runtime.files import write_atomically

Row = Mapping[str, float | int]

COLUMNS = (
    "max_batch_cls",
    "timesteps",
    "ELBO",
    "stderr",
    "kl_a",
    "kl_z",
    "address_accuracy",
    "targets",
    "importance_num",
)

# ELBO@1000 on Omniglot, (max_batch_cls, timesteps) -> nats: Table 1 of arXiv 1709.07116 as quoted by the published code
# (github.com/artemZholus/variational_memory_addressing), and that code's own results.
_SIZES = (1, 2, 3, 4, 5, 10, 19)
_PAPER: dict[int, tuple[float, ...]] = {
    1: (86.5, 83.0, 79.6, 79.0, 76.5, 76.2, 73.9),
    2: (87.5, 83.3, 80.9, 79.3, 79.1, 77.0, 75.0),
}
_PUBLISHED_CODE: dict[int, tuple[float, ...]] = {
    1: (85.2, 79.8, 77.5, 76.2, 75.3, 73.2, 71.8),
    2: (85.2, 82.7, 80.1, 78.5, 77.5, 75.2, 73.5),
}


def write_table(output_file: Path, rows: Sequence[Row], config: Config) -> None:
    """Write the rows as csv, and beside it the Markdown table and the plot.  Raises OSError."""
    write_atomically(output_file, comma_separated(rows, COLUMNS))
    write_atomically(output_file.with_suffix(".md"), markdown(rows, config).encode())
    write_atomically(output_file.with_suffix(".png"), plot(rows, config))


def comma_separated(rows: Sequence[Mapping[str, str | int | float]], columns: Sequence[str]) -> bytes:
    """A csv file with these columns; numbers are rounded to four places."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(row[name]) for name in columns} for row in rows)
    return text.getvalue().encode()


def png(figure: Any) -> bytes:
    """A finished figure of matplotlib as a file; it is closed."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    return content.getvalue()


def markdown(rows: Sequence[Row], config: Config) -> str:
    """The table for people, with the published numbers where the cell exists there."""
    known = _published(config)
    header = ["C", "M", metric(rows), "± s.e.", "KL(a)", "KL(z)", "address accuracy", "targets"]
    header += known
    lines = [
        f"{metric(rows)}: minus the importance-weighted bound, nats per image, lower is better. {described(config)}.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for row in rows:
        cells = [f"{row['max_batch_cls']}", f"{row['timesteps']}", f"{row['ELBO']:.2f}", f"{row['stderr']:.2f}"]
        cells += [f"{row['kl_a']:.2f}", f"{row['kl_z']:.2f}", f"{row['address_accuracy']:.3f}", f"{row['targets']}"]
        cells += [_known(table, row) for table in known.values()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(_CAVEATS[column] for column in known)] if known else []
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


_CAVEATS = {
    "published code": "Published code: the same protocol with every evaluation image as a target.",
    "paper": "Paper: its split and filter are not settled, so that column is for orientation.",
}


def plot(rows: Sequence[Row], config: Config) -> bytes:
    """ELBO against memory size, one line for each C, bars of two standard errors each way -> a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for number, classes in enumerate(dict.fromkeys(row["max_batch_cls"] for row in rows)):
        line = sorted((row for row in rows if row["max_batch_cls"] == classes), key=lambda row: row["timesteps"])
        sizes = [row["timesteps"] + 0.04 * number * max(row["timesteps"], 1) for row in line]  # bars side by side
        axis.errorbar(
            sizes,
            [row["ELBO"] for row in line],
            yerr=[2 * row["stderr"] for row in line],
            color=f"C{number}",
            marker="o",
            capsize=2,
            label=f"C = {classes}, this model",
        )
        for column, table in list(_published(config).items())[:1]:
            if classes in table:
                axis.plot(_SIZES, table[int(classes)], f"C{number}:", label=f"C = {classes}, {column}")
    axis.set_xscale("symlog", linthresh=1)
    ticks = sorted({int(row["timesteps"]) for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images in the memory, M")
    axis.set_ylabel(f"{metric(rows)}, nats per image (lower is better)")
    axis.set_title("bars: two standard errors each way", fontsize=8)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return png(figure)


_CURVES = (  # panel, quantity in the log, its sign
    ("minus the bound, nats per image", (("bound", -1),)),
    ("nats", (("kl_a", 1), ("kl_z", 1))),
    ("mass of q(a) on the target's class", (("address_accuracy", 1),)),
)
_LABELS = {"bound": "", "kl_a": "KL(a), ", "kl_z": "KL(z), ", "address_accuracy": ""}
_BEGINNING = 0.03  # of a training; what falls from hundreds of nats then would hide all that follows


def write_curves(log_file: Path, config: Config) -> Path:
    """Draw the log of a training beside it; the path of the figure.  Raises OSError."""
    rows = [json.loads(line) for line in log_file.read_text().splitlines()]
    path = log_file.with_suffix(".curves.png")  # the table may have the same stem
    write_atomically(path, curves(rows, config))
    return path


def curves(rows: Sequence[Mapping[str, Any]], config: Config) -> bytes:
    """Bound, KL terms and address accuracy of training and validation against the targets seen -> a PNG file.

    `rows` are those of `train_spec.log_file`.  The bounds are those of the K and the memories of each part.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, axes = plt.subplots(1, len(_CURVES), figsize=(15, 4))
    last = max((row["step"] for row in rows), default=0)
    parts = {
        part: line for part, line in (("train", "-"), ("validation", "o-")) if any(r["subset"] == part for r in rows)
    }
    for axis, (label, quantities) in zip(axes, _CURVES, strict=True):
        for part, line in parts.items():
            of = [row for row in rows if row["subset"] == part and row["step"] >= _BEGINNING * last]
            for number, (name, sign) in enumerate(quantities):
                has = [row for row in of if name in row]
                axis.plot(
                    [row["step"] * config.train_data.batch_size for row in has],
                    [sign * row[name] for row in has],
                    line,
                    color=f"C{number * 2 + (part == 'validation')}",
                    markersize=3,
                    linewidth=1,
                    label=f"{_LABELS[name]}{part}",
                )
        axis.set_xlabel("targets seen")
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set_ylabel(label)
        if parts:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(f"K = {config.model.importance_num}; {_composition(config, 'validation' in parts)}", fontsize=9)
    return png(figure)


def _composition(config: Config, validated: bool) -> str:
    """The memories of training and, if there is any, of validation in a few words."""
    said = []
    parts = [("training", config.train_data), ("validation", config.val_data)]
    for name, data in parts if validated else parts[:1]:
        per_class, classes = data.max_img_per_class, data.max_batch_cls
        most = "" if data.exact or classes == 1 else "at most "
        of = f"{per_class} of a class" if per_class else f"{classes or 0} classes" if classes != 1 else "one class"
        more = " and a mixture" if name == "training" and config.train_data.mixture else ""
        said.append(f"{name}: memories of {data.timesteps}, {most}{of}{more}")
    return "; ".join(said)


def metric(rows: Sequence[Row]) -> str:
    """The header the field uses, such as ELBO@1000."""
    return f"ELBO@{rows[0]['importance_num']}"


def _published(config: Config) -> dict[str, dict[int, tuple[float, ...]]]:
    """The published numbers that speak of the same images and the same bound, by the name of their column."""
    data = config.test_data
    bound = (data.kind, data.resize, config.model.likelihood, config.test_spec.importance_num)
    of = (config.test_spec.subset, config.test_spec.own_class)
    if bound != ("omniglot", 26, "bernoulli", 1000) or of != ("test", True):
        return {}
    columns = {"published code": _PUBLISHED_CODE, "paper": _PAPER}
    settings = {("official", "nearest-exact"): ("published code", "paper"), ("45-5", "maxpool"): ("paper",)}
    return {name: columns[name] for name in settings.get((data.split, data.resample), ())}


def _known(table: Mapping[int, Sequence[float]], row: Row) -> str:
    classes, size = int(row["max_batch_cls"]), int(row["timesteps"])
    return f"{table[classes][_SIZES.index(size)]:.1f}" if classes in table and size in _SIZES else ""


def _rounded(value: str | int | float) -> str | int | float:
    return round(float(value), 4) if isinstance(value, float) else value
