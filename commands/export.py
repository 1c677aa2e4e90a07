"""--export: write the weights of the checkpoint for others."""

import hashlib
from pathlib import Path

from commands.session import Session
from runtime import checkpoints


def run(session: Session, path: Path, half: bool = False) -> None:
    """Write the weights, with their configuration, to `path`; the digest of their values is the one tables name.

    With `half` they are rounded to half precision.

    Raises UserError, DataError, OSError.

    To be read again, the name must end in .safetensors.
    """
    if session.processes.main:
        state = session.load_checkpoint()
        weights = checkpoints.export(path, state["model"], state["config"], half)
        content = path.read_bytes()
        print(f"written: {path}, {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
        print(f"SHA-256 of the values of the weights: {checkpoints.digest(weights)}")
