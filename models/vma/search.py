"""Likely addresses, where there are too many to sum over all.

`G` memories · `T` targets · `A` addresses, `E` of which were evaluated.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def search(
    log_q: Tensor, log_joint: Callable[[Tensor], Tensor], distances: Callable[[Tensor], Tensor], n: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """n different addresses [n, G, T] and their log p(x,a|M), all that were evaluated.

    The first n / rounds are those of largest q(a|M,x).  After them log q is corrected, for every other address, by the
    error that it had at those evaluated, which counts the more the nearer they are:

        log q(a|M,x) + sum_e w_ae (log p(x,e|M) - log q(e|M,x))        w_ae ~ exp(-distance(a,e))

    Args:
        log_q: log q(a|M,x), [G, T, A].
        log_joint: addresses [k, G, T] -> log p(x,a|M), [k, G, T].
        distances: addresses [E, G, T] -> of every address to each, [G, T, A, E].
    """
    left, weight, error = log_q, torch.zeros_like(log_q), torch.zeros_like(log_q)
    predicted, found, values = log_q, list[Tensor](), list[Tensor]()
    for round_ in torch.arange(n).tensor_split(rounds):
        if found:
            each = found[-1].movedim(0, -1)  # [G, T, E]
            w = (-distances(found[-1])).exp()
            weight = weight + w.sum(-1)
            error = error + (w * (values[-1].movedim(0, -1) - log_q.gather(-1, each)).unsqueeze(-2)).sum(-1)
            left = left.scatter(-1, each, -torch.inf)
            predicted = left + error / weight
        found.append(predicted.topk(len(round_)).indices.movedim(-1, 0))
        values.append(log_joint(found[-1]))
    return torch.cat(found), torch.cat(values)
