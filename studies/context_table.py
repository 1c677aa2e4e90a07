"""What a table of pixel contexts gives, without any network: the exact NLL of every cell of a test grid.

    python -m studies.context_table --config configs/vma.yaml

counts the contexts of the training classes (a minute) and writes the same files as a test into `--output`.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

import config as configuration
import parsers
from config import cell_name
from data.episodes import Episodes, GridEpisodes
from data.images import ClassImages
from evaluator import METRICS, PerTarget
from models.context_table import ContextTable
from reports import tables
from reports.cells import CellStore
from run import pathname, standalone
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.randomness import generator
from runtime.signals import StopRequest
from studies import program

_PARTNERS = 4  # images of its class beside which every training image is counted
_TARGETS_AT_ONCE = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("context_table", __doc__)
    p.add_argument("--config", type=pathname, required=True, metavar="YAML", help="its images and its test grid")
    p.add_argument("--targets", type=int, default=1318, metavar="N", help="of each cell, spread over classes (1318)")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Count, compute, write and print.  Raises UserError, DataError, OSError."""
    output = args.output / "results.csv"
    test = ["metric=nll", "addresses=null", "address_rounds=1", "sampled_addresses=0", f"targets={args.targets}"]
    overrides = ["model.latent_dim=0", *(f"test_spec.{one}" for one in test)]
    config = configuration.load(args.config, [*configuration.overrides(args.root), *overrides])
    if not min(config.test_spec.test_params.timesteps):
        raise UserError("test_spec.test_params.timesteps: 0 leaves nothing to look at; use 1 or more")
    cpu = torch.device("cpu")
    images = parsers.test_images(config, cpu)
    spec = config.test_spec
    training = parsers.training_images(config, cpu).train
    origin = {
        "weights": "context table",
        "training": training.digest(),
        "partners": config.train_spec.seed,
        "images": images.digest(),
        "targets": spec.targets,
        "own_class": spec.own_class,
        "seed": spec.seed,
    }
    store = CellStore(output, json.dumps(origin), images.names)
    if store.is_another:
        raise UserError(f"{output} is the table of another test; choose another --output")
    table = ContextTable.fit(pairs(training, config.train_spec.seed))
    for classes, size in tqdm(config.test_cells, "cells", dynamic_ncols=True):
        store.save(cell_name(classes, size), evaluate(table, parsers.grid_episodes(config, images, classes, size)))
    write_atomically(output.with_suffix(".resolved.yaml"), configuration.dump(config).encode())
    tables.write_table(output, store.rows(config), config)
    print(f"{tables.markdown(store.rows(config), config)}\nwritten: {args.output}/results.*")


def pairs(images: ClassImages, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image of a class beside some random other ones of it; classes of a single image are left out."""
    source = generator("cpu", "context table", seed)
    for _ in range(_PARTNERS):
        targets, partners = [], []
        for offset, count in zip(images.offsets.tolist(), images.counts.tolist(), strict=True):
            if count > 1:
                order = offset + torch.randperm(count, generator=source)
                targets.append(order)
                partners.append(order.roll(1))
        yield images.images[torch.cat(targets)], images.images[torch.cat(partners)]


def evaluate(table: ContextTable, episodes: GridEpisodes) -> PerTarget:
    """The exact log-likelihood of every target of a cell, and what its posterior over addresses says."""
    positions = torch.arange(len(episodes)).split(_TARGETS_AT_ONCE)
    parts = [log_likelihoods(table, episodes.batch(part)) for part in positions]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in METRICS}


def log_likelihoods(table: ContextTable, episodes: Episodes) -> dict[str, Tensor]:
    """log 1/M sum_m p(x|m) and its posterior, of targets with a memory each; float64 [G]."""
    x, memory = episodes.x.expand(-1, episodes.memory.shape[1], -1, -1), episodes.memory  # [G, M, H, W]
    log_p = table.log_prob(x.flatten(0, 1), memory.flatten(0, 1)).view(memory.shape[:2])
    posterior = log_p.softmax(1)
    same = episodes.x_class == episodes.memory_class  # [G, M]
    entropy = torch.special.entr(posterior).sum(1)
    return {
        "bound": log_p.logsumexp(1) - math.log(memory.shape[1]),
        "kl_a": math.log(memory.shape[1]) - entropy,
        "kl_z": torch.full_like(entropy, math.nan),
        "address_accuracy": (posterior * same).sum(1),
        "target_class": episodes.x_class.squeeze(1).double(),
    }


if __name__ == "__main__":
    standalone(main)
