"""What the commands share: the configuration and the arguments beside it, devices, processes and the checkpoint."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

import config as configuration
import parsers
from config import Config, TestSpec, TrainSpec
from models.base import MemoryModel
from runtime import checkpoints, devices
from runtime.errors import DataError, NonFiniteError, UserError
from runtime.processes import Processes, from_environment, started_by_launcher
from runtime.signals import StopRequest

_log = logging.getLogger(__name__)

Outputs = dict[str, list[Path]]  # what a command writes, by the key or argument that names it


@dataclass
class Session:
    """One start of the program: a configuration, and the arguments that are no keys of it."""

    config: Config
    stop: StopRequest
    device: str | None = None
    checkpoint: Path | None = None
    logdir: Path | None = None
    processes: Processes = field(default_factory=from_environment)

    def device_for(self, spec: TrainSpec | TestSpec) -> torch.device:
        """The device of this process; those of one machine take turns.  Raises UserError."""
        found = devices.devices_of(spec.gpus, self.device)
        return found[self.processes.local_rank % len(found)]

    def processes_to_start(self, spec: TrainSpec | TestSpec) -> int:
        """How many processes the configured GPUs ask for; 1 where this is one of several already.  Raises UserError.

        With `auto` a training takes as many of the GPUs as its batch divides among.
        """
        found, wanted = devices.devices_of(spec.gpus, self.device), self.device or spec.gpus
        if wanted == "auto" and found[0].type == "cpu" and self.processes.main:
            _log.warning("no GPU was found, so this runs on the CPU; --device cpu asks for that without this warning")
        if started_by_launcher():
            return 1
        if isinstance(spec, TestSpec) or wanted != "auto":
            return len(found)
        number = parsers.most_processes(self.config.train_data, len(found))
        if number < len(found):
            _log.warning(
                "%d of %d GPUs are used: among more the batch of train_data does not divide", number, len(found)
            )
        return number

    @contextlib.contextmanager
    def process_group(self, spec: TrainSpec | TestSpec) -> Iterator[None]:
        """Within, the processes of this run can communicate.  Raises UserError, PeerLostError."""
        gpus, local_rank = devices.devices_of(spec.gpus, self.device), self.processes.local_rank
        if gpus[0].type == "cuda" and isinstance(spec, TrainSpec) and local_rank >= len(gpus):
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own, there are {len(gpus)}; "
                f"use torchrun --nproc-per-node {len(gpus)}, or --device cpu"
            )
        with self.processes.process_group(self.device_for(spec), self.config.train_spec.rendezvous):
            yield

    def say(self, text: str) -> None:
        """Print, in process 0."""
        if self.processes.main:
            print(text)

    @property
    def checkpoint_path(self) -> Path:
        """The weights to test, sample from and export."""
        return self.checkpoint or Path(self.config.test_checkpoint)

    def load_checkpoint(self) -> tuple[dict[str, Any], Config]:
        """The checkpoint at `checkpoint_path`, whose model is that of the configuration, and what it was trained with.

        Raises UserError, DataError.
        """
        path, subset = self.checkpoint_path, self.config.test_spec.subset
        if not path.exists():
            missing = DataError if self.checkpoint else UserError
            raise missing(f"{path}: there is no such checkpoint; train first (--train) or name one with --checkpoint")
        state, trained = load_matching(path, self.config, configuration.MODEL_KEYS)
        if not all(value.isfinite().all() for value in state["model"].values()):
            raise NonFiniteError(f"{path}: its weights are not finite; train anew with a lower train_spec.lr")
        refuse_test_classes(path, trained, self.config)
        if subset != "test" and (choice := different_classes(trained, self.config)):
            raise UserError("\n  ".join([f"{path}: test_spec.subset: {subset} would be other classes:", *choice]))
        return state, trained

    def load_model(self, device: torch.device) -> MemoryModel:
        """The model with the weights of the checkpoint, ready to evaluate.  Raises UserError, DataError."""
        weights = self.processes.broadcast_from_main(lambda: self.load_checkpoint()[0]["model"])
        model = parsers.build_model(self.config, device)
        with checkpoints.as_expected(self.checkpoint_path):
            model.load_state_dict(weights)
        Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood
        torch.backends.cudnn.allow_tf32 = False  # bounds in float32, on every device
        return model.eval()


def load_matching(path: Path, config: Config, keys: Sequence[str]) -> tuple[dict[str, Any], Config]:
    """The checkpoint in `path` and its configuration, which agrees in `keys`.  Raises UserError, DataError.

    The weights of the state of a run are its moving average, where there is one.
    """
    state = checkpoints.load(path)
    trained = config_of(path, state)
    causal = config.model.likelihood == "causal"  # else model.causal is not read
    keys = [key for key in keys if causal or not key.startswith("model.causal")]
    if changed := configuration.differences(trained, config, only=keys):
        raise UserError("\n  ".join([f"{path}: its model is not the one of this configuration:", *changed]))
    with checkpoints.as_expected(path):
        weights = state.get("averaged") or state["model"]
        if odd := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise TypeError(f"{odd[0]} is no tensor")
    return {**state, "model": weights}, trained


def config_in(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration in the checkpoint `path`, with overrides.  Raises UserError, DataError."""
    if not path.exists():
        raise DataError(f"{path}: there is no such checkpoint")
    text = configuration.dump(config_of(path, checkpoints.load(path)))
    return configuration.parse(text, str(path), overrides)


def config_of(path: Path, state: dict[str, Any]) -> Config:
    """The configuration in the checkpoint that was read from `path`.  Raises DataError."""
    try:
        with checkpoints.as_expected(path):
            return configuration.parse(state["config"], str(path))
    except configuration.ConfigError as error:
        raise DataError(f"{path}: not a checkpoint of this version of the program ({error})") from None


def different_classes(trained: Config, config: Config) -> list[str]:
    """The keys by which one was trained on other classes than `config` trains on."""
    return configuration.differences(trained, config, only=configuration.HELD_OUT_KEYS)


def refuse_test_classes(path: Path, trained: Config, config: Config) -> None:
    """Raises UserError where one of the trainings behind the weights in `path` saw classes that `config` tests on.

    Those before the last are found by their `init_from`, as far as the files are there and whole.
    """
    followed: list[Path] = []
    while True:
        then, now = trained.train_data, config.test_data
        if (then.kind, then.split, now.split) == (now.kind, "45-5", "official"):
            by = f", by way of {followed[-1]}," if followed else ""
            raise UserError(f"{path}: trained{by} on classes that the official split tests on")
        before = Path(trained.train_spec.init_from or "")
        if not before.is_file() or before in followed:
            return
        followed.append(before)
        try:
            trained = config_of(before, checkpoints.load(before))
        except DataError:
            return


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Raises MemoryError, with advice, where RAM or the memory of a GPU was too small."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = "lower train_data.batch_size, or for the test set test_spec.chunk=50 and lower test_data.batch_size"
        raise MemoryError(f"{str(error).splitlines()[0]} {advice}") from None
