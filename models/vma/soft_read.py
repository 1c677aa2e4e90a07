"""The baseline that the paper argues against: a memory that is read by soft attention instead of an address.

    p(x|M) = int p(z) p(x|z,r(z,M)) dz,  r(z,M) = sum_s w_s(z) features(m_s),  w(z) = softmax_s(f(z) . g(m_s))

z alone decides what is read, and what is read is an average (Li et al. 2016, "Learning to generate with memory",
arXiv 1602.07416).  q(z|x) sees only the target.

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies ·
`D` features · `Z` latent · `H W` image.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from autoencoders.base import Encoder
from autoencoders.features import Features, FeaturesAt
from models import objectives
from models.base import EpisodeBatch, MemoryModel, Noise
from models.vma.distributions import DiagonalNormalHead
from models.vma.likelihood import ImageLikelihood
from models.vma.sampling import sample_normal


@dataclass(frozen=True)
class SoftMemory:
    """Of every slot: the embedding [G, S, matching], and features, a vector [G, S, D] and maps [G, S, C, h, w]."""

    embeddings: Tensor
    vector: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class SoftTargets:
    """q(z|x), batch [G, T], and what the likelihood needs of x."""

    q_z: Independent
    context: Tensor | None


@dataclass(frozen=True)
class SoftSamples:
    """Log-weights and KL estimates [K, G, T] of samples z, and what was read with each, [K, G, T, S]."""

    log_w: Tensor
    kl_z: Tensor
    weights: Tensor


class SoftRead(MemoryModel):
    """The model, from networks that are arguments; z has a standard normal prior and reads through `query`."""

    def __init__(
        self,
        address_encoder: Encoder,
        encoder: Encoder,
        p_x: ImageLikelihood,
        q_z: DiagonalNormalHead,
        query: nn.Linear,
        *,
        side: int,
        num_dummies: int,
        importance_num: int,
    ) -> None:
        super().__init__()
        self.address_encoder, self.encoder = address_encoder, encoder
        self.p_x, self.q_z, self.query = p_x, q_z, query
        self.dummies = nn.Parameter(0.1 * torch.rand(num_dummies, side, side))  # what is read where M is 0
        self.importance_num = importance_num
        self.pictured = p_x.likelihood.pictured

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> SoftMemory:
        slots = self.slot_images(memory)  # [G, S, H, W]
        vector, maps = self.encoder(slots.flatten(0, 1))
        features = self.p_x.precompute(vector.to(memory.dtype), maps)
        embeddings = self.address_encoder(slots.flatten(0, 1))[0].to(memory.dtype)
        parts = (embeddings, features.vector, *features.maps)
        embeddings, vector, *maps = (part.unflatten(0, slots.shape[:2]) for part in parts)
        return SoftMemory(embeddings, vector, tuple(maps))

    def encode_targets(self, x: Tensor, m: SoftMemory) -> SoftTargets:
        vector = self.encoder(x.flatten(0, 1))[0].to(x.dtype).unflatten(0, x.shape[:2])
        return SoftTargets(self.q_z(vector), self.p_x.context(x))

    def read(self, z: Tensor, m: SoftMemory) -> tuple[FeaturesAt, Tensor]:
        """r(z,M), a row for each z [K, G, T, Z], and the weights w(z) [K, G, T, S]."""
        query = self.query(z).to(z.dtype)  # [K, G, T, matching]
        with torch.autocast(z.device.type, enabled=False):  # the products need all their digits
            products = torch.einsum("kgtd,gsd->kgts", query, m.embeddings)
        weights = (products / math.sqrt(query.shape[-1])).softmax(-1)

        def average(of: Tensor) -> Tensor:
            """[G, S, ...] -> [K G T, ...]"""
            return torch.einsum("kgts,gsf->kgtf", weights, of.flatten(2)).flatten(0, 2).unflatten(1, of.shape[2:])

        rows = torch.arange(math.prod(z.shape[:3]), device=z.device).view(z.shape[:3])
        return FeaturesAt(Features(average(m.vector), tuple(map(average, m.maps))), rows), weights

    def importance_samples(self, x: Tensor, m: SoftMemory, targets: SoftTargets, noise: Noise, k: int) -> SoftSamples:
        q_z = targets.q_z.expand((k, *targets.q_z.batch_shape))
        z = sample_normal(q_z, noise)  # [K, G, T, Z]
        r, weights = self.read(z, m)
        log_p_z = Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1).log_prob(z)
        kl_z = q_z.log_prob(z) - log_p_z
        return SoftSamples(self.p_x.log_prob(x, targets.context, z, r) - kl_z, kl_z, weights)

    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """The importance-weighted bound [G, T] (Burda et al. 2016, arXiv 1509.00519), and metrics [G, T]."""
        m = self.encode_memory(episodes.memory)
        targets = self.encode_targets(episodes.x, m)
        s = self.importance_samples(episodes.x, m, targets, noise, self.importance_num)
        bound = objectives.log_mean_exp(objectives.by_order(s.log_w, orders).flatten(0, 1))
        same = F.pad(episodes.x_class.unsqueeze(2) == episodes.memory_class.unsqueeze(1), (0, len(self.dummies)))
        accuracy = (s.weights.mean(0) * same).sum(-1)  # of what is read, the part that is of the target's class
        return bound, objectives.averaged({"kl_z": s.kl_z.mean(0), "address_accuracy": accuracy}, s.log_w, orders)

    @torch.no_grad()
    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, None]:
        shape = (n, len(memory), 1, self.query.in_features)
        z = noise.normal("z", *shape).to(memory.dtype)
        return self.p_x.picture(z, self.read(z, self.encode_memory(memory))[0], noise).squeeze(2), None

    @torch.no_grad()
    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, None]:
        m = self.encode_memory(memory)
        q_z = self.encode_targets(x, m).q_z
        z = sample_normal(q_z.expand((1, *q_z.batch_shape)), noise)
        return self.p_x.picture(z, self.read(z, m)[0], noise).squeeze(0), None

    def slot_images(self, memory: Tensor) -> Tensor:
        return torch.cat([memory, self.dummies.to(memory.dtype).expand(len(memory), -1, -1, -1)], 1)
