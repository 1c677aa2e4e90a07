"""The command line: parse arguments, load the configuration, call."""

import _signal  # type: ignore[import-not-found]  # of which `signal` is made, whose import takes a while

if __name__ == "__main__":  # until `main` listens, Ctrl-C ends it without Python's traceback
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from runtime import launcher, streams
from runtime.allocator import keep_freed_memory
from runtime.errors import PeerFailedError, PeerLostError, UserError, sentence, status_of
from runtime.paths import expanded
from runtime.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from commands import Session


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="run.py",
        allow_abbrev=False,
        description="Variational Memory Addressing: train, test and sample from one YAML file.",
    )
    p.add_argument("--config", type=pathname, metavar="YAML",
                   help="the configuration, such as configs/vma.yaml; default: that in the --checkpoint")  # fmt: skip
    p.add_argument("--train", action="store_true", help="train; the same command resumes an interrupted run")
    p.add_argument("--test", action="store_true", help="run the test grid and write the table")
    p.add_argument("--sample", action="store_true", help="draw memories, samples of p(x|M) and reconstructions")
    p.add_argument("--memory", type=pathname, metavar="DIR", help="for --sample, a folder of drawings as the memory")
    p.add_argument("--score", type=pathname, metavar="IMAGE", help="a drawing: how likely it is, given --memory")
    p.add_argument("--print-config", action="store_true", help="print the complete configuration and do nothing else")
    p.add_argument("--root", metavar="DIR", help="where the data is, for training, validation and test")
    p.add_argument("--output", metavar="DIR", help="the folder of the run; in YAML the key output")
    p.add_argument("--seed", type=int, metavar="N", help="the key train_spec.seed; use another --output for each seed")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key, such as train_spec.steps=200; may be repeated")  # fmt: skip
    p.add_argument("--device", type=device, metavar="auto|cpu|cuda|cuda:N", help="overrides the key gpus")
    p.add_argument("--logdir", type=pathname, metavar="DIR", help="folder for TensorBoard (tb/vma in that of the run)")
    p.add_argument("--checkpoint", type=pathname, metavar="PATH", help="the weights for --test, --sample and --export")
    p.add_argument("--restart", action="store_true", help="train from the start; an earlier run is discarded")
    p.add_argument("--export", type=pathname, metavar="PATH",
                   help="write the weights, with their configuration, to PATH, which ends in .safetensors")  # fmt: skip
    p.add_argument("--half", action="store_true", help="--export in half precision, a file half as large")
    p.add_argument(
        "--replay", type=pathname, metavar="PATH", help="re-run the step that gave NaN or Inf, and nothing else"
    )
    return p


def pathname(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of a file or folder is empty")
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")
    return text


def main(arguments: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    if not (args.train or args.test or args.sample or args.export or args.replay or args.print_config):
        p.error("nothing to do: give --train, --test or --sample")
    if args.replay and (args.train or args.test or args.sample or args.export):
        p.error("--replay computes one step and nothing else: give --train, --test, --sample and --export another time")
    if not args.config and (args.train or args.replay or not args.checkpoint):
        p.error("--config is missing; without it the weights of --checkpoint can be tested, sampled from and exported")
    if args.memory and (not args.sample or args.train or args.test):
        p.error("--memory is for --sample, without --train and --test")
    if args.score and not args.memory:
        p.error("--score needs --memory, the drawings that it is to be explained with")
    if args.restart and not args.train:
        p.error("--restart is for --train")
    if args.checkpoint and not (args.test or args.sample or args.export or args.replay or args.print_config):
        p.error("--checkpoint is for --test, --sample and --export; to train from weights, set train_spec.init_from")
    if args.export and args.export.suffix != ".safetensors":
        p.error(f"--export {args.export}: the name must end in .safetensors")
    if args.half and not args.export:
        p.error("--half is for --export")
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("data").setLevel(logging.INFO)  # that images are downloaded or unpacked, which takes a while
    stop = StopRequest(lambda stopped: report(stopped, given, stop.restarted))
    stop.install()
    streams.asked_to_stop = lambda: stop.received
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher.end_with_parent()  # torchrun
    try:
        status = execute(args, given, stop)
        sys.stdout.flush()  # as long as a signal can end the waiting for who reads
        stop.ignore()
        return status
    except (UserError, Stopped, PeerFailedError, PeerLostError, OSError, ArithmeticError, MemoryError) as error:
        stop.ignore()
        report(error, given, stop.restarted)
        if isinstance(error, PeerLostError) and stop.received:  # the other one was faster to end by what both heard
            return 128 + stop.received
        return status_of(error)


def report(error: BaseException, given: list[str], restarted: bool) -> None:
    """One sentence on stderr for what ended the program; process 0 of several speaks for all where it can."""
    first = os.environ.get("RANK", "0") == "0"
    if isinstance(error, Stopped) and first:
        again = without(given, *(["--restart"] if restarted else []))
        say(f"stopped by {error}; resume with: python run.py {shlex.join(again)}")
    elif not isinstance(error, Stopped | PeerFailedError):
        say(sentence(error))
    if first and (evidence := getattr(error, "evidence", None)):
        others = without(given, "--train", "--test", "--sample", "--restart", "--half", with_value=("--export",))
        say(f"replay that step alone with: python run.py {shlex.join([*others, '--replay', str(evidence)])}")


def without(given: list[str], *flags: str, with_value: tuple[str, ...] = ()) -> list[str]:
    """The arguments that are left without these."""
    left, words = [], iter(given)
    for word in words:
        if word in with_value:
            next(words, None)
        elif word not in flags and word.partition("=")[0] not in with_value:
            left.append(word)
    return left


def say(text: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(text if rank == "0" else f"process {rank}: {text}", file=sys.stderr)


def execute(args: argparse.Namespace, given: list[str], stop: StopRequest) -> int:
    """The exit status.

    Raises UserError, Stopped, PeerFailedError, PeerLostError, OSError, MemoryError and NonFiniteError, each with a
    message for the user.
    """
    import config as configuration

    overrides = [*configuration.overrides(args.root, args.output, args.seed), *args.overrides]
    if args.config:
        config = configuration.load(args.config, overrides)
    else:
        import commands

        config = commands.config_in(args.checkpoint, overrides)
    if args.print_config:
        print(configuration.dump(config), end="")
        streams.check_written(sys.stdout)
        return 0

    import commands  # and with it torch, which takes seconds

    keep_freed_memory()
    session = commands.Session(config, stop, args.device, args.checkpoint, args.logdir)
    spec = config.train_spec if args.train else config.test_spec
    with commands.explain_out_of_memory():
        if args.replay:
            commands.replay.run(session, args.replay)
            return 0
        if (args.train or args.test) and (number := session.processes_to_start(spec)) > 1:
            return launcher.run(launcher.python(given), number)
        with session.process_group(spec):
            run_commands(session, args)
    return 0


def run_commands(session: "Session", args: argparse.Namespace) -> None:
    """What the flags ask for, in their order."""
    import commands

    written = []
    if args.train:
        written.append(commands.train.outputs(session))
    if args.test:
        written.append(commands.test.outputs(session))
    if args.memory:
        picture = commands.drawings.picture(args.memory, args.score, pathname(args.output or "runs"))
        written.append({"--output": [picture]})
    elif args.sample:
        written.append(commands.sample.outputs(session))
    if args.export:
        written.append({"--export": [args.export]})
    commands.outputs.check(session, written)
    if args.train:
        if args.test or args.sample:
            commands.test.check(session)
        commands.train.run(session, args.restart)
    if args.test:
        commands.test.run(session)
    if args.memory:
        commands.drawings.run(session, args.memory, args.score, picture)
    elif args.sample:
        commands.sample.run(session)
    if args.export:
        commands.export.run(session, args.export, args.half)


def standalone(main: Callable[[list[str] | None], int], arguments: list[str] | None = None) -> NoReturn:
    """Call `main` as the program of this process, whatever becomes of its standard streams.

    It ends without waiting for threads that import or write, which Python does not stop in order.
    """
    streams.outlast()
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    standalone(main)
