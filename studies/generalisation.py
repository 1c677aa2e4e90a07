"""How far does a model generalise?  Checkpoints of a training, on training, held-out and evaluation classes.

    python -m studies.generalisation --config configs/vma_tuned.yaml --checkpoint a.pt --checkpoint b.pt

tests each checkpoint on the three kinds of classes by the command line of the project (a finished test is kept) and
writes `generalisation.csv`, `.md`, `.png` and `.npz` (bounds and classes of all targets, names of the classes)
into `--output`, beside the folders of the tests.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import config as configuration
import run
from config import Config, cell_name
from evaluator import PerTarget
from reports.cells import described, load_cells, load_class_names
from reports.estimates import alphabets_of, estimate
from reports.plots import png
from runtime import checkpoints
from runtime.arrays import npz
from runtime.errors import DataError, UserError
from runtime.files import write_atomically
from runtime.signals import StopRequest
from studies import program

SUBSETS = {"train": "training classes", "held_out": "held-out classes", "test": "evaluation classes"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first test that did not end well, which ends the study."""
    p = program.parser("generalisation", __doc__)
    p.add_argument("--config", type=run.pathname, required=True, metavar="YAML", help="the configuration of the model")
    program.add_cell(p, classes=1)
    p.add_argument("--checkpoint", type=run.pathname, action="append", required=True, metavar="PATH",
                   help="weights; may be repeated")  # fmt: skip
    p.add_argument("--samples", type=int, default=100, metavar="K", help="importance samples (100)")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> int:
    """Test, write and print.  Raises UserError, DataError, OSError."""
    if len({path.stem for path in args.checkpoint}) < len(args.checkpoint):
        raise UserError("--checkpoint: two have the same name, which their folders in --output would share")
    config = configuration.load(
        args.config, [*configuration.overrides(args.root), *overrides(args, Path("weights.pt"), "test")]
    )
    seen = {path: targets_seen(path) for path in args.checkpoint}
    rows: list[program.Row] = []
    bounds: PerTarget = {}
    for path in sorted(args.checkpoint, key=seen.__getitem__):
        for subset, kind in SUBSETS.items():
            print(f"--- {path}, {kind}", flush=True)
            options = program.options(args.root, args.device, overrides(args, path, subset))
            if status := run.main(["--config", str(args.config), "--test", "--checkpoint", str(path), *options]):
                return status
            stored = _table(args, path, subset).with_suffix(".npz")
            values, names = load_cells(stored)[cell_name(args.classes, args.memory)], load_class_names(stored)
            bounds |= {f"{path.stem}/{subset}/{part}": values[part] for part in ("bound", "target_class")}
            bounds[f"{subset}/class_names"] = np.array(names)
            rows.append(summarised(path.stem, seen[path], subset, values, names, args.samples))
    write_atomically(args.output / "generalisation.npz", npz(bounds))
    program.write(args.output, "generalisation", rows, markdown(rows, config), draw(rows, args))
    return 0


def summarised(
    checkpoint: str, targets_seen: int, subset: str, values: PerTarget, class_names: Sequence[str], k: int
) -> program.Row:
    """A row of the table, of bounds with K = `k` and the classes of their targets."""
    classes = values["target_class"]
    bound = estimate(-values["bound"], classes, alphabets_of(classes, class_names))
    return {
        "checkpoint": checkpoint,
        "targets_seen": targets_seen,
        "subset": subset,
        "ELBO": bound.mean,
        "stderr": bound.stderr,
        "stderr_new_classes": bound.stderr_new_classes,
        "targets": len(classes),
        "importance_num": k,
    }


def targets_seen(path: Path, later: frozenset[Path] = frozenset()) -> int:
    """Targets of the training that made the checkpoint, and of those whose weights that one began with.

    Raises:
        DataError: a checkpoint is not there, damaged, was written over by a `later` one, or is a file of exported
            weights, which do not say it.
    """
    state = checkpoints.load(path)
    if "progress" not in state or path in later:
        raise DataError(f"{path}: it is not known how many targets these weights have seen; name a checkpoint")
    trained = configuration.parse(state["config"], str(path))
    before = trained.train_spec.init_from
    own: int = state["progress"]["step"] * trained.train_data.batch_size
    return own + (targets_seen(Path(before), later | {path}) if before else 0)


def overrides(args: argparse.Namespace, path: Path, subset: str) -> list[str]:
    """What makes the test of a checkpoint that of one cell on one kind of classes, with files of its own."""
    return [
        configuration.override("test_spec.output_file", _table(args, path, subset)),
        f"test_spec.subset={subset}",
        f"test_spec.importance_num={args.samples}",
        "test_spec.metric=elbo",
        *program.cell_overrides(args),
    ]


def _table(args: argparse.Namespace, path: Path, subset: str) -> Path:
    output: Path = args.output
    return output / path.stem / subset / "results.csv"


def markdown(rows: Sequence[Any], config: Config) -> str:
    """A line for each checkpoint, a column for each kind of classes; `config` has the cell."""
    lines: dict[str, str] = {}
    for row in rows:
        line = lines.get(row["checkpoint"], f"{row['targets_seen']:,}")
        lines[row["checkpoint"]] = f"{line} | {row['ELBO']:.2f} ± {row['stderr_new_classes']:.2f}"
    params = config.test_spec.test_params
    return program.markdown(
        f"ELBO@{rows[0]['importance_num']} on {rows[0]['targets']} targets of each kind, "
        f"{cell_name(params.max_batch_cls[0], params.timesteps[0])}: minus the importance-weighted bound, nats per "
        f"image, lower is better, ± one standard error over alphabets. {described(config)}. The held-out classes chose "
        "the best step of a training.",
        " | ".join(["targets seen", *SUBSETS.values()]),
        lines.values(),
    )


def draw(rows: Sequence[Any], args: argparse.Namespace) -> bytes:
    """A line for each kind of classes against the targets seen -> a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure((6, 4))
    axis = figure.subplots()
    program.draw_lines(axis, rows, "subset", "targets_seen", "ELBO", "stderr_new_classes", SUBSETS)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set(xlabel="targets seen", ylabel=f"ELBO@{args.samples}, nats per image (lower is better)")
    of_each = f"{cell_name(args.classes, args.memory)}, {rows[0]['targets']} targets of each"
    axis.set_title(f"{of_each}; bars: two standard errors each way", fontsize=8)
    return png(figure)


if __name__ == "__main__":
    run.standalone(main)
