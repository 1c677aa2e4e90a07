"""The table of contexts against slow versions with dictionaries, and as a distribution."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from models import context_table
from models.context_table import ContextTable, contexts


@pytest.fixture
def pairs() -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(0)
    return [(torch.rand(2, 6, 7, 5, generator=source) < 0.3).to(torch.uint8).unbind() for _ in range(3)]  # type: ignore[misc]


def slow_context(x: Tensor, m: Tensor, row: int, column: int) -> tuple[int, ...]:
    bits = []
    for name, down, right in context_table._NEIGHBOURS:
        image, r, c = (x if name == "x" else m), row + down, column + right
        inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
        bits.append(int(image[r, c]) if inside else 0)
    return tuple(bits)


def test_contexts_are_the_neighbours_in_order(pairs: list[tuple[Tensor, Tensor]]) -> None:
    x, m = pairs[0]
    found = contexts(x, m)
    for p, row, column in itertools.product(range(len(x)), range(x.shape[1]), range(x.shape[2])):
        bits = "".join(map(str, slow_context(x[p], m[p], row, column)))
        assert int(found[p, row, column]) == int(bits, 2)


def test_no_context_holds_its_own_pixel_or_a_later_one() -> None:
    for name, row, column in context_table._NEIGHBOURS:
        assert name == "m" or row < 0 or (row == 0 and column < 0)


def test_probabilities_are_those_of_counts_in_dictionaries(pairs: list[tuple[Tensor, Tensor]]) -> None:
    counts: dict[tuple[int, ...], list[int]] = {}
    for x, m in pairs:
        for p, row, column in itertools.product(range(len(x)), range(x.shape[1]), range(x.shape[2])):
            context = slow_context(x[p], m[p], row, column)
            for length in (0, *context_table._LENGTHS):
                counts.setdefault(context[:length], [0, 0])[int(x[p, row, column])] += 1

    def slow_log_prob(x: Tensor, m: Tensor) -> float:
        total = 0.0
        for row, column in itertools.product(range(x.shape[0]), range(x.shape[1])):
            context = slow_context(x, m, row, column)
            paper, inked = counts[()]
            ink = inked / (paper + inked)
            for length in context_table._LENGTHS:
                paper, inked = counts.get(context[:length], (0, 0))
                ink = (inked + context_table._PRIOR * ink) / (paper + inked + context_table._PRIOR)
            total += math.log(ink if x[row, column] else 1 - ink)
        return total

    table = ContextTable.fit(pairs)
    source = torch.Generator().manual_seed(1)
    new = (torch.rand(2, 4, 7, 5, generator=source) < 0.3).to(torch.uint8)
    for x, m in (pairs[0], (new[0], new[1])):  # contexts that were all seen, and some that were not
        expected = torch.tensor([slow_log_prob(*pair) for pair in zip(x, m, strict=True)], dtype=torch.float64)
        torch.testing.assert_close(table.log_prob(x, m), expected)


def test_the_probabilities_of_all_images_sum_to_one(pairs: list[tuple[Tensor, Tensor]]) -> None:
    table = ContextTable.fit(pairs)
    images = torch.tensor(list(itertools.product((0, 1), repeat=12)), dtype=torch.uint8).view(-1, 3, 4)
    memory = (torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.5).to(torch.uint8)
    total = table.log_prob(images, memory.expand_as(images)).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-12)
