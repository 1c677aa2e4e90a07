"""--replay: run the step again that gave NaN or Inf."""

from pathlib import Path

from commands.session import Session
from commands.train import build_trainer, check_same_run, load_state, resume
from runtime.errors import UserError


def run(session: Session, path: Path) -> None:
    """Compute one step from the state in `path`, which was saved before it, and say which targets are at fault.

    Raises:
        NonFiniteError: as in the training.
        UserError, DataError: the state is not one of this configuration, or damaged.
    """
    if session.processes.world > 1:
        raise UserError("--replay computes in one process: start it without torchrun")
    state = load_state(path)
    check_same_run(path, state, session.config)
    trainer = build_trainer(session)
    resume(trainer, path, state, session.config)
    print(f"step {trainer.progress.step}, seed {session.config.train_spec.seed}: {trainer.replay()}")
