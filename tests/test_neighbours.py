"""What the rest of a memory shows of each of its images."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import CPU
from helpers.config import small_config
from helpers.program import main
from torch import Tensor, nn

import parsers
from config import ConfigError
from models.vma import neighbours as module
from models.vma.model import VMA
from models.vma.neighbours import PLANES, neighbours
from runtime.randomness import StepNoise

SIDE = 20
MOVED = ("model.max_shift=1", "model.scales=[0.8,1]")
NEIGHBOURS = ("model.likelihood=causal", "model.latent_dim=0", "model.neighbours=true", *MOVED)
NO_Z = (*NEIGHBOURS, "test_spec.metric=nll")


def built(folder: Path, *overrides: str) -> VMA:
    model = parsers.build_model(small_config(folder, f"train_data.resize={SIDE}", *overrides), CPU).double()
    assert isinstance(model, VMA)
    return model


def drawings(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return (torch.rand(*shape, SIDE, SIDE, dtype=torch.float64) < 0.3).double()


@pytest.fixture
def model(tmp_path: Path) -> VMA:
    model = built(tmp_path, *NEIGHBOURS)
    torch.manual_seed(1)
    with torch.no_grad():  # placements and images that differ
        model.q_s.features.weight.normal_(0, 0.3)
        model.dummies.copy_(drawings(len(model.dummies)))
        for layer in model.address_encoder.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
    return model


def planes(model: VMA, memory: Tensor) -> Tensor:
    m = model.encode_memory(memory)
    return m.images[: memory[..., 0, 0].numel()].unflatten(0, memory.shape[:2])


@torch.no_grad()
@pytest.mark.parametrize(("pairs", "most"), [(1, 64), (7, 64), (10**6, 64), (10**6, 2)])
def test_each_image_sees_what_addresses_of_a_memory_without_it_find(
    model: VMA, pairs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image and one other at a time, in the memory less that image, and less all but its likeliest ones."""
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr(module, "MOST", most)
    memory = drawings(2, 4)
    found = planes(model, memory)
    torch.testing.assert_close(found[:, :, 0], memory)
    chosen = set()
    for g, i in itertools.product(range(2), range(4)):
        rest = torch.cat([memory[g, :i], memory[g, i + 1 :]])
        m = model.encode_memory(rest[None])
        embedding = model.address_encoder(memory[g, i : i + 1])[0]
        logits = model.q_a(embedding[None], m.embeddings).logits.flatten()
        logits[logits[:3].argsort()[: max(0, 3 - most)]] = -math.inf
        q = logits.softmax(0)
        mean = torch.zeros(SIDE, SIDE, dtype=torch.float64)
        for j, image in enumerate(rest):
            s = int(model.q_s(memory[g, i][None, None], image[None, None]).flatten().argmax())
            chosen.add(s)
            mean += q[j] * model.placements.place(image[None, None], torch.tensor([0]), torch.tensor([s])).squeeze()
        torch.testing.assert_close(found[g, i, 1], mean)
        torch.testing.assert_close(found[g, i, 2], q[:3].sum().expand(SIDE, SIDE))
    assert len(chosen) > 1


@torch.no_grad()
def test_without_placements_neighbours_lie_where_they_are(model: VMA) -> None:
    memory = drawings(1, 3)
    m = model.encode_memory(memory)
    found = neighbours(memory, m.embeddings, model.q_a)
    logits = model.q_a(m.embeddings[:, :1], m.embeddings).logits.flatten()
    q = logits[1:].softmax(0)
    torch.testing.assert_close(found[0, 0, 0], q[0] * memory[0, 1] + q[1] * memory[0, 2])


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 1])
def test_an_image_alone_has_no_neighbours(model: VMA, size: int) -> None:
    assert not planes(model, drawings(2, size))[:, :, 1:].any()
    assert not model.encode_memory(drawings(2, size)).images[-len(model.dummies) :, 1:].any()


@pytest.mark.parametrize("latent", [(), ("model.latent_dim=5", "model.likelihood=bernoulli")])
@pytest.mark.parametrize("autoencoder", ["published", "{kind: residual, channels: [2, 3, 4]}"])
def test_a_picked_image_says_more_beside_others_and_no_target_changes_what(
    tmp_path: Path, autoencoder: str, latent: tuple[str, ...]
) -> None:
    model = built(tmp_path, *NEIGHBOURS, f"model.autoencoder={autoencoder}", *latent)
    memory, x = drawings(1, 3), drawings(1, 2).flip(-1)
    m = model.encode_memory(memory, precompute_features=True)
    assert m.features is not None
    other = model.encode_memory(torch.cat([memory[:, :2], 1 - memory[:, 2:]], 1), precompute_features=True).features
    assert other is not None
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(m.features.maps, other.maps, strict=True))
    noise = StepNoise("cpu", 0)
    together = model.log_weights(x, memory, noise, 4)
    picked = model.importance_samples(x, m, model.encode_targets(x, m), StepNoise("cpu", 0), 4).log_w
    torch.testing.assert_close(together, picked)  # encoded when they were picked, or all before


def test_gradient_goes_through_the_planes_to_the_weights_and_not_to_the_addresses(model: VMA) -> None:
    m = model.encode_memory(drawings(2, 3), precompute_features=True)
    assert m.features is not None
    sum(maps.square().sum() for maps in m.features.maps).backward()  # type: ignore[union-attr]
    first = next(w for name, w in model.encoder.named_parameters() if w.dim() == 4)
    assert first.shape[1] == 1 + PLANES and first.grad is not None
    assert bool(first.grad.flatten(2).any(2).all())
    assert all(w.grad is None for part in (model.address_encoder, model.q_s) for w in part.parameters())


@pytest.mark.parametrize("autoencoder", ["published", "{kind: residual, channels: [2, 3, 4]}"])
def test_a_training_begins_as_good_as_weights_without_neighbours(tmp_path: Path, autoencoder: str) -> None:
    own = f"model.autoencoder={autoencoder}"
    without = built(tmp_path, *NEIGHBOURS, own, "model.neighbours=false")
    model = built(tmp_path, *NEIGHBOURS, own, "train_spec.seed=1")
    model.load_state_dict(model.adapted(without.state_dict()))
    memory, x = drawings(2, 3), drawings(2, 2).flip(-1)
    for one in (model, without):
        one.summed_addresses = None
    log_p, wanted = (one.explain(x, memory, StepNoise("cpu", 0), 1).log_p for one in (model, without))
    torch.testing.assert_close(log_p, wanted)


def test_it_trains_tests_and_samples_and_does_not_go_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    assert main(plain, "--train", *NO_Z, "model.neighbours=false", "train_spec.steps=1") == 0
    begun = (*NO_Z, "train_spec.steps=1", f"train_spec.init_from={plain}/vma.pt")
    assert main(beside, "--train", "--test", "--sample", *begun, "test_spec.test_params.timesteps=[0, 1, 3]") == 0
    assert main(beside, "--test", *NO_Z, "model.neighbours=false") == 2
    capsys.readouterr()
    back = (*NO_Z, "model.neighbours=false", f"train_spec.init_from={beside}/vma.pt")
    assert main(tmp_path / "back", "--train", *back) == 2
    assert "model.neighbours: true in the checkpoint, false now" in capsys.readouterr().err


def test_a_soft_read_has_no_neighbours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.neighbours: .* picks none; use false"):
        small_config(tmp_path, "model.neighbours=true", "model.read=soft")
