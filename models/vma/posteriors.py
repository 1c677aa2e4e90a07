"""EncodedTargets: the address posterior q(a|M,x) and the latent posterior q(z|x,m_a).

`K` samples · `G` memories · `T` targets · `S` slots · `D` features · `Z` latent.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from models.likelihoods import DiagonalNormal


class AddressPosterior(nn.Module):
    """q(a|M,x): softmax of the unscaled dot products of the embeddings of x and of every slot."""

    def forward(self, query: Tensor, keys: Tensor) -> Categorical:
        """Query [G, T, D] and keys [G, S, D] -> Categorical with logits [G, T, S]."""
        with torch.autocast(query.device.type, enabled=False):  # unscaled products need all their digits
            return Categorical(logits=query @ keys.transpose(1, 2))


class LatentPosterior(nn.Module):
    """q(z|x,m_a): a diagonal Normal from the features of the target and of the picked image."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.normal = DiagonalNormal(2 * features, latent)

    def forward(self, x: Tensor, m_a: Tensor) -> Independent:
        """Features of x [G, T, D] and of m_a [K, G, T, D] -> Normal, batch [K, G, T], event [Z]."""
        return self.normal(torch.cat([x.expand_as(m_a), m_a], -1))
