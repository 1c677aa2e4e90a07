"""SIGINT, SIGTERM and SIGHUP as requests to stop.

None of them raises an exception in the middle of other code: a destructor would swallow it, and a lock could stay held.
A thread listens too, because Python's own handlers wait for other languages' code, which may wait for another process.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runtime.files import remove_unfinished


class Stopped(BaseException):
    """A signal asked the program to stop; `status` is the exit status of a process that ends by it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTER_DIED = signal.SIGUSR2  # as SIGTERM, and never a second signal: it comes for every thread of what died


def heeded() -> list[signal.Signals]:
    """The signals that ask to stop: SIGHUP not where it is ignored from the start, which is what nohup does."""
    return [one for one in REQUESTS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]


class StopRequest:
    """A signal ends the process on the spot or, while deferred, at the next `check`.  A second one does not wait.

    Before the end on the spot `report` is called, and unfinished files are removed.
    """

    def __init__(self, report: Callable[[Stopped], object] = lambda stopped: None) -> None:
        self._report = report
        self._deferred = self._ignored = False
        self._lock = threading.RLock()  # a handler may interrupt its own thread
        self.received = 0  # the signal that came
        self.restarted = False  # whether --restart was done, which if asked for again would discard what is saved now

    def install(self) -> None:
        """Listen (in the main thread)."""
        self._heard, self._told = socket.socketpair()
        self._heard.setblocking(False)
        self._told.setblocking(False)
        self._outer = signal.set_wakeup_fd(self._told.fileno())  # gets the number of every signal at once
        for number in (*heeded(), STARTER_DIED):
            signal.signal(number, self._handle)
        threading.Thread(target=self._listen, daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._answer()

    def _listen(self) -> None:
        while select.select([self._heard], [], []) and self._answer():
            pass

    def _answer(self) -> bool:
        """Answer the next signal, unless the other thread was faster; whether more may come."""
        with self._lock:
            try:
                number = self._heard.recv(1)
            except BlockingIOError:
                return True
            if number and number[0] in (*REQUESTS, STARTER_DIED) and not self._ignored:
                died = number[0] == STARTER_DIED
                again, self.received = self.received and not died, signal.SIGTERM if died else number[0]
                if again or not self._deferred:
                    self._leave(Stopped(self.received))
            return bool(number)

    def _leave(self, stopped: Stopped) -> None:
        self._ignored = True
        farewell = threading.Thread(target=self._say_farewell, args=(stopped,), daemon=True)
        farewell.start()
        farewell.join(1)  # not longer: nobody may read
        remove_unfinished()
        os._exit(stopped.status)

    def _say_farewell(self, stopped: Stopped) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            self._report(stopped)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a first signal waits for `check`, which also stands at the end."""
        outer, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = outer
        self.check()

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Stopped(self.received)

    def ignore(self) -> None:
        """Ignore further signals: everything is saved and the process is about to end."""
        with self._lock:
            self._ignored = True
            signal.set_wakeup_fd(self._outer)
            self._told.close()
