"""Objectives as pure functions of log-weights.

`K` importance samples · `S` addresses · `O` orders of the pixels · `...` or `G T` targets.  K leads.  A bound is what
is maximised, in nats.

IWAE: Burda et al., arXiv 1509.00519.  VIMCO: Mnih & Rezende, arXiv 1602.06725.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log (1/n sum_i exp log_w_i) over `dim`, without leaving the log domain."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def by_order(values: Tensor, orders: int) -> Tensor:
    """Values of targets in every order, the order running fastest: [..., G O, T] -> [..., O, G, T]."""
    return values.unflatten(-2, (-1, orders)).movedim(-2, -3)


def order_posterior(log_w: Tensor, orders: int) -> Tensor:
    """p(o|x,M) [O, G, T] as log-weights [K, G O, T] tell it."""
    return by_order(log_w.detach().logsumexp(0), orders).softmax(0)


def normalised(log_w: Tensor, orders: int) -> Tensor:
    """The weights w~ [K, G O, T], which sum to one over the samples of all orders of a target."""
    return log_w.detach().softmax(0) * order_posterior(log_w, orders).movedim(0, 1).flatten(0, 1)


def averaged(metrics: Mapping[str, Tensor], log_w: Tensor, orders: int) -> dict[str, Tensor]:
    """Metrics [G O, T] of every order -> [G, T], averaged over p(o|x,M)."""
    p_o = order_posterior(log_w, orders)
    return {name: (p_o * by_order(value, orders)).sum(0) for name, value in metrics.items()}


def leave_one_out_bounds(log_w: Tensor) -> Tensor:
    """VIMCO's baselines L_{-k}: the bound with w_k replaced by the geometric mean of the others (Eq. 9 of VIMCO).

    `log_w` [K, ...] -> [K, ...], nats.  The diagonal of a K x K table is replaced before the log-sum-exp; taking w_k
    out of the finished sum by `log(1 - w_k / sum)` loses all digits exactly where one weight dominates.

    Raises:
        ValueError: with K = 1 there is nothing left when one sample is left out.
    """
    k = log_w.shape[0]
    if k < 2:
        raise ValueError(f"VIMCO compares each sample with the others: importance samples K = {k}; use 2 or more")
    itself = torch.eye(k, dtype=torch.bool, device=log_w.device).view(k, k, *[1] * (log_w.dim() - 1))
    others = log_w.unsqueeze(0).expand(k, *log_w.shape)  # [K left out, K, ...]
    geometric_mean = others.masked_fill(itself, 0).sum(1, keepdim=True) / (k - 1)
    return log_mean_exp(torch.where(itself, geometric_mean, others), dim=1)


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    """A tensor whose value is the K-sample bound and whose gradient is VIMCO's (Eq. 8 of VIMCO).

    Args:
        log_w: [K, ...] log-weights, with log q of the discrete sample detached inside.
        log_q: [K, ...] log-probability of each discrete sample, attached.

    Because log q is detached in `log_w`, its pathwise term -w~_k stands in the learning signal L - L_{-k} - w~_k.

    Returns:
        [...], nats.

    Raises:
        ValueError: if K = 1.
    """
    bound = log_mean_exp(log_w)
    fixed = log_w.detach()
    signal = log_mean_exp(fixed) - leave_one_out_bounds(fixed) - fixed.softmax(0)
    score = (signal * log_q).sum(0)
    return bound + score - score.detach()


def marginal(log_w: Tensor, log_q: Tensor) -> Tensor:
    """Exact sum over addresses, importance samples only for z: log sum_a p(a) 1/K sum_k w_{k,a}.

    Args:
        log_w: [K, S, ...] log p(x,z|m_a) p(a) / q(z|x,m_a) of K samples of z for each address; no q(a) inside.
        log_q: [S, ...] log q(a|M,x), attached.

    The sum does not need q(a).  For a test that samples addresses, q(a) learns from the posterior over addresses which
    the sum reveals: the gradient of -KL(p^(a|x,M) || q(a|M,x)) is added, its value is not.  This is the wake-phase
    update of q in Reweighted Wake-Sleep (Bornschein & Bengio 2015, arXiv 1406.2751), with the exact sum.

    Returns:
        [...], nats: the bound, whose gradient is exact for the generative model.
    """
    log_joint = log_mean_exp(log_w)  # [S, ...]
    wake = (log_joint.detach().softmax(0) * log_q).sum(0)
    return log_joint.logsumexp(0) + wake - wake.detach()
