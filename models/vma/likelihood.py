"""p(x|z,m_a): from a latent and the features of the picked image to an image.

`K` importance samples · `G` memories · `T` targets · `N` images · `D` features · `Z` latent ·
`C` parameters of a pixel · `H W` image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoencoders.base import Decoder
from autoencoders.features import Features, FeaturesAt
from models.base import Likelihood, Noise
from models.vma.placements import Placements

# With more pairs, activations are recomputed for the gradient instead of being stored.
PAIRS_STORED = {"cpu": 2048, "cuda": 8192}
PAIRS_AT_ONCE = {"cpu": 24, "cuda": 4096}  # without a gradient; on a CPU as many as fit its caches


class ImageLikelihood(nn.Module):
    """p(x|z,m_a): `decoder` turns [z, code of m_a] into the parameters of `likelihood`.

    Args:
        features: D of the memory image.
        code: the size of its code.
        placements: where parameters of pixels are put.
    """

    def __init__(
        self, decoder: Decoder, likelihood: Likelihood, features: int, code: int, placements: Placements = Placements()
    ) -> None:
        super().__init__()
        self.placements = placements
        self.decoder = decoder
        self.likelihood = likelihood
        self.memory_code = nn.Linear(features, code)

    def precompute(self, vector: Tensor, maps: Sequence[Tensor]) -> Features:
        """What `log_prob` and `picture` need of encoded memory images [N, ...], computed once for each."""
        return Features(vector, self.decoder.precompute_skips(maps))

    def context(self, x: Tensor) -> Tensor | None:
        """What the likelihood needs of targets x [G, T, H, W], computed once for all their samples."""
        return self.likelihood.context(x)

    def log_prob(self, x: Tensor, context: Tensor | None, z: Tensor, m_a: FeaturesAt) -> Tensor:
        """log p(x|z,m_a) [K, G, T] in nats of x [G, T, H, W], for z [K, G, T, Z]."""
        return self.likelihood.log_prob(self.decode(z, m_a), x, context)

    def picture(self, z: Tensor, m_a: FeaturesAt, noise: Noise) -> Tensor:
        """What shows p(x|z,m_a), [K, G, T, H, W]."""
        return self.likelihood.picture(self.decode(z, m_a), noise)

    def decode(self, z: Tensor, m_a: FeaturesAt) -> Tensor:
        """Parameters of all pixels, [K, G, T, C, H, W]."""
        memory_code = self.memory_code(F.relu(m_a.vector.flatten(0, -2)))
        code = torch.cat([z.flatten(0, -2), memory_code], -1)  # [R, Z + code], R = K G T
        parameters = self.decoder(code, m_a.maps).to(z.dtype)  # [R, C, H, W]
        if m_a.placement is not None:
            each = torch.arange(len(parameters), device=z.device)
            parameters = self.placements.place(parameters, each, m_a.placement.flatten())
        return parameters.unflatten(0, z.shape[:-1])


class LatentFreeImageLikelihood(ImageLikelihood):
    """p(x|m_a), without a z: a memory image is decoded once, and only the likelihood is computed for every pair.

    A pair is a target and an image that was picked for it, placed somewhere, however often.  The only map that
    `precompute` returns is the decoder's output, so `m_a.maps[0]` are parameters of pixels here.
    """

    def precompute(self, vector: Tensor, maps: Sequence[Tensor]) -> Features:
        parameters = self.decoder(self.memory_code(F.relu(vector)), super().precompute(vector, maps).maps)
        return Features(vector, (parameters.to(vector.dtype),))  # [N, C, H, W]

    def decode(self, z: Tensor, m_a: FeaturesAt) -> Tensor:
        if m_a.placement is None:
            return m_a.maps[0].unflatten(0, m_a.rows.shape)
        rows, placement = m_a.rows.flatten(), m_a.placement.flatten()
        return self.placements.place(m_a.table.maps[0], rows, placement).unflatten(0, m_a.rows.shape)

    def log_prob(self, x: Tensor, context: Tensor | None, z: Tensor, m_a: FeaturesAt) -> Tensor:
        images, targets, placements = len(m_a.table.vector), math.prod(x.shape[:2]), len(self.placements)
        which = torch.arange(targets, device=x.device).view(x.shape[:2]) * images + m_a.rows
        placement = 0 if m_a.placement is None else m_a.placement
        pairs, back = (which * placements + placement).unique(return_inverse=True)  # [P], [K, G, T]
        x = x.flatten(0, 1)
        context = context if context is None else context.flatten(0, 1)

        def log_prob(pairs: Tensor) -> Tensor:
            picked, placement = pairs // placements, None if m_a.placement is None else pairs % placements
            target = picked // images
            paired = self.decode(z, FeaturesAt(m_a.table, picked % images, placement))[None, None]  # [1, 1, P, C, H, W]
            of_target = context if context is None else context.index_select(0, target)[None]
            return self.likelihood.log_prob(paired, x.index_select(0, target)[None], of_target).flatten()

        if not torch.is_grad_enabled():
            return torch.cat([log_prob(chunk) for chunk in pairs.split(PAIRS_AT_ONCE[x.device.type])])[back]
        chunks = pairs.split(PAIRS_STORED[x.device.type])
        if len(chunks) == 1:
            return log_prob(pairs)[back]
        return torch.cat([checkpoint(log_prob, chunk, use_reentrant=False) for chunk in chunks])[back]
