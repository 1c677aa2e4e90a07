"""--train: from the start, or from where an earlier run stopped."""

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import config as configuration
import parsers
from commands import summary
from commands.session import Outputs, Session, config_of, different_classes, load_matching, refuse_test_classes
from config import Config
from data.episodes import EpisodeLoader, MixedLoader
from models.base import MemoryModel
from reports import pictures, plots
from runtime import checkpoints
from runtime.errors import DataError, NonFiniteError, PeerFailedError, PeerLostError, UserError, reason
from runtime.files import exclusive_lock, is_null, write_atomically
from runtime.metric_logger import MetricLogger, read_log
from runtime.randomness import StepNoise
from runtime.signals import Stopped
from trainer import DAMAGED, EVIDENCE, PREVIOUS_STATE, STATE, Progress, Trainer, TrainerConfig

_log = logging.getLogger(__name__)

_STATES = (STATE, PREVIOUS_STATE, DAMAGED, EVIDENCE)


def run(session: Session, restart: bool = False) -> None:
    """Train; the last state of an earlier run is resumed, or replaced with `restart`."""
    config, on_main = session.config, session.processes.broadcast_from_main
    path = Path(config.train_spec.checkpoint_path)
    with contextlib.ExitStack() as stack:
        on_main(lambda: _lock(stack, session))
        state = on_main(lambda: None if restart else _state_to_resume(path, config))
        begins = state is None and config.train_spec.init_from is not None
        weights = on_main(lambda: initial_weights(config)) if begins else None
        trainer = build_trainer(session, announce=True)
        if weights is not None:
            with checkpoints.as_expected(Path(config.train_spec.init_from or "")):
                trainer.load_weights(trainer.model.adapted(weights))  # type: ignore[operator]
        if state is not None:
            resume(trainer, trainer.state_path, state, config)
            session.say(f"resuming {path} at step {trainer.progress.step}")
        if trainer.progress.step < config.train_spec.steps:
            on_main(lambda: _prepare_files(config, restart))
        session.stop.restarted = True
        _fit(trainer, session)
    draw_curves(session)
    session.say(f"trained {trainer.progress.step} steps; weights for --test: {path}")


def _fit(trainer: Trainer, session: Session) -> None:
    with session.stop.deferred():  # it imports TensorBoard
        logger = build_logger(session, trainer.progress.step or None)
    try:
        trainer.fit(logger)
    except (Stopped, NonFiniteError):
        logger.close()
        with contextlib.suppress(PeerFailedError, PeerLostError):
            # Process 0 is ready to end before the others do: torchrun answers the end of one with a signal to the rest.
            session.processes.broadcast_from_main(lambda: None)
        raise
    finally:
        logger.close()


def build_trainer(session: Session, announce: bool = False) -> Trainer:
    """A trainer at its first step; with `announce` the course and the files of its training are printed.

    Raises UserError, DataError.
    """
    config, spec, device = session.config, session.config.train_spec, session.device_for(session.config.train_spec)
    torch.backends.cudnn.allow_tf32 = True  # an earlier test of this process may have turned it off
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs, and reads when it starts
    torch.use_deterministic_algorithms(spec.deterministic, warn_only=True)
    Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood; the first step has it
    # Optimizers import this, which takes as long as unpacking the images does.
    threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True).start()
    images = parsers.training_images(config, device)
    train = parsers.train_loader(config, images, session.processes.shard)
    validation = parsers.validation_loader(config, images)
    model = parsers.build_model(config, device)
    optimizer = parsers.build_optimizer(spec, model)
    if announce:
        session.say(summary.of_training(config, model, images, device, session.processes, _board(session)))
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
        checkpoint_path=Path(spec.checkpoint_path),
        config_text=configuration.dump(config),
        images=images.digest(),
        stop=session.stop,
        log_images=_image_logger({"train": train, "validation": validation}, device),
        processes=session.processes,
    )


def build_logger(session: Session, start: int | None) -> MetricLogger:
    """The logger of process 0 for a run that resumes after step `start`; others log nothing."""
    if not session.processes.main:
        return MetricLogger(None, None, None)
    log_file = session.config.train_spec.log_file
    return MetricLogger(Path(log_file) if log_file else None, _board(session), start)


def _board(session: Session) -> Path:
    """TensorBoard's folder; other runs may have their files in the same folder."""
    path = Path(session.config.train_spec.checkpoint_path)
    return session.logdir or path.parent / "tb" / path.stem


def _image_logger(
    loaders: dict[str, EpisodeLoader | MixedLoader | None], device: torch.device
) -> Callable[[nn.Module, MetricLogger, int], None]:
    """Logs a grid of the same episodes of each subset."""

    def log_images(model: nn.Module, logger: MetricLogger, step: int) -> None:
        assert isinstance(model, MemoryModel)
        for subset, loader in loaders.items():
            if loader is not None:
                grid = pictures.episode_picture(model, loader.at(0), StepNoise(device, "picture", subset))
                logger.log_image(f"{subset}/memory_target_reconstruction_samples", step, grid)

    return log_images


def draw_curves(session: Session) -> None:
    """Draw the log of the training beside it; where that cannot be done, a warning is logged."""
    log_file = session.config.train_spec.log_file
    if not session.processes.main or log_file is None or not Path(log_file).is_file():
        return
    try:
        print(f"written: {plots.write_curves(Path(log_file), session.config)}")
    except (OSError, ImportError, ValueError) as error:
        _log.warning("%s cannot be drawn (%s)", log_file, reason(error))


# --- files of a run ---------------------------------------------------------------------------------------------------


def outputs(session: Session) -> Outputs:
    """The files of a training."""
    spec, path = session.config.train_spec, Path(session.config.train_spec.checkpoint_path)
    log = [Path(spec.log_file)] if spec.log_file and not is_null(Path(spec.log_file)) else []
    return {
        "train_spec.checkpoint_path": [path, *map(path.with_suffix, (*_STATES, ".resolved.yaml"))],
        "train_spec.log_file": [*log, *(one.with_suffix(plots.CURVES) for one in log)],
        "--logdir": [_board(session) / "events"],
    }


def _lock(stack: contextlib.ExitStack, session: Session) -> None:
    """Weights and log, which another training may have named too."""
    written = outputs(session)
    for path, *beside in filter(None, (written["train_spec.checkpoint_path"], written["train_spec.log_file"])):
        stack.enter_context(exclusive_lock(path, "training", beside))


def _prepare_files(config: Config, restart: bool) -> None:
    """Write the configuration of the run; with `restart` remove what an earlier one left."""
    path, weights = Path(config.train_spec.checkpoint_path), Path(config.train_spec.init_from or "")
    if restart:
        for old in (*map(path.with_suffix, _STATES), path):
            if old.resolve() != weights.resolve():  # still needed if killed
                old.unlink(missing_ok=True)
    write_atomically(path.with_suffix(".resolved.yaml"), configuration.dump(config).encode())


def initial_weights(config: Config) -> dict[str, Tensor]:
    """The weights of `train_spec.init_from`.  Raises UserError, DataError."""
    path = Path(config.train_spec.init_from or "")
    way_out = "begin with other weights, or with train_spec.init_from=null"
    if not path.exists():
        raise DataError(f"train_spec.init_from: {path}: there is no such checkpoint; train it first, or {way_out}")
    try:
        state, began = load_matching(path, config, configuration.INITIAL_KEYS)
        _refuse_larger(path, began, config)
        refuse_test_classes(path, began, config)
    except UserError as error:
        raise type(error)(f"train_spec.init_from: {error}\n{way_out}") from None
    then, now = began.train_data, config.train_data
    if then.kind == now.kind and now.held_out_classes and (choice := different_classes(began, config)):
        problem = "trained on other classes, so that those held out now may be among them; hold out the same, or none"
        raise UserError("\n  ".join([f"train_spec.init_from: {path}: {problem}:", *choice]))
    return state["model"]


def _refuse_larger(path: Path, began: Config, config: Config) -> None:
    then, now = began.model.causal, config.model.causal
    for key in ("trunk_blocks", "fusion_blocks") if config.model.likelihood == "causal" else ():
        if getattr(then, key) > getattr(now, key):
            numbers = f"{getattr(then, key)} in the checkpoint, {getattr(now, key)} now"
            raise UserError(f"{path}: model.causal.{key}: {numbers}; blocks can be added, but not left out")
    if (scales := began.model.scales) not in ((1.0,), config.model.scales):
        learned = f"{list(scales)} in the checkpoint, {list(config.model.scales)} now"
        raise UserError(f"{path}: model.scales: {learned}; p(s) is learned for these and can only begin from [1]")
    if began.model.neighbours and not config.model.neighbours:
        raise UserError(
            f"{path}: model.neighbours: true in the checkpoint, false now; they can be added, but not left out"
        )


def load_state(path: Path) -> dict[str, Any]:
    """The state of a run.  Raises DataError."""
    state = checkpoints.load(path)
    if "optimizer" not in state:
        raise DataError(f"{path}: weights, not the state of a run; to begin with them, use train_spec.init_from")
    with checkpoints.as_expected(path):
        Progress(**state["progress"])
    return state


def _state_to_resume(path: Path, config: Config) -> dict[str, Any] | None:
    """The last undamaged state of an earlier run; None where there was no run.

    A damaged one is put aside: the next save would keep it in place of the good one that is left.
    """
    damaged: DataError | None = None
    for candidate in map(path.with_suffix, (STATE, PREVIOUS_STATE)):
        if not candidate.exists():
            continue
        try:
            state = load_state(candidate)
        except DataError as error:
            _log.warning("%s", error)
            damaged = error
        else:
            check_same_run(candidate, state, config)
            _check_log(state, config)
            if damaged is not None:
                path.with_suffix(STATE).replace(aside := path.with_suffix(DAMAGED))
                _log.warning("it is now %s, and the run goes on from %s", aside, candidate)
            return state
    if damaged is not None:
        raise DataError(f"{damaged}; no other state of this run is whole, so train anew with --restart")
    if path.exists():
        raise UserError(
            f"{path}: weights without the state of a run, so training would overwrite them; overwrite them with "
            "--restart, or choose another --output"
        )
    _check_log(None, config)
    return None


def resume(trainer: Trainer, path: Path, state: dict[str, Any], config: Config) -> None:
    """Let `trainer` go on from the state read from `path`, on the same images.  Raises UserError, DataError."""
    with checkpoints.as_expected(path):
        images = state["images"]
        trainer.resume(state)
    if images != trainer.images:
        raise UserError(
            f"{path}: this run was begun with other images than {config.train_data.root} has now; put those back, "
            "choose another --output, or train anew with --restart"
        )


def check_same_run(path: Path, state: dict[str, Any], config: Config) -> None:
    """The state read from `path` is one of a run of this configuration.  Raises UserError, DataError."""
    ignored = configuration.MAY_CHANGE_ON_RESUME
    if changed := configuration.differences(config_of(path, state), config, ignore=ignored):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{path}: this run was begun with another configuration; choose another --output, train anew with "
            f"--restart, or undo the change:\n  {listed}"
        )


def _check_log(state: dict[str, Any] | None, config: Config) -> None:
    """Rows may be added to the log of this run, wherever it was moved, not to one of another.  Raises UserError."""
    log_file = config.train_spec.log_file
    earlier = configuration.parse(state["config"], "state").train_spec.log_file if state else None
    if log_file in (None, earlier):
        return
    rows, unreadable = read_log(Path(log_file)) if Path(log_file).is_file() else ([], [])
    # its seconds of training belong to no other run
    ours = state is not None and any(row.get("seconds") == state["progress"]["seconds"] for row in rows)
    if (rows or unreadable) and not ours:
        raise UserError(
            f"train_spec.log_file: {log_file} holds the log of another run; choose another --output, or train anew "
            "with --restart, which replaces it"
        )
