"""What goes wrong on purpose: full disks, damaged and malicious files."""

import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flipped(path: Path) -> None:
    """Change a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def damage(path: Path, numbers: random.Random) -> str:
    """Put something else in place of a file; what it is."""
    content, rubbish = path.read_bytes(), numbers.randbytes(numbers.randrange(1, 200))
    where = numbers.randrange(len(content) or 1)
    written = {
        "a byte": content[:where] + rubbish[:1] + content[where + 1 :],
        "cut off": content[:where],
        "rubbish": rubbish,
        "longer": content + rubbish,
    }
    others: dict[str, Callable[[Path], None]] = {
        "a pipe": os.mkfifo,
        "a folder": os.mkdir,
        "endless": lambda path: path.symlink_to("/dev/zero"),
    }
    kind = numbers.choice([*written, *others, "gone"])
    path.unlink()
    if kind in written:
        path.write_bytes(written[kind])
    elif kind in others:
        others[kind](path)
    return kind


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)
