"""Logs of a training: TensorBoard and a JSON-lines file.  An error here is a warning; the training goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import sentence
from runtime.files import opened, sync, write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

UNREADABLE = ".unreadable"  # beside the log: what was in it and is no row

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class MetricLogger:
    """Writes scalars and images of a run that resumes after step `start`, or starts anew with None.

    Rows of later steps, which an interrupted run wrote, are removed, so that no step is there twice.  Lines that are
    no rows are put aside.
    """

    def __init__(self, log_file: Path | None, tensorboard: Path | None, start: int | None) -> None:
        self._file, self._start = log_file, -1 if start is None else start
        self._cut = False  # whether the rows of later steps are removed
        self._board: SummaryWriter | None = None
        self._warned = False
        self._attempt(self._open_file)
        self._attempt(lambda: self._open_board(tensorboard, start))

    def _open_file(self) -> None:
        if self._file is None or self._cut or (self._file.exists() and not self._file.is_file()):  # such as /dev/null
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rows, unreadable = read_log(self._file) if self._file.exists() else ([], [])
        if unreadable and self._start >= 0:
            aside = self._file.with_suffix(UNREADABLE)
            with opened(aside, "ab") as file:
                file.writelines(line + b"\n" for line in unreadable)
            _log.warning("%s: %d lines cannot be read; they are now in %s", self._file, len(unreadable), aside)
        kept = [json.dumps(row) for row in rows if row["step"] <= self._start]
        write_atomically(self._file, "".join(f"{row}\n" for row in kept).encode())
        self._cut = True

    def _open_board(self, tensorboard: Path | None, start: int | None) -> None:
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _without_traceback
            _wait_for_a_later_name(tensorboard)
            self._board = SummaryWriter(str(tensorboard), purge_step=0 if start is None else start + 1)

    def log_scalars(self, subset: str, step: int, values: Mapping[str, float]) -> None:
        """One row: `subset` (train, validation) at `step`."""
        self._attempt(lambda: self._append(json.dumps({"subset": subset, "step": step, **values})))
        self._attempt(lambda: self._plot(subset, step, values))

    def _append(self, row: str) -> None:
        self._open_file()  # again, if it could not be done at the start
        if self._file is not None:
            with opened(self._file, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                half = b"\n" if end and file.read(1) != b"\n" else b""  # a row that met a full disk
                file.write(half + row.encode() + b"\n")

    def _sync(self) -> None:
        if self._file is not None and self._file.is_file():
            with opened(self._file, "a") as file:
                sync(file)

    def _plot(self, subset: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{subset}/{name}", value, step)

    def log_image(self, name: str, step: int, image: np.ndarray) -> None:
        """An image uint8 [H, W] or [H, W, 3]."""
        if self._board is not None:
            board, layout = self._board, "HW" if image.ndim == 2 else "HWC"
            self._attempt(lambda: board.add_image(name, image, step, dataformats=layout))

    def flush(self) -> None:
        """Have all on the disk, before a state is saved that will not write it again."""
        self._attempt(self._sync)
        if self._board is not None:
            self._attempt(self._board.flush)

    def close(self) -> None:
        if self._board is not None:
            self._attempt(self._board.close)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, ImportError, ValueError) as error:
            if not self._warned:
                _log.warning("the log cannot be written (%s); the training goes on without it", sentence(error))
            self._warned = True


def _without_traceback(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes from a thread of its own, and tells its failure to the next call, which is warned of."""
    if not type(failure.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failure)


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, and these begin with the second of their making.

    A file of the same second may sort before the one that is there already, and is then never read.
    """
    seconds = [int(found[1]) for file in folder.glob("events.*") if (found := _EVENTS.match(file.name))]
    if seconds and max(seconds) == int(time.time()):
        time.sleep(1 - time.time() % 1)


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The rows of a log, and the lines that are none: half written, not UTF-8, without a step.  Raises OSError."""
    with opened(path) as file:
        lines = file.read().splitlines()
    rows = [_row(line) for line in lines]
    return [row for row in rows if row], [line for line, row in zip(lines, rows, strict=True) if not row]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
        for value in row.values():
            math.isfinite(value if isinstance(value, int) else 0)  # an OverflowError where no float is so large
        right = type(row["step"]) is int and isinstance(row["subset"], str) and None not in row.values()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return row if right else None
