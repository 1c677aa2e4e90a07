"""How tight is ELBO@K?  The same targets with growing K, beside the bound that sums over all addresses exactly.

    python -m studies.estimator --config configs/vma.yaml --checkpoint runs/vma/vma.pt

writes `estimator.csv`, `.md`, `.png` and `.npz` (the bounds of every target) into `--output`; interrupted, the same
command goes on.

`K` samples · `S` addresses, images and dummies · `n` targets, each with a memory of its own.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import config as configuration
import parsers
from config import Config
from data.episodes import Episodes, GridEpisodes
from evaluator import TEST_DECODES_AT_ONCE
from models.objectives import log_mean_exp
from models.vma.model import VMA, EncodedMemory, EncodedTargets
from reports.cells import described
from reports.estimates import estimate
from reports.plots import blank, png
from reports.tables import markdown_table
from run import standalone
from runtime.randomness import TargetNoise
from runtime.signals import StopRequest
from studies import program

SIZES = (1, 10, 100, 1000, 5000)
SAMPLED, SUMMED = "sampled addresses", "exact sum over addresses"

Key = Sequence[int | str]
Bounds = dict[str, np.ndarray]


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(size) for size in text.split(",")}))
    if sizes[0] < 1 or any(sizes[-1] % size for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: every K must be positive and a divisor of the largest")
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("estimator", __doc__)
    program.add_model(p)
    program.add_cell(p, classes=2)
    p.add_argument("--sizes", type=_sizes, default=SIZES, metavar="K,K,...", help="K, each a divisor of the largest")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    one_order = [*program.cell_overrides(args), *program.ONE_ORDER]
    config, model, images = program.load_addressed(args, stop, one_order)
    assert isinstance(model, VMA)
    episodes = parsers.grid_episodes(config, images, args.classes, args.memory)
    cell = configuration.cell_name(args.classes, args.memory)
    key = ("estimator", config.test_spec.seed, cell)
    found = program.resumed(
        args.output / "estimator.npz",
        model,
        config,
        {"sizes": args.sizes, "images": images.digest()},
        map(str, range(len(episodes))),
        lambda name: bounds(model, episodes, int(name), key, args.sizes),
    )
    rows = list(summarised(list(found.values()), args.sizes, _addresses(model, episodes)))
    program.write(args.output, "estimator", rows, markdown(rows, cell, config), draw(rows, cell))


# --- the bounds -------------------------------------------------------------------------------------------------------


def per_address(sizes: Sequence[int], addresses: int) -> list[int]:
    """The K of z for each address: those that decode at most twice as many samples as the largest K without the sum."""
    most = max((k for k in sizes if k * addresses <= 2 * sizes[-1]), default=sizes[0])
    return [k for k in sizes if most % k == 0]


@torch.no_grad()
def bounds(model: VMA, episodes: GridEpisodes, number: int, key: Key, sizes: Sequence[int]) -> Bounds:
    """Those of one target by each estimator, for each K, and its class.

    The largest number of samples is drawn once.  With a smaller K they make several groups, whose bounds are averaged,
    so that all K speak of the same samples.
    """
    one, summed = episodes.batch(slice(number, number + 1)), per_address(sizes, _addresses(model, episodes))
    m = model.encode_memory(one.memory, precompute_features=True)
    targets = model.encode_targets(one.x, m)
    log_w = sampled_weights(model, one, m, targets, key, sizes[-1])
    log_v = address_weights(model, one, m, targets, key, summed[-1]).logsumexp(1)
    return {
        SAMPLED: torch.stack([nested(log_w, k) for k in sizes]).cpu().numpy(),
        SUMMED: torch.stack([nested(log_v, k) for k in summed]).cpu().numpy(),
        "class": np.array(int(one.x_class)),
    }


def _addresses(model: VMA, episodes: GridEpisodes) -> int:
    return episodes.batch(slice(0, 1)).memory.shape[1] * len(model.placements) + len(model.dummies)


def sampled_weights(model: VMA, one: Episodes, m: EncodedMemory, targets: EncodedTargets, key: Key, k: int) -> Tensor:
    """log w [K] of K samples of (a, z) for one target."""
    parts = []
    for first in range(0, k, size := TEST_DECODES_AT_ONCE[one.x.device.type]):
        noise = TargetNoise(*key, "sampled", targets=one.x_index.flatten(), first=first)
        parts.append(model.importance_samples(one.x, m, targets, noise, min(size, k - first)).log_w.flatten())
    return torch.cat(parts).double()


def address_weights(model: VMA, one: Episodes, m: EncodedMemory, targets: EncodedTargets, key: Key, k: int) -> Tensor:
    """log p(x,z|m_a) p(a) / q(z|x,m_a), [K, A]: K samples of z for every address of one target."""
    addresses = m.p_a.logits.shape[-1]
    parts = []
    for first in range(0, k, size := max(1, TEST_DECODES_AT_ONCE[one.x.device.type] // addresses)):
        noise = TargetNoise(*key, "summed", targets=one.x_index.flatten(), first=first * addresses)
        samples = model.samples_at(model.every_address(m, targets, min(size, k - first)), targets, noise)
        parts.append(samples.log_w.view(-1, addresses))
    return torch.cat(parts).double()


def nested(log_w: Tensor, k: int) -> Tensor:
    """The mean over groups of k of log (1/k sum_i exp log_w_i): log_w [K] -> a scalar, nats."""
    return log_mean_exp(log_w.view(-1, k), dim=1).mean()


def summarised(targets: Sequence[Bounds], sizes: Sequence[int], slots: int) -> Iterator[program.Row]:
    """A row for each estimator and K; the gap is that to the largest K of the sampled one, target by target."""
    classes = np.array([int(one["class"]) for one in targets])
    best = np.array([one[SAMPLED][-1] for one in targets])
    for estimator, ks, cost in ((SAMPLED, sizes, 1), (SUMMED, per_address(sizes, slots), slots)):
        for number, k in enumerate(ks):
            bound = np.array([one[estimator][number] for one in targets])
            mean, gap = estimate(-bound, classes), estimate(best - bound, classes)
            yield {
                "estimator": estimator,
                "K": k,
                "decodes": k * cost,
                "ELBO": mean.mean,
                "stderr": mean.stderr,
                "gap": gap.mean,
                "gap_stderr": gap.stderr,
                "targets": len(bound),
            }


# --- the report -------------------------------------------------------------------------------------------------------


_LINE = "{estimator} | {K} | {decodes} | {ELBO:.2f} | {stderr:.2f} | {gap:z.3f} | {gap_stderr:.3f}"


def markdown(rows: Sequence[program.Row], cell: str, config: Config) -> str:
    """The rows for people."""
    largest = max(int(row["K"]) for row in rows)
    return markdown_table(
        f"{cell}, {rows[0]['targets']} targets; minus the bound in nats per image, lower is better. "
        f"{described(config)}. Above K = {largest}: the difference to sampled addresses with that K, same targets.",
        f"addresses | K | decodes | ELBO@K | ± s.e. | above K = {largest} | ± s.e.",
        map(_LINE.format_map, rows),
    )


def draw(rows: Sequence[Any], cell: str) -> bytes:
    """Both estimators against the number of decodes -> a PNG."""
    figure = blank(11, 4)
    axes = figure.subplots(1, 2)
    largest = max(row["K"] for row in rows)
    program.draw_lines(axes[0], rows, "estimator", "decodes", "ELBO", "stderr")
    program.draw_lines(axes[1], rows, "estimator", "decodes", "gap", "gap_stderr")
    axes[0].set(xscale="log", xlabel="samples decoded for a target", ylabel="ELBO@K, nats per image (lower is better)")
    axes[1].set(xscale="log", xlabel="samples decoded for a target", ylabel=f"nats above K = {largest} (paired)")
    axes[1].set_yscale("symlog", linthresh=0.1)
    figure.suptitle(f"{cell}, {rows[0]['targets']} targets; bars: two standard errors each way", fontsize=9)
    return png(figure)


if __name__ == "__main__":
    standalone(main)
