"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output runs/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (an interrupted row is resumed, a finished one
is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.  Rows that are not finished, or were
computed from another list, are not in the table.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import config as configuration
import run
from config import Config, cell_name, strict_yaml
from evaluator import PerTarget
from parsers import build_optimizer, build_scheduler
from reports.cells import described, load_cells, load_origin
from reports.estimates import estimate
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program

Cells = Mapping[str, PerTarget]  # by name

_MACHINE = ("train_data.root", "val_data.root", "test_data.root", "train_spec.gpus", "test_spec.gpus")
_FILES = ("train_spec.checkpoint_path", "train_spec.log_file", "test_spec.output_file")
_WHERE = (*_MACHINE, *_FILES)  # may differ


@dataclass(frozen=True)
class Study:
    """A configuration, overrides `common` to all rows, and those of each row; all are compared with the first."""

    config: str
    common: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]

    def overrides(self, name: str, output: Path) -> list[str]:
        """All that a row changes in the configuration, and where its files go."""
        return [*self.common, *self.rows[name], *configuration.overrides(output=output / name)]

    def configured(self, name: str, output: Path) -> Config:
        """The configuration of a row.  Raises UserError."""
        return configuration.load(Path(self.config), self.overrides(name, output))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = program.parser("ablations", __doc__)
    p.add_argument("study", type=run.pathname, metavar="YAML", help="the list: config, set, rows")
    p.add_argument("--only", action="append", metavar="NAME", help="only this row of the list; may be repeated")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Train, test and write, row by row.  Raises UserError, OSError."""
    study, output = read(args.study, configuration.overrides(args.root)), args.output
    names = args.only or list(study.rows)
    if unknown := set(names) - study.rows.keys():
        raise UserError(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(study.rows)}")
    for name in study.rows:  # before hours of training
        try_out(study.configured(name, output))
    for name in names:
        check(study, name, output)
    for name in names:
        print(f"--- {name}", flush=True)
        options = program.options(None, args.device, study.overrides(name, output))
        if status := run.main(["--config", study.config, "--train", "--test", *options]):
            return status
        left_out = write(study, output)
    if next(iter(study.rows)) not in left_out:
        print((output / "ablations.md").read_text())
    if left_out:
        print(f"not in the table, since they are not done as the list says: {', '.join(left_out)}")
    return 0


def read(path: Path, roots: Sequence[str] = ()) -> Study:
    """The list in `path`, with overrides `roots` before its own.  Raises UserError, with what is wrong."""
    try:
        raw = strict_yaml.parse(strict_yaml.read(path))
    except strict_yaml.StrictYamlError as error:
        raise UserError(f"{path}: {error}") from None
    keys = {"config", "set", "rows"}
    if not isinstance(raw, dict) or raw.keys() != keys or not isinstance(raw["rows"], dict) or not raw["rows"]:
        raise UserError(f"{path}: expected the keys config, set (overrides of all rows) and rows (name: overrides)")
    rows = {str(name): _overrides(path, f"rows.{name}", of) for name, of in raw["rows"].items()}
    return Study(str(raw["config"]), (*roots, *_overrides(path, "set", raw["set"])), rows)


def _overrides(path: Path, where: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(one, str) and "=" in one for one in raw):
        raise UserError(f"{path}: {where}: expected a list of KEY=VALUE, such as [train_spec.lr=1e-3], not {raw!r}")
    return tuple(raw)


def try_out(config: Config) -> None:
    """Raises UserError where only the beginning of the training would find out what is wrong."""
    build_scheduler(config.train_spec, build_optimizer(config.train_spec, nn.Linear(1, 1)))


def check(study: Study, name: str, output: Path) -> None:
    """Raises UserError where a row was trained as another list says.

    A training that is done would be taken for one with other steps, since a run may be resumed with more of them.
    """
    path, ignored = output / name / "vma.resolved.yaml", (*_WHERE, "test_data", "test_spec")
    if not path.exists():
        return
    if changed := configuration.differences(configuration.load(path), study.configured(name, output), ignore=ignored):
        said = f"{path.parent}: trained as another list says; remove that folder, or choose another --output:"
        raise UserError("\n  ".join([said, *changed]))


# --- the table --------------------------------------------------------------------------------------------------------


def write(study: Study, output: Path) -> list[str]:
    """The table of the rows that are done, once the first of the list is; the names of the others.

    Raises UserError, OSError.
    """
    found = {name: finished(study, name, output) for name in study.rows}
    done = {name: cells for name, cells in found.items() if cells is not None}
    if (first := next(iter(study.rows))) in done:
        rows = compared(done, {name: load_origin(output / name / "results.npz") for name in done})
        program.write(output, "ablations", rows, markdown(rows, study.configured(first, output)), show=False)
    return [name for name in study.rows if name not in done]


def finished(study: Study, name: str, output: Path) -> Cells | None:
    """The cells of a row, if all are there and were made as the list says now.  Raises UserError."""
    asked = study.configured(name, output)
    try:
        tested = configuration.load(output / name / "results.resolved.yaml")
    except UserError:
        return None
    if configuration.differences(tested, asked, ignore=_WHERE):
        return None
    cells, params = load_cells(output / name / "results.npz"), asked.test_spec.test_params
    wanted = [cell_name(c, m) for c in params.max_batch_cls for m in params.timesteps]
    return {cell: cells[cell] for cell in wanted} if cells.keys() >= set(wanted) else None


def compared(done: Mapping[str, Cells], tests: Mapping[str, object]) -> list[program.Row]:
    """ELBO of each row and cell, and its difference to the first row, target by target, in nats (negative is better).

    The standard error is over classes, since the held-out ones are a few of those that might have been held out.

    Raises:
        UserError: the rows were not tested on the same cells and targets.
    """
    of_first, first = next(iter(done.items()))
    rows: list[program.Row] = []
    for name, cells in done.items():
        if (cells.keys(), tests[name]) != (first.keys(), tests[of_first]):
            raise UserError(
                f"{name}: tested on other cells or targets than {of_first}; a row may change neither the test nor what "
                "is held out (train_spec.seed, train_data.held_out_classes)"
            )
        for cell, values in cells.items():
            classes = values["target_class"]
            difference = estimate(first[cell]["bound"] - values["bound"], classes)
            rows.append(
                {
                    "row": name,
                    "cell": cell,
                    "ELBO": estimate(-values["bound"], classes).mean,
                    "difference": difference.mean,
                    "difference_stderr": difference.stderr_new_classes,
                    "targets": len(classes),
                }
            )
    return rows


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each row, a column for each cell; `config` is that of the first row."""
    lines: dict[str, str] = {}
    for row in rows:
        difference = f" ({row['difference']:+z.2f} ± {row['difference_stderr']:.2f})"
        shown = f"{row['ELBO']:.2f}" + (difference if row["row"] != rows[0]["row"] else "")
        lines[row["row"]] = f"{lines.get(row['row'], row['row'])} | {shown}"
    return program.markdown(
        f"ELBO@{config.test_spec.importance_num} on {rows[0]['targets']} targets: minus the importance-weighted bound, "
        f"nats per image, lower is better. {described(config)}. In brackets the difference to the row "
        f"*{rows[0]['row']}* on the same targets, ± one standard error over classes; one training for each row.",
        " | ".join(["", *dict.fromkeys(row["cell"] for row in rows)]),
        lines.values(),
    )


if __name__ == "__main__":
    run.leave(main())
