"""Tables are compared target by target, where these are the same, and in one plot."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.config import small_config
from PIL import Image

import config as configuration
from evaluator import METRICS
from reports import compare
from reports.cells import CellStore

CLASSES = np.array([0.0, 0.0, 1.0])
NAMES = ("A/1", "B/2")


def table(folder: Path, name: str, bounds: dict[str, list[float]], *overrides: str, **origin: object) -> Path:
    """The files of a test with these bounds."""
    key = {"images": "x", "targets": 3, "seed": 0, "own_class": True, "weights": name, **origin}
    store = CellStore(folder / f"{name}.csv", json.dumps(key), NAMES)
    for cell, bound in bounds.items():
        store.save(
            cell, {**{part: np.zeros(3) for part in METRICS}, "bound": np.array(bound, float), "target_class": CLASSES}
        )
    dumped = configuration.dump(small_config(folder, *overrides))
    (folder / f"{name}.resolved.yaml").write_text(dumped)
    return folder / f"{name}.csv"


def test_differences_are_paired_and_class_balanced(tmp_path: Path) -> None:
    """Gains of 1 and 3 in one class and of 8 in the other: 5, where the mean over targets is 4."""
    one = table(tmp_path, "one", {"C=1 M=1": [-80, -90, -70], "C=1 M=3": [-60, -60, -60]})
    two = table(tmp_path, "two", {"C=1 M=1": [-79, -87, -62], "C=2 M=1": [-50, -50, -50]})
    (row,) = compare.differences(compare.read(one), compare.read(two))
    assert (row["max_batch_cls"], row["timesteps"], row["targets"]) == (1, 1, 3)
    assert row["gain"] == pytest.approx(5)
    assert row["stderr"] == pytest.approx(math.sqrt(2 / 2 + 2) / 2)  # a variance of 2 within either class
    assert row["stderr_new_classes"] == pytest.approx(3)  # class means 2 and 8


@pytest.mark.parametrize("origin", [{"seed": 1}, {"images": "y"}, {"own_class": False}], ids=str)
def test_other_targets_are_not_compared(tmp_path: Path, origin: dict[str, object]) -> None:
    one = table(tmp_path, "one", {"C=1 M=1": [-80, -90, -70]})
    two = table(tmp_path, "two", {"C=1 M=1": [-79, -87, -62]}, **origin)
    tables = [compare.read(one), compare.read(two)]
    assert compare.differences(*tables) == []
    assert f"Other {next(iter(origin))}, so no paired differences" in compare.markdown(tables)
    assert compare.plot(tables).startswith(b"\x89PNG")


def test_densities_are_not_compared_with_probabilities(tmp_path: Path) -> None:
    one = table(tmp_path, "one", {"C=1 M=1": [-80, -90, -70]})
    two = table(tmp_path, "two", {"C=1 M=1": [-629, -637, -622]}, "model.likelihood=normal")
    three = table(tmp_path, "three", {"C=1 M=1": [-70, -70, -70]}, "model.likelihood=causal")
    tables = [compare.read(path) for path in (one, two, three)]
    assert compare.differences(*tables[:2]) == [] and compare.differences(tables[0], tables[2])
    assert "Other likelihood, so no paired differences" in compare.markdown(tables)


def test_the_command_prints_the_differences_and_draws_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = enumerate(("one", "two", "three"))
    paths = [table(tmp_path, name, {"C=1 M=1": [-80 + i, -90, -70 + i]}) for i, name in names]
    assert compare.main([*map(str, paths), "--output", str(tmp_path / "new" / "all.png")]) == 0
    out = capsys.readouterr().out
    assert "| 1 | 1 | 0.75 |" in out and "| 1 | 1 | 1.50 |" in out and "glyphs" in out
    with Image.open(tmp_path / "new" / "all.png") as image:
        assert image.width > 1000  # with the differences beside
    assert compare.main([str(paths[0]), str(tmp_path / "gone.csv")]) == 2
    assert compare.main([str(paths[0]), "--output", str(paths[1])]) == 2
    assert "must end in .png" in capsys.readouterr().err and not paths[1].exists()
    (tmp_path / "two.npz").unlink()
    assert compare.main([str(paths[0]), str(paths[1])]) == 3
    assert "no finished cell" in capsys.readouterr().err
