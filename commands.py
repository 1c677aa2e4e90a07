"""What `--train`, `--test` and `--sample` do: objects from the configuration, put together and set to work."""

import contextlib
import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import OutOfMemoryError, nn
from torch.distributions import Distribution
from tqdm import tqdm

import checkpoints
import config as configuration
import evaluator
import parsers
import pictures
import reports
from config import Config
from data.episodes import EpisodeLoader, MixedLoader
from errors import DataError, UserError
from interrupts import StopRequest
from journal import Journal
from models.vma.vma import VMA
from randomness import StepNoise
from trainer import Plan, Trainer, previous_state_path, state_path

__all__ = ["OutOfMemoryError", "Run"]

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

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, restart: bool) -> None:
        """Train, from the beginning or from where an earlier run stopped."""
        path = Path(self.config.train_spec.checkpoint_path)
        with checkpoints.held(path):
            state = None if restart else self._state_to_resume(path)
            trainer = self._trainer(path)
            if restart:
                for old in (state_path(path), previous_state_path(path), path):
                    old.unlink(missing_ok=True)
            if state is not None:
                trainer.resume(state)
                print(f"resuming {path} at step {trainer.progress.step}")
            checkpoints.write_atomically(path.with_suffix(".resolved.yaml"), configuration.dump(self.config).encode())
            begun = trainer.progress.looked >= 0  # else no row was written
            journal = self._journal(trainer.progress.step if begun else None)
            try:
                trainer.fit(journal)
            finally:
                journal.close()
        print(f"trained {trainer.progress.step} steps; weights for --test: {path}")

    def _trainer(self, path: Path) -> Trainer:
        config, spec = self.config, self.config.train_spec
        device = parsers.device_of(spec.gpus, self._device)
        images = parsers.training_images(config, device)
        train = parsers.train_loader(config, images)
        validation = parsers.validation_loader(config, images)
        model = parsers.build_model(config, device)
        optimizer = parsers.build_optimizer(spec, model)
        return Trainer(
            model,
            optimizer,
            parsers.build_scheduler(spec, optimizer),
            train,
            validation,
            Plan(
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
            illustrate=_illustrator({"train": train, "validation": validation}, device),
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
                    return state
        if damaged is not None:
            raise DataError(f"{damaged}; no other state of this run is whole, so train anew with --restart")
        if path.exists():
            raise UserError(
                f"{path}: weights without the state of a run, so training would overwrite them; overwrite them with "
                "--restart, or choose another train_spec.checkpoint_path"
            )
        log_file = Path(self.config.train_spec.log_file or "")
        if log_file.is_file() and log_file.stat().st_size:
            raise UserError(
                f"train_spec.log_file: {log_file} holds the log of another run, and {path} has none to resume; choose "
                "another log_file, or train anew with --restart"
            )
        return None

    def _check_same_run(self, path: Path, state: dict[str, Any]) -> None:
        ignored = configuration.MAY_CHANGE_ON_RESUME
        changed = configuration.differences(_config_of(path, state), self.config, ignore=ignored)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{path}: this run was begun with another configuration; train anew with --restart, choose another "
                f"train_spec.checkpoint_path, or undo the change:\n  {listed}"
            )

    def _journal(self, start: int | None) -> Journal:
        log_file = self.config.train_spec.log_file
        return Journal(Path(log_file) if log_file else None, self._logdir or self.folder / "tb", start)

    # --- test ---------------------------------------------------------------------------------------------------------

    def check_test(self) -> None:
        """Find now what would stop the test after hours of training.  Raises UserError, DataError."""
        device = parsers.device_of(self.config.test_spec.gpus, self._device)
        parsers.test_images(self.config, device)
        if self._named:
            self._trained(device)

    def test(self) -> None:
        """Run the test grid and write the table, cell by cell; cells that are there already are kept."""
        config, spec = self.config, self.config.test_spec
        device = parsers.device_of(spec.gpus, self._device)
        torch.backends.cudnn.allow_tf32 = False  # a bound in float32, on every device
        model = self._trained(device)
        images = parsers.test_images(config, device)
        output = Path(spec.output_file)
        grid = self._grid(model, images.digest())
        ledger = evaluator.Ledger(output, grid.key())
        batch, chunk = evaluator.sizes_at_once(device, config.test_data.batch_size, spec.chunk)
        checkpoints.write_atomically(output.with_suffix(".resolved.yaml"), configuration.dump(config).encode())
        if rows := _rows(grid, ledger):
            reports.write_table(output, rows, config)
        for classes, timesteps in grid.cells:
            cell = parsers.cell_name(classes, timesteps)
            if ledger.get(cell) is not None:
                continue
            episodes = parsers.grid_episodes(config, images, classes, timesteps)
            with tqdm(total=len(episodes), desc=cell, unit="target", dynamic_ncols=True) as bar:
                key = ("test", grid.seed, cell)
                values = evaluator.evaluate_cell(model, episodes, key, grid.importance_num, batch, chunk, bar.update)
            ledger.put(cell, values)
            rows = _rows(grid, ledger)
            reports.write_table(output, rows, config)
        print(reports.markdown(rows, config))
        print(f"written: {output}, and beside it the table as .md, the plot as .png, every target's bound as .npz")

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
            },
        )

    def _trained(self, device: torch.device) -> VMA:
        """The model with the weights of the checkpoint; its networks must be those of the configuration."""
        path = self._named or Path(self.config.test_checkpoint)
        if not path.exists():
            missing = DataError if self._named else UserError
            raise missing(f"{path}: there is no such checkpoint; train first (--train) or name one with --checkpoint")
        state = checkpoints.load(path)
        changed = configuration.differences(_config_of(path, state), self.config, only=configuration.MODEL_KEYS)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(f"{path}: its model is not the one of this configuration:\n  {listed}")
        model = parsers.build_model(self.config, device)
        model.load_state_dict(state["model"])
        Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood
        return model.eval()

    # --- pictures -----------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Write picture grids of memories, samples and reconstructions."""
        device = parsers.device_of(self.config.test_spec.gpus, self._device)
        model = self._trained(device)
        test, train = parsers.test_images(self.config, device), parsers.training_images(self.config, device).train
        params, folder = self.config.test_spec.test_params, self.folder / "samples"
        for classes in params.max_batch_cls:
            for timesteps in params.timesteps:
                episodes = parsers.grid_episodes(self.config, test, classes, timesteps)
                path = folder / f"C{classes}_M{timesteps}.png"
                noise = StepNoise(device, "sample", self.config.test_spec.seed, classes, timesteps)
                pictures.write_samples(path, model, pictures.spread(episodes), train.images, noise)
        print(f"written: {folder}/*.png")


def _state_in(path: Path) -> dict[str, Any]:
    state = checkpoints.load(path)
    if "optimizer" not in state:
        raise DataError(f"{path}: weights, not the state of a run")
    return state


def _rows(grid: evaluator.Grid, ledger: evaluator.Ledger) -> list[dict[str, float | int]]:
    """The table's rows, as far as the cells are finished, in the order of the grid."""
    finished = ((c, m, ledger.get(parsers.cell_name(c, m))) for c, m in grid.cells)
    return [evaluator.summary(c, m, values, grid.importance_num) for c, m, values in finished if values is not None]


def _config_of(path: Path, state: dict[str, Any]) -> Config:
    try:
        return configuration.parse(state["config"], str(path))
    except (KeyError, configuration.ConfigError) as error:
        raise DataError(f"{path}: not a checkpoint of this version of the program ({error})") from None


def _illustrator(
    loaders: dict[str, EpisodeLoader | MixedLoader | None], device: torch.device
) -> Callable[[nn.Module, Journal, int], None]:
    """Puts a grid of the same episodes of each part into the journal."""

    def illustrate(model: nn.Module, journal: Journal, step: int) -> None:
        assert isinstance(model, VMA)
        for part, loader in loaders.items():
            if loader is not None:
                noise = StepNoise(device, "picture", part)
                journal.picture(
                    f"{part}/memory_target_reconstruction_samples",
                    step,
                    pictures.episode_grid(model, loader.at(0), noise),
                )

    return illustrate


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed: handed back, every activation costs its page faults anew."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX
