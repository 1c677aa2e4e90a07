"""Likely addresses, where there are too many to sum over all.

`G` memories · `T` targets · `A` addresses, `E` of which were evaluated.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical

from models.vma.sampling import sample_categorical


def search(
    log_q: Tensor,
    log_joint: Callable[[Tensor], Tensor],
    distances: Callable[[Tensor], Tensor],
    n: int,
    rounds: int,
    points: Tensor | None = None,
) -> Tensor:
    """log p(x,a|M) of every address [G, T, A], where n different ones are evaluated.

    The first n / rounds are those of largest q(a|M,x).  After them log q is corrected, for every other address, by the
    error that it had at those evaluated, which count the more the nearer they are:

        log q(a|M,x) + sum_e w_ae (log p(x,e|M) - log q(e|M,x))        w_ae ~ exp(-distance(a,e))

    Those not evaluated have -inf; or with `points` a share of what they are estimated to sum to:

        r = 1/S sum_s p(x,a_s|M) / q'(a_s)        a_s ~ q', softmax of the corrected log q over those not evaluated

    r is unbiased where each point is uniform in [0, 1), so that the sum over all is an unbiased estimate of p(x|M).

    Args:
        log_q: log q(a|M,x), [G, T, A].
        log_joint: addresses [k, G, T] -> log p(x,a|M), [k, G, T].
        distances: addresses [E, G, T] -> of every address to each, [G, T, A, E].
        points: where the cumulative distribution of q' is inverted, [S, G, T]; S more addresses are evaluated.
    """
    left, weight, error = log_q, torch.zeros_like(log_q), torch.zeros_like(log_q)
    found = torch.full_like(log_q, -torch.inf, dtype=torch.float64)
    predicted = log_q
    for number, round_ in enumerate(torch.arange(n).tensor_split(rounds), 1):
        each = predicted.topk(len(round_)).indices  # [G, T, E]
        values = log_joint(each.movedim(-1, 0)).movedim(0, -1)
        found = found.scatter(-1, each, values)
        if number == rounds and points is None:
            return found
        w = (-distances(each.movedim(-1, 0))).exp()
        weight = weight + w.sum(-1)
        error = error + (w * (values - log_q.gather(-1, each)).unsqueeze(-2)).sum(-1)
        left = left.scatter(-1, each, -torch.inf)
        predicted = left + error / weight
    assert points is not None
    rest = Categorical(logits=predicted.double())
    drawn = sample_categorical(rest, points)
    log_r = (log_joint(drawn) - rest.log_prob(drawn)).logsumexp(0) - math.log(len(points))
    return torch.logaddexp(found, rest.logits + log_r.unsqueeze(-1))
