"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output runs/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (an interrupted row is resumed, a finished one
is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.  Rows that are not finished, or were
computed from another list, are not in the table.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import config as configuration
import run
from config import Config, strict_yaml
from reports.cells import column_of, described, load_origin, metric_described
from reports.estimates import estimate
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program
from studies.trainings import Cells, Trainings


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
        tests = {name: load_origin(study.output / name / "results.npz") for name in done}
        rows = compared(done, tests, column_of(config.test_spec.samples))
        program.write(study.output, "ablations", rows, markdown(rows, config), show=False)
    return [name for name in study.own if name not in done]


def compared(done: Mapping[str, Cells], tests: Mapping[str, object], column: str) -> list[program.Row]:
    """The bound of each row and cell as `column`, and its difference to the first row in nats, target by target.

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
                    column: estimate(-values["bound"], classes).mean,
                    "difference": difference.mean,
                    "difference_stderr": difference.stderr_new_classes,
                    "targets": len(classes),
                }
            )
    return rows


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each row, a column for each cell; `config` is that of the first row."""
    column = column_of(config.test_spec.samples)
    lines: dict[str, str] = {}
    for row in rows:
        difference = f" ({row['difference']:+z.2f} ± {row['difference_stderr']:.2f})"
        shown = f"{row[column]:.2f}" + (difference if row["row"] != rows[0]["row"] else "")
        lines[row["row"]] = f"{lines.get(row['row'], row['row'])} | {shown}"
    return program.markdown(
        f"{metric_described(config)}. {described(config)}; {rows[0]['targets']} targets. In brackets the difference to "
        f"the row *{rows[0]['row']}* on the same targets, ± one standard error over classes; one training a row.",
        " | ".join(["", *dict.fromkeys(row["cell"] for row in rows)]),
        lines.values(),
    )


if __name__ == "__main__":
    run.standalone(main)
