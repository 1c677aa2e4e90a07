"""docs/fine_tuning.md can be followed, and shipped weights get better at the drawings they go on with."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.program import process_restored

import run

PAGE = (ROOT / "docs" / "fine_tuning.md").read_text()
SHORT = ("train_spec.steps=12", "train_spec.warmup=2", "train_spec.val_targets=32", "test_spec.targets=40",
         "test_spec.test_params.max_batch_cls=[1]", "test_spec.test_params.timesteps=[1]")  # fmt: skip


@pytest.mark.slow
def test_the_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "pretrained"):
        Path(folder).symlink_to(ROOT / folder)
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(program)
    commands = re.findall(r"^python run\.py (.*)$", PAGE, re.MULTILINE)
    short = [word for override in SHORT for word in ("--set", override)]
    with process_restored():
        assert [run.main([*shlex.split(command), *short]) for command in commands] == [0, 0, 0]
    assert Path("runs", "00.png").read_bytes().startswith(b"\x89PNG")
    found = []
    for folder in ("before", "fine_tune"):
        with Path("runs", folder, "results.csv").open(newline="") as file:
            [row] = csv.DictReader(file)
        assert row["targets"] == "40"
        found.append(float(row["NLL"]))
    assert found[1] < found[0] - 2
