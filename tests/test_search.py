"""Likely addresses are found in rounds: each corrects q(a|M,x) by the error that it had nearby."""

import math

import pytest
import torch
from torch import Tensor

from models.vma.search import search


def on_a_line(addresses: int) -> Tensor:
    """|a - b|, [A, A]."""
    place = torch.arange(addresses, dtype=torch.float64)
    return (place - place[:, None]).abs()


def searched(
    log_q: Tensor, log_joint: Tensor, apart: Tensor, n: int, rounds: int, points: Tensor | None = None
) -> Tensor:
    """The search among tables [G, T, A], with distances [A, A]."""
    return search(
        log_q,
        lambda a: log_joint.gather(-1, a.movedim(0, -1)).movedim(-1, 0),
        lambda a: apart[:, a.movedim(0, -1)].permute(1, 2, 0, 3),
        n,
        rounds,
        points,
    )


@pytest.mark.parametrize(("n", "rounds"), [(7, 1), (7, 3), (6, 6), (20, 4)])
def test_the_search_equals_the_slow_version(n: int, rounds: int) -> None:
    torch.manual_seed(0)
    log_q, log_joint = torch.randn(2, 2, 3, 20, dtype=torch.float64).unbind()
    apart = torch.rand(20, 20, dtype=torch.float64)
    values = searched(log_q, log_joint, apart, n, rounds)
    found = values.isfinite()
    torch.testing.assert_close(values[found], log_joint[found], rtol=0, atol=0)
    for g in range(2):
        for t in range(3):
            chosen = list[int]()
            for number in range(rounds):
                predicted = {}
                for a in set(range(20)) - set(chosen):
                    near = [math.exp(-apart[a, e]) for e in chosen]
                    errors = [(log_joint - log_q)[g, t, e].item() for e in chosen]
                    mean = sum(w * error for w, error in zip(near, errors, strict=True)) / sum(near) if chosen else 0
                    predicted[a] = log_q[g, t, a].item() + mean
                size = n // rounds + (number < n % rounds)
                chosen += sorted(predicted, key=lambda a: -predicted[a])[:size]
            assert set(found[g, t].nonzero().flatten().tolist()) == set(chosen) and len(chosen) == n


def test_it_finds_more_of_the_sum_where_neighbours_err_alike() -> None:
    """Two peaks, of which q(a|M,x) overrates the lower by two nats."""
    apart = on_a_line(60)
    log_joint = torch.logaddexp(-((apart[15] / 6) ** 2), -((apart[45] / 6) ** 2) - 2)[None, None]
    log_q = log_joint + torch.where(torch.arange(60) > 30, 2.0, 0.0)
    whole = log_joint.logsumexp(-1).item()
    of_q, of_search = (searched(log_q, log_joint, apart, 16, rounds).logsumexp(-1).item() for rounds in (1, 8))
    assert of_q < of_search < whole
    assert whole - of_search < (whole - of_q) / 2


@pytest.mark.parametrize("samples", [1, 3])
def test_the_sum_over_the_rest_is_unbiased(samples: int) -> None:
    """Over a grid of 20,000 offsets, one for each target; the mean over all offsets is off by less than one step."""
    torch.manual_seed(1)
    grid, addresses = 20_000, 12
    log_q, log_joint = torch.randn(2, addresses, dtype=torch.float64)
    apart = torch.rand(addresses, addresses, dtype=torch.float64)
    offsets = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    points = ((torch.arange(samples)[:, None] + offsets) / samples).unsqueeze(1)  # [S, 1, grid]
    of_q, of_joint = (table.expand(1, grid, addresses) for table in (log_q, log_joint))
    alone, estimated = (searched(of_q, of_joint, apart, 4, 2, at) for at in (None, points))
    found = alone[0, 0].isfinite()
    assert found.sum() == 4
    torch.testing.assert_close(estimated[..., found], alone[..., found])
    sums = estimated.exp().sum(-1)
    assert sums.std() > 0.01
    torch.testing.assert_close(sums.mean(), log_joint.exp().sum(), rtol=1e-3, atol=0)
    shares = estimated[0, :, ~found].log_softmax(-1)  # of the rest: q', whatever was drawn
    torch.testing.assert_close(shares, shares[:1].expand_as(shares))
