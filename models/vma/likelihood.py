"""The likelihood p(x|z,m_a): latents and the features of the picked image -> a distribution over images.

`K` samples · `G` memories · `T` targets · `D` features · `Z` latent · `H W` image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from autoencoders.features import Features
from models.likelihoods import Likelihood


class ImageLikelihood(nn.Module):
    """p(x|z,m_a), with `network` an image decoder such as `autoencoders.published.Decoder` for codes [N, 2 Z]."""

    def __init__(self, network: nn.Module, likelihood: Likelihood, features: int, latent: int) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood
        self.code = nn.Linear(features, latent)

    def prepare(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All that decoding needs of the encoder's maps, computed once per memory image."""
        return self.network.precompute_skips(maps)  # type: ignore[operator]

    def forward(self, z: Tensor, m_a: Features) -> Distribution:
        """z [K, G, T, Z] and prepared features of the picked rows -> distribution, batch [K, G, T], event [H, W]."""
        code = torch.cat([z.flatten(0, -2), self.code(F.relu(m_a.vector))], -1)
        image = self.network(code, m_a.maps)
        return self.likelihood(image.to(z.dtype).view(*z.shape[:-1], *image.shape[-2:]))
