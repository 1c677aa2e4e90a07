"""Writing files so that they survive."""

import os
import re
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to `path` so that at every moment the old or the new file is there, whole.

    With `previous`, the old file is kept under that name, from when the new one is on the disk.

    Raises:
        OSError: naming `path`; the old file is untouched.
    """
    try:
        _write(path, content, previous)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write ({error.strerror}); what was there before is intact", str(path)
        ) from None


def _write(path: Path, content: bytes, previous: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> list[Path]:
    """What processes that were killed left of their writing to `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[^.]*\.part")
    return [other for other in path.parent.glob(".*.part") if pattern.fullmatch(other.name)]


def _keep(path: Path, previous: Path) -> None:
    """Give the file the name `previous` too; where the file system has no links, instead."""
    link = path.with_name(f".{path.name}.kept.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # a rename to another name of the same file does nothing


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
