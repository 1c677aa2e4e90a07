"""The generator's priors: p(a|M) over addresses and p(z|m_a) over latents.

`G` memories · `S` slots, of which the last `dummies` are learned images · `D` features · `Z` latent.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from models.likelihoods import DiagonalNormal


class UniformAddressPrior(nn.Module):
    """p(a|M) = 1/S, as published."""

    def forward(self, keys: Tensor) -> Categorical:
        """Keys of the slots [G, S, D] -> Categorical with logits [G, 1, S], the same for all targets of a memory."""
        return Categorical(logits=keys.new_zeros(len(keys), 1, keys.shape[1]))


class LearnedAddressPrior(nn.Module):
    """p(a|M) with one learned logit per dummy image; images of the memory share the logit 0."""

    def __init__(self, dummies: int) -> None:
        super().__init__()
        self.dummy_logits = nn.Parameter(torch.zeros(dummies))

    def forward(self, keys: Tensor) -> Categorical:
        """Keys of the slots [G, S, D] -> Categorical with logits [G, 1, S], the same for all targets of a memory."""
        g, s, _ = keys.shape
        images = self.dummy_logits.new_zeros(s - len(self.dummy_logits))
        return Categorical(logits=torch.cat([images, self.dummy_logits]).expand(g, 1, s))


class LatentPrior(nn.Module):
    """p(z|m_a): a diagonal Normal from the features of the picked image."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.normal = DiagonalNormal(features, latent)

    def forward(self, m_a: Tensor) -> Independent:
        """Features of m_a [K, G, T, D] -> Normal, batch [K, G, T], event [Z]."""
        return self.normal(m_a)
