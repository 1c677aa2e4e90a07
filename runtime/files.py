"""Writing files so that they survive, by one process at a time; reading what others may have put there."""

import errno
import functools
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    raise SystemExit(
        "this program runs on Linux and macOS; on Windows use it in WSL, or in Docker as docs/docker.md describes"
    ) from None

_log = logging.getLogger(__name__)

LARGEST = 1 << 34  # bytes of a file that is read as a whole

# What some network file systems answer to flock, fsync and fchmod.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)

_locks: dict[Path, int] = {}  # the locks that this process holds, open


@contextmanager
def opened(path: Path, mode: str = "rb", most: int = LARGEST, flags: int = 0) -> Iterator[Any]:
    """`path` opened as by `open`, if it is a regular file of at most `most` bytes, or /dev/null.

    Raises:
        OSError: naming `path`; a pipe, which would wait, and a device, which may never end, are not read.
    """
    if mode != "rb":
        _check_locks(path.parent)
    with open(path, mode, opener=lambda name, more: _regular(name, flags | more)) as file:  # Path.open takes none
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        yield file


def _regular(name: str, flags: int) -> int:
    try:
        handle = os.open(name, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        said = {errno.ELOOP: "a link, which is not followed", errno.ENXIO: "not a file"}
        raise OSError(error.errno, said.get(error.errno or 0, error.strerror), name) from None
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) or os.path.samestat(status, Path(os.devnull).stat()):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "this is a folder" if stat.S_ISDIR(status.st_mode) else "not a file", name)


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
        with suppress(OSError):  # it must end
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
    with _naming(path):
        _write(path, content, previous)


def check_writable(path: Path) -> None:
    """Find out whether `write_atomically` could write `path`, and leave nothing.  Raises OSError."""
    for _ in range(2):
        with suppress(FileNotFoundError):  # another start, which looks too, may just have removed a folder it had made
            return _try_to_write(path)
    return _try_to_write(path)


def _try_to_write(path: Path) -> None:
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        make_folder(path.parent)
        with _naming(path):
            handle, temporary = _temporary_file(path)
            os.close(handle)
            temporary.unlink()
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def is_null(path: Path) -> bool:
    """Whether `path` is /dev/null, where to write is to write nothing."""
    return path.exists() and path.samefile(os.devnull)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"cannot write ({error.strerror}); what was there before is intact"
        raise OSError(error.errno, said, str(path)) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.  Raises OSError, naming a file that is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(above for above in (folder, *folder.parents) if above.exists())
        raise OSError(error.errno, f"no folder can be made here, because {file} is a file", str(folder)) from None


def _write(path: Path, content: bytes, previous: Path | None) -> None:
    make_folder(path.parent)
    _check_locks(path.parent)
    handle, temporary = _temporary_file(path)
    with unfinished(temporary):
        with os.fdopen(handle, "wb") as file:
            os.umask(mask := os.umask(0))  # there is no other way to read it
            with _where_possible("permissions of files cannot be set"):
                os.fchmod(file.fileno(), 0o666 & ~mask)
            file.write(content)
            sync(file)
        if previous is not None and path.exists():
            _link(path, previous)
        temporary.replace(path)


def _temporary_file(path: Path) -> tuple[int, Path]:
    """Open, beside `path`, which it is to replace."""
    if path.exists() and not path.is_file():  # as root one could put a file in place of a device
        raise OSError(errno.EINVAL, "not a file", str(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    return handle, Path(name)


def sync(file: IO[Any]) -> None:
    """Have what was written on the disk, where the file system can say so."""
    file.flush()
    with _where_possible("what is written may be lost when the power fails"):
        os.fsync(file.fileno())


@contextmanager
def _where_possible(otherwise: str) -> Iterator[None]:
    """What is done within is more than some file systems can do; then `otherwise` is a warning, once."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(f"this file system has its limits ({error.strerror}): {otherwise}")


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


@contextmanager
def exclusive_lock(path: Path, whose: str, beside: Sequence[Path] = ()) -> Iterator[None]:
    """Locks `path`, the file of a training or test as `whose` says, against other processes.

    What a process that was killed left half written of it, and of the files `beside`, is removed.

    Raises:
        UserError: another process has locked it.
        OSError: the lock, a file beside it, cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    make_folder(lock.parent)
    with opened(lock, "ab", flags=os.O_NOFOLLOW) as file:
        try:
            with _where_possible(f"nothing keeps another {whose} from writing to {path}"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another {whose} writes to it; wait for it, or choose another --output") from None
        for written in (path, *beside):
            for leftover in _temporary_files(written):
                leftover.unlink(missing_ok=True)
        _locks[lock] = file.fileno()
        try:
            yield
        finally:
            del _locks[lock]


def _check_locks(folder: Path) -> None:
    """Raises OSError where `folder` was removed since this process locked it, and another has made and locked it."""
    for lock, handle in _locks.items():
        with suppress(FileNotFoundError):
            if lock.parent == folder and not os.path.samestat(lock.stat(), os.fstat(handle)):
                raise OSError(errno.ESTALE, "the folder was removed, and another run has taken it", str(lock))


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
