"""Are test images so like training images that a model may remember them?

    python -m studies.contamination results/vma_tuned/results.npz results/vma_causal_quick/results.npz

finds the training image nearest to every target of a table, and compares the targets that have the most alike one with
the rest.  Those are also the simpler drawings, so beside their nats stands what the rest would have with as little ink
(a straight line through the rest).  A model that remembers training images would be far below that.

`N` training images · `n` targets · `H W` image.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import config as configuration
import parsers
from data.episodes import spread_targets
from reports.cells import load_cells
from reports.tables import markdown_table
from run import pathname, standalone
from runtime.errors import DataError
from runtime.signals import StopRequest
from studies import program

_SHARE = 0.05  # of the targets, the most alike
_AT_ONCE = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("contamination", __doc__)
    p.add_argument("npz", type=pathname, nargs="+", help="the bounds of a test, beside its .resolved.yaml")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    rows = [row for path in args.npz for row in compared(path, args.root)]
    program.write(args.output, "contamination", rows, markdown(rows))


def compared(path: Path, root: str | None) -> Iterator[program.Row]:
    """A row for every cell of a table.  Raises UserError, DataError."""
    config = configuration.load(path.with_suffix(".resolved.yaml"), configuration.overrides(root))
    cpu = torch.device("cpu")
    images, training = parsers.test_images(config, cpu), parsers.training_images(config, cpu).train
    targets = spread_targets(images.counts, config.test_spec.targets)
    alike = similarity(images.images[targets], training.images)
    nearest = np.argsort(-alike.numpy(), kind="stable")[: max(1, round(_SHARE * len(targets)))]
    rest = np.setdiff1d(np.arange(len(targets)), nearest)
    ink = images.images[targets].sum((1, 2)).double().numpy()
    if not (stored := load_cells(path)).cells:
        raise DataError(f"{path}: no bounds of a test")
    if stored.origin["images"] != images.digest():
        raise DataError(f"{path}: of other images than {config.test_data.root} has now")
    for name, values in stored.cells.items():
        nats = -values["bound"]
        if len(nats) != len(targets):
            raise DataError(f"{path}: {name} has {len(nats)} targets, its configuration {len(targets)}")
        line = np.polyfit(ink[rest], nats[rest], 1)
        yield {
            "table": path.parent.name,
            "cell": name,
            "metric": config.test_spec.title,
            "targets": len(targets),
            "identical": int((alike == 1).sum()),
            "similarity_nearest": float(alike[nearest].mean()),
            "similarity_rest": float(alike[rest].mean()),
            "nearest": nats[nearest].mean(),
            "nearest_stderr": nats[nearest].std(ddof=1) / len(nearest) ** 0.5,
            "rest": nats[rest].mean(),
            "rest_stderr": nats[rest].std(ddof=1) / len(rest) ** 0.5,
            "rest_with_their_ink": float(np.polyval(line, ink[nearest]).mean()),
        }


_LINE = (
    "{table} | {cell} | {metric} | {targets} | {identical} | {similarity_nearest:.2f} | {similarity_rest:.2f} | "
    "{nearest:.1f} ± {nearest_stderr:.1f} | {rest_with_their_ink:.1f} | {rest:.1f} ± {rest_stderr:.1f}"
)


def markdown(rows: Sequence[program.Row]) -> str:
    """The rows for people."""
    return markdown_table(
        f"Targets and the training images most like them. Alike: the share of common ink, 1 for identical images; the "
        f"most alike are {100 * _SHARE:.0f} % of the targets. Nats per image, lower is better, ± standard error.",
        "table | cell | metric | targets | identical | alike, most | alike, rest | nats, most alike | "
        "the rest with as little ink | nats, rest",
        map(_LINE.format_map, rows),
    )


def similarity(x: Tensor, training: Tensor) -> Tensor:
    """The largest |x and t| / |x or t| over training images t [N, H, W], for each x [n, H, W]; [n]."""
    others = training.flatten(1).float()
    ink, found = others.sum(1), []
    for part in x.flatten(1).float().split(_AT_ONCE):
        both = part @ others.T  # [n, N]
        found.append((both / (part.sum(1, keepdim=True) + ink - both).clamp(min=1)).amax(1))
    return torch.cat(found)


if __name__ == "__main__":
    standalone(main)
