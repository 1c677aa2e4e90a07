"""What the studies share: their arguments, how they end, how they are resumed, and what they write."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import commands
import config as configuration
import parsers
from config import Config
from data.composition import EpisodeSpec
from data.episodes import EpisodeLoader
from data.images import ClassImages
from models.base import MemoryModel
from reports.tables import Fields as Row
from reports.tables import write_files
from run import Parser, device, pathname
from runtime import checkpoints
from runtime.allocator import keep_freed_memory
from runtime.arrays import npz, read_stored
from runtime.errors import UserError, sentence, status_of
from runtime.files import exclusive_lock, write_atomically
from runtime.processes import from_environment
from runtime.signals import Stopped, StopRequest


def parser(name: str, doc: str) -> Parser:
    """That of the study `name` with --root, --device and --output; the first line of `doc` describes it."""
    p = Parser(prog=f"python -m studies.{name}", allow_abbrev=False, description=doc.splitlines()[0])
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--device", type=device, metavar="auto|cpu|cuda|cuda:N", help="overrides the key gpus")
    p.add_argument("--output", type=pathname, default=Path("runs") / name, metavar="DIR", help="where files go")
    return p


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def add_number(p: Parser, name: str, metavar: str, meaning: str, default: int, least: int) -> None:
    """An argument that is a whole number of `least` or more."""
    p.add_argument(name, type=at_least(least), default=default, metavar=metavar, help=f"{meaning} ({default})")


def add_cell(p: Parser, classes: int, targets: int = 200) -> None:
    """The arguments that name one cell of a test."""
    p.add_argument("--classes", type=int, default=classes, metavar="C", help=f"classes in a memory ({classes})")
    p.add_argument("--memory", type=int, default=5, metavar="M", help="images in a memory (5)")
    p.add_argument("--targets", type=int, default=targets, metavar="N",
                   help=f"targets, spread over the classes ({targets})")  # fmt: skip


def add_model(p: Parser) -> None:
    """The arguments that name one model."""
    p.add_argument("--config", type=pathname, required=True, metavar="YAML", help="the configuration of the model")
    p.add_argument("--checkpoint", type=pathname, metavar="PATH", help="its weights (those of the configuration)")


def add_models(p: Parser) -> None:
    """The argument that names the models of `models`."""
    p.add_argument("--model", type=pathname, nargs=2, action="append", required=True, metavar=("YAML", "WEIGHTS"),
                   help="a configuration and its weights; may be repeated")  # fmt: skip


# What says which images are tested on, and drawn into memories.
_IMAGES = (
    *(f"test_data.{key}" for key in ("kind", "split", "classes", "resize", "resample")),
    "test_spec.subset", "test_spec.seed",
)  # fmt: skip


def models(args: argparse.Namespace, stop: StopRequest) -> Iterator[tuple[str, Config, MemoryModel, ClassImages]]:
    """Name, configuration, model and test images of each --model.  Raises UserError, DataError."""
    if len({path.stem for path, _ in args.model}) < len(args.model):
        raise UserError("--model: two configurations have the same name, by which results are told apart; copy one")
    configs = [configuration.load(path, configuration.overrides(args.root)) for path, _ in args.model]
    for (path, _), config in zip(args.model, configs, strict=True):
        if configuration.differences(configs[0], config, only=_IMAGES):
            raise UserError(
                f"--model {path}: other test images than those of the first; {', '.join(_IMAGES)} must agree"
            )
    for (path, weights), config in zip(args.model, configs, strict=True):
        model = load_model(config, stop, args.device, weights)
        yield path.stem, config, model, parsers.test_images(config, next(model.parameters()).device)


def one_of_each(images: ClassImages, classes: int, seed: int, name: str) -> EpisodeLoader:
    """Memories of one image of each of so many classes; another image of each is a target."""
    if classes > images.num_classes or images.counts.min() < 2:
        there = f"there are {images.num_classes} with {images.counts.min()} or more"
        raise UserError(f"test images: two of each of {classes} classes are needed, and {there}; use other data")
    spec = EpisodeSpec(timesteps=classes, exact=True, max_img_per_class=1, targets_per_memory=classes)
    return EpisodeLoader(images, spec, classes, seed, name)


def cell_overrides(args: argparse.Namespace) -> list[str]:
    """The overrides that make the cell of `add_cell` the only one of the test, so that it is validated as such."""
    return [
        f"test_spec.targets={args.targets}",
        f"test_spec.test_params.max_batch_cls=[{args.classes}]",
        f"test_spec.test_params.timesteps=[{args.memory}]",
    ]


def status(execute: Callable[[argparse.Namespace, StopRequest], int | None], args: argparse.Namespace) -> int:
    """The exit status of a study, as that of run.py; what stops it is told in one sentence."""
    keep_freed_memory()
    stop = StopRequest(say)
    stop.install()
    try:
        if from_environment().world > 1:
            raise UserError("WORLD_SIZE is set, and this is a program of one process; unset it")
        with commands.explain_out_of_memory():
            return execute(args, stop) or 0
    except (UserError, Stopped, OSError, ArithmeticError, MemoryError) as error:
        stop.ignore()
        say(error)
        return status_of(error)


def say(error: BaseException) -> None:
    """One sentence on stderr for what ended the study."""
    said = f"stopped by {error}; the same command resumes" if isinstance(error, Stopped) else sentence(error)
    print(said, file=sys.stderr)


def load_model(config: Config, stop: StopRequest, device: str | None, checkpoint: Path | None) -> MemoryModel:
    """The model with the weights of --checkpoint on --device.  Raises UserError, DataError."""
    session = commands.Session(config, stop, device, checkpoint)
    return session.load_model(session.device_for(config.test_spec))


ONE_ORDER = ("model.orders=1", "train_spec.orders=null")  # overrides


def load_addressed(
    args: argparse.Namespace, stop: StopRequest, more: Sequence[str] = ()
) -> tuple[Config, MemoryModel, ClassImages]:
    """Configuration (with `more` overrides), model with addresses and test images.  Raises UserError, DataError.

    With a z, addresses are those of one order of the pixels.
    """
    overrides = [*configuration.overrides(args.root), *more]
    config = configuration.load(args.config, overrides)
    if config.model.read != "address":
        raise UserError(f"model.read: {config.model.read} has no addresses, which are studied here; use address")
    if config.model.latent_dim:
        config = configuration.load(args.config, [*overrides, *ONE_ORDER])
    model = load_model(config, stop, args.device, args.checkpoint)
    return config, model, parsers.test_images(config, next(model.parameters()).device)


def resumed(
    path: Path,
    model: MemoryModel,
    config: Config,
    settings: Mapping[str, object],
    names: Iterable[str],
    compute: Callable[[str], Mapping[str, np.ndarray]],
) -> dict[str, dict[str, np.ndarray]]:
    """What `compute` gives for each name, stored in the npz file `path` as `name/part` as soon as it is there.

    What is stored already is not computed again.

    Raises UserError where it is of another model, configuration or settings, or another process is at it.
    """
    origin = {"weights": checkpoints.digest(model.state_dict()), "config": configuration.dump(config), **settings}
    key = np.array(json.dumps(origin, sort_keys=True))
    with exclusive_lock(path, "study"):
        arrays = read_stored(path) or {"key": key}
        if str(arrays.get("key")) != str(key):
            raise UserError(f"{path} is of another model, or of other settings; choose another --output, or remove it")
        found = {}
        for name in tqdm(list(names), dynamic_ncols=True):
            parts = {one.removeprefix(f"{name}/"): arrays[one] for one in arrays if one.startswith(f"{name}/")}
            if not parts:
                parts = dict(compute(name))
                arrays |= {f"{name}/{part}": value for part, value in parts.items()}
                write_atomically(path, npz(arrays))
            found[name] = parts
        return found


def write(output: Path, name: str, rows: Sequence[Row], text: str, png: bytes | None = None) -> None:
    """`name`.csv with all that the rows hold, the text as .md, printed too, and the figure.  Raises OSError."""
    write_files(output / f"{name}.csv", rows, text, png)
    print(f"{text}\nwritten: {output}/{name}.*")


def draw_lines(axis: Any, rows: Sequence[Any], key: str, x: str, y: str, stderr: str) -> None:
    """A line for every value of `key`, with bars of two standard errors each way."""
    for name in dict.fromkeys(row[key] for row in rows):
        of = [row for row in rows if row[key] == name]
        error = [2 * row[stderr] for row in of]
        axis.errorbar([row[x] for row in of], [row[y] for row in of], error, marker="o", capsize=2, label=name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
