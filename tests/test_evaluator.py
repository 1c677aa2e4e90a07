"""The bound is that of all K weights at once, however they are cut; finished cells are kept, damaged ones are not."""

import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.episodes import Episodes
from evaluator import METRICS, TEST_DECODES_AT_ONCE, importance_bounds, sizes_at_once
from models.objectives import log_mean_exp
from models.vma.model import VMA
from reports.cells import CellStore, load_cells
from runtime.arrays import npz
from runtime.randomness import TargetNoise

Build = Callable[..., VMA]
KEY = ("test", 0, "C=1 M=2")
TARGETS = [7, 3, 11]


def episodes(dtype: torch.dtype, m: int = 2) -> Episodes:
    """Three targets with memories of their own."""
    source = torch.Generator().manual_seed(0)
    pictures = (torch.rand(3, 1 + m, 20, 20, generator=source) < 0.3).to(dtype)
    classes = torch.tensor([[0, 0, 1], [1, 0, 1], [2, 0, 1]])[:, : 1 + m]
    rows = torch.arange(3 * m).view(3, m)
    index = torch.tensor(TARGETS).unsqueeze(1)
    return Episodes(pictures[:, :1], pictures[:, 1:], classes[:, :1], classes[:, 1:], index, rows)


def of(whole: Episodes, positions: list[int]) -> Episodes:
    return Episodes(*(getattr(whole, field.name)[positions] for field in fields(whole)))


@torch.no_grad()
def at_once(model: VMA, batch: Episodes, k: int) -> dict[str, Tensor]:
    """All K weights in one tensor, and the plain definition."""
    m = model.encode_memory(batch.memory)
    targets = model.encode_targets(batch.x, m)
    noise = TargetNoise(*KEY, targets=batch.x_index.flatten())
    samples = model.importance_samples(batch.x, m, targets, noise, k)
    parts = {
        "bound": log_mean_exp(samples.log_w),
        "kl_z": (samples.log_q_z - samples.log_p_z).mean(0),
        "target_class": batch.x_class,
        **model.metrics(m, targets, batch),
    }
    return {name: value[:, 0].double() for name, value in parts.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx(value.tolist(), rel=0, abs=tolerance), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("k", [1, 30, 100, 120])
def test_bound_is_that_of_all_weights_at_once(tiny_model: Build, dtype: torch.dtype, tolerance: float, k: int) -> None:
    """In nats: 1e-10 in float64, 1e-4 in float32."""
    model, batch = tiny_model(dtype=dtype), episodes(dtype)
    expected = at_once(model, batch, k)
    for chunk in (7, 50, 150):
        assert_same(importance_bounds(model, batch, KEY, k, chunk), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_a_target_does_not_depend_on_its_batch(tiny_model: Build, dtype: torch.dtype, tolerance: float) -> None:
    model, batch = tiny_model(dtype=dtype), episodes(dtype)
    whole = importance_bounds(model, batch, KEY, 70, 50)
    for positions in ([0], [2, 1], [2, 0, 1]):
        found = importance_bounds(model, of(batch, positions), KEY, 70, 50)
        assert_same(found, {name: value[positions] for name, value in whole.items()}, tolerance)


def test_another_key_draws_other_samples(tiny_model: Build) -> None:
    model, batch = tiny_model(), episodes(torch.float64)
    one, other = (importance_bounds(model, batch, ("test", seed), 60, 50) for seed in (0, 1))
    assert not (one["bound"] == other["bound"]).any()
    assert torch.equal(one["kl_a"], other["kl_a"])


@pytest.mark.parametrize("spike", [1, 2, 3])
def test_one_dominating_weight_in_any_chunk(tiny_model: Build, monkeypatch: pytest.MonkeyPatch, spike: int) -> None:
    """Folding chunks keeps the largest weight wherever it stands, be it thousands of nats above the others."""
    model, batch = tiny_model(), episodes(torch.float64)
    plain, calls = model.importance_samples, 0
    weights = []

    def spiked(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        samples = plain(*arguments)  # type: ignore[arg-type]
        if calls == spike:
            samples.log_p_x[3] += 5000
        weights.append(samples.log_w)
        return samples

    monkeypatch.setattr(model, "importance_samples", spiked)
    found = importance_bounds(model, batch, KEY, 130, 50)["bound"]
    torch.testing.assert_close(found, log_mean_exp(torch.cat(weights))[:, 0], rtol=0, atol=1e-9)
    assert (found > 2000).all()


def test_empty_memory(tiny_model: Build) -> None:
    model, batch = tiny_model(), episodes(torch.float64, m=0)
    found = importance_bounds(model, batch, KEY, 60, 50)
    assert_same(found, at_once(model, batch, 60), 1e-10)
    assert not found["address_accuracy"].any()


# --- sizes ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(["cpu", "cuda"]), st.integers(1, 3000), st.none() | st.integers(1, 20_000))
def test_sizes_fit_the_budget(device: str, batch: int, chunk: int | None) -> None:
    targets, samples = sizes_at_once(torch.device(device), batch, chunk)
    assert 1 <= targets <= batch
    assert samples > 0
    assert targets * samples <= max(TEST_DECODES_AT_ONCE[device], samples)
    assert chunk in (None, samples)
    if chunk is None:
        assert targets * (samples + 1) > TEST_DECODES_AT_ONCE[device]  # and use it


# --- finished cells ---------------------------------------------------------------------------------------------------


def values(seed: int, n: int = 5) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return {name: numbers.normal(size=n) for name in METRICS}


def same(a: dict[str, np.ndarray] | None, b: dict[str, np.ndarray]) -> bool:
    return a is not None and a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in b)


def test_a_cell_is_kept_only_for_its_own_key(tmp_path: Path) -> None:
    table = tmp_path / "deep" / "table.csv"
    store = CellStore(table, "weights 1")
    assert store.get("C=1 M=1") is None
    store.save("C=1 M=1", values(1))
    store.save("C=1 M=10", values(2))
    assert same(store.get("C=1 M=1"), values(1))

    again = CellStore(table, "weights 1")
    assert same(again.get("C=1 M=1"), values(1)) and same(again.get("C=1 M=10"), values(2))
    assert again.get("C=1 M=2") is None

    other = CellStore(table, "weights 2")
    assert other.get("C=1 M=1") is None
    other.save("C=2 M=1", values(3))
    assert same(CellStore(table, "weights 2").get("C=2 M=1"), values(3))
    assert CellStore(table, "weights 1").get("C=1 M=1") is None  # the table holds one kind of numbers
    assert [path.name for path in table.parent.iterdir()] == ["table.npz"]


def test_only_finished_cells_are_read_for_comparison(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "table.csv", "weights 1")
    store.save("C=1 M=1", values(1))
    store.save_partial("C=1 M=10", values(2, n=3))
    found = load_cells(store.path).cells
    assert set(found) == {"C=1 M=1"} and same(found["C=1 M=1"], values(1))


def test_a_cell_computed_again_replaces_the_old_one(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "table.csv", "key")
    store.save("C=1 M=1", values(1))
    store.save("C=1 M=1", values(2, n=7))
    assert same(CellStore(tmp_path / "table.csv", "key").get("C=1 M=1"), values(2, n=7))


def cut_short(content: bytes) -> list[bytes]:
    return [content[:length] for length in range(0, len(content), 7)]


def flipped(content: bytes) -> list[bytes]:
    """One bit somewhere; every place in turn."""
    places = range(0, len(content), 3)
    return [content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :] for i in places]


@pytest.mark.parametrize("damage", [cut_short, flipped])
def test_a_damaged_file_holds_nothing_or_the_truth(tmp_path: Path, damage: Callable[[bytes], list[bytes]]) -> None:
    table = tmp_path / "table.csv"
    CellStore(table, "key").save("C=1 M=1", values(1, n=3))
    path = tmp_path / "table.npz"
    for content in damage(path.read_bytes()):
        path.write_bytes(content)
        found = CellStore(table, "key").get("C=1 M=1")
        assert found is None or same(found, values(1, n=3))


@pytest.mark.parametrize("content", [b"", b"not a zip archive", b"\x93NUMPY", b"PK\x03\x04"], ids=repr)
def test_a_file_of_another_kind_is_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.npz").write_bytes(content)
    store = CellStore(tmp_path / "table.csv", "key")
    store.save("C=1 M=1", values(1))
    assert same(CellStore(tmp_path / "table.csv", "key").get("C=1 M=1"), values(1))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(canary),)

    with (tmp_path / "table.npz").open("wb") as file:
        arrays = {"C=1 M=1/key": np.array("key"), "C=1 M=1/bound": np.array([Touch()], dtype=object)}
        np.savez(file, **arrays)  # type: ignore[arg-type]
    assert CellStore(tmp_path / "table.csv", "key").get("C=1 M=1") is None
    assert not canary.exists()


def test_a_key_of_endless_shape_is_not_printed(tmp_path: Path) -> None:
    """No bytes in the file, but 2^33 empty rows as text."""
    arrays = {f"C=1 M=1/{name}": value for name, value in values(1).items()}
    (tmp_path / "table.npz").write_bytes(npz({**arrays, "C=1 M=1/key": np.empty((2**33, 0))}))
    assert load_cells(tmp_path / "table.npz").every == {}


def test_an_entry_that_is_no_array_spoils_the_file(tmp_path: Path) -> None:
    CellStore(tmp_path / "table.csv", "key").save("C=1 M=1", values(1))
    with zipfile.ZipFile(tmp_path / "table.npz", "a") as archive:
        archive.writestr("C=2 M=1/key.npy", b"no array")
    assert load_cells(tmp_path / "table.npz").every == {}
