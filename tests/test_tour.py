"""The notebook runs from its first cell to its last; its code is executed without Jupyter, which nothing else needs."""

import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text())


def test_the_tour_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "path", list(sys.path))
    scope: dict[str, object] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    out = capsys.readouterr().out
    assert "ELBO@1000" in out and "M = 5: NLL" in out
    assert Path.cwd() == ROOT


def test_the_tour_has_ten_cells_and_no_outputs() -> None:
    """So that a change of it can be read."""
    assert len(NOTEBOOK["cells"]) == 10
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])
