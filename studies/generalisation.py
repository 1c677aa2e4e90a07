"""How far does a model generalise?  Checkpoints of a training, on training, held-out and evaluation classes.

    python -m studies.generalisation --config configs/vma_tuned.yaml --checkpoint a.pt --checkpoint b.pt

tests each checkpoint on the three kinds of classes by the command line of the project (a test that is done is kept) and
writes `generalisation.csv`, `.md`, `.png` and `.npz` (every bound and the class of its target) into `--output`, beside
the folders of the tests.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import config as configuration
import run
from config import Config
from evaluator import PerTarget
from parsers import cell_name
from reports.cells import load_cells, standard_error
from reports.plots import png
from reports.tables import comma_separated, described
from runtime import checkpoints
from runtime.arrays import npz
from runtime.errors import DataError, UserError, status_of
from runtime.files import write_atomically
from studies import program
from studies.estimator import asked

SUBSETS = {"train": "training classes", "held_out": "held-out classes", "test": "evaluation classes"}
COLUMNS = ("checkpoint", "targets_seen", "subset", "ELBO", "stderr", "targets", "importance_num")

Row = dict[str, str | int | float]


def parser() -> argparse.ArgumentParser:
    p = program.parser("generalisation", __doc__)
    p.add_argument("--config", type=Path, required=True, metavar="YAML", help="the configuration of the model")
    p.add_argument(
        "--checkpoint", type=Path, action="append", required=True, metavar="PATH", help="weights; may be repeated"
    )
    p.add_argument("--classes", type=int, default=1, metavar="C", help="classes in a memory, at most (1)")
    p.add_argument("--memory", type=int, default=5, metavar="M", help="images in a memory (5)")
    p.add_argument("--targets", type=int, default=200, metavar="N", help="targets of each kind of classes (200)")
    p.add_argument("--samples", type=int, default=100, metavar="K", help="importance samples (100)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: that of the first test that did not end well, which ends the study."""
    args = parser().parse_args(arguments)
    rows: list[Row] = []
    bounds: PerTarget = {}
    try:
        if len({path.stem for path in args.checkpoint}) < len(args.checkpoint):
            raise UserError("--checkpoint: two have the same name, which their folders in --output would share")
        config = configuration.load(args.config, [*run.roots(args.root), *overrides(args, Path("weights.pt"), "test")])
        seen = {path: targets_seen(path) for path in args.checkpoint}
        for path in sorted(args.checkpoint, key=seen.__getitem__):
            for subset in SUBSETS:
                print(f"--- {path}, {SUBSETS[subset]}", flush=True)
                if status := run.main(command(args, path, subset)):
                    return status
                values = load_cells(_folder(args, path, subset) / "results.npz")[cell_name(args.classes, args.memory)]
                rows.append(_row(args, path, subset, seen[path], values))
                bounds |= {f"{path.stem}/{subset}/{part}": values[part] for part in ("bound", "target_class")}
        write_atomically(args.output / "generalisation.npz", npz(bounds))
        write_atomically(args.output / "generalisation.csv", comma_separated(rows, COLUMNS))
        text = markdown(rows, config)
        write_atomically(args.output / "generalisation.md", text.encode())
        write_atomically(args.output / "generalisation.png", draw(rows, args))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return status_of(error)
    print(text)
    print(f"written: {args.output}/generalisation.csv, .md, .png, .npz")
    return 0


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
        run.override("test_spec.output_file", _folder(args, path, subset) / "results.csv"),
        f"test_spec.subset={subset}",
        f"test_spec.importance_num={args.samples}",
        "test_spec.metric=elbo",
        *asked(args),
    ]


def command(args: argparse.Namespace, path: Path, subset: str) -> list[str]:
    """The arguments of run.py for the test of a checkpoint."""
    options = run.options(args.root, args.device, overrides(args, path, subset))
    return ["--config", str(args.config), "--test", "--checkpoint", str(path), *options]


def _folder(args: argparse.Namespace, path: Path, subset: str) -> Path:
    return args.output / path.stem / subset


def _row(args: argparse.Namespace, path: Path, subset: str, seen: int, values: PerTarget) -> Row:
    bound = values["bound"]
    return {
        "checkpoint": path.stem,
        "targets_seen": seen,
        "subset": subset,
        "ELBO": float(-bound.mean()),
        "stderr": standard_error(bound, values["target_class"]),
        "targets": len(bound),
        "importance_num": args.samples,
    }


# --- the report -------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Mapping[str, str | int | float]], config: Config) -> str:
    """A line for each checkpoint, a column for each kind of classes; `config` has the cell."""
    params = config.test_spec.test_params
    lines = [
        f"ELBO@{rows[0]['importance_num']} on {rows[0]['targets']} targets of each kind, "
        f"{cell_name(params.max_batch_cls[0], params.timesteps[0])}: minus the importance-weighted bound, nats per "
        f"image, lower is better, ± one standard error over classes. {described(config)}. The held-out classes chose "
        "the best step of a training.",
        "",
        f"| targets seen | {' | '.join(SUBSETS.values())} |",
        f"|{'---|' * (len(SUBSETS) + 1)}",
    ]
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        of = {row["subset"]: row for row in rows if row["checkpoint"] == name}
        shown = [f"{of[subset]['ELBO']:.2f} ± {of[subset]['stderr']:.2f}" for subset in SUBSETS]
        lines.append(f"| {of['test']['targets_seen']:,} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, str | int | float]], args: argparse.Namespace) -> bytes:
    """A line for each kind of classes against the targets seen, with bars of two standard errors each way -> a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure((6, 4))
    axis = figure.subplots()
    beside = 0.006 * max(float(row["targets_seen"]) for row in rows)
    for number, (subset, label) in enumerate(SUBSETS.items()):
        of = [row for row in rows if row["subset"] == subset]
        axis.errorbar(
            [float(row["targets_seen"]) + number * beside for row in of],
            [float(row["ELBO"]) for row in of],
            yerr=[2 * float(row["stderr"]) for row in of],
            marker="o",
            markersize=3,
            capsize=2,
            label=label,
        )
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_xlabel("targets seen")
    axis.set_ylabel(f"ELBO@{args.samples}, nats per image (lower is better)")
    of_each = f"{cell_name(args.classes, args.memory)}, {rows[0]['targets']} targets of each"
    axis.set_title(f"{of_each}; bars: two standard errors each way", fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return png(figure)


if __name__ == "__main__":
    run.leave(main())
