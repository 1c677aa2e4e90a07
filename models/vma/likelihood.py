"""p(x|z,m_a): from a latent and the features of the picked image to an image.

`K` importance samples · `G` memories · `T` targets · `D` features · `Z` latent · `C` parameters of a pixel ·
`H W` image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.base import Decoder
from autoencoders.features import FeaturesAt
from models.base import Likelihood, Noise


class ImageLikelihood(nn.Module):
    """p(x|z,m_a): `decoder` makes the parameters of `likelihood` from codes [..., 2 Z]."""

    def __init__(self, decoder: Decoder, likelihood: Likelihood, features: int, latent: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.memory_code = nn.Linear(features, latent)

    def precompute_skips(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All that decoding needs of the encoder's maps, computed once per memory image."""
        return self.decoder.precompute_skips(maps)

    def context(self, x: Tensor) -> Tensor | None:
        """What the likelihood needs of targets x [G, T, H, W], computed once for all their samples."""
        return self.likelihood.context(x)

    def log_prob(self, x: Tensor, context: Tensor | None, z: Tensor, m_a: FeaturesAt) -> Tensor:
        """log p(x|z,m_a) [K, G, T] in nats of x [G, T, H, W], for z [K, G, T, Z]."""
        return self.likelihood.log_prob(self.decode(z, m_a), x, context)

    def mean(self, z: Tensor, m_a: FeaturesAt, noise: Noise) -> Tensor:
        """Pixel means [K, G, T, H, W]."""
        return self.likelihood.mean(self.decode(z, m_a), noise)

    def decode(self, z: Tensor, m_a: FeaturesAt) -> Tensor:
        """Parameters of all pixels, [K, G, T, C, H, W]."""
        memory_code = self.memory_code(F.relu(m_a.vector.flatten(0, -2)))
        code = torch.cat([z.flatten(0, -2), memory_code], -1)  # [R, 2 Z], R = K G T
        return self.decoder(code, m_a.maps).to(z.dtype).unflatten(0, z.shape[:-1])
