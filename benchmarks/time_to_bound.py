"""How fast does a configuration learn?  Its bound on unseen classes against the processor time of its training.

    python -m benchmarks.time_to_bound --config configs/vma_tuned_start.yaml configs/vma_fast.yaml --target 75.3

trains each configuration in turn on the CPU and tests it every `--interval` core-hours on the same targets, one of each
evaluation class as they come.  Only the training steps are timed, on all their threads.  Into `--output` go NAME.csv, a
row for each test of the configuration NAME.yaml, and `time_to_bound.png`, the curves of all that are there; so
configurations may also be trained one by one, or at the same time.  Interrupted, the same command resumes.
"""

import argparse
import contextlib
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import config as configuration
import evaluator
import parsers
from commands import Session, train
from config import Config
from reports.cells import images_described
from reports.estimates import estimate
from reports.plots import blank, png
from reports.tables import comma_separated
from run import Parser, pathname, standalone
from runtime.errors import DataError, UserError
from runtime.files import exclusive_lock, write_atomically
from runtime.signals import Stopped, StopRequest
from studies import program

CPU = torch.device("cpu")
HOUR = 3600.0

Row = dict[str, Any]

_COLUMNS = {"config": str, "test": str, "core_seconds": float, "targets_seen": int, "nats": float, "stderr": float}


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m benchmarks.time_to_bound", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=pathname, nargs="+", required=True, metavar="YAML", help="what is trained")
    p.add_argument("--target", type=float, metavar="NATS", help="the bound to reach, drawn as a line")
    p.add_argument("--interval", type=float, default=0.5, metavar="H", help="core-hours between two tests (0.5)")
    p.add_argument("--limit", type=float, default=12.0, metavar="H", help="core-hours of training, at most (12)")
    program.add_cell(p, classes=1, targets=659)
    p.add_argument("--samples", type=int, default=1000, metavar="K", help="importance samples of the test (1000)")
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--output", type=pathname, default=Path("runs/time_to_bound"), metavar="DIR", help="where files go")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key of all configurations, such as test_spec.subset=held_out")  # fmt: skip
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    return program.status(execute, parser().parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Train, test and draw.  Raises UserError, DataError, OSError, NonFiniteError."""
    if len({path.stem for path in args.config}) < len(args.config):
        raise UserError("--config: two have the same name, which their files in --output would share")
    if not min(args.interval, args.limit) > 0:
        raise UserError("--interval and --limit: core-hours, more than 0")
    for path, config in [(path, configured(path, args)) for path in args.config]:  # mistakes show before hours
        print(f"--- {path}", flush=True)
        with exclusive_lock(args.output / path.stem / "vma.pt", "training"):
            rows = Race(config, path.stem, args, stop).run()
        print(said(path.stem, rows, args.target))
        write_atomically(args.output / "time_to_bound.png", draw(args, rows[-1]["test"]))
    print(f"written: {args.output}/*.csv, time_to_bound.png")


def configured(path: Path, args: argparse.Namespace) -> Config:
    """The configuration with the test of the arguments, and files of its own.  Raises UserError."""
    own = [
        *configuration.overrides(output=args.output / path.stem),
        f"test_spec.importance_num={args.samples}",
        *program.cell_overrides(args),
    ]
    config = configuration.load(path, [*configuration.overrides(args.root), *args.overrides, *own])
    if config.train_spec.init_from is not None:
        raise UserError(f"{path}: train_spec.init_from: an earlier training would not be timed; --set it to null")
    return config


class Race:
    """The training of one configuration, and its tests so far."""

    def __init__(self, config: Config, name: str, args: argparse.Namespace, stop: StopRequest) -> None:
        self.config, self.name, self.stop, self.csv = config, name, stop, args.output / f"{name}.csv"
        self.interval, self.limit = args.interval * HOUR, args.limit * HOUR
        self.cell = configuration.cell_name(args.classes, args.memory)
        images = parsers.test_images(config, CPU)
        self.episodes = parsers.grid_episodes(config, images, args.classes, args.memory)
        self.trainer = train.build_trainer(Session(config, stop, "cpu"))
        if (path := self.trainer.state_path).exists():
            train.check_same_run(path, state := train.load_state(path), config)
            train.resume(self.trainer, path, state, config)
        self.progress = self.trainer.progress  # whose `seconds` are those of the processor here
        spec = config.test_spec
        of = f"{self.cell}, {spec.targets} targets, {spec.subset}, {spec.title}, seed {spec.seed}"
        self.test_of = f"{images_described(config.test_data)}; {of}"
        self.rows = [row for row in read(self.csv) if row["targets_seen"] <= self.targets_seen]
        if others := {row["test"] for row in self.rows} - {self.test_of}:
            raise UserError(f"{self.csv}: tested on {others.pop()}, now {self.test_of}; choose another --output")

    @property
    def targets_seen(self) -> int:
        return self.progress.step * self.trainer.train.batch_size

    def run(self) -> list[Row]:
        """Train to the limit or the last step, and test on the way; the rows.  Raises Stopped: the state is saved."""
        steps, nothing = self.config.train_spec.steps, {"core_seconds": 0.0, "targets_seen": 0}
        with tqdm(total=steps, initial=self.progress.step, unit="step", dynamic_ncols=True) as bar:
            while True:
                done = self.progress.step == steps or self.progress.seconds >= self.limit
                last = self.rows[-1] if self.rows else nothing
                due = self.progress.seconds >= self.interval * (last["core_seconds"] // self.interval + 1)
                if (due or done) and self.targets_seen > last["targets_seen"]:
                    with self.stop.deferred():
                        self.trainer.save_state()
                    self.rows.append(row := self.test())
                    write_atomically(self.csv, comma_separated(self.rows))
                    bar.write(f"{row['core_seconds']:.0f} core-seconds: {row['nats']:.2f} ± {row['stderr']:.2f} nats")
                if done:
                    return self.rows
                self.step()
                bar.update()

    def step(self) -> None:
        """A step, whose processor time is added to that of the training."""
        try:
            with self.stop.deferred():
                started = time.process_time()
                self.trainer.step()
                self.progress.seconds += time.process_time() - started
        except Stopped:
            self.trainer.save_state()
            raise

    def test(self) -> Row:
        """A row of the table: what `run.py --test` says of the weights, or of their moving average."""
        config, model = self.config, self.trainer.evaluated.eval()
        batch, chunk = evaluator.sizes_at_once(CPU, config.test_data.batch_size, config.test_spec.chunk)
        key, k = ("test", config.test_spec.seed, self.cell), config.test_spec.importance_num
        with tqdm(total=len(self.episodes), desc="test", unit="target", leave=False, dynamic_ncols=True) as bar:
            values = evaluator.evaluate_cell(model, self.episodes, key, k, batch, chunk, bar.update)  # type: ignore[arg-type]
        model.train()
        bound = estimate(-values["bound"], values["target_class"])
        return {
            "config": self.name,
            "test": self.test_of,
            "core_seconds": self.progress.seconds,
            "targets_seen": self.targets_seen,
            "nats": bound.mean,
            "stderr": bound.stderr,
        }


def read(path: Path) -> list[Row]:
    """The rows of a csv file; none where there is no such file.  Raises DataError."""
    try:
        rows = csv.DictReader(path.read_text().splitlines() if path.exists() else [])
        return [{name: kind(row[name]) for name, kind in _COLUMNS.items()} for row in rows]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path}: no table of this benchmark, or damaged; move it away") from None


def said(name: str, rows: Sequence[Row], target: float | None) -> str:
    """How long it took to reach the target, or how far the training came."""
    reached = next((row for row in rows if target is not None and row["nats"] <= target), None)
    if reached is not None:
        return f"{name}: {target:g} nats after {reached['core_seconds'] / HOUR:.2f} core-hours"
    lowest = min(row["nats"] for row in rows)
    return f"{name}: {lowest:.2f} nats at the lowest in {rows[-1]['core_seconds'] / HOUR:.2f} core-hours"


def draw(args: argparse.Namespace, test: str) -> bytes:
    """Nats against core-hours for every csv file in --output that is of this test -> a PNG."""
    found: list[Row] = []
    for path in sorted(args.output.glob("*.csv")):
        with contextlib.suppress(DataError):  # another table
            found += read(path)
    rows = [row | {"core_hours": row["core_seconds"] / HOUR} for row in found if row["test"] == test]
    figure = blank(7, 4.5)
    axis = figure.subplots()
    program.draw_lines(axis, rows, "config", "core_hours", "nats", "stderr")
    if args.target is not None:
        axis.axhline(args.target, color="0.4", linestyle=":", label=f"{args.target:g} nats")
        axis.legend(fontsize=8)
    low, high = min(row["nats"] for row in rows), max(row["nats"] for row in rows)
    axis.set_ylim(min(low, args.target or low) - 3, min(high, low + 60) + 3)  # the first minutes would hide the rest
    axis.set(xlabel="core-hours of training", ylabel="nats per image (lower is better)")
    axis.set_title(f"{test}; bars: two standard errors each way", fontsize=8)
    return png(figure)


if __name__ == "__main__":
    standalone(main)
