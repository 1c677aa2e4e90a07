"""Trainings that differ in a few keys, each trained and tested by the command line into a folder of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import config as configuration
import run
from config import Config, cell_name
from evaluator import PerTarget
from parsers import build_optimizer, build_scheduler
from reports.cells import load_cells
from runtime.errors import UserError
from studies import program

Cells = Mapping[str, PerTarget]  # by name

_MACHINE = ("train_data.root", "val_data.root", "test_data.root", "train_spec.gpus", "test_spec.gpus")
_FILES = ("train_spec.checkpoint_path", "train_spec.log_file", "test_spec.checkpoint_path", "test_spec.output_file")
_WHERE = (*_MACHINE, *_FILES)  # may differ


@dataclass(frozen=True)
class Trainings:
    """A configuration, overrides `common` to all trainings, those of each, by name, and the folder of their folders."""

    config: str
    common: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]]
    output: Path

    def configured(self, name: str) -> Config:
        """The configuration of a training.  Raises UserError."""
        return configuration.load(Path(self.config), self._overrides(name))

    def try_out(self, name: str) -> None:
        """Raises UserError where only the beginning of the training would find out what is wrong."""
        spec = self.configured(name).train_spec
        build_scheduler(spec, build_optimizer(spec, nn.Linear(1, 1)))

    def check(self, name: str) -> None:
        """Raises UserError where the folder of a training holds one of another configuration.

        A training that is done would be taken for one with other steps, since a run may be resumed with more of them.
        """
        path, ignored = self.output / name / "vma.resolved.yaml", (*_WHERE, "test_data", "test_spec")
        if not path.exists():
            return
        if changed := configuration.differences(configuration.load(path), self.configured(name), ignore=ignored):
            said = f"{path.parent}: trained with another configuration; remove that folder, or choose another --output:"
            raise UserError("\n  ".join([said, *changed]))

    def run(self, name: str, device: str | None) -> int:
        """Train and test, as far as that is not done; the exit status."""
        print(f"--- {name}", flush=True)
        options = program.options(None, device, self._overrides(name))
        return run.main(["--config", self.config, "--train", "--test", *options])

    def finished(self, name: str) -> Cells | None:
        """The cells of a training, if all are there and were made as the configuration says now.  Raises UserError."""
        asked = self.configured(name)
        try:
            tested = configuration.load(self.output / name / "results.resolved.yaml")
        except UserError:
            return None
        if configuration.differences(tested, asked, ignore=_WHERE):
            return None
        cells = load_cells(self.output / name / "results.npz")
        wanted = [cell_name(c, m) for c, m in asked.test_cells]
        return {cell: cells[cell] for cell in wanted} if cells.keys() >= set(wanted) else None

    def _overrides(self, name: str) -> list[str]:
        return [*self.common, *self.own[name], *configuration.overrides(output=self.output / name)]
