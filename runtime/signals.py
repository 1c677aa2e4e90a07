"""SIGINT and SIGTERM as requests to stop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the program to stop.

    `status` is the exit status of a process that ends by it; `begun` says whether a training had taken the place of
    what an earlier one left.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status, self.begun = 128 + number, False


class StoppedAtOnce(Stopped):
    """A second signal came: leave everything as it is."""


class StopRequest:
    """Turns a signal into `Stopped`, at once or, while deferred, at the next `check`; a second one acts at once."""

    def __init__(self) -> None:
        self._deferred = self._over = False
        self._farewell: Callable[[Stopped], None] | None = None
        self._received: int | None = None

    def install(self) -> None:
        """Listen to SIGINT and SIGTERM (in the main thread)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        if self._farewell is not None:
            with contextlib.suppress(RuntimeError, OSError):  # it may have come in the middle of a line that is written
                self._farewell(Stopped(number))
            os._exit(128 + number)
        again, self._received = self._received is not None, number
        if again:
            raise StoppedAtOnce(number)
        if not self._deferred:
            raise Stopped(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a first signal waits for `check`, which also stands at the end."""
        outer, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = outer
        self.check()

    @contextmanager
    def leaving(self, farewell: Callable[[Stopped], None]) -> Iterator[None]:
        """Within, where nothing is at stake yet, a signal ends the process on the spot, after a `farewell`.

        It is for imports: one that an exception interrupts may end in any way.
        """
        self._farewell = farewell
        try:
            yield
        finally:
            self._farewell = None

    @property
    def received(self) -> int:
        """The signal that came, or 0."""
        return self._received or 0

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Stopped(self.received)

    def over(self) -> None:
        """All is saved that should be: pass over further signals on the way out."""
        self._over = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
