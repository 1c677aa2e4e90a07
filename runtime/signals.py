"""SIGINT and SIGTERM as requests to stop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the program to stop; `status` is the exit status of a process that ends by it."""

    restarted = False  # whether --restart has been done, which if asked for again would discard what is saved now

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StoppedAtOnce(Stopped):
    """A second signal came: leave everything as it is."""


class StopRequest:
    """Turns a signal into `Stopped`: at once or, while deferred, at the next `check`.  A second one acts at once."""

    def __init__(self) -> None:
        self._deferred = self._ignored = False
        self._report: Callable[[Stopped], None] | None = None
        self.received = 0  # the signal that came

    def install(self) -> None:
        """Listen to SIGINT and SIGTERM (in the main thread)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self._report is not None:
            with contextlib.suppress(RuntimeError, OSError):  # it may interrupt a line that is being written
                self._report(Stopped(number))
            os._exit(128 + number)
        again, self.received = bool(self.received), number
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
    def exiting(self, report: Callable[[Stopped], None]) -> Iterator[None]:
        """Within, a signal ends the process on the spot, after `report`.

        It is for imports, before there is anything to save: one that an exception interrupts may end in any way.
        """
        self._report = report
        try:
            yield
        finally:
            self._report = None

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Stopped(self.received)

    def ignore(self) -> None:
        """Ignore further signals: everything is saved and the process is about to end."""
        self._ignored = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
