"""What is measured: a step of the training and a batch of the test, as the program runs them.

`K` importance samples · `M` images in a memory · `T` targets that share one memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributions import Distribution

import commands
import config as configuration
import evaluator
import parsers
from config import Config, DataConfig
from data.composition import EpisodeSpec
from data.episodes import GridEpisodes, spread_targets
from data.omniglot import DRAWERS, FOLDER, PARTS
from models.vma.model import VMA
from runtime.errors import UserError
from runtime.signals import StopRequest
from trainer import Trainer

SECTIONS = ("train_data", "val_data", "test_data")


@dataclass(frozen=True)
class Benchmark:
    """What is measured, where, and how long; `overrides` make `config` of the file at `path`, without validation."""

    path: Path
    overrides: tuple[str, ...]
    config: Config
    device: torch.device
    rounds: int
    seconds: float  # a measurement
    quick: bool = False

    def variant(self, *more: str) -> Config:
        """The configuration with more overrides."""
        return configuration.load(self.path, (*self.overrides, *more))


def benchmark(
    path: Path, overrides: Sequence[str], device: torch.device, rounds: int, seconds: float, quick: bool = False
) -> Benchmark:
    """The benchmark of the configuration at `path`; on glyphs where its images are not there.

    Raises:
        UserError: the configuration is wrong, or its steps differ in work.
    """
    wanted = (*overrides, "train_data.held_out_classes=0")
    config = configuration.load(path, wanted)
    if not all(is_there(getattr(config, section)) for section in SECTIONS):
        drawn = {"kind": "glyphs", "root": "null", "split": "official"}
        wanted += tuple(f"{section}.{key}={value}" for section in SECTIONS for key, value in drawn.items())
        config = configuration.load(path, wanted)
    if getattr(config.train_data, "mixture", ()):
        raise UserError("train_data.mixture: its steps differ in work; measure with --set train_data.mixture=null")
    return Benchmark(path, wanted, config, device, rounds, seconds, quick)


def is_there(data: DataConfig) -> bool:
    """Whether the images can be had without a download."""
    if data.kind == "glyphs":
        return True
    root = Path(data.root or "").expanduser()
    if data.kind == "mnist":
        return (root / "MNIST" / "raw").is_dir()
    if data.kind != "omniglot":
        return root.is_dir()
    places = [(folder / part, part) for folder in (root, root / FOLDER) for part in PARTS]
    found = {part for place, part in places for end in (".npz", ".zip", "") if Path(f"{place}{end}").exists()}
    return found == PARTS.keys()


def training(config: Config, device: torch.device) -> Trainer:
    """The trainer of `run.py --train`, whose `step` is measured; nothing is written."""
    return commands.Run(config, str(device), None, None, StopRequest()).trainer(Path("unused.pt"))


@dataclass(frozen=True)
class Scoring:
    """Scores a batch of `targets` targets by ELBO@K of `samples` samples, `chunk` at once."""

    model: VMA
    episodes: GridEpisodes
    samples: int
    targets: int
    chunk: int

    def __call__(self) -> evaluator.PerTarget:
        with as_in_the_test():
            return evaluator.evaluate_cell(
                self.model, self.episodes, ("benchmark",), self.samples, self.targets, self.chunk, lambda done: None
            )


def scoring(config: Config, device: torch.device, memory: int, samples: int) -> Scoring:
    """One batch of `run.py --test`: as many targets and samples at once as there, memories of `memory` images."""
    commands.keep_freed_memory()
    images = parsers.test_images(config, device)
    targets, chunk = evaluator.sizes_at_once(device, config.test_data.batch_size, config.test_spec.chunk)
    targets = min(targets, len(images.images))
    chosen, spec = spread_targets(images.counts, targets), memory_of_test(memory, images.num_classes)
    episodes = GridEpisodes(images, spec, chosen, config.test_spec.seed, f"M={memory}")
    return Scoring(parsers.build_model(config, device).eval(), episodes, samples, targets, chunk)


def memory_of_test(memory: int, classes: int) -> EpisodeSpec:
    """A memory of `memory` images: of one class, or where that has too few, 4, 8 or 16 of each of several."""
    if memory < DRAWERS:
        return EpisodeSpec(timesteps=memory, exact=False, max_batch_cls=1)
    images = next((n for n in (4, 8, 16) if memory % n == 0 and memory // n <= classes), 16)
    return EpisodeSpec(timesteps=memory, exact=True, max_img_per_class=images)


@contextmanager
def as_in_the_test() -> Iterator[None]:
    """The switches that `run.py --test` sets: convolutions in float32, arguments of distributions unchecked."""
    tf32, checked = torch.backends.cudnn.allow_tf32, Distribution._validate_args
    torch.backends.cudnn.allow_tf32 = False
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        Distribution.set_default_validate_args(checked)
