"""Variational Memory Addressing (Bornschein et al. 2017, arXiv 1709.07116).

    p(x|M) = sum_a p(a|M) int p(z|m_a) p(x|z,m_a) dz        q(a,z|M,x) = q(a|M,x) q(z|x,m_a)

`K` importance samples · `G` memories · `T` targets that share one memory · `M` images in a memory · `S` slots, M and
the dummies · `N` images encoded · `R = K G T` picked rows · `D` features · `Z` latent · `H W` image.  K leads, so
broadcasting replaces repetition.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from autoencoders.features import Features
from models import objectives
from models.vma.likelihood import ImageLikelihood
from models.vma.posteriors import AddressPosterior, LatentPosterior
from models.vma.priors import LatentPrior

DECODES_AT_ONCE = 8192


class Noise(Protocol):
    """Where the model's random numbers come from.

    The model asks once for each kind, but for the loss with `gradient_samples` 1, which asks for uniform numbers twice
    and needs fresh ones.
    """

    def uniform(self, *shape: int) -> Tensor: ...

    def normal(self, *shape: int) -> Tensor: ...


class EpisodeBatch(Protocol):
    """What the loss reads of a batch of episodes."""

    @property
    def x(self) -> Tensor: ...  # [G, T, H, W]

    @property
    def memory(self) -> Tensor: ...  # [G, M, H, W]

    @property
    def x_class(self) -> Tensor: ...  # [G, T]

    @property
    def memory_class(self) -> Tensor: ...  # [G, M]


@dataclass(frozen=True)
class Memory:
    """Every image embedded for addressing, once, whatever K and T are.

    `slots` [G, S] says in which of the N rows each slot lies: first the M images, then the dummies, which all memories
    share.
    """

    images: Tensor  # [N, H, W]
    slots: Tensor  # [G, S]
    keys: Tensor  # [G, S, matching]
    p_a: Categorical  # logits [G, 1, S]
    features: Features | None  # N rows, where they were wanted ahead

    def rows(self, a: Tensor) -> Tensor:
        """The rows [R] of the picked slots a [K, G, T]."""
        group = torch.arange(len(self.slots), device=a.device).unsqueeze(1)  # [G, 1]
        return self.slots[group, a].flatten()


@dataclass(frozen=True)
class EncodedTargets:
    """What does not depend on the samples: q(a|M,x) with logits [G, T, S] and the features of x [G, T, D]."""

    q_a: Categorical
    x: Tensor


@dataclass(frozen=True)
class Samples:
    """Samples a ~ q(a|M,x) [K, G, T] and z ~ q(z|x,m_a) [K, G, T, Z], and log-probabilities [K, G, T] in nats."""

    a: Tensor
    z: Tensor
    log_p_x: Tensor
    log_p_z: Tensor
    log_p_a: Tensor
    log_q_z: Tensor
    log_q_a: Tensor

    @property
    def log_joint_over_q_z(self) -> Tensor:
        """log p(x,z,a|M) - log q(z|x,m_a): the log-weight of z when the address is summed over."""
        return self.log_p_x + self.log_p_z + self.log_p_a - self.log_q_z

    @property
    def log_w(self) -> Tensor:
        """log p(x,z,a|M) - log q(z,a|M,x), with log q(a|M,x) detached: its gradient comes by the score function."""
        return self.log_joint_over_q_z - self.log_q_a.detach()

    @property
    def kl_z(self) -> Tensor:
        """One-sample estimates of KL(q(z|x,m_a) || p(z|m_a))."""
        return self.log_q_z - self.log_p_z


def sample_categorical(q: Categorical, uniform: Tensor) -> Tensor:
    """Samples of q (logits [..., S]) by inversion of its distribution function at `uniform` [K, ...]."""
    total = q.probs.double().cumsum(-1)  # in float32 it may end below 1, and the last slot would get what is missing
    return (uniform.unsqueeze(-1) * total[..., -1:] >= total[..., :-1]).sum(-1)


def sample_normal(q: Independent, noise: Noise) -> Tensor:
    """A sample of a diagonal Normal, through which the gradient of its parameters goes."""
    return q.mean + q.stddev * noise.normal(*q.batch_shape, *q.event_shape)


def reattach_sample(q: Independent, z: Tensor) -> Tensor:
    """The sample z that was drawn without gradient, to rounding, with that of the parameters of q."""
    return q.mean + q.stddev * ((z - q.mean) / q.stddev).detach()


class VMA(nn.Module):
    """The model, from networks that are arguments; `importance_num` is K, `objective` is vimco or marginal.

    `use_dreg` takes the doubly reparameterised gradient for q(z|x,m_a).  `gradient_samples` says through how many
    samples of a target the gradient goes: all, or one.
    """

    def __init__(
        self,
        address_encoder: nn.Module,
        encoder: nn.Module,
        p_a: nn.Module,
        p_z: LatentPrior,
        p_x: ImageLikelihood,
        q_z: LatentPosterior,
        *,
        side: int,
        num_dummies: int,
        importance_num: int,
        objective: str,
        use_dreg: bool = False,
        gradient_samples: int | str = "all",
    ) -> None:
        super().__init__()
        self.address_encoder, self.encoder = address_encoder, encoder
        self.p_a, self.p_z, self.p_x = p_a, p_z, p_x
        self.q_a, self.q_z = AddressPosterior(), q_z
        # Small noise: dummies that start equal have equal gradients and never separate.
        self.dummies = nn.Parameter(0.1 * torch.rand(num_dummies, side, side))
        self.importance_num, self.objective = importance_num, objective
        self.use_dreg, self.gradient_samples = use_dreg, gradient_samples

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> Memory:
        """Embed memories [G, M, H, W] and the dummies once; M may be 0.

        With `ahead` their features are computed too, to be picked from many times; without, only those of picked slots
        are, when they are picked.
        """
        g, m = memory.shape[:2]
        images = torch.cat([memory.flatten(0, 1), self.dummies.to(memory.dtype)])  # [N, H, W], N = G M + dummies
        rows = torch.arange(len(images), device=memory.device)
        slots = torch.cat([rows[: g * m].view(g, m), rows[g * m :].expand(g, -1)], 1)
        keys = self.address_encoder(images)[0].to(memory.dtype)[slots]
        return Memory(images, slots, keys, self.p_a(keys), self.features(images) if precompute_features else None)

    def features(self, images: Tensor) -> Features:
        """Features of images [N, H, W], maps prepared for the decoder."""
        vector, maps = self.encoder(images)
        return Features(vector.to(images.dtype), self.p_x.prepare(maps))

    def features_at(self, a: Tensor, m: Memory) -> Features:
        """Features of the picked slots a [K, G, T]: R rows, gathered."""
        features, rows = self._recalled(a, m)
        return features.gather(rows)

    def _recalled(self, a: Tensor, m: Memory) -> tuple[Features, Tensor]:
        """Features, and their rows [R] that the picked slots a [K, G, T] are.

        Without features from before, a CPU encodes the distinct images that were picked; a GPU, which should not wait
        for how many these are, one for each pick or all of them, whichever is fewer.
        """
        rows = m.rows(a)
        if m.features is not None:
            return m.features, rows
        if rows.device.type == "cpu":
            picked, rows = rows.unique(return_inverse=True)
            return self.features(m.images[picked]), rows
        if len(rows) < len(m.images):  # how many are distinct would have to be waited for
            return self.features(m.images[rows]), torch.arange(len(rows), device=rows.device)
        return self.features(m.images), rows

    def encode_targets(self, x: Tensor, m: Memory) -> EncodedTargets:
        """Encode the targets x [G, T, H, W] and address the memory with them."""
        g, t = x.shape[:2]
        query, _ = self.address_encoder(x.flatten(0, 1))
        features, _ = self.encoder(x.flatten(0, 1))
        q_a = self.q_a(query.to(x.dtype).view(g, t, -1), m.keys)
        return EncodedTargets(q_a, features.to(x.dtype).view(g, t, -1))

    def importance_samples(self, x: Tensor, m: Memory, r: EncodedTargets, noise: Noise, k: int) -> Samples:
        """K samples of (a, z) for each target x [G, T, H, W]."""
        a = sample_categorical(r.q_a, noise.uniform(k, *x.shape[:2]))  # [K, G, T]
        return self.samples_at(a, x, m, r, noise)

    def samples_at(self, a: Tensor, x: Tensor, m: Memory, r: EncodedTargets, noise: Noise) -> Samples:
        """Samples of z given addresses a [K, G, T], and every term of log w."""
        features, rows = self._recalled(a, m)
        return self._samples(a, rows, features, x, m, r, partial(sample_normal, noise=noise))

    def _samples(
        self,
        a: Tensor,
        rows: Tensor,
        features: Features,
        x: Tensor,
        m: Memory,
        r: EncodedTargets,
        z_of: Callable[[Independent], Tensor],
    ) -> Samples:
        """Samples at addresses a [K, G, T], which are `rows` [R] of the features, with z = `z_of`(q(z|x,m_a))."""
        vector = features.vector.index_select(0, rows).view(*a.shape, -1)
        p_z, q_z = self.p_z(vector), self.q_z(r.x, vector)
        z = z_of(q_z)  # [K, G, T, Z]
        return Samples(
            a=a,
            z=z,
            log_p_x=self._log_likelihood(x, z, features, rows),
            log_p_z=p_z.log_prob(z),
            log_p_a=m.p_a.log_prob(a),
            log_q_z=(detached(q_z) if self.use_dreg else q_z).log_prob(z),
            log_q_a=r.q_a.log_prob(a),
        )

    def _log_likelihood(self, x: Tensor, z: Tensor, features: Features, rows: Tensor) -> Tensor:
        """log p(x|z,m_a) [K, G, T] of z [K, G, T, Z], where m_a are `rows` [R] of the features.

        More than `DECODES_AT_ONCE` are decoded in parts, and once more when their gradient is taken: else every address
        of every target would have to be kept.
        """

        def decoded(z: Tensor, rows: Tensor) -> Tensor:
            return self.p_x(z, features.gather(rows)).log_prob(x)

        size = max(1, DECODES_AT_ONCE // math.prod(z.shape[1:3]))  # of the K samples
        if len(z) <= size:
            return decoded(z, rows)
        parts = zip(z.split(size), rows.view(len(z), -1).split(size), strict=True)
        return torch.cat([checkpoint(decoded, part, at.flatten(), use_reentrant=False) for part, at in parts])

    def log_weights(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Tensor:
        """log w [K, G, T] in nats of K samples for targets x [G, T, H, W] given memories [G, M, H, W]."""
        m = self.encode_memory(memory)
        return self.importance_samples(x, m, self.encode_targets(x, m), noise, k).log_w

    def loss(self, episodes: EpisodeBatch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the mean bound, a scalar to descend, and detached metrics [G, T] in nats or as a fraction."""
        m = self.encode_memory(episodes.memory)
        r = self.encode_targets(episodes.x, m)
        bound, metrics = getattr(self, f"_{self.objective}")(episodes.x, m, r, noise)
        metrics |= {"bound": bound, "kl_a": kl_a(m, r), "address_accuracy": address_accuracy(r, episodes)}
        return -bound.mean(), {name: value.detach() for name, value in metrics.items()}

    def _vimco(self, x: Tensor, m: Memory, r: EncodedTargets, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        a = sample_categorical(r.q_a, noise.uniform(self.importance_num, *x.shape[:2]))  # [K, G, T]
        s, log_w = self._log_weights_for_backward(a, x, m, r, noise, lambda s: s.log_w)
        bound = objectives.vimco(log_w, r.q_a.log_prob(a))
        return bound, {"kl_z": s.kl_z.mean(0), "reconstruction": s.log_p_x.mean(0)}

    def _marginal(self, x: Tensor, m: Memory, r: EncodedTargets, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        a = all_addresses(x, m, self.importance_num)
        s, log_w = self._log_weights_for_backward(a, x, m, r, noise, lambda s: s.log_joint_over_q_z)
        q_a = s.log_q_a.exp() / self.importance_num  # [K S, G, T] weights of q(a|M,x), the same for each k
        log_w = log_w.unflatten(0, (self.importance_num, -1))  # [K, S, G, T]
        bound = objectives.marginal(log_w, r.q_a.logits.permute(2, 0, 1))
        return bound, {"kl_z": (q_a * s.kl_z).sum(0), "reconstruction": (q_a * s.log_p_x).sum(0)}

    def _log_weights_for_backward(
        self,
        a: Tensor,
        x: Tensor,
        m: Memory,
        r: EncodedTargets,
        noise: Noise,
        log_w_of: Callable[[Samples], Tensor],
    ) -> tuple[Samples, Tensor]:
        """Samples at addresses a [K, G, T] and their log-weights [K, G, T], through which the bound's gradient goes.

        That gradient is sum_k w~_k dlog w_k with normalised weights w~: the mean of dlog w_k over k ~ w~.  So the K
        samples may be decoded without gradient, and one that is drawn among them again with it.  Added to each of the
        log-weights, whose shares w~_k sum to one, its gradient is the bound's.
        """
        features, rows = self._recalled(a, m)
        again = self.gradient_samples == 1 and torch.is_grad_enabled()
        with torch.no_grad() if again else contextlib.nullcontext():
            s = self._samples(a, rows, features, x, m, r, partial(sample_normal, noise=noise))
            log_w = log_w_of(s)
        shares = log_w.detach().softmax(0)
        if not again:
            if self.use_dreg:
                apply_dreg(s.z, shares)
            return s, log_w
        k = sample_categorical(Categorical(probs=shares.movedim(0, -1)), noise.uniform(1, *x.shape[:2]))  # [1, G, T]
        z, rows = s.z.take_along_dim(k.unsqueeze(-1), 0), rows.view_as(a).gather(0, k).flatten()
        one = self._samples(a.gather(0, k), rows, features, x, m, r, partial(reattach_sample, z=z))
        if self.use_dreg:
            apply_dreg(one.z, shares.gather(0, k))
        log_w_k = log_w_of(one)
        return s, log_w + (log_w_k - log_w_k.detach())

    def every_address(self, x: Tensor, m: Memory, r: EncodedTargets, noise: Noise, k: int) -> Samples:
        """K samples of z for every address: Samples [K S, G, T], the address running fastest."""
        return self.samples_at(all_addresses(x, m, k), x, m, r, noise)

    @torch.no_grad()
    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor]:
        """n samples of p(x|M) for each memory [G, M, H, W]: image means [n, G, H, W] and addresses [n, G]."""
        m = self.encode_memory(memory)
        a = sample_categorical(m.p_a, noise.uniform(n, len(memory), 1))  # [n, G, 1]
        m_a = self.features_at(a, m)
        z = sample_normal(self.p_z(m_a.vector.view(*a.shape, -1)), noise)
        return self.p_x(z, m_a).mean.squeeze(2), a.squeeze(2)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Image means [G, T, H, W] of p(x|z,m_a) and the addresses [G, T], for a ~ q(a|M,x) and z ~ q(z|x,m_a)."""
        m = self.encode_memory(memory)
        r = self.encode_targets(x, m)
        a = sample_categorical(r.q_a, noise.uniform(1, *x.shape[:2]))
        m_a = self.features_at(a, m)
        z = sample_normal(self.q_z(r.x, m_a.vector.view(*a.shape, -1)), noise)
        return self.p_x(z, m_a).mean.squeeze(0), a.squeeze(0)


def detached(q: Independent) -> Independent:
    """The same diagonal Normal, whose mean and deviation no gradient reaches."""
    return Independent(Normal(q.mean.detach(), q.stddev.detach()), 1)


def all_addresses(x: Tensor, m: Memory, k: int) -> Tensor:
    """Each slot k times for each target x [G, T, H, W]: a [K S, G, T], the slot running fastest."""
    every = torch.arange(m.slots.shape[1], device=x.device).repeat(k)
    return every.view(-1, 1, 1).expand(-1, *x.shape[:2])


def apply_dreg(z: Tensor, shares: Tensor) -> None:
    """Weigh the gradient that reaches each z by its normalised importance weight.

    The pathwise gradient of an importance-weighted bound for the parameters of q is sum_k w~_k^2 dlog w_k/dz dz/dphi in
    expectation, with less variance than through log q (Tucker et al. 2019, arXiv 1810.04152, Eq. 6).  The gradient of
    the bound brings one w~_k already.

    Args:
        z: [K, ..., Z], of log-weights whose log q(z) has no gradient of its own.
        shares: [K, ...] normalised weights w~: among the samples or, with the marginal bound, samples and addresses.
    """
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * shares.unsqueeze(-1))


def kl_a(m: Memory, r: EncodedTargets) -> Tensor:
    """KL(q(a|M,x) || p(a|M)) in closed form, [G, T], nats."""
    return kl_divergence(r.q_a, m.p_a)


def address_accuracy(r: EncodedTargets, episodes: EpisodeBatch) -> Tensor:
    """Mass of q(a|M,x) on images of the target's class, [G, T]; the dummies are of no class."""
    same = episodes.x_class.unsqueeze(2) == episodes.memory_class.unsqueeze(1)  # [G, T, M]
    return (r.q_a.probs[..., : same.shape[2]] * same).sum(-1)
