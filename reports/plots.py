"""Figures of numbers: the results against memory size, and the curves of a training."""

import io
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Config
from config.constraints import episode_spec
from reports.cells import Row, described
from reports.published import published
from runtime.files import write_atomically
from runtime.metric_logger import read_log

_log = logging.getLogger(__name__)


def blank(width: float, height: float, **options: Any) -> Any:
    """An empty figure, its size in inches.  Matplotlib takes long to import, so it is imported here."""
    from matplotlib.figure import Figure

    return Figure((width, height), **options)


def png(figure: Any, dpi: int = 110) -> bytes:
    """A finished figure as a file, laid out tightly where it has no layout of its own."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def result_plot(rows: Sequence[Row], config: Config) -> bytes:
    """ELBO or NLL against memory size, one line for each C, bars of two standard errors each way -> a PNG file."""
    figure = blank(6, 4)
    axis = figure.subplots()
    for number, classes in enumerate(dict.fromkeys(row["max_batch_cls"] for row in rows)):
        label = f"C = {classes}, this model"
        draw_rows(axis, rows, classes, config.test_spec.column, 0.04 * number, color=f"C{number}", label=label)
        for name, known in list(published(config).items())[:1]:
            if of := {m: nats for (c, m), nats in known.items() if c == classes}:
                axis.plot(list(of), list(of.values()), f"C{number}:", label=f"C = {classes}, {name}")
    memory_axis(axis, rows)
    axis.set_ylabel(f"{config.test_spec.title}, nats per image (lower is better)")
    targets = max(row["targets"] for row in rows)
    title = f"{described(config)}; {targets} targets a cell; bars: two standard errors each way"
    axis.set_title("\n".join(textwrap.wrap(title, 90)), fontsize=8)
    return png(figure)


def draw_rows(axis: Any, rows: Sequence[Row], classes: float, column: str, shift: float, **style: str) -> None:
    """A line of `column` against memory size for C = `classes`, moved by a part of the size: bars are side by side."""
    line = sorted((row for row in rows if row["max_batch_cls"] == classes), key=lambda row: row["timesteps"])
    axis.errorbar(
        [row["timesteps"] + shift * max(row["timesteps"], 1) for row in line],
        [row[column] for row in line],
        yerr=[2 * row["stderr"] for row in line],
        marker="o",
        capsize=2,
        **style,
    )


def memory_axis(axis: Any, rows: Sequence[Row]) -> None:
    """Memory sizes from 0 on, and what is left to finish the axis."""
    axis.set_xscale("symlog", linthresh=1)
    ticks = sorted({int(row["timesteps"]) for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images in the memory, M")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


_CURVES = (  # panel; metrics of the log, their labels
    ("minus the bound, nats per image", {"bound": ""}),
    ("nats", {"kl_a": "KL(a), ", "kl_z": "KL(z), "}),
    ("mass of q(a) on the target's class", {"address_accuracy": ""}),
)
CURVES = ".curves.png"  # beside the log; the table may have the same stem
_START = 0.03  # of a training, not shown: what falls from hundreds of nats then would hide all that follows


def write_curves(log_file: Path, config: Config) -> Path:
    """Draw the log of a training beside it; the path of the figure.  Raises OSError."""
    rows, unreadable = read_log(log_file)
    if unreadable:
        _log.warning("%s: %d lines cannot be read, and are not drawn", log_file, len(unreadable))
    path = log_file.with_suffix(CURVES)
    write_atomically(path, curve_plot(rows, config))
    return path


def curve_plot(rows: Sequence[Mapping[str, Any]], config: Config) -> bytes:
    """Bound, KL terms and address accuracy of training and validation against the targets seen -> a PNG file.

    `rows` are those of `train_spec.log_file`.  The bounds are those of the K and the memories of each subset.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = blank(15, 4)
    last = max((row["step"] for row in rows), default=0)
    subsets = [subset for subset in ("train", "validation") if any(row["subset"] == subset for row in rows)]
    shown = [row for row in rows if row["step"] >= _START * last]
    for axis, (title, labels) in zip(figure.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for subset in subsets:
            for number, (name, label) in enumerate(labels.items()):
                line = [row for row in shown if row["subset"] == subset and isinstance(row.get(name), int | float)]
                if not line:  # a model without z has no KL(z)
                    continue
                axis.plot(
                    [row["step"] * config.train_data.batch_size for row in line],
                    [-row[name] if name == "bound" else row[name] for row in line],
                    "-" if subset == "train" else "o-",
                    color=f"C{number * 2 + (subset == 'validation')}",
                    markersize=3,
                    linewidth=1,
                    label=f"{label}{subset}",
                )
        axis.set_xlabel("targets seen")
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set_ylabel(title)
        if subsets:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.suptitle(f"K = {config.model.importance_num}; {_composition(config, 'validation' in subsets)}", fontsize=9)
    return png(figure)


def _composition(config: Config, validated: bool) -> str:
    """The memories of training and, if there is any, of validation."""
    memories = f"training: memories of {episode_spec(config.train_data).in_words}"
    memories += " and a mixture" if config.train_data.mixture else ""
    return memories + (f"; validation: memories of {episode_spec(config.val_data).in_words}" if validated else "")
