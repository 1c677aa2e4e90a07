"""What every test stands on: one thread, checked distributions, and a model so small that it can be checked by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.distributions import Distribution

from autoencoders.published import Decoder, Encoder
from models.likelihoods import LIKELIHOODS
from models.vma.likelihood import ImageLikelihood
from models.vma.model import VMA
from models.vma.posteriors import LatentPosterior
from models.vma.priors import LatentPrior, LearnedAddressPrior, UniformAddressPrior


@pytest.fixture(autouse=True)
def strict_torch() -> Iterator[None]:
    """One thread; arguments of distributions are checked, whatever an earlier test did to the switch."""
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(True)


def tiny(
    *,
    side: int = 20,
    latent: int = 2,
    dummies: int = 2,
    likelihood: str = "bernoulli",
    learned_prior: bool = False,
    importance_num: int = 3,
    objective: str = "vimco",
    dtype: torch.dtype = torch.float64,
    gain: float | None = 1.0,
) -> VMA:
    """A VMA with a handful of channels.

    With a `gain` the weights are drawn such that signals neither die nor explode and every term matters; without one
    they are as PyTorch leaves them.
    """
    torch.manual_seed(0)
    features, channels = 2 * latent, (3, 4)
    model = VMA(
        address_encoder=Encoder(side, channels, 6, 3),
        encoder=Encoder(side, channels, 6, features),
        p_a=LearnedAddressPrior(dummies) if learned_prior else UniformAddressPrior(),
        p_z=LatentPrior(features, latent),
        p_x=ImageLikelihood(Decoder(side, channels, 7, 2 * latent), LIKELIHOODS[likelihood], features, latent),
        q_z=LatentPosterior(features, latent),
        side=side,
        num_dummies=dummies,
        importance_num=importance_num,
        objective=objective,
    ).to(dtype)
    if gain is not None:
        for name, value in model.named_parameters():
            if name != "dummies":
                inputs = value[0].numel() if value.dim() > 1 else 4
                nn.init.normal_(value, std=gain * (2 / inputs) ** 0.5)
    return model


@pytest.fixture
def tiny_model() -> Callable[..., VMA]:
    """The function `tiny` above."""
    return tiny
