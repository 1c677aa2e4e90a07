"""What `--train`, `--test` and `--sample` do: objects from the configuration, put together and set to work."""

import contextlib
import ctypes
import hashlib
import importlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import OutOfMemoryError, Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

import config as configuration
import evaluator
import parsers
from config import Config
from data.episodes import EpisodeLoader, MixedLoader
from models.vma.model import VMA
from reports import pictures, tables
from runtime import checkpoints, processes
from runtime.errors import DataError, PeerFailedError, PeerLostError, UserError, reason
from runtime.files import exclusive_lock, write_atomically
from runtime.metric_logger import MetricLogger
from runtime.randomness import StepNoise
from runtime.signals import Stopped, StoppedAtOnce, StopRequest
from trainer import NonFiniteError, Trainer, TrainerConfig, evidence_path, previous_state_path, state_path

_log = logging.getLogger(__name__)


class Run:
    """One run of one configuration."""

    def __init__(
        self, config: Config, device: str | None, checkpoint: Path | None, logdir: Path | None, stop: StopRequest
    ) -> None:
        keep_freed_memory()
        self.config, self.stop = config, stop
        self._device, self._named, self._logdir = device, checkpoint, logdir
        self.folder = Path(config.train_spec.checkpoint_path).parent
        self.processes = processes.from_environment()
        self.begun = False  # whether a training has taken the place of what an earlier one left

    def processes_to_start(self, train: bool) -> int:
        """How many processes the configured GPUs want; 1 where this is one of several already.  Raises UserError.

        With `auto` a training takes as many of the GPUs as its batch divides among.
        """
        if processes.started_by_launcher():
            return 1
        found = len(parsers.devices_of(self._gpus(train), self._device))
        if not train or (self._device or self._gpus(train)) != "auto":
            return found
        number = parsers.most_processes(self.config.train_data, found)
        if number < found:
            _log.warning("%d of %d GPUs are used: among more the batch of train_data does not divide", number, found)
        return number

    @contextlib.contextmanager
    def together(self, train: bool) -> Iterator[None]:
        """Within, the processes of this run can talk to each other.  Raises UserError, PeerLostError."""
        device, gpus = self.device_for(train), parsers.devices_of(self._gpus(train), self._device)
        if device.type == "cuda" and train and self.processes.local_rank >= len(gpus):
            raise UserError(
                f"process {self.processes.local_rank} of this machine has no GPU of its own, there are {len(gpus)}; "
                f"use torchrun --nproc-per-node {len(gpus)}, or --device cpu"
            )
        with self.processes.process_group(device):
            yield

    def _gpus(self, train: bool) -> tuple[int, ...] | str:
        return self.config.train_spec.gpus if train else self.config.test_spec.gpus

    def device_for(self, train: bool) -> torch.device:
        return parsers.device_of(self._gpus(train), self._device, self.processes.local_rank)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, restart: bool) -> None:
        """Train, from the beginning or from where an earlier run stopped."""
        path, main = Path(self.config.train_spec.checkpoint_path), self.processes.main
        with contextlib.ExitStack() as stack:
            self.processes.broadcast_from_main(lambda: stack.enter_context(_held_by_training(path)))
            state = self.processes.broadcast_from_main(lambda: None if restart else self._state_to_resume(path))
            trainer = self.trainer(path)
            if state is None and self.config.train_spec.init_from is not None:
                trainer.load_weights(self.processes.broadcast_from_main(self._weights_to_begin_with))
            self.processes.broadcast_from_main(lambda: self._begin(trainer, restart))
            self.begun = True
            if state is not None:
                trainer.resume(state)
                self._say(f"resuming {path} at step {trainer.progress.step}")
            with self.stop.deferred():  # it imports TensorBoard
                logger = self._logger(trainer.progress.step or None) if main else MetricLogger(None, None, None)
            try:
                trainer.fit(logger)
            except StoppedAtOnce:  # of this process alone: the others cannot be waited for
                raise
            except (Stopped, NonFiniteError):
                logger.close()
                self._leave_in_order()
                raise
            finally:
                logger.close()
        self._draw_curves()
        self._say(f"trained {trainer.progress.step} steps; weights for --test: {path}")

    def _draw_curves(self) -> None:
        log_file = self.config.train_spec.log_file
        if not self.processes.main or log_file is None or not Path(log_file).is_file():
            return
        try:
            self._say(f"written: {tables.write_curves(Path(log_file), self.config)}")
        except (OSError, ImportError, ValueError, KeyError, TypeError) as error:  # a log that someone else wrote to
            _log.warning("%s cannot be drawn (%s)", log_file, reason(error))

    def _begin(self, trainer: Trainer, restart: bool) -> None:
        path = trainer.checkpoint_path
        if restart:
            for old in (trainer.state_path, previous_state_path(path), trainer.evidence_path, path):
                if old.resolve() != Path(self.config.train_spec.init_from or "").resolve():  # still needed if killed
                    old.unlink(missing_ok=True)
        write_atomically(path.with_suffix(".resolved.yaml"), configuration.dump(self.config).encode())

    def _leave_in_order(self) -> None:
        """Process 0 is ready to end before the others do, whose end torchrun answers with a signal to it."""
        with contextlib.suppress(PeerFailedError, PeerLostError):
            self.processes.broadcast_from_main(lambda: None)

    def _say(self, text: str) -> None:
        if self.processes.main:
            print(text)

    def replay(self, path: Path) -> None:
        """Compute one step again from the state that was kept before it, and say which targets are at fault.

        Raises:
            NonFiniteError: as in the training.
            UserError, DataError: the state is not one of this configuration, or damaged.
        """
        state = _state_in(path)
        self._check_same_run(path, state)
        trainer = self.trainer(Path(self.config.train_spec.checkpoint_path))
        trainer.resume(state)
        print(f"step {trainer.progress.step}, seed {self.config.train_spec.seed}: {trainer.replay()}")

    def trainer(self, path: Path) -> Trainer:
        """A trainer at its beginning, whose weights go to `path`.  Raises UserError, DataError."""
        config, spec, device = self.config, self.config.train_spec, self.device_for(train=True)
        torch.backends.cudnn.allow_tf32 = True  # an earlier test of this process may have turned it off
        Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood; the first step has it
        # Optimizers import this, which takes as long as unpacking the images does.
        threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True).start()
        images = parsers.training_images(config, device)
        train = parsers.train_loader(config, images, self.processes.shard)
        validation = parsers.validation_loader(config, images)
        model = parsers.build_model(config, device)
        optimizer = parsers.build_optimizer(spec, model)
        return Trainer(
            model,
            optimizer,
            parsers.build_scheduler(spec, optimizer),
            train,
            validation,
            TrainerConfig(
                steps=spec.steps,
                val_every=config.val_every,
                save_every=config.save_every,
                log_every=spec.log_every,
                val_targets=spec.val_targets,
                seed=spec.seed,
                precision=spec.precision,
                grad_clip=spec.grad_clip,
                ema_decay=spec.ema_decay,
            ),
            checkpoint_path=path,
            config=configuration.dump(config),
            stop=self.stop,
            log_images=_image_logger({"train": train, "validation": validation}, device),
            processes=self.processes,
        )

    def _state_to_resume(self, path: Path) -> dict[str, Any] | None:
        """The last state that an earlier run left whole; None where there was no run."""
        damaged: DataError | None = None
        for candidate in (state_path(path), previous_state_path(path)):
            if candidate.exists():
                try:
                    state = _state_in(candidate)
                except DataError as error:
                    _log.warning("%s", error)
                    damaged = error
                else:
                    self._check_same_run(candidate, state)
                    self._check_log(state)
                    return state
        if damaged is not None:
            raise DataError(f"{damaged}; no other state of this run is whole, so train anew with --restart")
        if path.exists():
            raise UserError(
                f"{path}: weights without the state of a run, so training would overwrite them; overwrite them with "
                "--restart, or choose another train_spec.checkpoint_path"
            )
        self._check_log(None)
        return None

    def _check_log(self, state: dict[str, Any] | None) -> None:
        """Rows may be added to the log of this run, wherever it was moved, not to one of another.  Raises UserError."""
        log_file = self.config.train_spec.log_file
        earlier = configuration.parse(state["config"], "state").train_spec.log_file if state else None
        if log_file in (None, earlier):
            return
        rows = Path(log_file).read_bytes() if Path(log_file).is_file() else b""
        own = state is not None and f'"seconds": {state["progress"]["seconds"]!r}'.encode() in rows
        if rows and not own:
            raise UserError(
                f"train_spec.log_file: {log_file} holds the log of another run; choose another log_file, or train anew "
                "with --restart, which replaces it"
            )

    def _check_same_run(self, path: Path, state: dict[str, Any]) -> None:
        ignored = configuration.MAY_CHANGE_ON_RESUME
        changed = configuration.differences(_config_of(path, state), self.config, ignore=ignored)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{path}: this run was begun with another configuration; train anew with --restart, choose another "
                f"train_spec.checkpoint_path, or undo the change:\n  {listed}"
            )

    def _logger(self, start: int | None) -> MetricLogger:
        log_file = self.config.train_spec.log_file
        stem = Path(self.config.train_spec.checkpoint_path).stem  # other runs may have their files in the same folder
        return MetricLogger(Path(log_file) if log_file else None, self._logdir or self.folder / "tb" / stem, start)

    # --- test ---------------------------------------------------------------------------------------------------------

    def check_test(self) -> None:
        """Find now what would stop the test after hours of training.  Raises UserError, DataError."""
        device, params = self.device_for(train=False), self.config.test_spec.test_params
        images = parsers.test_images(self.config, device)
        parsers.grid_episodes(self.config, images, max(params.max_batch_cls), max(params.timesteps))
        if self._named or self.config.test_checkpoint != self.config.train_spec.checkpoint_path:
            self.trained(device)

    def test(self) -> None:
        """Run the test grid and write the table, cell by cell; cells that are there already are kept."""
        config, spec, device = self.config, self.config.test_spec, self.device_for(train=False)
        model = self.trained(device)
        images = parsers.test_images(config, device)
        grid = self._grid(model, images.digest())
        batch, chunk = evaluator.sizes_at_once(device, config.test_data.batch_size, spec.chunk)
        with contextlib.ExitStack() as stack:
            self.processes.broadcast_from_main(lambda: stack.enter_context(_held_by_test(Path(spec.output_file))))
            table = Table(config, grid)
            for classes, timesteps in self.processes.broadcast_from_main(table.open):
                cell = parsers.cell_name(classes, timesteps)
                episodes = parsers.grid_episodes(config, images, classes, timesteps)
                begun = self.processes.broadcast_from_main(partial(table.begun, cell))
                with tqdm(
                    total=len(episodes),
                    initial=len(begun["bound"]) if begun else 0,
                    desc=cell,
                    unit="target",
                    dynamic_ncols=True,
                    disable=not self.processes.main,
                ) as bar:
                    values = evaluator.evaluate_cell(
                        model,
                        episodes,
                        ("test", grid.seed, cell),
                        grid.importance_num,
                        batch,
                        chunk,
                        bar.update,
                        processes=self.processes,
                        begun=begun,
                        keep=partial(table.save_partial, cell),
                    )
                self.processes.broadcast_from_main(partial(table.put, cell, values))
        if self.processes.main:
            print(table.markdown())
            print(f"written: {spec.output_file}, and beside it the table as .md, the plot as .png, every bound as .npz")

    def _grid(self, model: VMA, images: str) -> evaluator.Grid:
        spec, params = self.config.test_spec, self.config.test_spec.test_params
        return evaluator.Grid(
            cells=[(c, m) for c in params.max_batch_cls for m in params.timesteps],
            importance_num=spec.importance_num,
            seed=spec.seed,
            fingerprint={
                "weights": checkpoints.digest(model.state_dict()),
                "images": images,
                "likelihood": self.config.model.likelihood,
                "targets": spec.targets or "all",
                "own_class": spec.own_class,
            },
        )

    def trained(self, device: torch.device) -> VMA:
        """The model with the weights of the checkpoint; its networks must be those of the configuration."""
        weights = self.processes.broadcast_from_main(lambda: self._checkpoint()["model"])
        model = parsers.build_model(self.config, device)
        model.load_state_dict(weights)
        Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood
        torch.backends.cudnn.allow_tf32 = False  # bounds in float32, on every device
        return model.eval()

    def export(self, path: Path) -> None:
        """Write the weights of the checkpoint, with their configuration, for others.  Raises UserError, OSError.

        To be read again, the name must end in .safetensors.
        """
        if self.processes.main:
            state = self._checkpoint()
            checkpoints.export(path, state["model"], state["config"])
            print(
                f"written: {path}, {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
            )

    @property
    def _path_to_test(self) -> Path:
        return self._named or Path(self.config.test_checkpoint)

    def _checkpoint(self) -> dict[str, Any]:
        """The checkpoint to test; its networks are those of the configuration.  Raises UserError, DataError."""
        path = self._path_to_test
        if not path.exists():
            missing = DataError if self._named else UserError
            raise missing(f"{path}: there is no such checkpoint; train first (--train) or name one with --checkpoint")
        state = self._of_this_model(path, configuration.MODEL_KEYS)
        subset = self.config.test_spec.subset
        if subset != "test" and (choice := self._other_classes(state)):
            raise UserError("\n  ".join([f"{path}: test_spec.subset: {subset} would be other classes:", *choice]))
        return state

    def _of_this_model(self, path: Path, keys: Sequence[str]) -> dict[str, Any]:
        """The checkpoint in `path`, whose configuration agrees in `keys`.  Raises UserError, DataError.

        Of the state of a run it is the moving average, where there is one.
        """
        state = checkpoints.load(path)
        if changed := configuration.differences(_config_of(path, state), self.config, only=keys):
            raise UserError("\n  ".join([f"{path}: its model is not the one of this configuration:", *changed]))
        return {**state, "model": state.get("averaged") or state["model"]}

    def _weights_to_begin_with(self) -> dict[str, Tensor]:
        path = Path(self.config.train_spec.init_from or "")
        if not path.exists():
            raise DataError(f"train_spec.init_from: {path}: there is no such checkpoint")
        state = self._of_this_model(path, configuration.NETWORK_KEYS)
        then, now = _config_of(path, state).train_data, self.config.train_data
        if (then.kind, then.split, now.split) == (now.kind, "45-5", "official"):
            raise UserError(f"train_spec.init_from: {path}: trained on classes that the official split tests on")
        if then.kind == now.kind and now.held_out_classes and (choice := self._other_classes(state)):
            said = "trained on other classes, so that those held out now may be among them; hold out the same, or none"
            raise UserError("\n  ".join([f"train_spec.init_from: {path}: {said}:", *choice]))
        return state["model"]

    def _other_classes(self, state: dict[str, Any]) -> list[str]:
        """What makes the training and held-out classes of a checkpoint others than those of the configuration."""
        trained = configuration.parse(state["config"], "checkpoint")
        return configuration.differences(trained, self.config, only=configuration.HELD_OUT_KEYS)

    # --- pictures -----------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Write picture grids of memories, samples and reconstructions."""
        device = self.device_for(train=False)
        model = self.trained(device)  # by all processes: the first reads the weights and sends them
        if not self.processes.main:
            return
        test = parsers.test_images(self.config, device)
        if self._other_classes(self._checkpoint()):
            _log.warning("the model was trained on other classes, so no nearest training images are shown")
            neighbours = None
        else:
            neighbours = parsers.training_images(self.config, device).train.images
        params, folder = self.config.test_spec.test_params, self._folder_of_samples()
        for classes in params.max_batch_cls:
            for timesteps in params.timesteps:
                episodes = parsers.grid_episodes(self.config, test, classes, timesteps)
                path = folder / f"C{classes}_M{timesteps}.png"
                noise = StepNoise(device, "sample", self.config.test_spec.seed, classes, timesteps)
                pictures.write_samples(path, model, pictures.spread(episodes), neighbours, noise)
        print(f"written: {folder}/*.png")

    def _folder_of_samples(self) -> Path:
        """`samples` in the folder of the run; there, a folder of their own for those of other weights."""
        own, shown = Path(self.config.train_spec.checkpoint_path), self._path_to_test
        folder = self.folder / "samples"
        return folder if shown.resolve() == own.resolve() else folder / shown.stem


def _held_by_training(path: Path) -> contextlib.AbstractContextManager[None]:
    of_run = (state_path(path), evidence_path(path), path.with_suffix(".resolved.yaml"))
    return exclusive_lock(path, "training", "train_spec.checkpoint_path", of_run)


def _held_by_test(path: Path) -> contextlib.AbstractContextManager[None]:
    of_table = [path.with_suffix(suffix) for suffix in (".md", ".png", ".npz", ".resolved.yaml")]
    return exclusive_lock(path, "test", "test_spec.output_file", of_table)


def _state_in(path: Path) -> dict[str, Any]:
    state = checkpoints.load(path)
    if "optimizer" not in state:
        raise DataError(f"{path}: weights, not the state of a run")
    return state


class Table:
    """The test's table, which is on disk as far as its cells are finished."""

    def __init__(self, config: Config, grid: evaluator.Grid) -> None:
        self._config, self._grid, self._output = config, grid, Path(config.test_spec.output_file)
        self._store = evaluator.CellStore(self._output, grid.key())

    def open(self) -> list[tuple[int, int]]:
        """Take up the cells that an earlier run finished; the others, which are to do.  Raises OSError.

        A table of other weights or another test gets another name, so that it is not written over.
        """
        if self._store.empty and (self._store.path.exists() or self._output.exists()):
            self._rename_the_other()
        resolved = configuration.dump(self._config).encode()
        write_atomically(self._output.with_suffix(".resolved.yaml"), resolved)
        if self._rows():
            self._write()
        return [(c, m) for c, m in self._grid.cells if self._store.get(parsers.cell_name(c, m)) is None]

    def _rename_the_other(self) -> None:
        stem = self._output.with_suffix("")
        suffixes = (".csv", ".md", ".png", ".resolved.yaml", ".npz")
        free = next(n for n in itertools.count(1) if not any(Path(f"{stem}.before-{n}{s}").exists() for s in suffixes))
        for suffix in suffixes:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{stem}{suffix}").replace(f"{stem}.before-{free}{suffix}")
        _log.warning(
            "%s is no table of these weights and this test; it is now %s.before-%d.*", self._output, stem, free
        )  # fmt: skip

    def begun(self, cell: str) -> evaluator.PerTarget | None:
        """The first targets of a cell, where an earlier run came so far."""
        return self._store.begun(cell)

    def save_partial(self, cell: str, values: evaluator.PerTarget) -> None:
        """Keep the first targets of a cell.  Raises OSError."""
        self._store.save_partial(cell, values)

    def put(self, cell: str, values: evaluator.PerTarget) -> None:
        """Write a finished cell.  Raises OSError."""
        self._store.put(cell, values)
        self._write()

    def markdown(self) -> str:
        return tables.markdown(self._rows(), self._config)

    def _write(self) -> None:
        tables.write_table(self._output, self._rows(), self._config)

    def _rows(self) -> list[dict[str, float | int]]:
        """In the order of the grid."""
        finished = ((c, m, self._store.get(parsers.cell_name(c, m))) for c, m in self._grid.cells)
        k = self._grid.importance_num
        return [evaluator.summary(c, m, values, k) for c, m, values in finished if values is not None]


def _config_of(path: Path, state: dict[str, Any]) -> Config:
    try:
        return configuration.parse(state["config"], str(path))
    except (KeyError, configuration.ConfigError) as error:
        raise DataError(f"{path}: not a checkpoint of this version of the program ({error})") from None


def _image_logger(
    loaders: dict[str, EpisodeLoader | MixedLoader | None], device: torch.device
) -> Callable[[nn.Module, MetricLogger, int], None]:
    """Puts a grid of the same episodes of each part into the logger."""

    def log_images(model: nn.Module, logger: MetricLogger, step: int) -> None:
        assert isinstance(model, VMA)
        for part, loader in loaders.items():
            if loader is not None:
                noise = StepNoise(device, "picture", part)
                logger.log_image(
                    f"{part}/memory_target_reconstruction_samples",
                    step,
                    pictures.episode_grid(model, loader.at(0), noise),
                )

    return log_images


@contextlib.contextmanager
def memory_watched() -> Iterator[None]:
    """Raises MemoryError, with advice, where memory was too small, that of a GPU or of the machine."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = "lower train_data.batch_size, or for the test set test_spec.chunk=50 and lower test_data.batch_size"
        raise MemoryError(f"{str(error).splitlines()[0]} {advice}") from None


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed: handed back, every activation costs its page faults anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX
