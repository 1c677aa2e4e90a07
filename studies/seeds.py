"""How much do the results of a configuration depend on the seed?  Several trainings, mean and deviation of each cell.

    python -m studies.seeds --config configs/quickstart.yaml --seeds 0..4 --output runs/seeds

trains and tests each seed by the command line of the project (an interrupted one is resumed, a finished one is kept),
and writes `seeds.csv` and `.md` beside their folders.  The seed decides initial weights, episodes, samples and the
classes held out for validation; targets and memories of the test are the same for all.
"""

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import config as configuration
import run
from config import Config
from reports.cells import Row, described
from reports.tables import markdown_table
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program
from studies.trainings import Training

_MOST = 1000  # seeds
_SHARED = ("max_batch_cls", "timesteps", "targets", "importance_num")  # columns with one value for all trainings


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = program.parser("seeds", __doc__)
    p.add_argument("--config", type=run.pathname, required=True, metavar="YAML", help="the configuration")
    p.add_argument("--seeds", type=seeds, required=True, metavar="N,..", help="such as 0..4, or 0,3,7")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key in all of them; may be repeated")  # fmt: skip
    return program.status(execute, p.parse_args(arguments))


def seeds(text: str) -> list[int]:
    """The numbers in "0..4" or "0,3,7"; raises ArgumentTypeError."""
    parts = [re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", part) for part in text.split(",")]
    numbers = [n for ends in parts if ends for n in range(int(ends[1]), int(ends[2] or ends[1]) + 1)[: _MOST + 1]]
    if None in parts or not 2 <= len(set(numbers)) == len(numbers) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 2 to {_MOST} seeds, each once, such as 0..4 or 0,3,7")
    return numbers


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Train, test and write, seed by seed.  Raises UserError, OSError."""
    for key in ("train_spec.seed", "output"):
        if any(one.partition("=")[0].strip() == key for one in args.overrides):
            raise UserError(f"--set {key}: is given by --seeds and --output here; leave it out")
    common = [*configuration.overrides(args.root), *args.overrides]
    trainings = [
        Training(args.config, [*common, f"train_spec.seed={seed}"], args.output / f"seed_{seed}") for seed in args.seeds
    ]
    for training in trainings:
        if status := training.run(args.device):
            return status
    tables = {training.folder.name: table.rows for training in trainings if (table := training.table())}
    config = trainings[0].config
    rows = summarised(tables, config.test_spec.column)
    program.write(args.output, "seeds", rows, markdown(rows, config))
    return 0


def summarised(tables: Mapping[str, Sequence[Row]], column: str) -> list[program.Row]:
    """For each cell the mean over trainings of its bound, in nats, their standard deviation, and all of them."""
    rows: list[program.Row] = []
    for of_each in zip(*tables.values(), strict=True):
        values = {name: float(row[column]) for name, row in zip(tables, of_each, strict=True)}
        mean, sd = statistics.fmean(values.values()), statistics.stdev(values.values())
        shared = {key: of_each[0][key] for key in _SHARED if key in of_each[0]}
        rows.append({**shared, column: mean, "sd": sd, "trainings": len(values), **values})
    return rows


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each cell."""
    name, column = config.test_spec.title, config.test_spec.column
    same = "the same in all trainings" if config.test_spec.subset == "test" else "of other classes in each training"
    return markdown_table(
        f"{name}: nats per image, lower is better. {described(config)}. Mean and standard deviation over "
        f"{rows[0]['trainings']} trainings that differ in train_spec.seed; {rows[0]['targets']} targets, {same}.",
        f"C | M | {name} | s.d.",
        (f"{row['max_batch_cls']} | {row['timesteps']} | {row[column]:.2f} | {row['sd']:.2f}" for row in rows),
    )


if __name__ == "__main__":
    run.standalone(main)
