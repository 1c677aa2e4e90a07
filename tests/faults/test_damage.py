"""Damaged files: found, never trusted, and no more is lost than the damaged part."""

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faults import MakesFolder, flipped
from helpers.logs import curves, same_end
from helpers.program import main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluator import METRICS, PerTarget
from reports.cells import CellStore
from runtime import files


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained to its eighth step and tested.  Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(folder, "--train", "--test", "train_spec.steps=8") == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run of ten steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(folder, "--train") == 0
    return folder


def malicious(path: Path) -> None:
    path.write_bytes(pickle.dumps(MakesFolder(path.parent / "canary")))


def malicious_for_torch(path: Path) -> None:
    torch.save({"config": MakesFolder(path.parent / "canary")}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "one bit": flipped,
    "text": lambda path: path.write_text("hello"),
    "malicious": malicious,
    "malicious for torch": malicious_for_torch,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_that_was_named_is_status_3(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    named = tmp_path / "named.pt"
    shutil.copy(finished / "vma.pt", named)
    DAMAGES[damage](named)
    content = named.read_bytes()
    for what in ("--test", "--sample"):
        assert main(tmp_path, what, "--checkpoint", str(named)) == 3
        err = capsys.readouterr().err
        assert f"{named}: damaged" in err and "Traceback" not in err
    assert named.read_bytes() == content
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "empty",
        "one bit",
        "malicious for torch",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncated", "text", "malicious")),
    ],
)
def test_a_damaged_last_state_costs_no_more_than_its_steps(
    finished: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "vma.last.pt")
    damaged = (tmp_path / "vma.last.pt").read_bytes()
    with caplog.at_level(logging.WARNING):
        assert main(tmp_path, "--train") == 0
    assert "vma.last.pt: damaged" in caplog.text
    assert (tmp_path / "vma.damaged.pt").read_bytes() == damaged
    assert not (tmp_path / "canary").exists()
    assert curves(tmp_path) == curves(whole)
    assert same_end(tmp_path, whole)


def test_where_no_state_is_whole_nothing_is_thrown_away(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("vma.last*.pt"):
        flipped(path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main(tmp_path, "--train") == 3
    assert "--restart" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_damaged_log_costs_no_more_than_its_damaged_rows(
    finished: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"subset": "train", "step": 1e999}\n\xff\n' + log.read_bytes() + b'{"subset": "tra')
    (tmp_path / "log.curves.png").unlink()
    assert main(tmp_path, "--train") == 0
    assert "log.jsonl: 3 lines cannot be read" in caplog.text
    assert curves(tmp_path) == curves(whole)
    assert (tmp_path / "log.curves.png").exists()
    assert len((tmp_path / "log.unreadable").read_bytes().splitlines()) == 3


def test_a_damaged_state_is_not_kept_in_place_of_a_good_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a save that fails when the old state has its second name, a good one is on the disk."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    flipped(tmp_path / "vma.last.pt")
    link = files._link

    def fails_then(path: Path, previous: Path) -> None:
        link(path, previous)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_link", fails_then)
        assert main(tmp_path, "--train", "train_spec.save_every=1") == 1
    assert main(tmp_path, "--train", "train_spec.save_every=1") == 0


# --- the cells of a table ---------------------------------------------------------------------------------------------

KEY = '{"seed": 0}'


def values() -> PerTarget:
    return {name: np.linspace(0, 1, 7) for name in METRICS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("store") / "table.csv"
    CellStore(path, KEY).save("C=1 M=1", values())
    return path.with_suffix(".npz").read_bytes()


def read(folder: Path, content: bytes) -> None:
    """A damaged file holds the cell as it was, or does not hold it."""
    path = folder / "table.npz"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    kept = CellStore(folder / "table.csv", KEY).get("C=1 M=1")
    if kept is not None:
        assert kept.keys() == values().keys()
        assert all(np.array_equal(kept[name], value) for name, value in values().items())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_cells_is_no_trouble(store: bytes, tmp_path: Path, where: float, bit: int) -> None:
    changed = bytearray(store)
    changed[int(where * len(store))] ^= 1 << bit
    read(tmp_path, bytes(changed))


@pytest.mark.slow
def test_no_flipped_bit_in_the_cells_is_trouble(store: bytes, tmp_path: Path) -> None:
    for position in range(len(store)):
        for bit in range(8):
            changed = bytearray(store)
            changed[position] ^= 1 << bit
            read(tmp_path, bytes(changed))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_truncated_cells_are_no_trouble(store: bytes, tmp_path: Path, where: float) -> None:
    read(tmp_path, store[: int(where * len(store))])


def test_objects_in_the_cells_are_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    np.savez(tmp_path / "table.npz", **{"C=1 M=1/key": np.array(MakesFolder(canary), dtype=object)})  # type: ignore[arg-type]
    assert CellStore(tmp_path / "table.csv", KEY).get("C=1 M=1") is None
    assert not canary.exists()


def test_damaged_cells_are_computed_anew(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert main(tmp_path, "--test", "train_spec.steps=8") == 0
    expected = (tmp_path / "table.csv").read_text()
    flipped(tmp_path / "table.npz")
    assert main(tmp_path, "--test", "train_spec.steps=8") == 0
    assert (tmp_path / "table.csv").read_text() == expected
