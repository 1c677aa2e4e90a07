"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output runs/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (a row that was begun is resumed, one that is
done is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.  Rows that are not done, or were
done with another list, are not in the table.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

import config as configuration
import run
from config import Config, strict_yaml
from evaluator import PerTarget
from parsers import build_optimizer, build_scheduler, cell_name
from reports.cells import load_cells, load_origin, standard_error
from reports.tables import comma_separated, described
from runtime.errors import UserError, status_of
from runtime.files import write_atomically
from studies import program

Cells = Mapping[str, PerTarget]  # by name
Test = Mapping[str, str | int]  # what makes bounds comparable

COLUMNS = ("row", "cell", "ELBO", "difference", "difference_stderr", "targets")
_KEYS = {"config", "set", "rows"}
_FILES = {
    "train_spec.checkpoint_path": "weights.pt",
    "train_spec.log_file": "train.jsonl",
    "test_spec.output_file": "results.csv",
}
_MACHINE = ("train_data.root", "val_data.root", "test_data.root", "train_spec.gpus", "test_spec.gpus")
_WHERE = (*_MACHINE, *_FILES)  # may differ
_OF_THE_TEST = ("test_data", "test_spec")


@dataclass(frozen=True)
class Study:
    """A configuration, overrides `common` to all rows, and those of each row; all are compared with the first."""

    config: str
    common: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]


def parser() -> argparse.ArgumentParser:
    p = program.parser("ablations", __doc__)
    p.add_argument("study", type=Path, metavar="YAML", help="the list: config, set, rows")
    p.add_argument("--only", action="append", metavar="NAME", help="only this row of the list; may be repeated")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = parser()
    args = p.parse_args(arguments)
    try:
        study = read(args.study)
        study = replace(study, common=(*run.roots(args.root), *study.common))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    if unknown := set(args.only or ()) - study.rows.keys():
        p.error(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(study.rows)}")
    names = args.only or list(study.rows)
    try:
        for name in study.rows:  # before hours of training
            try_out(configured(study, name, args.output))
        for name in names:
            check(study, name, args.output)
        for name in names:
            print(f"--- {name}", flush=True)
            if status := run.main(command(study, name, args)):
                return status
            left_out = write(study, args.output)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return status_of(error)
    table = args.output / "ablations.md"
    if next(iter(study.rows)) not in left_out:
        print(table.read_text())
    if left_out:
        print(f"not in the table, since they are not done as the list says: {', '.join(left_out)}")
    return 0


def read(path: Path) -> Study:
    """The list in `path`.  Raises UserError, with what is wrong."""
    try:
        raw = strict_yaml.parse(strict_yaml.read(path))
    except strict_yaml.StrictYamlError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(raw, dict) or raw.keys() != _KEYS or not isinstance(raw["rows"], dict) or not raw["rows"]:
        raise UserError(f"{path}: expected the keys config, set (overrides of all rows) and rows (name: overrides)")
    return Study(
        str(raw["config"]),
        _overrides(path, "set", raw["set"]),
        {str(name): _overrides(path, f"rows.{name}", of) for name, of in raw["rows"].items()},
    )


def _overrides(path: Path, where: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(one, str) and "=" in one for one in raw):
        raise UserError(f"{path}: {where}: expected a list of KEY=VALUE, such as [train_spec.lr=1e-3], not {raw!r}")
    return tuple(raw)


def overrides(study: Study, name: str, output: Path) -> list[str]:
    """All that a row changes in the configuration, and where its files go."""
    own = [run.override(key, output / name / file) for key, file in _FILES.items()]
    return [*study.common, *study.rows[name], *own]


def configured(study: Study, name: str, output: Path) -> Config:
    """The configuration of a row.  Raises UserError."""
    return configuration.load(Path(study.config), overrides(study, name, output))


def try_out(config: Config) -> None:
    """Raises UserError where only the beginning of the training would find out what is wrong."""
    spec = config.train_spec
    build_scheduler(spec, build_optimizer(spec, nn.Linear(1, 1)))


def check(study: Study, name: str, output: Path) -> None:
    """Raises UserError where a row was trained as another list says.

    A training that is done would be taken for one with other steps, since a run may be resumed with more of them.
    """
    path, asked = output / name / "weights.resolved.yaml", configured(study, name, output)
    if not path.exists():
        return
    if changed := configuration.differences(configuration.load(path), asked, ignore=(*_WHERE, *_OF_THE_TEST)):
        said = f"{path.parent}: trained as another list says; remove that folder, or choose another --output:"
        raise UserError("\n  ".join([said, *changed]))


def command(study: Study, name: str, args: argparse.Namespace) -> list[str]:
    """The arguments of run.py for a row."""
    options = run.options(None, args.device, overrides(study, name, args.output))
    return ["--config", study.config, "--train", "--test", *options]


# --- the table --------------------------------------------------------------------------------------------------------


def write(study: Study, output: Path) -> list[str]:
    """The table of the rows that are done, once the first of the list is; the names of the others.

    Raises UserError, OSError.
    """
    found = {name: finished(study, name, output) for name in study.rows}
    done = {name: cells for name, cells in found.items() if cells is not None}
    if (first := next(iter(study.rows))) in done:
        rows = compared(done, {name: load_origin(output / name / "results.npz") for name in done})
        write_atomically(output / "ablations.csv", comma_separated(rows, COLUMNS))
        write_atomically(output / "ablations.md", markdown(rows, configured(study, first, output)).encode())
    return [name for name in study.rows if name not in done]


def finished(study: Study, name: str, output: Path) -> Cells | None:
    """The cells of a row, if all are there and were made as the list says now.  Raises UserError."""
    asked = configured(study, name, output)
    try:
        tested = configuration.load(output / name / "results.resolved.yaml")
    except UserError:
        return None
    if configuration.differences(tested, asked, ignore=_WHERE):
        return None
    cells, params = load_cells(output / name / "results.npz"), asked.test_spec.test_params
    wanted = [cell_name(c, m) for c in params.max_batch_cls for m in params.timesteps]
    return {cell: cells[cell] for cell in wanted} if cells.keys() >= set(wanted) else None


def compared(done: Mapping[str, Cells], tests: Mapping[str, Test]) -> list[dict[str, str | int | float]]:
    """ELBO of each row and cell, and its difference to the first row, target by target, in nats (negative is better).

    Raises:
        UserError: the rows were not tested on the same cells and targets.
    """
    of_first, first = next(iter(done.items()))
    rows: list[dict[str, str | int | float]] = []
    for name, cells in done.items():
        if (cells.keys(), tests[name]) != (first.keys(), tests[of_first]):
            raise UserError(
                f"{name}: tested on other cells or targets than {of_first}; a row may change neither the test nor what "
                "is held out (train_spec.seed, train_data.held_out_classes)"
            )
        for cell, values in cells.items():
            worse = first[cell]["bound"] - values["bound"]
            rows.append(
                {
                    "row": name,
                    "cell": cell,
                    "ELBO": float(-values["bound"].mean()),
                    "difference": float(worse.mean()),
                    "difference_stderr": standard_error(worse, values["target_class"]),
                    "targets": len(worse),
                }
            )
    return rows


def markdown(rows: Sequence[Mapping[str, str | int | float]], config: Config) -> str:
    """A line for each row, a column for each cell; `config` is that of the first row."""
    cells = list(dict.fromkeys(str(row["cell"]) for row in rows))
    lines = [
        f"ELBO@{config.test_spec.importance_num} on {rows[0]['targets']} targets: minus the importance-weighted bound, "
        f"nats per image, lower is better. {described(config)}. In brackets the difference to the row "
        f"*{rows[0]['row']}* on the same targets, ± one standard error over classes; one training for each row.",
        "",
        f"| | {' | '.join(cells)} |",
        f"|{'---|' * (len(cells) + 1)}",
    ]
    for name in dict.fromkeys(row["row"] for row in rows):
        of = {row["cell"]: row for row in rows if row["row"] == name}
        shown = [
            f"{of[cell]['ELBO']:.2f} ({of[cell]['difference']:+.2f} ± {of[cell]['difference_stderr']:.2f})"
            if name != rows[0]["row"]
            else f"{of[cell]['ELBO']:.2f}"
            for cell in cells
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run.leave(main())
