"""The test grid: ELBO@K of every target in every cell, written cell by cell.

`K` importance samples · `G` memories, one target each (T = 1) · `n` targets of a cell.
"""

import io
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.episodes import Episodes, GridEpisodes
from models.vma.model import VMA, address_accuracy, kl_a
from runtime.errors import reason
from runtime.files import write_atomically
from runtime.processes import Processes
from runtime.randomness import TargetNoise

_log = logging.getLogger(__name__)

# Decodes at once: on a CPU as many as its caches like, on a GPU as many as keep it busy.
TEST_DECODES_AT_ONCE = {"cpu": 200, "cuda": 4096}
SAMPLES_AT_ONCE = 50  # of a target, at least

_MEETING = 16  # batches after which processes meet: the fastest would else wait for longer than communication may take
_KEPT_EVERY = 120.0  # seconds, after which the targets of a cell that are done are kept, when processes meet

PARTS = ("bound", "kl_a", "kl_z", "address_accuracy", "target_class")  # nats; a fraction; a number that names the class
_BEGUN = ", begun"  # after the name of a cell of which only the first targets are done
PerTarget = dict[str, np.ndarray]  # PARTS, each [n] float64
_LARGEST_LEDGER = 1 << 28  # bytes; a cell of 13,180 targets takes 527 kB


@dataclass(frozen=True)
class Grid:
    """What the table is made of, and what must agree for a finished cell to be kept."""

    cells: Sequence[tuple[int, int]]  # (max_batch_cls, timesteps)
    importance_num: int
    seed: int
    fingerprint: Mapping[str, str | int]

    def key(self) -> str:
        parts = {**self.fingerprint, "importance_num": self.importance_num, "seed": self.seed}
        return json.dumps(parts, sort_keys=True)


def sizes_at_once(device: torch.device, batch: int, chunk: int | None) -> tuple[int, int]:
    """How many targets, and samples of each, to decode at once."""
    budget = TEST_DECODES_AT_ONCE[device.type]
    targets = max(1, min(batch, budget // (chunk or SAMPLES_AT_ONCE)))
    return targets, chunk or budget // targets


@torch.no_grad()
def importance_bounds(
    model: VMA, episodes: Episodes, key: Sequence[int | str], k: int, chunk: int
) -> dict[str, Tensor]:
    """ELBO@K and its parts for a batch of targets with a memory each.

    Features are computed once; samples come in chunks that are folded by an online log-sum-exp, so the memory used
    does not grow with K.

    Returns:
        bound, kl_a, kl_z in nats, address_accuracy and target_class, each [G].
    """
    m = model.encode_memory(episodes.memory, precompute_features=True)
    r = model.encode_targets(episodes.x, m)
    total = torch.full_like(episodes.x[:, :, 0, 0], -math.inf, dtype=torch.float64)  # [G, 1] log sum of weights
    kl_z = torch.zeros_like(total)
    for first in range(0, k, chunk):
        noise = TargetNoise(*key, targets=episodes.x_index.flatten(), first=first)
        s = model.importance_samples(episodes.x, m, r, noise, min(chunk, k - first))
        total = torch.logaddexp(total, s.log_w.double().logsumexp(0))
        kl_z += s.kl_z.double().sum(0)
    parts = {
        "bound": total - math.log(k),
        "kl_a": kl_a(m, r),
        "kl_z": kl_z / k,
        "address_accuracy": address_accuracy(r, episodes),
        "target_class": episodes.x_class,
    }
    return {name: value.squeeze(1).double() for name, value in parts.items()}


def evaluate_cell(
    model: VMA,
    episodes: GridEpisodes,
    key: Sequence[int | str],
    k: int,
    batch: int,
    chunk: int,
    advance: Callable[[int], object],
    processes: Processes = Processes(),
    begun: PerTarget | None = None,
    keep: Callable[[PerTarget], object] = lambda first_ones: None,
) -> PerTarget:
    """All targets of a cell, `batch` at a time in every process; `advance` is told how many were done.

    `begun` are the values of the first ones, if an earlier run came so far; from time to time process 0 is to `keep`
    those so far.
    """
    n, done = len(episodes), 0 if begun is None else len(begun["bound"])
    values = {name: torch.zeros(n, dtype=torch.float64) for name in PARTS}
    if begun is not None and processes.main:  # the sum over processes is taken
        for name, value in values.items():
            value[:done] = torch.tensor(begun[name])
    since = time.monotonic()
    for number, first in enumerate(range(done, n, batch * processes.world)):
        if number % _MEETING == 0 and processes.all_reduce_max(int(time.monotonic() - since > _KEPT_EVERY)):
            so_far = {name: processes.all_reduce_sum(value[:first].clone()).numpy() for name, value in values.items()}
            processes.broadcast_from_main(partial(keep, so_far))
            since = time.monotonic()
        mine = slice(first + batch * processes.rank, min(first + batch * (processes.rank + 1), n))
        if mine.start < n:
            for name, part in importance_bounds(model, episodes.batch(mine), key, k, chunk).items():
                values[name][mine] = part.cpu()
        advance(min(batch * processes.world, n - first))
    return {name: processes.all_reduce_sum(value).numpy() for name, value in values.items()}


class CellStore:
    """The finished cells, kept beside the table in `<stem>.npz`: the values of every single target and their key.

    Of a cell that is not finished they are those of the first targets, under another name.
    """

    def __init__(self, output_file: Path, key: str) -> None:
        self.path, self._key = output_file.with_suffix(".npz"), key
        self._arrays = self._kept()

    @property
    def empty(self) -> bool:
        """Whether there is nothing yet that was made with this key."""
        return not self._arrays

    def _kept(self) -> dict[str, np.ndarray]:
        """Whole cells of an earlier run that were made with the same key; an unreadable file holds none."""
        arrays = _whole_cells(self.path)
        kept = [cell for cell in _cells_of(arrays) if str(arrays[f"{cell}/key"]) == self._key]
        return {name: arrays[name] for cell in kept for name in _names(cell)}

    def get(self, cell: str) -> PerTarget | None:
        """The values of a finished cell."""
        if f"{cell}/key" not in self._arrays:
            return None
        return {name: self._arrays[f"{cell}/{name}"] for name in PARTS}

    def begun(self, cell: str) -> PerTarget | None:
        """The values of the first targets of a cell that is not finished."""
        return self.get(cell + _BEGUN)

    def put(self, cell: str, values: PerTarget) -> None:
        """Keep a finished cell, on disk too.  Raises OSError."""
        for name in _names(cell + _BEGUN):
            self._arrays.pop(name, None)
        self._put(cell, values)

    def save_partial(self, cell: str, values: PerTarget) -> None:
        """Keep the first targets of a cell, on disk too.  Raises OSError."""
        self._put(cell + _BEGUN, values)

    def _put(self, cell: str, values: PerTarget) -> None:
        self._arrays[f"{cell}/key"] = np.array(self._key)
        self._arrays |= {f"{cell}/{name}": value for name, value in values.items()}
        write_atomically(self.path, packed(self._arrays))


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def cells_in(path: Path) -> dict[str, PerTarget]:
    """The finished cells in the store `path`, by name, whatever they were made with; none where it cannot be read."""
    arrays = _whole_cells(path)
    finished = (cell for cell in _cells_of(arrays) if not cell.endswith(_BEGUN))
    return {cell: {name: arrays[f"{cell}/{name}"] for name in PARTS} for cell in finished}


def test_of(path: Path) -> dict[str, str | int]:
    """What the cells in the store `path` were made of, but for the weights.

    Bounds of different weights can be compared target by target where this is equal.
    """
    arrays = _whole_cells(path)
    made: dict[str, str | int] = json.loads(next(str(arrays[f"{cell}/key"]) for cell in _cells_of(arrays)))
    return {name: value for name, value in made.items() if name != "weights"}


def _whole_cells(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the cells of which nothing is missing."""
    try:
        arrays = _arrays_in(path)
        whole = [cell for cell in _cells_of(arrays) if _is_whole(arrays, cell)]
    except FileNotFoundError:
        return {}
    except Exception as error:  # readers of damaged files raise almost anything
        _log.warning("%s cannot be read (%s)", path, reason(error))
        return {}
    return {name: arrays[name] for cell in whole for name in _names(cell)}


def _cells_of(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name.removesuffix("/key") for name in arrays if name.endswith("/key")]


def _names(cell: str) -> list[str]:
    return [f"{cell}/{name}" for name in ("key", *PARTS)]


def _is_whole(arrays: Mapping[str, np.ndarray], cell: str) -> bool:
    """Whether nothing of a cell is missing."""
    if not arrays.keys() >= set(_names(cell)):
        return False
    _, bound, *others = (arrays[name] for name in _names(cell))
    return bound.size > 0 and all(part.dtype == np.float64 and part.shape == (bound.size,) for part in (bound, *others))


def _arrays_in(path: Path) -> dict[str, np.ndarray]:
    """Numbers and text in an npz file.  Raises anything for a damaged one, and reads no more than its size allows."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if (size := sum(entry.file_size for entry in entries)) > _LARGEST_LEDGER:
            raise ValueError(f"it unpacks to {size} bytes")
        return {entry.filename.removesuffix(".npy"): _array_in(archive, entry) for entry in entries}


def _array_in(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others cannot be read in part
        raise ValueError(f"compressed by method {entry.compress_type}")
    with archive.open(entry) as stream:
        content = io.BytesIO(stream.read(entry.file_size + 1))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError("another format of arrays")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(content)
    values = content.read()
    expected = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "fU" or fortran or len(values) != expected or min(shape, default=0) < 0:
        raise ValueError(f"{len(values)} bytes for {dtype} {shape}")
    return np.frombuffer(values, dtype).reshape(shape)


def standard_error(values: np.ndarray, classes: np.ndarray) -> float:
    """Standard error of the mean of `values` [n], where those of one class may be alike; NaN for a single class.

    Images of a character share much of what makes them easy or hard, so the classes are what was drawn independently:
    the square root of C/(C-1) sum_c (sum_{i in c} (v_i - mean))^2 / n^2, the usual one where each class has one target.
    """
    _, which = np.unique(classes, return_inverse=True)
    totals = np.bincount(which, values - values.mean())  # [C]
    number = len(totals)
    return math.sqrt(number / (number - 1) * (totals**2).sum()) / len(values) if number > 1 else math.nan


def summary(max_batch_cls: int, timesteps: int, values: PerTarget, k: int) -> dict[str, float | int]:
    """A row of the table.  ELBO is minus the mean bound: nats per image, lower is better."""
    bound = values["bound"]
    return {
        "max_batch_cls": max_batch_cls,
        "timesteps": timesteps,
        "ELBO": -bound.mean(),
        "stderr": standard_error(bound, values["target_class"]),
        "kl_a": values["kl_a"].mean(),
        "kl_z": values["kl_z"].mean(),
        "address_accuracy": values["address_accuracy"].mean(),
        "targets": len(bound),
        "importance_num": k,
    }
