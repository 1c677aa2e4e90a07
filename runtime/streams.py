"""Standard streams that may be closed, full, gone or of another encoding, while the work goes on."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

_AT_ONCE = 4096  # bytes for which a pipe has room where `select` says that it can be written

asked_to_stop: Callable[[], object] = bool  # whether to wait no longer for who reads


class _Lasting(io.FileIO):
    """Takes everything: what cannot be written is dropped."""

    lost: OSError | None = None  # why something was

    def write(self, data: Any) -> int:
        try:
            while not select.select([], [self], [], 0.1)[1]:  # Ctrl-S, or a pager that is not read on
                if asked_to_stop():
                    return len(data)
            if (written := super().write(memoryview(data)[:_AT_ONCE])) is not None:  # None: it would have to wait
                return written
        except OSError as error:
            self.lost = error
        return len(data)


def check_written(stream: TextIO) -> None:
    """Raises OSError where something could not be written to it, unless its reader is gone."""
    stream.flush()
    lost = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "lost", None)
    if lost and lost.errno != errno.EPIPE:
        raise OSError(lost.errno, lost.strerror, "standard output")


def outlast() -> None:
    """Let stdout and stderr take everything, and show a character that their encoding lacks by its number.

    A closed one becomes /dev/null: the next file that is opened would otherwise get its number, and with it what
    libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout, sys.stderr = _lasting(1, sys.stdout), _lasting(2, sys.stderr)


def _lasting(number: int, stream: TextIO | None) -> TextIO:
    file = io.BufferedWriter(_Lasting(number, "w", closefd=False))
    by_line = bool(stream is None or stream.line_buffering or stream.write_through)  # type: ignore[attr-defined]
    return io.TextIOWrapper(file, stream.encoding if stream else "utf-8", "backslashreplace", line_buffering=by_line)
