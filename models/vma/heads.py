"""A learned layer that turns features into a distribution over z.

`D` features · `Z` latent.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal


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
