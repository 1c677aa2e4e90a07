"""Writing files so that they survive, by one process at a time."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    raise SystemExit(
        "this program runs on Linux and macOS; on Windows use it in WSL, or in Docker as docs/docker.md describes"
    ) from None


_unfinished: set[Path] = set()


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """`path`, a temporary file or folder, is removed at the end, and where a signal ends the process within."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _remove(path)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """For a process that ends in the middle of anything."""
    for path in tuple(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to `path` so that at every moment the old or the new file is there, whole.

    With `previous`, the old file stays under that name once the new one is on the disk.

    Raises:
        OSError: naming `path`; the old file is untouched.
    """
    try:
        _write(path, content, previous)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write ({error.strerror}); what was there before is intact", str(path)
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.  Raises OSError, naming a file that is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(above for above in (folder, *folder.parents) if above.exists())
        raise OSError(error.errno, f"no folder can be made here, because {file} is a file", str(folder)) from None


def _write(path: Path, content: bytes, previous: Path | None) -> None:
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    with unfinished(temporary):
        with os.fdopen(handle, "wb") as file:
            os.umask(mask := os.umask(0))  # there is no other way to read it
            os.fchmod(file.fileno(), 0o666 & ~mask)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _link(path, previous)
        temporary.replace(path)


@contextmanager
def exclusive_lock(path: Path, whose: str, beside: Sequence[Path] = ()) -> Iterator[None]:
    """Locks `path`, the file of a training or test as `whose` says, against other processes.

    What a process that was killed left half written of it, and of the files `beside`, is removed.

    Raises:
        UserError: another process has locked it.
    """
    lock = path.with_name(f".{path.name}.lock")
    make_folder(lock.parent)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another {whose} writes to it; wait for it, or choose another --output") from None
        for written in (path, *beside):
            for leftover in _temporary_files(written):
                leftover.unlink(missing_ok=True)
        yield


def _temporary_files(path: Path) -> list[Path]:
    """What processes that were killed while writing `path` left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[^.]*\.part")
    return [other for other in path.parent.glob(".*.part") if pattern.fullmatch(other.name)]


def _link(path: Path, previous: Path) -> None:
    """Give the file the name `previous` too; where the file system has no links, instead."""
    link = path.with_name(f".{path.name}.previous.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # a rename to another name of the same file does nothing
