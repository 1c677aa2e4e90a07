"""What every test stands on: one thread, checked distributions, and a model so small that it can be checked by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import CPU
from helpers.config import small_config
from helpers.program import kill_started
from helpers.weights import draw_weights
from torch.distributions import Distribution

import parsers
from models.vma.model import VMA

torch.set_num_threads(1)  # before any fixture of a module trains: sums depend on the number of threads


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Processes that a test started end with it."""
    yield
    kill_started()


@pytest.fixture(autouse=True)
def strict_torch() -> Iterator[None]:
    """One thread; arguments of distributions are checked, whatever an earlier test did to the switch."""
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(True)
    yield
    torch.set_num_threads(1)  # for the fixtures of the next module, which come before this one
    Distribution.set_default_validate_args(True)


def tiny(
    *overrides: str,
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
    """A VMA with a handful of channels, built as a user's is.

    With a `gain` the weights are drawn such that signals neither die nor explode and every term matters; without one
    they are as PyTorch leaves them.
    """
    sides = [f"{section}.resize={side}" for section in ("train_data", "val_data", "test_data")]
    config = small_config(
        Path("runs"),
        f"model.latent_dim={latent}",
        "model.matching_dim=3",
        "model.channels=[3, 4]",
        "model.hidden=[6, 7]",
        f"model.num_dummies={dummies}",
        f"model.likelihood={likelihood}",
        f"model.address_prior={'learned' if learned_prior else 'uniform'}",
        f"model.importance_num={importance_num}",
        f"train_spec.objective={objective}",
        *sides,
        *overrides,
    )
    model = parsers.build_model(config, CPU).to(dtype)
    assert isinstance(model, VMA)
    if gain is not None:
        torch.manual_seed(7)
        draw_weights(model, gain)
    return model


@pytest.fixture
def tiny_model() -> Callable[..., VMA]:
    """The function `tiny` above."""
    return tiny
