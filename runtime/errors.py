"""What a user can be told in one sentence, and the exit status that goes with it."""

from pathlib import Path

LONGEST_REASON = 300  # characters; some libraries quote what they could not read


def reason(error: BaseException) -> str:
    """Class and message of an error on one line that a terminal can show, whatever a file put into it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return printable(text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " ...")


def sentence(error: BaseException) -> str:
    """What is printed for an error that ends the program."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, UserError | PeerLostError) else f"{type(error).__name__}: {error}"


def printable(text: str) -> str:
    """`text`, quoted where it could not be shown."""
    return text if text.isprintable() else ascii(text)


class UserError(Exception):
    """The user's input is wrong: configuration, arguments, a missing checkpoint, a device that is not there."""

    status = 2


class DataError(UserError):
    """Data or a file that was named is missing or damaged."""

    status = 3


class NonFiniteError(ArithmeticError):
    """A loss, gradient, weight or bound is not a finite number."""

    evidence: Path | None = None  # the state before a step that was not finite


class PeerFailedError(Exception):
    """Process 0 of several failed, and says why; this one ends with the same exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class PeerLostError(Exception):
    """Another process of several ended without a message."""


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends by `error`."""
    return getattr(error, "status", 1)
