"""Objectives against enumeration, the exact sum and loops that read like the papers, all in float64.

The toy: S addresses, theta [S] the log-weights log p(x, a) of the generator, phi [S] the logits of q(a).  It is small
enough to walk through all S^K tuples of addresses that K samples may give, so expectations are exact.
"""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.objectives import leave_one_out_bounds, log_mean_exp, marginal, vimco

MODERATE = [0.3, -1.2, 0.8, -0.1]
PEAKY = [0.0, 65.0, -70.0, 130.0]  # gaps of 60 nats and more
FLAT_Q = [0.5, -0.4, 0.1, 0.9]
PEAKY_Q = [1.0, -62.0, 0.0, -3.0]  # hardly ever looks where PEAKY has its weight


def numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def all_tuples(addresses: int, k: int) -> Tensor:
    """[K, S^K]"""
    return torch.tensor(list(product(range(addresses), repeat=k))).T


def exact_bound(theta: Tensor, phi: Tensor, k: int) -> Tensor:
    """The expectation of the K-sample bound, everything attached."""
    a, log_q = all_tuples(len(theta), k), phi.log_softmax(0)
    bounds = (theta[a] - log_q[a]).logsumexp(0) - math.log(k)
    return (log_q[a].sum(0).exp() * bounds).sum()


def expected_vimco(theta: Tensor, phi: Tensor, k: int) -> Tensor:
    """The expectation of what a training step descends: only the surrogate is differentiated, not the probabilities."""
    a, log_q = all_tuples(len(theta), k), phi.log_softmax(0)
    surrogate = vimco(theta[a] - log_q[a].detach(), log_q[a])
    return (log_q[a].sum(0).exp().detach() * surrogate).sum()


@pytest.mark.parametrize("q", [FLAT_Q, PEAKY_Q], ids=["flat q", "peaky q"])
@pytest.mark.parametrize("weights", [MODERATE, PEAKY], ids=["moderate", "peaky"])
@pytest.mark.parametrize("k", [2, 3])
def test_vimco_gradient_is_unbiased(weights: list[float], q: list[float], k: int) -> None:
    theta, phi = numbers(weights), numbers(q)
    exact, expected = exact_bound(theta, phi, k), expected_vimco(theta, phi, k)
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-10)
    wanted = torch.autograd.grad(exact, [theta, phi])
    found = torch.autograd.grad(expected, [theta, phi])
    for f, w in zip(found, wanted, strict=True):
        assert (f - w).abs().max() < 1e-8
    assert wanted[0].abs().max() > 1e-3  # there was something to agree about


def test_vimco_gradient_is_unbiased_where_generator_and_posterior_share_parameters() -> None:
    """As in the model, where dummies and encoder stand in both."""
    shared = numbers(MODERATE)
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    gradients = [
        torch.autograd.grad(bound((shared @ matrix).sin() * 40, (matrix @ shared).tanh(), 3), shared)[0]
        for bound in (exact_bound, expected_vimco)
    ]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-8


def slow_leave_one_out(log_w: list[float], k: int) -> float:
    """log 1/K (sum_{j != k} w_j + w^_-k), with w^_-k the geometric mean of the others, read aloud."""
    others = log_w[:k] + log_w[k + 1 :]
    replaced = [*others, sum(others) / len(others)]
    top = max(replaced)
    return top + math.log(sum(math.exp(v - top) for v in replaced) / len(log_w))


WEIGHTS = st.lists(st.floats(-200, 200), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_vimco_is_the_loop_of_the_paper(values: list[float]) -> None:
    k = len(values)
    log_w, log_q = numbers(values), numbers([-1.0] * k)
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    bound, shares = top + math.log(total / k), [math.exp(v - top) / total for v in values]

    surrogate = vimco(log_w.unsqueeze(1), log_q.unsqueeze(1)).squeeze()
    to_weights, to_q = torch.autograd.grad(surrogate, [log_w, log_q])

    assert surrogate.item() == pytest.approx(bound, rel=1e-12, abs=1e-10)
    assert to_weights.tolist() == pytest.approx(shares, abs=1e-12)
    signals = [bound - slow_leave_one_out(values, i) - shares[i] for i in range(k)]
    assert to_q.tolist() == pytest.approx(signals, rel=1e-9, abs=1e-9)


def test_leave_one_out_does_not_look_at_the_weight_left_out() -> None:
    log_w = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    before, after = leave_one_out_bounds(log_w), leave_one_out_bounds(log_w + torch.tensor([[500.0], [0.0], [0.0]]))
    assert torch.equal(before[0], after[0])
    assert (before[1:] < after[1:]).all()


def test_targets_do_not_mix() -> None:
    log_w = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9
    log_q = -log_w.abs()
    whole = vimco(log_w, log_q)
    assert whole.shape == (2, 3)
    for g, t in product(range(2), range(3)):
        torch.testing.assert_close(whole[g, t], vimco(log_w[:, g, t], log_q[:, g, t]), rtol=0, atol=1e-12)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"K = 1; use 2 or more"):
        vimco(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.0, 1e4, -1e4], [-1e6, -1e6, -1e6], [3e5, -3e5, 0.0], [0.0, 0.0, 0.0]], ids=str)
def test_extreme_weights_stay_finite(values: list[float], dtype: torch.dtype) -> None:
    log_w = torch.tensor(values, dtype=dtype, requires_grad=True)
    log_q = torch.tensor([-1e4, -1.0, 0.0], dtype=dtype, requires_grad=True)
    for value in (vimco(log_w, log_q), marginal(log_w.unsqueeze(0), log_q)):
        gradients = torch.autograd.grad(value, [log_w, log_q])
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)


@settings(deadline=None)
@given(st.lists(st.floats(-300, 300), min_size=1, max_size=8))
def test_log_mean_exp_is_the_log_of_the_mean(values: list[float]) -> None:
    found = log_mean_exp(torch.tensor(values, dtype=torch.float64)).item()
    assert found == pytest.approx(math.log(math.fsum(math.exp(v) for v in values) / len(values)), rel=1e-12, abs=1e-12)


def test_log_mean_exp_does_not_overflow_and_takes_any_dimension() -> None:
    log_w = torch.tensor([[1000.0, 1000.0, 1000.0], [-1000.0, -2000.0, -3000.0]], dtype=torch.float64)
    assert log_mean_exp(log_w, dim=1).tolist() == pytest.approx([1000.0, -1000.0 - math.log(3)])
    assert log_mean_exp(log_w).tolist() == pytest.approx([1000.0 - math.log(2)] * 3)


@pytest.mark.parametrize("weights", [MODERATE, PEAKY], ids=["moderate", "peaky"])
def test_expected_bound_grows_with_k_and_stays_below_the_evidence(weights: list[float]) -> None:
    theta, phi = numbers(weights), numbers(FLAT_Q)
    bounds = [exact_bound(theta, phi, k).item() for k in (1, 2, 3, 4, 5)]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] < theta.logsumexp(0).item()


def marginal_toy() -> tuple[Tensor, Tensor]:
    """log_w [K = 3, S = 4, 2 targets], of which one is peaky, and logits of q."""
    source = torch.Generator().manual_seed(0)
    log_w = torch.randn(3, 4, 2, dtype=torch.float64, generator=source) * torch.tensor([1.0, 40.0])
    phi = torch.randn(4, 2, dtype=torch.float64, generator=source)
    return log_w.requires_grad_(), phi.requires_grad_()


def test_marginal_is_the_sum_over_addresses() -> None:
    log_w, phi = marginal_toy()
    w = log_w.exp().tolist()
    brute = [math.log(sum(w[k][a][t] / 3 for k in range(3) for a in range(4))) for t in range(2)]
    assert marginal(log_w, phi.log_softmax(0)).tolist() == pytest.approx(brute, rel=1e-12)


def test_marginal_gradients() -> None:
    """To the generator that of the exact sum, to q(a) that of -KL(posterior || q)."""
    log_w, phi = marginal_toy()
    to_weights, to_q = torch.autograd.grad(marginal(log_w, phi.log_softmax(0)).sum(), [log_w, phi])

    exact = log_w.exp().mean(0).sum(0).log().sum()
    torch.testing.assert_close(to_weights, torch.autograd.grad(exact, log_w)[0], rtol=0, atol=1e-12)

    joint = log_w.detach().exp().mean(0)
    posterior = joint / joint.sum(0)
    kl = torch.where(posterior > 0, posterior * (posterior.log() - phi.log_softmax(0)), 0).sum()
    torch.testing.assert_close(to_q, torch.autograd.grad(-kl, phi)[0], rtol=0, atol=1e-12)
