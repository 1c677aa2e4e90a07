"""Samples of addresses and latents, and their gradients.

`K` importance samples · `S` slots · `Z` latent.
"""

from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from models.base import Noise


def sample_categorical(q: Categorical, uniform: Tensor) -> Tensor:
    """Samples [K, ...] of q (logits [..., S]): its inverse distribution function at `uniform` [K, ...]."""
    total = q.probs.double().cumsum(-1)  # in float32 it may end below 1, and the last slot would get what is missing
    return (uniform.unsqueeze(-1) * total[..., -1:] >= total[..., :-1]).sum(-1)


def sample_normal(q: Independent, noise: Noise) -> Tensor:
    """A reparameterised sample z of a diagonal Normal."""
    if not q.mean.numel():  # a model without z
        return q.mean
    return q.mean + q.stddev * noise.normal("z", *q.batch_shape, *q.event_shape)


def reattach_sample(q: Independent, z: Tensor) -> Tensor:
    """z, which was drawn from q without gradient, as a reparameterised sample of q: equal to z up to rounding."""
    return q.mean + q.stddev * ((z - q.mean) / q.stddev).detach()


def detached(q: Independent) -> Independent:
    """The same diagonal Normal with detached parameters."""
    return Independent(Normal(q.mean.detach(), q.stddev.detach()), 1)


def apply_dreg(z: Tensor, weights: Tensor) -> None:
    """Weigh the gradient that reaches each z by its normalised importance weight.

    The pathwise gradient of an importance-weighted bound for the parameters of q is sum_k w~_k^2 dlog w_k/dz dz/dphi in
    expectation, with less variance than through log q (Tucker et al. 2019, arXiv 1810.04152, Eq. 6).  The gradient of
    the bound brings one w~_k already.

    Args:
        z: [K, ..., Z], of log-weights whose log q(z) has no gradient of its own.
        weights: [K, ...] normalised w~: among the samples or, with the marginal bound, samples and addresses.
    """
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * weights.unsqueeze(-1))
