"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output runs/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (an interrupted row is resumed, a finished one
is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.  Rows that are not finished, or were
computed from another list, are not in the table.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import config as configuration
import run
from config import Config, cell_name, strict_yaml
from evaluator import PerTarget
from parsers import build_optimizer, build_scheduler
from reports.cells import described, load_cells, metric_described
from reports.estimates import estimate
from reports.tables import markdown_table
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program

Cells = Mapping[str, PerTarget]  # by name

_MACHINE = ("train_data.root", "val_data.root", "test_data.root", "train_spec.gpus", "test_spec.gpus")
_FILES = ("train_spec.checkpoint_path", "train_spec.log_file", "test_spec.checkpoint_path", "test_spec.output_file")
_WHERE = (*_MACHINE, *_FILES)  # may differ
_TEST = ("model.likelihood", "test_data", "test_spec")  # and what is held out: which cells and targets are compared
_NOT_OF_TEST = (*_WHERE, "test_data.batch_size", "test_spec.chunk")


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

    def check_comparable(self, name: str) -> None:
        """Raises UserError where a training is not to be tested as the first of the list is."""
        first = next(iter(self.own))
        a, b = self.configured(first), self.configured(name)
        keys = (*_TEST, *(configuration.HELD_OUT_KEYS if a.test_spec.subset != "test" else ()))
        if configuration.differences(a, b, ignore=_NOT_OF_TEST, only=keys):
            raise _not_comparable(name, first)

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
        cells = load_cells(self.output / name / "results.npz").cells
        wanted = [cell_name(c, m) for c, m in asked.test_cells]
        return {cell: cells[cell] for cell in wanted} if cells.keys() >= set(wanted) else None

    def _overrides(self, name: str) -> list[str]:
        return [*self.common, *self.own[name], *configuration.overrides(output=self.output / name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = program.parser("ablations", __doc__)
    p.add_argument("study", type=run.pathname, metavar="YAML", help="the list: config, set, rows")
    p.add_argument("--only", action="append", metavar="NAME", help="only this row of the list; may be repeated")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Train, test and write, row by row.  Raises UserError, OSError."""
    study = read(args.study, args.output, configuration.overrides(args.root))
    names = args.only or list(study.own)
    if unknown := set(names) - study.own.keys():
        raise UserError(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(study.own)}")
    for name in study.own:  # before hours of training
        study.try_out(name)
        study.check_comparable(name)
    for name in names:
        study.check(name)
    for name in names:
        if status := study.run(name, args.device):
            return status
        left_out = write(study)
    if next(iter(study.own)) not in left_out:
        print((args.output / "ablations.md").read_text())
    if left_out:
        print(f"not in the table, since they are not done as the list says: {', '.join(left_out)}")
    return 0


def read(path: Path, output: Path, roots: Sequence[str] = ()) -> Trainings:
    """The list in `path`, with overrides `roots` before its own.  Raises UserError, with what is wrong."""
    try:
        raw = strict_yaml.parse(strict_yaml.read(path))
    except strict_yaml.StrictYamlError as error:
        raise UserError(f"{path}: {error}") from None
    keys = {"config", "set", "rows"}
    if not isinstance(raw, dict) or raw.keys() != keys or not isinstance(raw["rows"], dict) or not raw["rows"]:
        raise UserError(f"{path}: expected the keys config, set (overrides of all rows) and rows (name: overrides)")
    rows = {str(name): _overrides(path, f"rows.{name}", of) for name, of in raw["rows"].items()}
    return Trainings(str(raw["config"]), (*roots, *_overrides(path, "set", raw["set"])), rows, output)


def _overrides(path: Path, where: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(one, str) and "=" in one for one in raw):
        raise UserError(f"{path}: {where}: expected a list of KEY=VALUE, such as [train_spec.lr=1e-3], not {raw!r}")
    return tuple(raw)


# --- the table --------------------------------------------------------------------------------------------------------


def write(study: Trainings) -> list[str]:
    """The table of the rows that are done, once the first of the list is; the names of the others.

    Raises UserError, OSError.
    """
    found = {name: study.finished(name) for name in study.own}
    done = {name: cells for name, cells in found.items() if cells is not None}
    if (first := next(iter(study.own))) in done:
        config = study.configured(first)
        tests = {name: load_cells(study.output / name / "results.npz").origin | {"weights": None} for name in done}
        rows = list(compared(done, tests, config.test_spec.column))
        program.write(study.output, "ablations", rows, markdown(rows, config), show=False)
    return [name for name in study.own if name not in done]


def compared(done: Mapping[str, Cells], tests: Mapping[str, object], column: str) -> Iterator[program.Row]:
    """The bound of each row and cell as `column`, and its difference to the first row in nats, target by target.

    The standard error is over classes, since the held-out ones are a few of those that might have been held out.

    Raises:
        UserError: the rows were not tested on the same cells and targets.
    """
    of_first, first = next(iter(done.items()))
    for name, cells in done.items():
        if (cells.keys(), tests[name]) != (first.keys(), tests[of_first]):  # the images are others by now
            raise _not_comparable(name, of_first)
        for cell, values in cells.items():
            classes = values["target_class"]
            difference = estimate(first[cell]["bound"] - values["bound"], classes)
            yield {
                "row": name,
                "cell": cell,
                column: estimate(-values["bound"], classes).mean,
                "difference": difference.mean,
                "difference_stderr": difference.stderr_new_classes,
                "targets": len(classes),
            }


def _not_comparable(name: str, first: str) -> UserError:
    return UserError(
        f"{name}: tested on other cells or targets than {first}; a row may change neither the test nor what is held "
        "out (train_spec.seed, train_data.held_out_classes)"
    )


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each row, a column for each cell; `config` is that of the first row."""
    column = config.test_spec.column
    lines: dict[str, str] = {}
    for row in rows:
        difference = f" ({row['difference']:+z.2f} ± {row['difference_stderr']:.2f})"
        shown = f"{row[column]:.2f}" + (difference if row["row"] != rows[0]["row"] else "")
        lines[row["row"]] = f"{lines.get(row['row'], row['row'])} | {shown}"
    return markdown_table(
        f"{metric_described(config)}. {described(config)}; {rows[0]['targets']} targets. In brackets the difference to "
        f"the row *{rows[0]['row']}* on the same targets, ± one standard error over classes; one training a row.",
        " | ".join(["", *dict.fromkeys(row["cell"] for row in rows)]),
        lines.values(),
    )


if __name__ == "__main__":
    run.standalone(main)
