"""Bounds of the test targets: ELBO@K, or the exact log-likelihood, of every target of a cell.

`K` importance samples · `G` memories, one target each (T = 1) · `n` targets of a cell.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.episodes import Episodes, GridEpisodes
from models.base import MemoryModel
from runtime.errors import NonFiniteError
from runtime.processes import Processes
from runtime.randomness import TargetNoise

# Decodes at once: on a CPU as many as its caches like, on a GPU as many as keep it busy.
TEST_DECODES_AT_ONCE = {"cpu": 200, "cuda": 4096}
SAMPLES_AT_ONCE = 50  # of a target, at least

# Nats; a fraction; a number that names the class.
METRICS = ("bound", "kl_a", "kl_z", "address_accuracy", "target_class")
PerTarget = dict[str, np.ndarray]  # METRICS, each [n] float64

_SYNC_EVERY = 16  # batches, after which processes meet: the fastest would else wait longer than communication may take
_SAVE_EVERY = 120.0  # seconds, after which the finished targets of a cell are saved when processes meet


def sizes_at_once(device: torch.device, batch: int, chunk: int | None) -> tuple[int, int]:
    """How many targets, and samples of each, to decode at once."""
    budget = TEST_DECODES_AT_ONCE[device.type]
    targets = max(1, min(batch, budget // (chunk or SAMPLES_AT_ONCE)))
    return targets, chunk or budget // targets


@torch.no_grad()
def importance_bounds(
    model: MemoryModel, episodes: Episodes, key: Sequence[int | str], k: int, chunk: int
) -> dict[str, Tensor]:
    """ELBO@K and its parts for a batch of targets with a memory each.

    Features are computed once; samples come in chunks that are folded by an online log-sum-exp, so the memory used
    does not grow with K.

    Returns:
        bound, kl_a, kl_z in nats, address_accuracy and target_class, each [G]; NaN for what the model does not have.
    """
    m = model.encode_memory(episodes.memory, precompute_features=True)
    targets = model.encode_targets(episodes.x, m)
    total = torch.full_like(episodes.x[:, :, 0, 0], -math.inf, dtype=torch.float64)  # [G, 1] log sum of weights
    kl_z = torch.zeros_like(total)
    for first in range(0, k, chunk):
        noise = TargetNoise(*key, targets=episodes.x_index.flatten(), first=first)
        samples = model.importance_samples(episodes.x, m, targets, noise, min(chunk, k - first))
        total = torch.logaddexp(total, samples.log_w.double().logsumexp(0))
        kl_z += math.nan if samples.kl_z is None else samples.kl_z.double().sum(0)
    values = {"bound": total - math.log(k), "kl_z": kl_z / k, **model.metrics(m, targets, episodes)}
    return _per_target(values, episodes)


@torch.no_grad()
def log_likelihoods(model: MemoryModel, episodes: Episodes, key: Sequence[int | str]) -> dict[str, Tensor]:
    """What `importance_bounds` returns, where log p(x|M) and its posterior over addresses are known exactly, or nearly.

    Raises:
        NotImplementedError: the model only knows bounds.
    """
    m = model.encode_memory(episodes.memory, precompute_features=True)
    noise = TargetNoise(*key, targets=episodes.x_index.flatten())
    log_p, targets = model.log_likelihood(m, model.encode_targets(episodes.x, m), noise)
    return _per_target({"bound": log_p, **model.metrics(m, targets, episodes)}, episodes)


def _per_target(values: dict[str, Tensor], episodes: Episodes) -> dict[str, Tensor]:
    """All METRICS [G] of `values` [G, 1], NaN where the model has none."""
    missing = torch.full_like(values["bound"], math.nan)
    found = {"target_class": episodes.x_class, **values}
    return {name: found.get(name, missing).squeeze(1).double() for name in METRICS}


def evaluate_cell(
    model: MemoryModel,
    episodes: GridEpisodes,
    key: Sequence[int | str],
    k: int | None,
    batch: int,
    chunk: int,
    advance: Callable[[int], object],
    processes: Processes = Processes(),
    partial_cell: PerTarget | None = None,
    save_partial: Callable[[PerTarget], object] = lambda values: None,
) -> PerTarget:
    """All targets of a cell, `batch` at a time in every process; `advance` is told how many were done.

    With `k` None their exact log-likelihoods.

    `partial_cell` are the values of the first targets, where an earlier run computed them; from time to time process 0
    calls `save_partial` with those so far.

    Raises:
        NonFiniteError: a bound is not finite.
    """
    n, done = len(episodes), 0 if partial_cell is None else len(partial_cell["bound"])
    values = {name: torch.zeros(n, dtype=torch.float64) for name in METRICS}
    if partial_cell is not None and processes.main:  # in one process only: the values of all are summed
        for name, value in values.items():
            value[:done] = torch.tensor(partial_cell[name])
    saved = time.monotonic()
    for number, first in enumerate(range(done, n, batch * processes.world)):
        if number % _SYNC_EVERY == 0 and processes.all_reduce_max(int(time.monotonic() - saved > _SAVE_EVERY)):
            so_far = {name: processes.all_reduce_sum(value[:first].clone()).numpy() for name, value in values.items()}
            processes.broadcast_from_main(partial(save_partial, so_far))
            saved = time.monotonic()
        shard = slice(first + batch * processes.rank, min(first + batch * (processes.rank + 1), n))
        if shard.start < n:
            batch_of = episodes.batch(shard)
            found = importance_bounds(model, batch_of, key, k, chunk) if k else log_likelihoods(model, batch_of, key)
            if not found["bound"].isfinite().all():
                way_out = "test other weights, or train anew with a lower train_spec.lr"
                raise NonFiniteError(f"{key[-1]}: the bound of a target is not finite, so there is no row; {way_out}")
            for name, value in found.items():
                values[name][shard] = value.cpu()
        advance(min(batch * processes.world, n - first))
    return {name: processes.all_reduce_sum(value).numpy() for name, value in values.items()}
