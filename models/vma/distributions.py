"""The conditional distributions of a and z: p(a|M), p(z|m_a), q(a|M,x), q(z|x,m_a).

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies ·
`D` embedding or features · `Z` latent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal


class AddressPrior(nn.Module):
    """p(a|M): images of the memory have the logit 0, each dummy one of its own, or 0 too: uniform, as published."""

    def __init__(self, dummies: int, learned: bool) -> None:
        super().__init__()
        if learned:
            self.dummy_logits = nn.Parameter(torch.zeros(dummies))
        else:
            self.register_buffer("dummy_logits", torch.zeros(dummies), persistent=False)

    def forward(self, memories: int, images: int) -> Categorical:
        """For G memories of M images: logits [G, 1, S], the same for all targets of a memory."""
        logits = F.pad(self.dummy_logits, (images, 0))  # [S]
        return Categorical(logits=logits.expand(memories, 1, -1))


class LatentPrior(nn.Module):
    """p(z|m_a): a diagonal Normal from the features of the picked image."""

    def __init__(self, features: int, latent: int, hidden: int = 0) -> None:
        super().__init__()
        self.head = DiagonalNormalHead(features, latent, hidden)

    def forward(self, m_a: Tensor) -> Independent:
        """Features of m_a [K, G, T, D] -> Normal, batch [K, G, T], event [Z]."""
        return self.head(m_a)


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


class DiagonalNormalHead(nn.Module):
    """Features [..., D] -> Normal with independent components, event [Z]; the scale is a softplus.

    Linear as published, or with one hidden layer of width `hidden`.  Of a z of size 0 there is nothing to learn, and
    its log-probability is 0.
    """

    hidden: nn.Sequential
    loc_and_scale: nn.Linear

    def __init__(self, features: int, latent: int, hidden: int = 0) -> None:
        super().__init__()
        self.latent = latent
        if not latent:
            return
        layers = (nn.ReLU(), nn.Linear(features, hidden), nn.ReLU()) if hidden else ()
        self.hidden = nn.Sequential(*layers)
        self.loc_and_scale = nn.Linear(hidden or features, 2 * latent)

    def forward(self, features: Tensor) -> Independent:
        if not self.latent:
            return Independent(Normal(features[..., :0], features[..., :0] + 1), 1)
        loc, scale = self.loc_and_scale(self.hidden(features)).to(features.dtype).chunk(2, -1)  # [..., Z] each
        return Independent(Normal(loc, F.softplus(scale)), 1)
