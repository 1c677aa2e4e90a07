"""Heads that turn features into distributions.  Event dimensions are declared here, so nobody sums outside."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

Likelihood = Callable[[Tensor], Distribution]


class DiagonalNormal(nn.Module):
    """Features [..., D] -> Normal with independent components, event [Z]; the scale is a softplus."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.loc_and_scale = nn.Linear(features, 2 * latent)

    def forward(self, features: Tensor) -> Independent:
        loc, scale = self.loc_and_scale(features).to(features.dtype).chunk(2, -1)  # [..., Z] each
        return Independent(Normal(loc, F.softplus(scale)), 1)


def bernoulli_image(logits: Tensor) -> Independent:
    """Logits [..., H, W] -> independent Bernoulli pixels, event [H, W]."""
    return Independent(Bernoulli(logits=logits), 2)


def normal_image(means: Tensor) -> Independent:
    """Means [..., H, W] -> independent Normal pixels of unit variance, event [H, W]."""
    return Independent(Normal(means, means.new_ones(())), 2)


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": bernoulli_image, "normal": normal_image}
