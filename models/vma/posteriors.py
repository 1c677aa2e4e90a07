"""q(a,z|M,x) = q(a|M,x) q(z|x,m_a).

`K` importance samples · `G` memories · `T` targets · `S` slots · `D` embedding or features · `Z` latent.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from models.vma.heads import DiagonalNormalHead


class AddressPosterior(nn.Module):
    """q(a|M,x): softmax of the dot products of the embeddings of x and of every slot, as published not scaled.

    With `scaled` they are divided by the square root of D.
    """

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, x: Tensor, slots: Tensor) -> Categorical:
        """Embeddings of targets [G, T, D] and of slots [G, S, D] -> Categorical with logits [G, T, S]."""
        with torch.autocast(x.device.type, enabled=False):  # the products need all their digits
            products = x @ slots.transpose(1, 2)
        return Categorical(logits=products / math.sqrt(x.shape[-1]) if self.scaled else products)


class LatentPosterior(nn.Module):
    """q(z|x,m_a): a diagonal Normal from the features of the target and of the picked image."""

    def __init__(self, features: int, latent: int, hidden: int = 0) -> None:
        super().__init__()
        self.head = DiagonalNormalHead(2 * features, latent, hidden)

    def forward(self, x: Tensor, m_a: Tensor) -> Independent:
        """Features of x [G, T, D] and of m_a [K, G, T, D] -> Normal, batch [K, G, T], event [Z]."""
        return self.head(torch.cat([x.expand(*m_a.shape[:-1], -1), m_a], -1))
