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
from pathlib import Path
from typing import Any

import config as configuration
import run
from config import Config, cell_name
from reports.cells import described, table_row
from reports.tables import markdown_table
from runtime.signals import StopRequest
from studies import program
from studies.ablations import Cells, Trainings

_MOST = 1000  # seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first training or test that did not end well, which ends the study."""
    p = program.parser("seeds", __doc__)
    p.add_argument("--config", type=Path, required=True, metavar="YAML", help="the configuration")
    p.add_argument("--seeds", type=seeds, required=True, metavar="N,..", help="such as 0..4, or 0,3,7")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key in all of them; may be repeated")  # fmt: skip
    return program.status(execute, p.parse_args(arguments))


def seeds(text: str) -> list[int]:
    """The numbers in "0..4" or "0,3,7"; raises ArgumentTypeError."""
    numbers: list[int] = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", part)):
            raise argparse.ArgumentTypeError(f"{text!r} is neither a range such as 0..4 nor a list such as 0,3,7")
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)[: _MOST + 1]
    if not 2 <= len(numbers) <= _MOST or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected 2 to {_MOST} seeds, each once")
    return numbers


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Train, test and write, seed by seed.  Raises UserError, OSError."""
    own = {f"seed_{seed}": (f"train_spec.seed={seed}",) for seed in args.seeds}
    study = Trainings(str(args.config), (*configuration.overrides(args.root), *args.overrides), own, args.output)
    for name in own:
        study.check(name)
    study.try_out(next(iter(own)))
    for name in own:
        if status := study.run(name, args.device):
            return status
    done = {name: cells for name in own if (cells := study.finished(name)) is not None}
    config = study.configured(next(iter(own)))
    rows = summarised(done, config)
    program.write(args.output, "seeds", rows, markdown(rows, config))
    return 0


def summarised(done: Mapping[str, Cells], config: Config) -> list[program.Row]:
    """For each cell the mean over trainings of its bound, in nats, their standard deviation, and all of them."""
    spec, column = config.test_spec, config.test_spec.column
    rows: list[program.Row] = []
    for c, m in config.test_cells:
        of_each = {name: table_row(c, m, cells[cell_name(c, m)], spec) for name, cells in done.items()}
        values = {name: float(row[column]) for name, row in of_each.items()}
        rows.append(
            {
                "max_batch_cls": c,
                "timesteps": m,
                column: statistics.fmean(values.values()),
                "sd": statistics.stdev(values.values()),
                "trainings": len(values),
                "targets": next(iter(of_each.values()))["targets"],
                **({"importance_num": spec.samples} if spec.samples else {}),
                **values,
            }
        )
    return rows


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each cell."""
    name, shown = config.test_spec.title, config.test_spec.column
    same = "the same in all trainings" if config.test_spec.subset == "test" else "of other classes in each training"
    return markdown_table(
        f"{name}: nats per image, lower is better. {described(config)}. Mean and standard deviation over "
        f"{rows[0]['trainings']} trainings that differ in train_spec.seed; {rows[0]['targets']} targets, {same}.",
        f"C | M | {name} | s.d.",
        (f"{row['max_batch_cls']} | {row['timesteps']} | {row[shown]:.2f} | {row['sd']:.2f}" for row in rows),
    )


if __name__ == "__main__":
    run.standalone(main)
