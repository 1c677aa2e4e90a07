"""Logs of a training: TensorBoard and a JSON-lines file.  An error here is a warning; the training goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import sentence
from runtime.files import opened, write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class MetricLogger:
    """Writes scalars and images of a run that resumes after step `start`, or starts anew with None.

    Rows of later steps, which an interrupted run wrote, are removed, so that no step is there twice.
    """

    def __init__(self, log_file: Path | None, tensorboard: Path | None, start: int | None) -> None:
        self._file = log_file
        self._board: SummaryWriter | None = None
        self._warned = False
        self._attempt(lambda: self._open_file(start))
        self._attempt(lambda: self._open_board(tensorboard, start))

    def _open_file(self, start: int | None) -> None:
        if self._file is None or (self._file.exists() and not self._file.is_file()):  # such as /dev/null
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        last = -1 if start is None else start
        rows = self._file.read_text().splitlines() if self._file.exists() else []
        kept = [row for row in rows if _step_of(row) <= last]
        write_atomically(self._file, "".join(f"{row}\n" for row in kept).encode())

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
        if self._file is not None:
            with opened(self._file, "a") as file:
                file.write(f"{row}\n")

    def _sync(self) -> None:
        if self._file is not None and self._file.is_file():
            with opened(self._file, "a") as file:
                os.fsync(file.fileno())

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


def _step_of(row: str) -> float:
    """The step of a row; a row that was cut off by a crash counts as later than everything."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
