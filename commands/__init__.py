"""What --train, --test, --sample, --memory, --export and --replay do: a module each, of which others call `run`."""

from commands import drawings, export, outputs, replay, sample, test, train
from commands.session import Session, config_in, explain_out_of_memory

__all__ = [
    "Session", "config_in", "drawings", "explain_out_of_memory", "export", "outputs", "replay", "sample", "test",
    "train",
]  # fmt: skip
