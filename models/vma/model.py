"""Variational Memory Addressing (Bornschein et al. 2017, arXiv 1709.07116).

    p(x|M) = sum_a p(a|M) int p(z|m_a) p(x|z,m_a) dz        q(a,z|M,x) = q(a|M,x) q(z|x,m_a)

`K` importance samples · `G` memories · `T` targets that share one memory · `M` images in a memory · `S` slots, M and
the dummies · `A` addresses, which are slots, or all placements of every image · `N` images encoded · `D` features ·
`Z` latent · `H W` image.  K leads, so broadcasting replaces repetition.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, kl_divergence
from torch.utils.checkpoint import checkpoint

from autoencoders.base import Encoder
from autoencoders.features import Features, FeaturesAt
from models import objectives
from models.base import EpisodeBatch, Explanation, MemoryModel, Noise
from models.vma.distributions import AddressPosterior, AddressPrior, LatentPosterior, LatentPrior
from models.vma.likelihood import ImageLikelihood
from models.vma.neighbours import PLANES, neighbours
from models.vma.placements import PlacementPosterior, PlacementPrior, Placements
from models.vma.sampling import apply_dreg, detached, reattach_sample, sample_categorical, sample_normal
from models.vma.search import search

DECODES_AT_ONCE = 8192


@dataclass(frozen=True)
class EncodedMemory:
    """What the model computes once per memory, whatever K and T are.

    All images of all memories and the dummies stand in N rows.  `slots` [G, S] are the rows of each memory: first its M
    images, then the dummies, which all memories share.
    """

    memory: Tensor  # [G, M, H, W]
    images: Tensor  # [N, H, W] or, with neighbours, [N, 1 + PLANES, H, W]
    slots: Tensor  # [G, S]
    embeddings: Tensor  # [G, S, matching]
    p_a: Categorical  # logits [G, 1, A]
    features: Features | None  # of the N images, where they were to be precomputed

    @property
    def size(self) -> int:
        """M."""
        return self.memory.shape[1]

    def rows(self, slots: Tensor) -> Tensor:
        """The rows [K, G, T] of the picked slots [K, G, T]."""
        group = torch.arange(len(self.slots), device=slots.device).unsqueeze(1)  # [G, 1]
        return self.slots[group, slots]


@dataclass(frozen=True)
class EncodedTargets:
    """What does not depend on the samples."""

    x: Tensor  # [G, T, H, W]
    q_a: Categorical  # q(a|M,x), logits [G, T, A]
    features: Tensor | None  # [G, T, D]; None where they depend on the placement, or nothing needs them
    context: Tensor | None  # what the likelihood needs of x


@dataclass(frozen=True)
class Addresses:
    """Addresses a [K, G, T] and the features m_a behind them."""

    a: Tensor
    m_a: FeaturesAt
    p_a: Categorical
    q_a: Categorical | None  # what a was drawn from; None where a runs over all addresses

    @property
    def log_p_a(self) -> Tensor:
        return self.p_a.log_prob(self.a)

    @property
    def log_q_a(self) -> Tensor:
        return torch.zeros_like(self.log_p_a) if self.q_a is None else self.q_a.log_prob(self.a)

    def take(self, k: Tensor) -> "Addresses":
        """Those of sample k [1, G, T]."""
        return replace(self, a=self.a.gather(0, k), m_a=self.m_a.take(k))


@dataclass(frozen=True)
class Samples:
    """Addresses a [K, G, T], samples z ~ q(z|x,m_a) [K, G, T, Z], and log-probabilities [K, G, T] in nats."""

    a: Tensor
    z: Tensor
    log_p_x: Tensor
    log_p_z: Tensor
    log_p_a: Tensor
    log_q_z: Tensor
    log_q_a: Tensor  # 0 where the bound sums over all addresses instead of drawing them

    @property
    def log_w(self) -> Tensor:
        """log p(x,z,a|M) - log q(z,a|M,x), with log q(a|M,x) detached: its gradient comes by the score function."""
        return self.log_p_x + self.log_p_z + self.log_p_a - self.log_q_z - self.log_q_a.detach()

    @property
    def kl_z(self) -> Tensor | None:
        """One-sample estimates of KL(q(z|x,m_a) || p(z|m_a)); None without a z."""
        return self.log_q_z - self.log_p_z if self.z.shape[-1] else None

    def metrics(self, weights: Tensor) -> dict[str, Tensor]:
        """KL(z) and log p(x|z,m_a), means over the samples with these weights [K, G, T]; [G, T]."""
        terms = {"kl_z": self.kl_z, "reconstruction": self.log_p_x}
        return {name: (weights * term).sum(0) for name, term in terms.items() if term is not None}


class VMA(MemoryModel):
    """The model, from networks that are arguments.

    Args:
        importance_num: K of the loss.
        objective: "vimco" samples addresses, "marginal" sums over all of them.
        use_dreg: take the doubly reparameterised gradient for q(z|x,m_a).
        gradient_samples: through how many samples of a target the gradient goes: "all", or 1.
        placements: of picked images; with more than one, `p_s` and `q_s` are their distributions.
        with_neighbours: `encoder` has further planes, in which it sees what the rest of the memory shows of an image.
        summed_addresses: how many addresses `log_likelihood` sums over; None: all.
        address_rounds: in how many rounds it searches for them.
        sampled_addresses: how many it then draws from the others, to estimate their sum.
    """

    def __init__(
        self,
        address_encoder: Encoder,
        encoder: Encoder,
        p_a: AddressPrior,
        p_z: LatentPrior,
        p_x: ImageLikelihood,
        q_a: AddressPosterior,
        q_z: LatentPosterior,
        *,
        side: int,
        num_dummies: int,
        importance_num: int,
        objective: str,
        use_dreg: bool = False,
        gradient_samples: int | str = "all",
        placements: Placements = Placements(),
        with_neighbours: bool = False,
        summed_addresses: int | None = None,
        address_rounds: int = 1,
        sampled_addresses: int = 0,
    ) -> None:
        super().__init__()
        self.address_encoder, self.encoder = address_encoder, encoder
        self.p_a, self.p_z, self.p_x = p_a, p_z, p_x
        self.q_a, self.q_z, self.latent = q_a, q_z, q_z.head.latent
        self.placements, self.with_neighbours = placements, with_neighbours
        self.summed_addresses, self.address_rounds = summed_addresses, address_rounds
        self.sampled_addresses = sampled_addresses
        if len(placements) > 1:
            self.p_s, self.q_s = PlacementPrior(placements), PlacementPosterior(placements)
        # Small noise: dummies that start equal have equal gradients and never separate.
        self.dummies = nn.Parameter(0.1 * torch.rand(num_dummies, side, side))
        self.importance_num, self.objective = importance_num, objective
        self.use_dreg, self.gradient_samples = use_dreg, gradient_samples
        self.pictured = p_x.likelihood.pictured

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights`; those of p(s) and q(s|x,m) as they are here where `weights` has none, or those of other sizes.

        Planes that the encoder has not seen yet change nothing at first.
        """
        of_s, all_own = ("p_s.", "q_s."), self.state_dict()
        own = {name: w for name, w in all_own.items() if name.startswith(of_s)}
        fits = {n: w for n, w in weights.items() if not n.startswith(of_s) or (n in own and own[n].shape == w.shape)}
        adapted = own | super().adapted(fits)
        if self.with_neighbours:
            adapted |= {n: _with_planes(adapted[n], w) for n, w in all_own.items() if n in adapted}
        return adapted

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> EncodedMemory:
        """Embed memories [G, M, H, W] and the dummies once; M may be 0.

        With `precompute_features` the features of all are computed too; without, only those of picked slots are, when
        they are picked.
        """
        g, size = memory.shape[:2]
        images = torch.cat([memory.flatten(0, 1), self.dummies.to(memory.dtype)])  # [N, H, W], N = G M + dummies
        rows = torch.arange(len(images), device=memory.device)
        slots = torch.cat([rows[: g * size].view(g, size), rows[g * size :].expand(g, -1)], 1)
        # By `marginal` q(a|M,x) learns apart from the bound, and may not move the dummies, which are part of p(x|M).
        seen = images
        if self.objective == "marginal":
            seen = torch.cat([images[: g * size], images[g * size :].detach()])
        # not `[slots]`, whose gradient adds up in an order that changes from run to run with several threads
        embedded = self.address_encoder(seen)[0].to(memory.dtype).index_select(0, slots.flatten())
        embeddings = embedded.unflatten(0, slots.shape)
        if self.with_neighbours:
            q_s = self.q_s if len(self.placements) > 1 else None
            beside = neighbours(memory, embeddings, self.q_a, q_s, self.placements)
            images = self._planes(images, beside.flatten(0, 1))
        features = self._features(images) if precompute_features else None
        p_a = self.p_a(g, size)
        if len(self.placements) > 1:
            p_a = self.placements.joint(p_a, self.p_s(), size)
        return EncodedMemory(memory, images, slots, embeddings, p_a, features)

    def _planes(self, images: Tensor, beside: Tensor) -> Tensor:
        """Images [N, H, W] and what lies beside the first of them, [n, PLANES, H, W] -> [N, 1 + PLANES, H, W]."""
        empty = beside.new_zeros(len(images) - len(beside), *beside.shape[1:])
        return torch.cat([images.unsqueeze(1), torch.cat([beside, empty])], 1)

    def _target_vectors(self, x: Tensor) -> Tensor:
        """The vectors [N, D] of targets [N, H, W], which have no neighbours."""
        seen = self._planes(x, x.new_empty(0, PLANES, *x.shape[1:])) if self.with_neighbours else x
        return self.encoder(seen)[0].to(x.dtype)

    def encode_targets(self, x: Tensor, m: EncodedMemory) -> EncodedTargets:
        """Encode the targets x [G, T, H, W] and address the memory with them."""
        flat, of_targets = x.flatten(0, 1), x.shape[:2]
        embeddings = self.address_encoder(flat)[0].to(x.dtype)
        q_a = self.q_a(embeddings.unflatten(0, of_targets), m.embeddings)
        if len(self.placements) > 1:
            q_a = self.placements.joint(q_a, self.q_s(x, m.memory).to(x.dtype), m.size)
        needed = self.latent and len(self.placements) == 1
        features = self._target_vectors(flat).unflatten(0, of_targets) if needed else None
        return EncodedTargets(x, q_a, features, self.p_x.context(x))

    def _features(self, images: Tensor) -> Features:
        """Features of rows of `EncodedMemory.images`, maps prepared for the decoder."""
        vector, maps = self.encoder(images)
        return self.p_x.precompute(vector.to(images.dtype), maps)

    def features_at(self, a: Tensor, m: EncodedMemory) -> FeaturesAt:
        """m_a: the features behind the addresses a [K, G, T].

        Unless they were precomputed, a CPU encodes the distinct images that were picked; a GPU, which should not wait
        for how many these are, one for each pick or all of them, whichever is fewer.
        """
        rows = m.rows(self.placements.slot(a, m.size))
        placement = self.placements.placement(a, m.size) if len(self.placements) > 1 else None
        if m.features is not None:
            return FeaturesAt(m.features, rows, placement)
        if rows.device.type == "cpu":
            picked, rows = rows.unique(return_inverse=True)
            return FeaturesAt(self._features(m.images[picked]), rows, placement)
        if rows.numel() < len(m.images):
            every = torch.arange(rows.numel(), device=rows.device).view_as(rows)
            return FeaturesAt(self._features(m.images[rows.flatten()]), every, placement)
        return FeaturesAt(self._features(m.images), rows, placement)

    def target_features(self, targets: EncodedTargets, m_a: FeaturesAt) -> Tensor:
        """What q(z|x,m_a) sees of x: [G, T, D]; with placements, of x laid back onto each m_a: [K, G, T, D]."""
        x = targets.x
        if not self.latent:
            return x.new_empty(*x.shape[:2], 0)
        if m_a.placement is None:
            assert targets.features is not None
            return targets.features
        which = torch.arange(x[..., 0, 0].numel(), device=x.device).view(x.shape[:2])
        pairs, back = (which * len(self.placements) + m_a.placement).unique(return_inverse=True)  # [P], [K, G, T]
        rows, placement = pairs // len(self.placements), pairs % len(self.placements)
        onto = self.placements.place(x.flatten(0, 1).unsqueeze(1), rows, placement, back=True).squeeze(1)
        encoded = self._target_vectors(onto)  # [P, D]
        return encoded.index_select(0, back.flatten()).unflatten(0, back.shape)

    # --- samples and their weights ------------------------------------------------------------------------------------

    def sample_addresses(self, m: EncodedMemory, targets: EncodedTargets, noise: Noise, k: int) -> Addresses:
        """a ~ q(a|M,x), K for each target."""
        a = sample_categorical(targets.q_a, noise.uniform("address", k, *targets.x.shape[:2]))
        return Addresses(a, self.features_at(a, m), m.p_a, targets.q_a)

    def every_address(self, m: EncodedMemory, targets: EncodedTargets, k: int) -> Addresses:
        """Each address K times for each target, the address running fastest: a [K A, G, T]."""
        a = torch.arange(m.p_a.logits.shape[-1], device=m.slots.device).repeat(k)
        a = a.view(-1, 1, 1).expand(-1, *targets.x.shape[:2])
        return Addresses(a, self.features_at(a, m), m.p_a, None)

    def importance_samples(self, x: Tensor, m: EncodedMemory, targets: EncodedTargets, noise: Noise, k: int) -> Samples:
        """K samples (a, z) ~ q(a|M,x) q(z|x,m_a) for each target x [G, T, H, W]."""
        return self.samples_at(self.sample_addresses(m, targets, noise, k), targets, noise)

    def samples_at(self, addresses: Addresses, targets: EncodedTargets, noise: Noise) -> Samples:
        """A sample z ~ q(z|x,m_a) for every address."""
        return self._samples(addresses, targets, partial(sample_normal, noise=noise))

    def _samples(self, addresses: Addresses, targets: EncodedTargets, draw: Callable[[Independent], Tensor]) -> Samples:
        """Samples with z = draw(q(z|x,m_a)), and every term of log w."""
        m_a = addresses.m_a
        vector = m_a.vector  # [K, G, T, D], gathered once
        q_z, p_z = self.q_z(self.target_features(targets, m_a), vector), self.p_z(vector)
        z = draw(q_z)  # [K, G, T, Z]
        return Samples(
            a=addresses.a,
            z=z,
            log_p_x=self._log_p_x(targets, z, m_a),
            log_p_z=p_z.log_prob(z),
            log_p_a=addresses.log_p_a,
            log_q_z=(detached(q_z) if self.use_dreg else q_z).log_prob(z),
            log_q_a=addresses.log_q_a,
        )

    def _log_p_x(self, targets: EncodedTargets, z: Tensor, m_a: FeaturesAt) -> Tensor:
        """log p(x|z,m_a) [K, G, T] of z [K, G, T, Z].

        More than `DECODES_AT_ONCE` are decoded in chunks of the K samples, and decoded again for the gradient, so that
        the activations of every address of every target need not be stored.
        """

        def log_prob(z: Tensor, m_a: FeaturesAt) -> Tensor:
            return self.p_x.log_prob(targets.x, targets.context, z, m_a)

        size = max(1, DECODES_AT_ONCE // math.prod(z.shape[1:3]))
        if len(z) <= size:
            return log_prob(z, m_a)
        chunks = zip(z.split(size), m_a.split(size), strict=True)
        return torch.cat([checkpoint(log_prob, *chunk, use_reentrant=False) for chunk in chunks])

    def log_likelihood(
        self, m: EncodedMemory, targets: EncodedTargets, noise: Noise | None = None
    ) -> tuple[Tensor, EncodedTargets]:
        """log p(x|M) = log sum_a p(a|M) p(x|m_a), [G, T], nats; and the targets with p(a|M,x) as their q(a|M,x).

        With `summed_addresses` only so many likely ones are summed over, a bound from below.  With `sampled_addresses`
        too, the sum over the others is estimated without bias, with `noise`: a bound on average.

        Raises:
            NotImplementedError: where there is a z.
            ValueError: addresses are to be drawn, and there is no noise.
        """
        if self.latent:
            return super().log_likelihood(m, targets)
        return self._sum(m, targets, self.summed_addresses, noise)

    def _sum(
        self, m: EncodedMemory, targets: EncodedTargets, most: int | None, noise: Noise | None = None
    ) -> tuple[Tensor, EncodedTargets]:
        """`log_likelihood`, of at most so many addresses."""
        every, sampled, points = m.p_a.logits.shape[-1], self.sampled_addresses, None
        n = every if most is None else min(most, every)
        if n < every and sampled:
            if noise is None:
                raise ValueError(f"{sampled} addresses are drawn for the rest of the sum, which needs noise")
            offset = noise.uniform("rest of the addresses", 1, *targets.x.shape[:2])
            places = torch.arange(sampled, device=offset.device, dtype=torch.float64)  # in float32 7 + offset may be 8
            points = (places.view(-1, 1, 1) + offset) / sampled  # systematic
        log_joint = search(
            targets.q_a.logits,
            log_joint=lambda a: self._log_joint(a, m, targets),
            distances=lambda a: self.placements.distances(a, every, m.size),
            n=n,
            rounds=self.address_rounds if n < every else 1,
            points=points,
        )
        return log_joint.logsumexp(-1), replace(targets, q_a=Categorical(logits=log_joint))

    def _log_joint(self, a: Tensor, m: EncodedMemory, targets: EncodedTargets) -> Tensor:
        """log p(a|M) p(x|m_a) of addresses [n, G, T], where there is no z."""
        at = Addresses(a, self.features_at(a, m), m.p_a, None)
        return (self._log_p_x(targets, targets.x.new_empty(*a.shape, 0), at.m_a) + at.log_p_a).double()

    # --- training -----------------------------------------------------------------------------------------------------

    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound [G, T] that `objective` names, and metrics [G, T].

        The K samples in each of O orders are K O samples of a target, as independent as those of one order.
        """
        m = self.encode_memory(episodes.memory)
        targets = self.encode_targets(episodes.x, m)
        objective = self._vimco if self.objective == "vimco" else self._marginal
        bound, log_w, metrics = objective(m, targets, noise, orders)
        return bound, objectives.averaged(metrics | self.metrics(m, targets, episodes), log_w, orders)

    def _vimco(
        self, m: EncodedMemory, targets: EncodedTargets, noise: Noise, orders: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Addresses are sampled, and q(a|M,x) learns by VIMCO: bound, log-weights, metrics."""
        addresses = self.sample_addresses(m, targets, noise, self.importance_num)
        s, log_w = self._samples_for_backward(addresses, targets, noise, orders)  # [K, G O, T]
        log_q = targets.q_a.log_prob(s.a)
        bound = objectives.vimco(*(objectives.by_order(v, orders).flatten(0, 1) for v in (log_w, log_q)))
        return bound, log_w, s.metrics(torch.full_like(log_w, 1 / len(log_w)))

    def _marginal(
        self, m: EncodedMemory, targets: EncodedTargets, noise: Noise, orders: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All addresses are summed over, and q(a|M,x) learns from the posterior that the sum reveals."""
        k = self.importance_num if self.latent else 1
        addresses = self.every_address(m, targets, k)
        s, log_w = self._samples_for_backward(addresses, targets, noise, orders)  # [K A, G O, T]
        each = objectives.by_order(log_w, orders).unflatten(0, (k, -1)).flatten(1, 2)  # [K, A O, G, T]
        log_q = objectives.by_order(targets.q_a.logits.permute(2, 0, 1), orders).flatten(0, 1)
        bound = objectives.marginal(each, log_q) - math.log(orders)
        return bound, log_w, s.metrics(targets.q_a.log_prob(s.a).exp() / k)  # the same for each k

    def _samples_for_backward(
        self, addresses: Addresses, targets: EncodedTargets, noise: Noise, orders: int
    ) -> tuple[Samples, Tensor]:
        """Samples, and their log-weights [K, G, T] through which the gradient of the bound goes."""
        if self.gradient_samples == 1 and torch.is_grad_enabled():
            with torch.no_grad():
                s = self.samples_at(addresses, targets, noise)
            return s, s.log_w + self._gradient_of_one(s, addresses, targets, noise, orders)
        s = self.samples_at(addresses, targets, noise)
        log_w = s.log_w
        if self.use_dreg:
            apply_dreg(s.z, objectives.normalised(log_w, orders))
        return s, log_w

    def _gradient_of_one(
        self, s: Samples, addresses: Addresses, targets: EncodedTargets, noise: Noise, orders: int
    ) -> Tensor:
        """Zeros [1, G, T] with the gradient of log w_k, for one sample k ~ w~ that is decoded again.

        The gradient of the bound is sum_k w~_k dlog w_k with normalised weights w~: the mean of dlog w_k over k ~ w~.
        So dlog w_k of one k ~ w~ is unbiased.  Adding it to all K log-weights adds it once, since the w~_k sum to one.
        Of several orders each has its own k, and the weights of an order sum to p(o|x,M), as they should.
        """
        weights = s.log_w.softmax(0)
        uniform = noise.uniform("gradient sample", 1, *weights.shape[1:])
        k = sample_categorical(Categorical(probs=weights.movedim(0, -1)), uniform)  # [1, G, T]
        z = s.z.take_along_dim(k.unsqueeze(-1), 0)
        one = self._samples(addresses.take(k), targets, partial(reattach_sample, z=z))
        if self.use_dreg:
            apply_dreg(one.z, objectives.normalised(s.log_w, orders).gather(0, k))
        return one.log_w - one.log_w.detach()

    def metrics(self, m: EncodedMemory, targets: EncodedTargets, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """KL(q(a|M,x) || p(a|M)) in closed form, and the mass of q(a|M,x) on images of the target's class; [G, T].

        The dummies are of no class.
        """
        same = episodes.x_class.unsqueeze(2) == episodes.memory_class.unsqueeze(1)  # [G, T, M]
        accuracy = (self.slot_posterior(m, targets)[..., : m.size] * same).sum(-1)
        return {"kl_a": kl_divergence(targets.q_a, m.p_a), "address_accuracy": accuracy}

    def slot_posterior(self, m: EncodedMemory, targets: EncodedTargets) -> Tensor:
        """q(a|M,x) by slots [G, T, S], whatever the placement; p(a|M,x) after `log_likelihood`."""
        return self.placements.of_slots(targets.q_a.probs, m.size)

    @torch.no_grad()
    def explain(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Explanation:
        """The sum over all addresses, or with a z importance samples; p(a|x,M) by slots, whatever their placement."""
        m = self.encode_memory(memory, precompute_features=True)
        targets = self.encode_targets(x, m)
        if not self.latent:
            log_p, targets = self._sum(m, targets, None)
            return Explanation(log_p, self.slot_posterior(m, targets), None)
        s = self.importance_samples(x, m, targets, noise, k)
        picked = F.one_hot(self.placements.slot(s.a, m.size), m.slots.shape[1])  # [K, G, T, S]
        p_a = (s.log_w.softmax(0).unsqueeze(-1) * picked).sum(0)
        return Explanation(objectives.log_mean_exp(s.log_w), p_a, k)

    # --- pictures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor]:
        """n samples of p(x|M) for each memory [G, M, H, W]: pictures [n, G, H, W] and slots [n, G]."""
        m = self.encode_memory(memory)
        a = sample_categorical(m.p_a, noise.uniform("address", n, len(memory), 1))  # [n, G, 1]
        m_a = self.features_at(a, m)
        z = sample_normal(self.p_z(m_a.vector), noise)
        return self.p_x.picture(z, m_a, noise).squeeze(2), self.placements.slot(a, m.size).squeeze(2)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Pictures [G, T, H, W] of p(x|z,m_a) and the slots [G, T], for a ~ q(a|M,x) and z ~ q(z|x,m_a)."""
        m = self.encode_memory(memory)
        targets = self.encode_targets(x, m)
        addresses = self.sample_addresses(m, targets, noise, 1)
        z = sample_normal(self.q_z(self.target_features(targets, addresses.m_a), addresses.m_a.vector), noise)
        slots = self.placements.slot(addresses.a, m.size)
        return self.p_x.picture(z, addresses.m_a, noise).squeeze(0), slots.squeeze(0)

    def slot_images(self, memory: Tensor) -> Tensor:
        """The images of each memory [G, M, H, W] and the dummies: [G, S, H, W]."""
        return torch.cat([memory, self.dummies.detach().expand(len(memory), -1, -1, -1)], 1)


def _with_planes(weight: Tensor, like: Tensor) -> Tensor:
    """The weight of a convolution, with zeros for the planes that the one of `like` has beside its own."""
    return F.pad(weight, (0, 0, 0, 0, 0, like.shape[1] - weight.shape[1])) if weight.dim() == 4 else weight
