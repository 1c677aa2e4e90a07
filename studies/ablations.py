"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output runs/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (an interrupted row is resumed, a finished one
is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.  Rows that are not finished, or were
tested as another list says or on other images than the first one, are not in the table.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import config as configuration
import run
from config import Config, cell_name, strict_yaml
from reports.cells import described, metric_described
from reports.compare import Table
from reports.estimates import estimate
from reports.tables import markdown_table
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program
from studies.trainings import WHERE, Training

_TEST = ("model.likelihood", "test_data", "test_spec")  # and what is held out: which cells and targets are compared
_NOT_OF_TEST = (*WHERE, "test_data.batch_size", "test_spec.chunk")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = program.parser("ablations", __doc__)
    p.add_argument("study", type=run.pathname, metavar="YAML", help="the list: config, set, rows")
    p.add_argument("--seed", type=int, metavar="N", help="train_spec.seed of all rows; use another --output for it")
    p.add_argument("--only", action="append", metavar="NAME", help="only this row of the list; may be repeated")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Train, test and write, row by row.  Raises UserError, OSError."""
    rows = read(args.study, args.output, args.root, args.seed)
    names = args.only or list(rows)
    if unknown := set(names) - rows.keys():
        raise UserError(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(rows)}")
    for name in names:
        if status := rows[name].run(args.device):
            return status
        left_out = write(args.output, rows)
    if left_out:
        needed = "they and the first row are done as the list says, on the same images"
        print(f"not in the table until {needed}: {', '.join(left_out)}")
    return 0


def read(path: Path, output: Path, root: str | None = None, seed: int | None = None) -> dict[str, Training]:
    """The rows of the list in `path`, by name.  Raises UserError, with what is wrong."""
    try:
        raw = strict_yaml.parse(strict_yaml.read(path))
    except strict_yaml.StrictYamlError as error:
        raise UserError(f"{path}: {error}") from None
    keys = {"config", "set", "rows"}
    if not isinstance(raw, dict) or raw.keys() != keys or not isinstance(raw["rows"], dict) or not raw["rows"]:
        raise UserError(f"{path}: expected the keys config, set (overrides of all rows) and rows (name: overrides)")
    config, common = Path(str(raw["config"])), configuration.overrides(root, seed=seed)
    common += _overrides(path, "set", raw["set"])
    rows: dict[str, Training] = {}
    for name, own in raw["rows"].items():
        rows[name] = Training(config, [*common, *_overrides(path, f"rows.{name}", own)], output / name)
        if changed := of_other_tests(next(iter(rows.values())).config, rows[name].config):
            raise UserError("\n  ".join([f"{path}: rows.{name}: tested otherwise than the first row:", *changed]))
    return rows


def _overrides(path: Path, where: str, raw: object) -> list[str]:
    if not isinstance(raw, list) or not all(isinstance(one, str) for one in raw):
        raise UserError(f"{path}: {where}: expected a list of KEY=VALUE, such as [train_spec.lr=1e-3], not {raw!r}")
    return raw


def of_other_tests(first: Config, other: Config) -> list[str]:
    """Why two rows are not tested on the same cells and targets, a line for each key."""
    keys = (*_TEST, *(configuration.HELD_OUT_KEYS if first.test_spec.subset != "test" else ()))
    return configuration.differences(first, other, ignore=_NOT_OF_TEST, only=keys, names=("there", "here"))


# --- the table --------------------------------------------------------------------------------------------------------


def write(output: Path, rows: Mapping[str, Training]) -> list[str]:
    """The table of the rows that are done, once the first of the list is; the names of the others.  Raises OSError."""
    tables = {name: table for name, row in rows.items() if (table := row.table())}
    if not (first := tables.get(next(iter(rows)))):
        return list(rows)
    done = {name: table for name, table in tables.items() if table.targets == first.targets}  # the same images
    found = list(compared(done))
    program.write(output, "ablations", found, markdown(found, first.config))
    return [name for name in rows if name not in done]


def compared(tables: Mapping[str, Table]) -> Iterator[program.Row]:
    """The bound of each row and cell, and its difference to the first row in nats, target by target.

    The standard error is over classes, since the held-out ones are a few of those that might have been held out.
    """
    first = next(iter(tables.values()))
    column = first.config.test_spec.column
    for name, table in tables.items():
        for (c, m), row in zip(first.config.test_cells, table.rows, strict=True):
            cell = cell_name(c, m)
            a, b = (one.stored.cells[cell] for one in (first, table))
            difference = estimate(a["bound"] - b["bound"], b["target_class"])
            yield {
                "row": name, "cell": cell, column: row[column], "difference": difference.mean,
                "difference_stderr": difference.stderr_new_classes, "targets": row["targets"],
            }  # fmt: skip


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
