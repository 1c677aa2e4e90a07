"""How tight is ELBO@K?  The same targets with growing K, beside the bound that sums over all addresses exactly.

    python -m studies.estimator --config configs/vma.yaml --checkpoint runs/vma/vma.pt

writes `estimator.csv`, `.md` and `.png` into `--output`.

`K` samples · `S` addresses, images and dummies · `n` targets, each with a memory of its own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import commands
import config as configuration
import parsers
from config import Config
from data.episodes import Episodes, GridEpisodes
from evaluator import TEST_DECODES_AT_ONCE
from models.objectives import log_mean_exp
from models.vma.model import VMA, EncodedMemory, EncodedTargets
from reports.cells import standard_error
from reports.plots import png
from reports.tables import comma_separated, described
from run import leave, roots
from runtime.files import write_atomically
from runtime.randomness import TargetNoise
from runtime.signals import StopRequest
from studies import program

SIZES = (1, 10, 100, 1000, 5000)
COLUMNS = ("estimator", "K", "decodes", "ELBO", "stderr", "gap", "gap_stderr", "targets")

Key = Sequence[int | str]
Row = dict[str, str | int | float]


def parser() -> argparse.ArgumentParser:
    p = program.parser("estimator", __doc__)
    p.add_argument("--config", type=Path, required=True, metavar="YAML", help="the configuration of the model")
    p.add_argument("--checkpoint", type=Path, metavar="PATH", help="its weights (those of the configuration)")
    p.add_argument("--classes", type=int, default=2, metavar="C", help="classes in a memory, at most (2)")
    p.add_argument("--memory", type=int, default=5, metavar="M", help="images in a memory (5)")
    p.add_argument("--targets", type=int, default=200, metavar="N", help="targets, spread over the classes (200)")
    p.add_argument("--sizes", type=_sizes, default=SIZES, metavar="K,K,...", help="K, each a divisor of the largest")
    return p


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(size) for size in text.split(",")}))
    if sizes[0] < 1 or any(sizes[-1] % size for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: every K must be positive and a divisor of the largest")
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py.  Nothing is written before the end."""
    return program.status(execute, parser().parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    config = configuration.load(args.config, [*roots(args.root), *asked(args)])
    session = commands.Session(config, stop, args.device, args.checkpoint)
    where = session.device_for(training=False)
    model, images = session.load_model(where), parsers.test_images(config, where)
    assert isinstance(model, VMA)
    episodes = parsers.grid_episodes(config, images, args.classes, args.memory)
    cell = parsers.cell_name(args.classes, args.memory)
    rows = measure(model, episodes, ("estimator", config.test_spec.seed, cell), args.sizes)
    write_atomically(args.output / "estimator.csv", comma_separated(rows, COLUMNS))
    text = markdown(rows, cell, config)
    write_atomically(args.output / "estimator.md", text.encode())
    write_atomically(args.output / "estimator.png", draw(rows, cell))
    print(text)
    print(f"written: {args.output}/estimator.csv, .md, .png")


def asked(args: argparse.Namespace) -> list[str]:
    """The overrides that make the cell of the arguments the only one of the test, so that it is checked as such."""
    return [
        f"test_spec.targets={args.targets}",
        f"test_spec.test_params.max_batch_cls=[{args.classes}]",
        f"test_spec.test_params.timesteps=[{args.memory}]",
    ]


# --- the bounds -------------------------------------------------------------------------------------------------------


def measure(model: VMA, episodes: GridEpisodes, key: Key, sizes: Sequence[int]) -> list[Row]:
    """A row for each estimator and K.

    The largest number of samples is drawn once.  With a smaller K they make several groups, whose bounds are averaged,
    so that all their rows speak of the same ones.  The sum over addresses takes those K (of z, for each address) that
    decode at most twice as many samples as the largest K does without it.
    """
    slots, largest = _slots(model, episodes), sizes[-1]
    most = max((k for k in sizes if k * slots <= 2 * largest), default=sizes[0])
    per_address = [k for k in sizes if most % k == 0]
    sampled: dict[int, list[Tensor]] = {k: [] for k in sizes}
    summed: dict[int, list[Tensor]] = {k: [] for k in per_address}
    classes = []
    with torch.no_grad():
        for number in tqdm(range(len(episodes)), unit="target", dynamic_ncols=True):
            one = episodes.batch(slice(number, number + 1))
            classes.append(int(one.x_class))
            m = model.encode_memory(one.memory, precompute_features=True)
            r = model.encode_targets(one.x, m)
            log_w = sampled_weights(model, one, m, r, key, largest)
            log_v = address_weights(model, one, m, r, key, most)
            for k in sizes:
                sampled[k].append(nested(log_w, k))
            for k in per_address:
                summed[k].append(nested(log_v.logsumexp(1), k))
    best = torch.stack(sampled[largest])
    rows = [_row("sampled addresses", k, k, torch.stack(values), best, classes) for k, values in sampled.items()]
    return rows + [
        _row("exact sum over addresses", k, k * slots, torch.stack(values), best, classes)
        for k, values in summed.items()
    ]


def _slots(model: VMA, episodes: GridEpisodes) -> int:
    return episodes.batch(slice(0, 1)).memory.shape[1] + len(model.dummies)


def sampled_weights(model: VMA, one: Episodes, m: EncodedMemory, r: EncodedTargets, key: Key, k: int) -> Tensor:
    """log w [K] of K samples of (a, z) for one target."""
    parts = []
    for first in range(0, k, size := TEST_DECODES_AT_ONCE[one.x.device.type]):
        noise = TargetNoise(*key, "sampled", targets=one.x_index.flatten(), first=first)
        parts.append(model.importance_samples(one.x, m, r, noise, min(size, k - first)).log_w.flatten())
    return torch.cat(parts).double()


def address_weights(model: VMA, one: Episodes, m: EncodedMemory, r: EncodedTargets, key: Key, k: int) -> Tensor:
    """log p(x,z|m_a) p(a) / q(z|x,m_a), [K, S]: K samples of z for every address of one target."""
    slots = m.slots.shape[1]
    parts = []
    for first in range(0, k, size := max(1, TEST_DECODES_AT_ONCE[one.x.device.type] // slots)):
        noise = TargetNoise(*key, "summed", targets=one.x_index.flatten(), first=first * slots)
        s = model.samples_at(model.every_address(m, r, min(size, k - first)), r, noise)
        parts.append(s.log_w.view(-1, slots))
    return torch.cat(parts).double()


def nested(log_w: Tensor, k: int) -> Tensor:
    """The mean over groups of k of log (1/k sum_i exp log_w_i): log_w [K] -> a scalar, nats."""
    return log_mean_exp(log_w.view(-1, k), dim=1).mean()


def _row(estimator: str, k: int, decodes: int, bound: Tensor, best: Tensor, classes: Sequence[int]) -> Row:
    """Bounds [n] of one estimator beside those of the best sampled one, target by target, of these classes."""
    gap, which = best - bound, np.array(classes)
    return {
        "estimator": estimator,
        "K": k,
        "decodes": decodes,
        "ELBO": -bound.mean().item(),
        "stderr": standard_error(bound.cpu().numpy(), which),
        "gap": gap.mean().item(),
        "gap_stderr": standard_error(gap.cpu().numpy(), which),
        "targets": len(bound),
    }


# --- the report -------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], cell: str, config: Config) -> str:
    """The rows for people."""
    largest = max(int(row["K"]) for row in rows)
    lines = [
        f"{cell}, {rows[0]['targets']} targets; minus the bound in nats per image, lower is better. "
        f"{described(config)}. Above K = {largest}: the difference to sampled addresses with that K, same targets.",
        "",
        f"| addresses | K | decodes | ELBO@K | ± s.e. | above K = {largest} | ± s.e. |",
        f"|{'---|' * 7}",
    ]
    for row in rows:
        numbers = [f"{row[name]:.2f}" for name in ("ELBO", "stderr")]
        numbers += [f"{row[name]:.3f}" for name in ("gap", "gap_stderr")]
        kind = "sampled" if str(row["estimator"]).startswith("sampled") else "summed"
        lines.append(f"| {kind} | {row['K']} | {row['decodes']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], cell: str) -> bytes:
    """Both estimators against the number of decodes, with bars of two standard errors each way -> a PNG."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4))
    axes = figure.subplots(1, 2)
    panels = (
        (axes[0], "ELBO", "stderr", "ELBO@K, nats per image (lower is better)"),
        (axes[1], "gap", "gap_stderr", f"nats above K = {max(int(row['K']) for row in rows)} (paired)"),
    )
    for axis, quantity, error, label in panels:
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            of = [row for row in rows if row["estimator"] == estimator]
            axis.errorbar(
                [row["decodes"] for row in of],
                [row[quantity] for row in of],
                yerr=[2 * float(row[error]) for row in of],
                marker="o",
                capsize=3,
                label=estimator,
            )
        axis.set_xscale("log")
        axis.set_xlabel("samples decoded for a target")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[1].set_yscale("symlog", linthresh=0.1)
    lowest = min(float(row["gap"]) - 2 * float(row["gap_stderr"]) for row in rows)
    highest = max(float(row["gap"]) for row in rows)
    axes[1].set_ylim(1.2 * min(-0.1, lowest), 2 * max(1.0, highest))
    figure.suptitle(f"{cell}, {rows[0]['targets']} targets; bars: two standard errors each way", fontsize=9)
    return png(figure)


if __name__ == "__main__":
    leave(main())
