"""Extreme inputs: blank images, memories of one image and of 500, images of 20 to 64 pixels, K from 2 to 5000.

Bounds and gradients are finite, and agree with each other and with what is known exactly.  `K` importance samples ·
`T` targets · `M` images in a memory · `S` slots.
"""

import csv
import math
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.logs import rows
from helpers.program import main
from PIL import Image
from test_model import GivenNoise, episodes, evidence, images, linear_gaussian, linear_targets
from torch import Tensor

from data.episodes import Episodes
from evaluator import importance_bounds
from models.objectives import log_mean_exp, marginal
from models.vma.model import VMA
from runtime.randomness import StepNoise

Build = Callable[..., VMA]
MEANS = GivenNoise(torch.zeros(()), torch.zeros(()))  # noise that leaves every z at its mean


def blank(number: int, side: int) -> Tensor:
    """[1, number, side, side] all ink, all paper, all ink ..."""
    return (1 - torch.arange(number) % 2).float().view(1, -1, 1, 1).expand(1, number, side, side)


def learned(model: VMA, batch: Episodes, key: str = "extreme") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and gradients of one step, all of which are finite."""
    model.zero_grad()
    loss, metrics = model.loss(batch, StepNoise("cpu", key))
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for name, value in {"loss": loss, **metrics, **gradients}.items():
        assert value.isfinite().all(), name
    return metrics, gradients


def table_of(folder: Path) -> list[dict[str, float]]:
    """The rows of the table, all of whose numbers are finite."""
    with (folder / "table.csv").open(newline="") as file:
        found = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert all(math.isfinite(value) for row in found for value in row.values())
    return found


def assert_finite(folder: Path) -> None:
    """All that the log holds."""
    assert rows(folder)
    assert all(math.isfinite(value) for row in rows(folder) for value in row.values() if not isinstance(value, str))


# --- sizes of images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", range(20, 65))
def test_every_size_is_learned_from(tiny_model: Build, side: int) -> None:
    """From ink, paper and a drawing."""
    model = tiny_model(side=side, dtype=torch.float32, learned_prior=True)
    pictures = torch.cat([blank(2, side), images(1, 1, side, side).float()], 1)
    metrics, gradients = learned(model, episodes(pictures, pictures.flip(1)))
    assert metrics["bound"].shape == (1, 3)
    assert any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("side", [20, pytest.param(43, marks=pytest.mark.slow), 64])
def test_the_program_works_at_every_size(tmp_path: Path, side: int) -> None:
    sizes = [f"{part}.resize={side}" for part in ("train_data", "val_data", "test_data")]
    short = ("train_spec.steps=2", "test_spec.test_params={max_batch_cls: [1], timesteps: [0, 19]}")
    assert main(tmp_path, "--train", "--test", "--sample", *sizes, *short) == 0
    assert_finite(tmp_path)
    assert [row["timesteps"] for row in table_of(tmp_path)] == [0, 19]
    for m in (0, 19):
        with Image.open(tmp_path / "samples" / f"C1_M{m}.png") as picture:
            assert picture.height > side


# --- blank images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", pytest.param("normal", marks=pytest.mark.slow)])
def test_the_program_works_on_blank_images(tmp_path: Path, likelihood: str) -> None:
    """Digits of which half are all ink and half are all paper."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 8)
    pixels = np.repeat(np.arange(80) % 2 * 255, 28 * 28).astype(np.uint8)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 80, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 80) + labels.tobytes())
    kind = [
        f"{part}.{key}" for part in ("train_data", "val_data", "test_data") for key in ("kind=mnist", "classes=200")
    ]
    more = ("train_data.held_out_classes=0", f"model.likelihood={likelihood}", "train_spec.steps=20")
    assert main(tmp_path, "--train", "--test", "--sample", "--root", str(tmp_path / "data"), *kind, *more) == 0
    assert_finite(tmp_path)
    assert all(row["kl_a"] >= 0 for row in table_of(tmp_path))


def test_copies_of_an_image_are_as_good_as_one(tiny_model: Build) -> None:
    """Without dummies log w is the same for any number of them, 1e-9 nats."""
    model = tiny_model(dummies=0)
    x = torch.cat([blank(2, 20).double(), images(1, 1, 20, 20)], 1)
    for image in (*blank(2, 20).double().split(1, 1), images(1, 1, 20, 20, seed=1)):
        one, many = (model.log_weights(x, image.expand(1, m, 20, 20), StepNoise("cpu", "z"), 8) for m in (1, 500))
        torch.testing.assert_close(one, many, rtol=0, atol=1e-9)


# --- sizes of memories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["vimco", "marginal"])
@pytest.mark.parametrize("m", [1, 500])
def test_memories_of_one_and_of_500_are_learned_from(tiny_model: Build, objective: str, m: int) -> None:
    model = tiny_model(dtype=torch.float32, objective=objective, importance_num=2)
    metrics, _ = learned(model, episodes(images(1, 2, 20, 20).float(), images(1, m, 20, 20, seed=1).float()))
    assert ((metrics["kl_a"] > -1e-5) & (metrics["kl_a"] < math.log(m + 2) + 1e-5)).all()


def test_the_evidence_of_two_memories_adds_up(tiny_model: Build) -> None:
    """S p(x|M) = sum_a p(x|m_a): one image and 499 others give what all 500 give, 1e-9 nats.  z stays at its means."""
    model = tiny_model(objective="marginal", importance_num=1, dummies=0)
    x, memory = images(1, 3, 20, 20), images(1, 500, 20, 20, seed=1)

    def total(part: Tensor) -> Tensor:
        return model.loss(episodes(x, part), MEANS)[1]["bound"] + math.log(part.shape[1])

    found = torch.logaddexp(total(memory[:, :1]), total(memory[:, 1:]))
    torch.testing.assert_close(found, total(memory), rtol=0, atol=1e-9)


@pytest.mark.parametrize("m", [1, 20, 500])
def test_both_bounds_stay_below_the_evidence_however_large_the_memory(m: int) -> None:
    """In a model where log p(x|M) is known, with q(z) too wide; four standard errors over 200 targets are allowed.

    E[vimco's bound] <= E[exact sum over addresses], since the weights of the sum are the means of the others over a.
    """
    model = linear_gaussian()
    model.q_z.head.loc_and_scale.bias[2:] += 0.5
    x, memory = linear_targets(200, m)
    encoded = model.encode_memory(memory)
    targets = model.encode_targets(x, encoded)
    whole = (evidence(model, x, memory) + encoded.p_a.logits[0].T).logsumexp(0)
    sampled = log_mean_exp(model.importance_samples(x, encoded, targets, StepNoise("cpu", m), 4).log_w)[0]
    noise = StepNoise("cpu", m, "every")
    every = model.samples_at(model.every_address(encoded, targets, 4), targets, noise)
    summed = marginal(every.log_w.unflatten(0, (4, -1)), targets.q_a.logits.permute(2, 0, 1))[0]
    for less, more in ((sampled, summed), (summed, whole)):
        gain = more - less
        assert gain.mean() > -4 * gain.std() / math.sqrt(len(gain))


@pytest.mark.parametrize("m", [1, 500])
def test_the_program_trains_with_a_memory_of(tmp_path: Path, m: int) -> None:
    each = min(m, 10)
    keys = (f"timesteps={m}", f"max_img_per_class={each}", "classes=110")
    both = [f"{part}.{key}" for part in ("train_data", "val_data") for key in keys]
    targets = (f"train_data.targets_per_memory={m // each}", f"train_data.batch_size={2 * m // each}")
    more = ("train_data.held_out_classes=51", "train_spec.steps=2", "train_spec.val_targets=2", "val_data.batch_size=2")
    assert main(tmp_path, "--train", *both, *targets, *more) == 0
    assert_finite(tmp_path)


# --- numbers of samples -----------------------------------------------------------------------------------------------


def with_memories(number: int, m: int = 2) -> Episodes:
    """`number` targets with memories of their own."""
    pictures = images(number, 1 + m, 20, 20).float()
    index = torch.arange(number).unsqueeze(1)
    return Episodes(
        pictures[:, :1], pictures[:, 1:], index % 3, torch.arange(m).expand(number, -1) % 3, index, index.expand(-1, m)
    )


@pytest.mark.parametrize(
    "numbers", [(2, 20, 200), pytest.param((2, 50, 5000), marks=pytest.mark.slow)], ids=lambda numbers: str(numbers[-1])
)
def test_more_samples_give_a_tighter_bound(tiny_model: Build, numbers: tuple[int, ...]) -> None:
    """With fresh noise for every K and the same targets; four standard errors of the paired differences are allowed."""
    model, batch = tiny_model(dtype=torch.float32), with_memories(24)
    bounds = [importance_bounds(model, batch, ("K", k), k, 50)["bound"] for k in numbers]
    assert all(bound.isfinite().all() for bound in bounds)
    for less, more in (*pairwise(bounds), (bounds[0], bounds[-1])):
        gain = more - less
        error = gain.std() / math.sqrt(len(gain))
        assert gain.mean() > -4 * error
    assert gain.mean() > 4 * error  # of all samples over two: there is something to gain


def test_5000_samples_may_come_in_any_chunks(tiny_model: Build) -> None:
    """1e-4 nats in float32."""
    model, batch = tiny_model(dtype=torch.float32), with_memories(1)
    one, other = (importance_bounds(model, batch, ("test",), 5000, chunk) for chunk in (77, 5000))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective", ["vimco", "marginal"])
@pytest.mark.parametrize("k", [2, 3, 100, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_number_of_samples_is_learned_from(tiny_model: Build, objective: str, k: int) -> None:
    model = tiny_model(dtype=torch.float32, objective=objective, importance_num=k)
    learned(model, episodes(blank(1, 20), blank(2, 20)))


def test_with_many_samples_both_objectives_give_the_gradient_of_the_evidence() -> None:
    """For the weights of a decoder in a model where log p(x|M) is known: within 4 % with K = 1000, and 0.1 nats."""
    model = linear_gaussian()
    model.q_z.head.loc_and_scale.bias[2:] += 0.2
    x, memory = linear_targets(1, 3)
    weight: Tensor = model.p_x.decoder.image.weight.requires_grad_()  # type: ignore[union-attr,assignment]
    p_a = model.encode_memory(memory).p_a.logits[0].T
    log_p_x = (evidence(model, x, memory) + p_a).logsumexp(0).sum()
    (truth,) = torch.autograd.grad(log_p_x, weight)
    for objective in ("vimco", "marginal"):
        model.objective, model.importance_num = objective, 1000
        loss, _ = model.loss(episodes(x, memory), StepNoise("cpu", objective))
        (found,) = torch.autograd.grad(-loss, weight)
        assert -loss.item() == pytest.approx(log_p_x.item(), abs=0.1)
        assert (found - truth).norm() < 0.04 * truth.norm()


@pytest.mark.slow
def test_the_program_trains_and_tests_with_5000_samples(tmp_path: Path) -> None:
    training = ("model.importance_num=5000", "train_data.batch_size=2", "train_data.targets_per_memory=2")
    short = ("val_data.batch_size=2", "train_spec.val_targets=2", "train_spec.steps=1")
    test = ("test_spec.importance_num=5000", "test_spec.test_params={max_batch_cls: [1], timesteps: [1]}")
    assert main(tmp_path, "--train", "--test", *training, *short, *test, "test_spec.targets=2") == 0
    assert_finite(tmp_path)
    assert [row["importance_num"] for row in table_of(tmp_path)] == [5000]
