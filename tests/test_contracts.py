"""A model that is no VMA, and a likelihood that is none of the shipped ones, pass through all that knows the contracts.

`K` importance samples · `G` memories · `T` targets · `M` images in a memory · `C` parameters of a pixel · `H W` image.
"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.program import main
from test_model import episodes, images
from torch import Tensor, nn

import parsers
from evaluator import importance_bounds
from models.base import EpisodeBatch, Likelihood, MemoryModel, Noise
from models.vma.model import VMA
from runtime.randomness import StepNoise

# --- a model without z and without addresses --------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """What stands for K equal samples where p(x|M) is known."""

    log_w: Tensor
    kl_z: None = None


class MeanOfMemory(MemoryModel):
    """Pixels are independent given the mean of the memory's images: logits = scale (mean - 1/2) + bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def encode_memory(self, memory: Tensor, precompute_features: bool = False) -> Tensor:
        mean = memory.sum(1, keepdim=True) / max(1, memory.shape[1])
        return self.scale * (mean - 0.5) + self.bias  # [G, 1, H, W]

    def encode_targets(self, x: Tensor, m: Tensor) -> Tensor:
        return x

    def importance_samples(self, x: Tensor, m: Tensor, targets: Tensor, noise: Noise, k: int) -> Exact:
        log_p = -F.binary_cross_entropy_with_logits(m.expand_as(x), targets, reduction="none").sum((2, 3))
        return Exact(log_p.expand(k, -1, -1))

    def bound(self, episodes: EpisodeBatch, noise: Noise, orders: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        return self.log_weights(episodes.x, episodes.memory, noise, 1)[0], {}

    def sample(self, memory: Tensor, noise: Noise, n: int) -> tuple[Tensor, None]:
        return self.encode_memory(memory).sigmoid().squeeze(1).expand(n, -1, -1, -1).detach(), None

    def reconstruct(self, x: Tensor, memory: Tensor, noise: Noise) -> tuple[Tensor, None]:
        return self.encode_memory(memory).sigmoid().expand_as(x).detach(), None


def test_a_model_that_is_no_vma_is_trained_tested_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "build_model", lambda config, device: MeanOfMemory().to(device))
    assert main(tmp_path, "--train", "--test", "--sample") == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    bounds = [row["bound"] for row in rows if row["subset"] == "train"]
    assert bounds[-1] > bounds[0]
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 and all(math.isfinite(float(row["ELBO"])) for row in table)
    assert all(math.isnan(float(row[name])) for row in table for name in ("kl_a", "kl_z", "address_accuracy"))
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4


# --- a likelihood with two channels and a context ---------------------------------------------------------------------


class AboveAware(Likelihood):
    """Binary pixels whose logit is a + b tanh(c), where a and b come from the decoder and c from the pixel above."""

    channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.contexts: list[torch.Size] = []  # the shapes of the targets that one was computed for

    def context(self, x: Tensor) -> Tensor:
        self.contexts.append(x.shape)
        return self.weight * F.pad(x, (0, 0, 1, 0))[..., :-1, :]

    def log_prob(self, parameters: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        logits = self._logits(parameters, context)
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum((-2, -1))

    def picture(self, parameters: Tensor, noise: Noise) -> Tensor:
        return self._logits(parameters, parameters.new_zeros(())).sigmoid()

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _logits(parameters: Tensor, context: Tensor) -> Tensor:
        a, b = parameters.unbind(-3)
        return a + b * context.tanh()


@pytest.fixture
def above_aware(tiny_model: Callable[..., VMA], monkeypatch: pytest.MonkeyPatch) -> Callable[..., VMA]:
    """The function `tiny_model`, whose models have this likelihood."""
    monkeypatch.setitem(parsers.LIKELIHOODS, "bernoulli", lambda model: AboveAware())
    return tiny_model


@pytest.mark.parametrize("objective", ["vimco", "marginal"])
def test_a_context_is_computed_once_for_each_target(above_aware: Callable[..., VMA], objective: str) -> None:
    """Whatever K, the chunks and the number of decodes are; and it learns."""
    model = above_aware(objective=objective, importance_num=5)
    model.gradient_samples = 1
    likelihood = model.p_x.likelihood
    assert isinstance(likelihood, AboveAware)
    batch = episodes(images(2, 3, 20, 20), images(2, 2, 20, 20, seed=1))
    loss, _ = model.loss(batch, StepNoise("cpu", "context"))
    loss.backward()
    assert likelihood.contexts == [(2, 3, 20, 20)]
    assert likelihood.weight.grad is not None and likelihood.weight.grad != 0


def test_the_evaluator_computes_a_context_once_for_all_chunks(above_aware: Callable[..., VMA]) -> None:
    model = above_aware()
    likelihood = model.p_x.likelihood
    assert isinstance(likelihood, AboveAware)
    batch = episodes(images(2, 1, 20, 20), images(2, 2, 20, 20, seed=1))
    whole, chunks = (importance_bounds(model, batch, ("test",), 20, chunk)["bound"] for chunk in (20, 7))
    assert likelihood.contexts == [(2, 1, 20, 20)] * 2
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-10)


def test_log_weights_use_the_context_of_their_own_target(above_aware: Callable[..., VMA]) -> None:
    """log p(x|z,m_a) written out for each sample of each target."""
    model = above_aware()
    weight = model.p_x.likelihood.get_parameter("weight")
    x, memory, k = images(2, 3, 20, 20), images(2, 2, 20, 20, seed=1), 4
    m = model.encode_memory(memory)
    targets = model.encode_targets(x, m)
    addresses = model.sample_addresses(m, targets, StepNoise("cpu", "a"), k)
    samples = model.samples_at(addresses, targets, StepNoise("cpu", "z"))
    parameters = model.p_x.decode(samples.z, addresses.m_a)
    assert parameters.shape == (k, 2, 3, 2, 20, 20)
    for sample in range(k):
        for memory_number in range(2):
            for target in range(3):
                image = x[memory_number, target]
                above = weight * torch.cat([torch.zeros(1, 20), image[:-1]])
                a, b = parameters[sample, memory_number, target]
                p = torch.sigmoid(a + b * above.tanh())
                log_p = (image * p.log() + (1 - image) * (1 - p).log()).sum()
                assert samples.log_p_x[sample, memory_number, target].item() == pytest.approx(log_p.item(), abs=1e-8)
