"""How the C library allocates RAM."""

import contextlib
import ctypes


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed: handed back, every activation costs its page faults anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX
