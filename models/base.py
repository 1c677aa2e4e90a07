"""The contracts: a model with a memory, and the likelihood of an image.

Trainer, evaluator, reports and commands know no more of a model than what stands here.

`K` importance samples · `G` memories · `T` targets that share one memory · `M` images in a memory · `S` slots: the M
images and whatever else has an address · `C` parameters of a pixel · `H W` image.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.objectives import log_mean_exp


class Noise(Protocol):
    """Where a model's random numbers come from.

    In training successive draws are fresh.  In the test a number is a function of the draw's name, target and sample,
    so every draw of a call must have a name of its own, such as "z".
    """

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers."""


class EpisodeBatch(Protocol):
    """What a model reads of a batch of episodes."""

    @property
    def x(self) -> Tensor: ...  # [G, T, H, W]

    @property
    def memory(self) -> Tensor: ...  # [G, M, H, W]

    @property
    def x_class(self) -> Tensor: ...  # [G, T]

    @property
    def memory_class(self) -> Tensor: ...  # [G, M]


class ImportanceSamples(Protocol):
    """K samples of the latents of each target."""

    @property
    def log_w(self) -> Tensor: ...  # [K, G, T] nats

    @property
    def kl_z(self) -> Tensor | None: ...  # [K, G, T] estimates of KL(q(z) || p(z)), nats; None: there is no z


class Likelihood(nn.Module, ABC):
    """p(x|parameters), where a decoder gives `channels` parameters for each pixel: [..., C, H, W]."""

    channels: int = 1
    pictured: str = "pixel means"  # what `picture` gives

    def context(self, x: Tensor) -> Tensor | None:
        """What `log_prob` needs of targets x [G, T, H, W] besides their pixels.

        It is computed once per target, whatever K is.  An autoregressive likelihood returns the output [G, T, ...] of
        its masked convolutions here.
        """
        return None

    @abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x|parameters) in nats: [K, G, T, C, H, W] and x [G, T, H, W] -> [K, G, T]."""

    @abstractmethod
    def picture(self, parameters: Tensor, noise: Noise) -> Tensor:
        """What shows p(x|parameters): the mean of every pixel, [..., C, H, W] -> [..., H, W].

        Where pixels depend on each other means say little, and it is an image drawn with `noise`; see `pictured`.
        """

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """An image drawn from p(x|parameters): [..., C, H, W] -> [..., H, W]."""

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights to begin a training with that goes on from `weights`."""
        return dict(weights)


@dataclass(frozen=True)
class Explanation:
    """How likely targets are, and what a model makes of their memories."""

    log_p: Tensor  # [G, T] nats; with a K, the bound of so many samples
    p_a: Tensor | None  # [G, T, S] p(a|x,M); with a K, the normalised importance weights of each slot; None: no slots
    k: int | None  # None: both are exact


class MemoryModel(nn.Module, ABC):
    """A generative model p(x|M) of an image given a memory.

    `encode_memory` and `encode_targets` may return anything; only the model's own methods read it.
    """

    pictured: str = "pixel means"  # what `sample` and `reconstruct` give

    @abstractmethod
    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """A bound of log p(x|M) [G, T] in nats, whose gradient trains the model, and further metrics [G, T] by name.

        The episodes [G O, ...] may show each memory and its targets in O `orders` of the pixels, the order running
        fastest: then p(x|M) is the mean over them, and metrics are averaged over p(o|x,M).
        """

    def loss(self, episodes: EpisodeBatch, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the mean bound, a scalar to minimise, and detached metrics [G, T], the bound among them."""
        bound, metrics = self.bound(episodes, noise)
        return -bound.mean(), {name: value.detach() for name, value in {"bound": bound, **metrics}.items()}

    @abstractmethod
    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> Any:
        """What does not depend on targets, computed once per memory [G, M, H, W]; M may be 0.

        With `precompute_features` all of it, for many samples; without, as little as a step of training needs.
        """

    @abstractmethod
    def encode_targets(self, x: Tensor, m: Any) -> Any:
        """What does not depend on samples, computed once per target x [G, T, H, W] with an encoded memory `m`."""

    @abstractmethod
    def importance_samples(self, x: Tensor, m: Any, targets: Any, noise: Noise, k: int) -> ImportanceSamples:
        """K samples for each target x [G, T, H, W], from the encoded memory and the encoded targets."""

    def log_likelihood(self, m: Any, targets: Any, noise: Noise | None = None) -> tuple[Tensor, Any]:
        """log p(x|M) [G, T] in nats, exact; and the targets with exact posteriors, as `metrics` takes them.

        A model that has to sample for it needs `noise`.

        Raises:
            NotImplementedError: the model only knows bounds.
        """
        raise NotImplementedError(f"{type(self).__name__}: log p(x|M) is only known by its bounds")

    def metrics(self, m: Any, targets: Any, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Further metrics [G, T]: "kl_a" in nats and "address_accuracy" of a model with an address posterior."""
        return {}

    def slot_posterior(self, m: Any, targets: Any) -> Tensor | None:
        """Of encoded targets, as their posterior over addresses is known, that over slots [G, T, S]; None: no slots."""
        return None

    @torch.no_grad()
    def explain(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Explanation:
        """log p(x|M) of targets x [G, T, H, W] given memories [G, M, H, W], exact or bounded by K samples."""
        return Explanation(log_mean_exp(self.log_weights(x, memory, noise, k)), None, k)

    @abstractmethod
    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, Tensor | None]:
        """Pictures [n, G, H, W] of n samples of p(x|M) for each memory [G, M, H, W], and their slots [n, G]."""

    @abstractmethod
    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Pictures [G, T, H, W] given latents inferred from x [G, T, H, W], and the slots [G, T]; None: no slots."""

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights to begin a training with that goes on from `weights`."""
        adapted = dict(weights)
        for path, part in self.named_modules():
            if isinstance(part, Likelihood):
                own = {n.removeprefix(f"{path}."): w for n, w in weights.items() if n.startswith(f"{path}.")}
                adapted |= {f"{path}.{n}": w for n, w in part.adapted(own).items()}
        return adapted

    def slot_images(self, memory: Tensor) -> Tensor:
        """The image behind every slot of each memory [G, M, H, W]: [G, S, H, W]."""
        return memory

    def log_weights(self, x: Tensor, memory: Tensor, noise: Noise, k: int) -> Tensor:
        """log w [K, G, T] in nats of K samples for targets x [G, T, H, W] given memories [G, M, H, W]."""
        m = self.encode_memory(memory)
        return self.importance_samples(x, m, self.encode_targets(x, m), noise, k).log_w
