"""The priors of the generative model: p(a|M) of addresses and p(z|m_a) of latents.

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies ·
`D` features · `Z` latent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from models.vma.heads import DiagonalNormalHead


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
