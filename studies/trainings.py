"""Trainings that differ in some keys, each with its test in a folder of its own, by the command line of the project."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

import config as configuration
import run
from parsers import build_optimizer, build_scheduler
from reports import compare
from runtime.errors import UserError

# Where the data and the files are, and what computes: no part of what is trained and tested.
WHERE = (
    "train_data.root", "val_data.root", "test_data.root", "train_spec.gpus", "test_spec.gpus",
    "train_spec.checkpoint_path", "train_spec.log_file", "test_spec.checkpoint_path", "test_spec.output_file",
)  # fmt: skip


class Training:
    """A training and its test."""

    def __init__(self, config: Path, overrides: Sequence[str], folder: Path) -> None:
        """Raises UserError where the configuration is wrong, or another one than that of a training in the folder.

        One that is done would be taken for one with other steps, since a run may be resumed with more of them.
        """
        overrides = [*overrides, *configuration.overrides(output=folder), "test_spec.checkpoint_path=null"]
        self.folder, self.config = folder, configuration.load(config, overrides)
        self._arguments = ["--config", str(config), "--train", "--test", *(f"--set={one}" for one in overrides)]
        spec = self.config.train_spec
        build_scheduler(spec, build_optimizer(spec, nn.Linear(1, 1)))  # else found out when the training begins
        trained, ignored = folder / "vma.resolved.yaml", (*WHERE, "test_data", "test_spec")
        if trained.exists() and (
            changed := configuration.differences(configuration.load(trained), self.config, ignored)
        ):
            said = f"{folder}: trained with another configuration; remove that folder, or choose another --output:"
            raise UserError("\n  ".join([said, *changed]))

    def run(self, device: str | None) -> int:
        """Train and test, as far as that is not done; the exit status."""
        print(f"--- {self.folder.name}", flush=True)
        return run.main([*self._arguments, *([f"--device={device}"] if device else [])])

    def table(self) -> compare.Table | None:
        """That of the test, if all cells are there and were made as the configuration says now."""
        try:
            table = compare.read(self.folder / "results.csv")
        except UserError:
            return None
        whole = len(table.rows) == len(self.config.test_cells)
        return table if whole and not configuration.differences(table.config, self.config, ignore=WHERE) else None
