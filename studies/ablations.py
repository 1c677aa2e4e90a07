"""What each part of a recipe is worth: the same training with one part changed, from one list of such changes.

    python -m studies.ablations studies/ablations.yaml --output results/ablations [--only NAME ...]

trains and tests every row of the list by the command line of the project (a row that was begun is resumed, one that is
done is kept), and writes `ablations.csv` and `.md` beside the folders of the rows.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import run
import strict_yaml
from checkpoints import write_atomically
from errors import UserError, status_of
from reports import comma_separated

Bounds = Mapping[str, np.ndarray]  # cell -> nats [n], target by target

COLUMNS = ("row", "cell", "ELBO", "difference", "difference_stderr", "targets")
_KEYS = {"config", "set", "rows"}


@dataclass(frozen=True)
class Study:
    """A configuration, overrides `common` to all rows, and those of each row; all are compared with the first."""

    config: str
    common: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]


def parser() -> argparse.ArgumentParser:
    p = run.Parser(prog="python -m studies.ablations", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("study", type=Path, metavar="YAML", help="the list: config, set, rows")
    p.add_argument("--output", type=Path, default=Path("results/ablations"), metavar="DIR", help="where files go")
    p.add_argument("--only", action="append", metavar="NAME", help="only this row of the list; may be repeated")
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--device", type=run.device, metavar="auto|cpu|cuda|cuda:N", help="beats the key gpus")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = parser()
    args = p.parse_args(arguments)
    try:
        study = read(args.study)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    if unknown := set(args.only or ()) - study.rows.keys():
        p.error(f"--only: {sorted(unknown)[0]!r} is none of {', '.join(study.rows)}")
    for name in args.only or study.rows:
        print(f"--- {name}", flush=True)
        if status := run.main(command(study, name, args)):
            return status
        try:
            write(study, args.output)
        except (UserError, OSError) as error:
            print(error, file=sys.stderr)
            return status_of(error)
    table = args.output / "ablations.md"
    print(
        table.read_text() if table.exists() else f"no table yet: the first row, {next(iter(study.rows))}, is not done"
    )
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


def command(study: Study, name: str, args: argparse.Namespace) -> list[str]:
    """The arguments of run.py for a row."""
    files = {
        "train_spec.checkpoint_path": "weights.pt",
        "train_spec.log_file": "train.jsonl",
        "test_spec.output_file": "results.csv",
    }
    own = [f"{key}={json.dumps(str(args.output / name / file), ensure_ascii=False)}" for key, file in files.items()]
    options = ["--root", args.root] if args.root else []
    options += ["--device", args.device] if args.device else []
    sets = [part for one in (*study.common, *study.rows[name], *own) for part in ("--set", one)]
    return ["--config", study.config, "--train", "--test", *options, *sets]


# --- the table --------------------------------------------------------------------------------------------------------


def write(study: Study, output: Path) -> None:
    """The table of the rows that are done, once the first of the list is.  Raises UserError, OSError."""
    ledgers = {name: output / name / "results.npz" for name in study.rows}
    done = {name: ledger for name, ledger in ledgers.items() if ledger.exists()}
    if next(iter(study.rows)) in done:
        rows = compared(done)
        write_atomically(output / "ablations.csv", comma_separated(rows, COLUMNS))
        write_atomically(output / "ablations.md", markdown(rows).encode())


def compared(done: Mapping[str, Path]) -> list[dict[str, str | int | float]]:
    """ELBO of each row and cell, and its difference to the first row, target by target, in nats (negative is better).

    Raises:
        UserError: the rows were not tested on the same cells, targets, images and K.
    """
    of_first, (first, asked) = next(iter(done)), _finished(next(iter(done.values())))
    rows: list[dict[str, str | int | float]] = []
    for name, ledger in done.items():
        cells, key = _finished(ledger)
        if key != asked:
            raise UserError(f"{name}: it was not tested as {of_first} was; test both again with one list")
        for cell, bound in cells.items():
            worse = first[cell] - bound
            rows.append(
                {
                    "row": name,
                    "cell": cell,
                    "ELBO": float(-bound.mean()),
                    "difference": float(worse.mean()),
                    "difference_stderr": float(worse.std(ddof=1) / len(worse) ** 0.5),
                    "targets": len(bound),
                }
            )
    return rows


def _finished(ledger: Path) -> tuple[Bounds, dict[str, object]]:
    """The bound of every target of every cell of a finished test, and how each cell was tested, but for the weights."""
    with np.load(ledger, allow_pickle=False) as file:
        bounds = {name.removesuffix("/bound"): file[name] for name in file.files if name.endswith("/bound")}
        tested = {cell: json.loads(str(file[f"{cell}/key"])) | {"weights": None} for cell in bounds}
    return bounds, tested


def markdown(rows: Sequence[Mapping[str, str | int | float]]) -> str:
    """A line for each row, two columns for each cell."""
    cells = list(dict.fromkeys(str(row["cell"]) for row in rows))
    lines = [
        f"Minus the bound in nats per image, lower is better, on {rows[0]['targets']} targets; in brackets the "
        f"difference to the row *{rows[0]['row']}* on the same targets, ± one standard error.",
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
