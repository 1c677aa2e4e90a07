"""Likelihoods whose pixels are independent given the decoder's output.  The contract is `models.base.Likelihood`."""

from abc import abstractmethod

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from models.base import Likelihood, Noise


class IndependentPixels(Likelihood):
    """One parameter for each pixel."""

    @abstractmethod
    def distribution(self, parameters: Tensor) -> Distribution:
        """Parameters [..., H, W] of all pixels -> a distribution with event [H, W]."""

    def log_prob(self, parameters: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        return self.distribution(parameters.squeeze(-3)).log_prob(x)

    def picture(self, parameters: Tensor, noise: Noise) -> Tensor:
        return self.distribution(parameters.squeeze(-3)).mean


class BernoulliPixels(IndependentPixels):
    """Binary pixels; the parameters are logits."""

    def distribution(self, parameters: Tensor) -> Independent:
        return Independent(Bernoulli(logits=parameters), 2)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        mean = self.picture(parameters, noise)
        return (noise.uniform("pixels", *mean.shape) < mean).to(mean.dtype)


class NormalPixels(IndependentPixels):
    """Real pixels of unit variance; the parameters are means."""

    def distribution(self, parameters: Tensor) -> Independent:
        return Independent(Normal(parameters, parameters.new_ones(())), 2)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        mean = self.picture(parameters, noise)
        return mean + noise.normal("pixels", *mean.shape)
