"""Standard streams that may be closed, full, gone or of another encoding, while the work goes on."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """Takes everything: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            if (written := super().write(data)) is not None:  # None: it would have to be waited for
                return written
        return len(data)


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
