"""--export: write the weights of the checkpoint for others."""

import hashlib
from pathlib import Path

import config as configuration
from commands.session import Session
from runtime import checkpoints


def run(session: Session, path: Path, half: bool = False) -> None:
    """Write the weights to `path`; the digest of their values is the one tables name.

    Their configuration is that of the training, but for `model.orders` and `test_spec`, which may have changed since.
    With `half` they are rounded to half precision.

    Raises UserError, DataError, OSError.

    To be read again, the name must end in .safetensors.
    """
    if session.processes.main:
        state, trained = session.load_checkpoint()
        model = trained.model.model_copy(update={"orders": session.config.model.orders})
        present = trained.model_copy(update={"model": model, "test_spec": session.config.test_spec})
        text = configuration.dump(present)
        configuration.parse(text, str(path))  # what could not be read again is not written
        weights = checkpoints.export(path, state["model"], text, half)
        content = path.read_bytes()
        print(f"written: {path}, {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        print(f"SHA-256 of the values of the weights: {checkpoints.digest(weights)}")
