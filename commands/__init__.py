"""What --train, --test, --sample, --export and --replay do: a module each, whose `run` is all that others call."""

from commands import export, replay, sample, test, train
from commands.session import Session, explain_out_of_memory

__all__ = ["Session", "explain_out_of_memory", "export", "replay", "sample", "test", "train"]
