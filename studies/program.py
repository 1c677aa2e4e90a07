"""What the studies share as programs: the arguments that all have, and how those end that write at their end alone."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import commands
from run import Parser, device
from runtime.allocator import keep_freed_memory
from runtime.errors import UserError, status_of
from runtime.signals import Stopped, StopRequest


def parser(name: str, doc: str) -> Parser:
    """That of the study `name` with --root, --device and --output; the first line of `doc` describes it."""
    p = Parser(prog=f"python -m studies.{name}", allow_abbrev=False, description=doc.splitlines()[0])
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--device", type=device, metavar="auto|cpu|cuda|cuda:N", help="beats the key gpus")
    p.add_argument("--output", type=Path, default=Path("runs") / name, metavar="DIR", help="where files go")
    return p


def status(execute: Callable[[argparse.Namespace, StopRequest], None], args: argparse.Namespace) -> int:
    """The exit status, as that of run.py, of a study that writes nothing before its end.

    What stops it is told in one sentence.
    """
    keep_freed_memory()
    stop = StopRequest()
    stop.install()
    try:
        with commands.explain_out_of_memory():
            execute(args, stop)
        return 0
    except (UserError, Stopped, OSError, MemoryError) as error:
        stop.ignore()
        print(f"stopped by {error}; nothing is written" if isinstance(error, Stopped) else error, file=sys.stderr)
        return status_of(error)
