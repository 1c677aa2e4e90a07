"""Cells of the test grid: the values of every target, stored in an npz file beside the table, and the row they give.

`n` targets of a cell · `C` classes of the test.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import config as configuration
from config import Config, DataConfig, TestSpec, cell_name
from data.registry import DATA_SETS
from evaluator import METRICS, PerTarget
from reports.estimates import alphabets_of, estimate
from runtime.arrays import npz, read_stored
from runtime.errors import DataError
from runtime.files import write_atomically

Row = Mapping[str, float | int]  # of the table

_PARTIAL = ", partial"  # after the name of a cell of which only the first targets are done
_CLASS_NAMES = "class_names"  # [C], by the number that `target_class` is


@dataclass(frozen=True)
class Stored:
    """What a file of cells holds; nothing where it cannot be read."""

    key: str  # what the cells were computed from, as text; empty where there are none
    every: Mapping[str, PerTarget]  # by name, partial ones too
    class_names: tuple[str, ...]  # that `target_class` numbers; none where the file does not say them

    @property
    def cells(self) -> dict[str, PerTarget]:
        """The finished ones, by name."""
        return {name: values for name, values in self.every.items() if not name.endswith(_PARTIAL)}

    @property
    def origin(self) -> dict[str, Any]:
        """What the cells were computed from.  If all but "weights" is equal, bounds compare target by target."""
        return json.loads(self.key)

    @property
    def weights_digest(self) -> str:
        """That of the weights which the cells were computed with; "" where these have none."""
        weights = str(self.origin["weights"])
        return weights if re.fullmatch("[0-9a-f]{64}", weights) else ""  # a table of counts is no checkpoint


class CellStore:
    """Cells in `<stem>.npz` beside the table that were computed from `origin`; those of another origin are ignored.

    A partial cell has the first targets only.  A file that cannot be read has no cells.
    """

    def __init__(self, output_file: Path, origin: str, class_names: Sequence[str] = ()) -> None:
        self.path, self._origin, self._class_names = output_file.with_suffix(".npz"), origin, class_names
        stored = load_cells(self.path)
        self._cells = dict(stored.every) if stored.key == origin else {}
        in_the_way = self.path.exists() or output_file.exists()
        self.is_another = in_the_way and not self._cells  # as found: a table of another origin is there

    def get(self, cell: str) -> PerTarget | None:
        return self._cells.get(cell)

    def get_partial(self, cell: str) -> PerTarget | None:
        return self._cells.get(cell + _PARTIAL)

    def rows(self, config: Config) -> list[Row]:
        """Those of the table."""
        return table_rows(self._cells, config, self._class_names)

    def save(self, cell: str, values: PerTarget) -> None:
        """Add a finished cell and write the file.  Raises OSError."""
        self._cells.pop(cell + _PARTIAL, None)
        self._cells[cell] = values
        self._write()

    def save_partial(self, cell: str, values: PerTarget) -> None:
        """Add the first targets of a cell and write the file.  Raises OSError."""
        self._cells[cell + _PARTIAL] = values
        self._write()

    def _write(self) -> None:
        arrays = {_CLASS_NAMES: np.array(self._class_names)} if self._class_names else {}
        arrays |= {f"{name}/key": np.array(self._origin) for name in self._cells}
        arrays |= {f"{name}/{metric}": value for name, cell in self._cells.items() for metric, value in cell.items()}
        write_atomically(self.path, npz(arrays))


def load_cells(path: Path) -> Stored:
    """The cells in the file `path` of which nothing is missing and whose origin is that of the first."""
    whole = _whole_cells(arrays := read_stored(path))
    key = next((of for of, _ in whole.values()), "")
    names = arrays.get(_CLASS_NAMES, np.array([]))
    known = names.ndim == 1 and names.dtype.kind == "U" and names.itemsize
    every = {name: values for name, (of, values) in whole.items() if of == key}
    return Stored(key, every, tuple(names.tolist()) if known else ())


def read_test(npz: Path) -> tuple[Config, Stored, list[Row]]:
    """The configuration beside a file of cells, what it holds, and the rows of its table.

    Raises UserError, DataError.
    """
    resolved, stored = npz.with_suffix(".resolved.yaml"), load_cells(npz)
    config = configuration.load(resolved)
    if not (rows := table_rows(stored.cells, config, stored.class_names)):
        raise DataError(f"{npz}: no finished cell of the grid that {resolved} has")
    return config, stored, rows


def _whole_cells(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, PerTarget]]:
    """Origin and values of every cell of which nothing is missing."""
    cells = {}
    for name in (key.removesuffix("/key") for key in arrays if key.endswith("/key")):
        values = {metric: arrays[f"{name}/{metric}"] for metric in METRICS if f"{name}/{metric}" in arrays}
        key = arrays[f"{name}/key"]
        if key.ndim == 0 and key.dtype.kind == "U" and _is_whole(values):  # text of a tampered shape may be endless
            cells[name] = str(key), values
    return cells


def _is_whole(values: PerTarget) -> bool:
    if len(values) < len(METRICS) or values["bound"].ndim != 1 or not values["bound"].size:
        return False
    if any(value.dtype != np.float64 or value.shape != values["bound"].shape for value in values.values()):
        return False
    return bool(np.isfinite(values["bound"]).all())


def table_row(
    max_batch_cls: int, timesteps: int, values: PerTarget, spec: TestSpec, class_names: Sequence[str] = ()
) -> Row:
    """The row of a finished cell: ELBO or NLL is minus the mean bound in nats per image.

    In all means every class counts the same.
    """
    classes = values["target_class"]
    alphabets = alphabets_of(classes, class_names)
    bound = estimate(-values["bound"], classes, alphabets)
    return {
        "max_batch_cls": max_batch_cls,
        "timesteps": timesteps,
        spec.column: bound.mean,
        "stderr": bound.stderr,
        "stderr_new_classes": bound.stderr_new_classes,
        **{name: estimate(values[name], classes).mean for name in ("kl_a", "kl_z", "address_accuracy")},
        "targets": len(classes),
        **({"importance_num": spec.samples} if spec.samples else {}),
    }


def table_rows(cells: Mapping[str, PerTarget], config: Config, class_names: Sequence[str]) -> list[Row]:
    """Of those cells of the grid that are there, in its order."""
    grid = [(c, m, cells.get(cell_name(c, m))) for c, m in config.test_cells]
    return [table_row(c, m, cell, config.test_spec, class_names) for c, m, cell in grid if cell is not None]


def described(config: Config) -> str:
    """Of which images, targets and memories the numbers of a test speak."""
    data, spec = config.test_data, config.test_spec
    of = {"train": "targets of training classes; ", "held_out": "targets of held-out classes; "}.get(spec.subset, "")
    images = "never the target" if spec.own_class else "all of other classes than the target's (a control)"
    return f"{images_described(data)}; {of}C = up to that many classes in a memory, M = images in it, {images}"


def metric_described(config: Config) -> str:
    """What the numbers of a test are."""
    of = "the importance-weighted bound" if config.test_spec.samples else log_likelihood_of(config)
    return f"{config.test_spec.title}: minus {of}, nats per image, lower is better"


def log_likelihood_of(config: Config) -> str:
    """Whether it is exact."""
    spec = config.test_spec
    if spec.addresses is None:
        return "the log-likelihood, an exact sum over addresses"
    found = f"{spec.addresses} likely addresses, found in {spec.address_rounds} rounds"
    if spec.address_rounds == 1:
        found = f"the {spec.addresses} likeliest addresses"
    if spec.sampled_addresses:
        found += f", and {spec.sampled_addresses} others drawn for the rest of it, unbiased"
    return f"a bound of the log-likelihood, the sum over {found}"


def images_described(data: DataConfig) -> str:
    """Data set, split and size."""
    split = f" {data.split} split," if "split" in DATA_SETS[data.kind].reads else ""
    return f"{data.kind},{split} {data.resize} x {data.resize} by {data.resample}"
