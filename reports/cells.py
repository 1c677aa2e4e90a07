"""Cells of the test grid: the values of every target, stored in an npz file beside the table, and the row they give.

`n` targets of a cell.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluator import METRICS, PerTarget
from runtime.arrays import load_npz, npz
from runtime.errors import reason
from runtime.files import write_atomically

_log = logging.getLogger(__name__)

Row = Mapping[str, float | int]  # of the table

_PARTIAL = ", partial"  # after the name of a cell of which only the first targets are done
_LARGEST = 1 << 28  # bytes; a cell of 13,180 targets takes 527 kB


class CellStore:
    """Cells in `<stem>.npz` beside the table that were computed from `origin`; those of another origin are ignored.

    A partial cell has the first targets only.  A file that cannot be read has no cells.
    """

    def __init__(self, output_file: Path, origin: str) -> None:
        self.path, self._origin = output_file.with_suffix(".npz"), origin
        self._cells = {name: values for name, (of, values) in _load(self.path).items() if of == origin}
        self.is_empty = not self._cells  # as found

    def get(self, cell: str) -> PerTarget | None:
        return self._cells.get(cell)

    def get_partial(self, cell: str) -> PerTarget | None:
        return self._cells.get(cell + _PARTIAL)

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
        arrays = {f"{name}/key": np.array(self._origin) for name in self._cells}
        arrays |= {f"{name}/{metric}": value for name, cell in self._cells.items() for metric, value in cell.items()}
        write_atomically(self.path, npz(arrays))


def load_cells(path: Path) -> dict[str, PerTarget]:
    """The finished cells in the file `path`, by name, of whatever origin; none where it cannot be read."""
    return {name: values for name, (_, values) in _load(path).items() if not name.endswith(_PARTIAL)}


def load_origin(path: Path) -> dict[str, str | int]:
    """What the cells in the file `path` were computed from, except the weights.

    Bounds of different weights can be compared target by target where this is equal.
    """
    origin, _ = next(iter(_load(path).values()))
    return {name: value for name, value in json.loads(origin).items() if name != "weights"}


def _load(path: Path) -> dict[str, tuple[str, PerTarget]]:
    """Origin and values of every cell of which nothing is missing."""
    try:
        arrays = load_npz(path, _LARGEST)
    except FileNotFoundError:
        return {}
    except Exception as error:  # readers of damaged files raise almost anything
        _log.warning("%s cannot be read (%s)", path, reason(error))
        return {}
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
    return all(value.dtype == np.float64 and value.shape == values["bound"].shape for value in values.values())


def table_row(max_batch_cls: int, timesteps: int, values: PerTarget, k: int | None) -> Row:
    """The row of a finished cell: ELBO, or with `k` None NLL, is minus the mean bound in nats per image."""
    bound = values["bound"]
    return {
        "max_batch_cls": max_batch_cls,
        "timesteps": timesteps,
        "NLL" if k is None else "ELBO": -bound.mean(),
        "stderr": standard_error(bound, values["target_class"]),
        **{name: values[name].mean() for name in ("kl_a", "kl_z", "address_accuracy")},
        "targets": len(bound),
        **({} if k is None else {"importance_num": k}),
    }


def metric(rows: Sequence[Row]) -> str:
    """The header the field uses, NLL or such as ELBO@1000."""
    return "NLL" if "NLL" in rows[0] else f"ELBO@{rows[0]['importance_num']}"


def standard_error(values: np.ndarray, classes: np.ndarray) -> float:
    """Standard error of the mean of `values` [n], where those of one class may be alike; NaN for a single class.

    Images of a character share much of what makes them easy or hard, so the classes are what was drawn independently:
    the square root of C/(C-1) sum_c (sum_{i in c} (v_i - mean))^2 / n^2, the usual one where each class has one target.
    """
    _, which = np.unique(classes, return_inverse=True)
    totals = np.bincount(which, values - values.mean())  # [C]
    number = len(totals)
    return math.sqrt(number / (number - 1) * (totals**2).sum()) / len(values) if number > 1 else math.nan
