"""Attacks at random: `python -m tests.attack --minutes 5` kills, signals, and breaks streams, disks and files.

Each attempt is a tiny training in a child process, forked from this one, which has imported everything and drawn the
pictures; what begins before that is provoked in tests/faults.  It survived if nothing printed a traceback or hung,
every state was whole, and the run went on to the log and the weights of one that was left alone.  What is attacked
depends on --seed and the number of the attempt; half of the moments are calls that Python counts, the others depend on
the clock.
"""

import argparse
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
import torch._dynamo  # noqa: E402
import torch.utils.tensorboard  # noqa: E402
from helpers.config import arguments  # noqa: E402
from helpers.faults import damage  # noqa: E402
from helpers.logs import curves, same_end  # noqa: E402
from helpers.program import drawn_once, own_lock  # noqa: E402
from helpers.program import main as main_here  # noqa: E402

import commands  # noqa: E402, F401
import run  # noqa: E402
from runtime import checkpoints  # noqa: E402
from runtime.errors import UserError  # noqa: E402

TRAIN = (
    *("--train", "--device", "cpu", "train_spec.steps=6", "train_spec.save_every=3"),
    *("train_data.iter=2", "train_spec.val_targets=8"),
)
TEST = ("--test", "test_spec.targets=4", "test_spec.test_params.max_batch_cls=[1]")
LONGEST = 180.0  # seconds of an attempt, on a machine that does something else too


def program(
    folder: Path, *more: str, first: Callable[[], None] = lambda: None, signals: Sequence[tuple[float, int]] = ()
) -> tuple[int, str]:
    """Exit status, or minus the signal, and output of the program in a child that does `first`.

    `signals` are sent so many seconds after its start.  Raises AssertionError where it does not end.
    """
    output, line, start = folder / "output.txt", arguments(folder, *more), time.monotonic()
    if not (process := os.fork()):
        try:
            file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            own_lock()
            first()
            run.standalone(run.main, line)
        finally:
            traceback.print_exc()
            os._exit(99)
    waiting = sorted(signals)
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        seconds = time.monotonic() - start
        while waiting and seconds >= waiting[0][0]:
            os.kill(process, waiting.pop(0)[1])
        if seconds > LONGEST:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"it did not end: {output.read_text(errors='replace')[-500:]}")
        time.sleep(0.01)
    said = output.read_text(errors="replace")
    assert "Traceback" not in said, said
    return os.waitstatus_to_exitcode(ended[1]), said


def counted(moments: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """Sends the process (number of an audited call, signal) itself."""
    left, calls = dict(moments), iter(range(1, sys.maxsize))

    def count(event: str, args: object) -> None:
        if event != "os.kill" and (number := left.pop(next(calls), None)):
            os.kill(os.getpid(), number)

    return lambda: sys.addaudithook(count)


def quietly(folder: Path) -> None:
    """A training in this process."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        assert not main_here(folder, *TRAIN)
    logging.getLogger().handlers.clear()  # it writes nowhere


def calls(folder: Path) -> int:
    """How many calls Python counts in a training that is left alone."""
    reading, writing = os.pipe()
    if not os.fork():
        number = 0

        def count(event: str, args: object) -> None:
            nonlocal number
            number += 1

        sys.addaudithook(count)
        quietly(folder)
        os.write(writing, str(number).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        return int(said.read())


def assert_whole(folder: Path) -> None:
    for path in folder.glob("vma*.pt"):
        checkpoints.load(path)


class Attack:
    """The attempts, in `root`."""

    def __init__(self, root: Path) -> None:
        self.whole, self.half = root / "whole", root / "half"
        quietly(root / "drawn")
        began = time.monotonic()
        self.calls = calls(root / "counted")
        self.seconds = 2 * (time.monotonic() - began)  # of a training, on a machine that is slower now and then
        for folder, steps in ((self.whole, 6), (self.half, 4)):
            folder.mkdir()
            assert not (ended := program(folder, *TRAIN, *TEST, f"train_spec.steps={steps}"))[0], ended[1]

    def begun(self, folder: Path, numbers: random.Random) -> None:
        """A run that begins, or one that was trained for four steps."""
        folder.mkdir() if numbers.random() < 0.5 else shutil.copytree(self.half, folder)

    def struck(self, folder: Path, numbers: random.Random, signals: Sequence[int]) -> int:
        """The exit status of a training that these signals meet."""
        call, moment = numbers.randrange(1, self.calls), numbers.uniform(0, self.seconds)
        if numbers.random() < 0.5:
            first = counted([(call + numbers.randrange(50), number) for number in signals])
            status, _ = program(folder, *TRAIN, first=first)
        else:
            status, _ = program(folder, *TRAIN, signals=[(moment + numbers.uniform(0, 0.2), n) for n in signals])
        assert_whole(folder)
        return status

    def assert_goes_on(self, folder: Path, rows_are_missing: bool = False) -> None:
        assert not (ended := program(folder, *TRAIN))[0], ended[1]
        here, there = curves(folder).items(), curves(self.whole).items()
        assert here <= there if rows_are_missing else here == there, f"the log differs: {sorted(here ^ there)[:5]}"
        assert same_end(folder, self.whole), "the weights differ"
        assert not list(folder.glob(".*.part")), "files are left"

    def kills(self, folder: Path, numbers: random.Random) -> None:
        self.begun(folder, numbers)
        for _ in range(numbers.randint(1, 3)):
            assert self.struck(folder, numbers, [signal.SIGKILL]) in (-signal.SIGKILL, 0)
        self.assert_goes_on(folder)

    def signals(self, folder: Path, numbers: random.Random) -> None:
        self.begun(folder, numbers)
        burst = numbers.choices((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), k=numbers.randint(1, 6))
        status = self.struck(folder, numbers, burst)  # negative where it did not listen yet
        assert status in {0, *(128 + number for number in burst), *(-number for number in burst)}, status
        self.assert_goes_on(folder)

    def streams(self, folder: Path, numbers: random.Random) -> None:
        self.begun(folder, numbers)
        kinds = [numbers.choice(("closed", "full", "gone", "to be read")) for _ in range(3)]

        def first() -> None:
            for stream, kind in enumerate(kinds):
                reading, writing = os.pipe()
                os.close(reading)
                full, empty = os.open("/dev/full", os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
                os.dup2({"full": full, "gone": writing}.get(kind, empty), stream)
                if kind == "closed":
                    os.close(stream)
                for handle in {writing, full, empty} - {0, 1, 2}:
                    os.close(handle)

        assert not (ended := program(folder, *TRAIN, first=first))[0], f"exit {ended[0]} with {kinds}"
        self.assert_goes_on(folder)

    def disks(self, folder: Path, numbers: random.Random) -> None:
        self.begun(folder, numbers)
        limit = numbers.choice((numbers.randrange(3000), numbers.randrange(200_000)))
        status, said = program(folder, *TRAIN, first=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        assert status in (0, 1), said
        assert_whole(folder)
        self.assert_goes_on(folder, rows_are_missing=True)

    def files(self, folder: Path, numbers: random.Random) -> None:
        shutil.copytree(self.half, folder)
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "output.txt")
        path = folder / numbers.choice(names)
        content, kind = path.read_bytes(), damage(path, numbers)
        status, said = program(folder, *TRAIN, *TEST)
        assert status in (0, 1, 2, 3), f"exit {status} with {path.name}, {kind}: {said}"
        if status:
            assert path.name in said, said
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(content)
        try:
            self.assert_goes_on(folder, rows_are_missing=path.name == "log.jsonl")
        except AssertionError as error:
            raise AssertionError(f"{path.name}, {kind}: {error}") from None


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, metavar="N", help="the attempt of this number")
    args = p.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # also of the children, until the program listens
    with drawn_once():
        return attempts(args.minutes, args.seed, args.only)


def attempts(minutes: float, seed: int, only: int | None) -> int:
    """Make them, and say how many were survived; the exit status."""
    end, root = time.monotonic() + 60 * minutes, Path(tempfile.mkdtemp(prefix="attack."))
    attack = Attack(root)
    families = (attack.kills, attack.signals, attack.streams, attack.disks, attack.files)
    tried, survived = dict.fromkeys(families, 0), dict.fromkeys(families, 0)
    number = only or 0
    while number == only or (only is None and (time.monotonic() < end or number < len(families))):
        family, folder = families[number % len(families)], root / str(number)
        tried[family] += 1
        try:
            family(folder, random.Random(f"{seed} {number}"))
            survived[family] += 1
            shutil.rmtree(folder)
        except (AssertionError, UserError, OSError, ValueError) as error:
            print(f"{family.__name__}, in {folder}: {error}")
            print(f"again: python -m tests.attack --seed {seed} --only {number}", flush=True)
        number += 1
    for family in families:
        print(f"{family.__name__:8} tried {tried[family]:4}, survived {survived[family]:4}")
    return int(tried != survived)


if __name__ == "__main__":
    sys.exit(main())
