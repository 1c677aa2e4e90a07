"""The same run twice is the same run with two threads too, for which no sum may depend on who comes first."""

from pathlib import Path

import pytest
import torch
from helpers.logs import same_end
from helpers.program import finish, start

DRAWN = (
    *(f"{part}.kind=glyphs" for part in ("train_data", "val_data", "test_data")),
    *("train_data.classes=40", "train_data.held_out_classes=8", "test_spec.targets=100"),
)

_KILLED = """
import os, signal, sys
import run, trainer

step = trainer.Trainer.step

def dies(trainer):
    if trainer.progress.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer)

trainer.Trainer.step = dies
run.standalone(run.main, sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_training_resumed_is_the_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target for each memory, as published: its embeddings are added up where targets pick the same image."""
    torch.set_num_threads(2)  # also those of the program
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # they may have one core
    keys = (*DRAWN, "train_data.batch_size=32", "train_data.targets_per_memory=1", "train_spec.steps=3",
            "train_spec.save_every=1", "train_spec.val_targets=32")  # fmt: skip
    given = [part for key in keys for part in ("--set", key)]
    line = ["--config", "configs/vma.yaml", "--train", "--device", "cpu", *given]
    for folder, *program, status in (
        (tmp_path / "a", "run.py", 0),
        (tmp_path / "b", "-c", _KILLED, -9),
        (tmp_path / "b", "run.py", 0),
    ):
        ended, _, err = finish(start(*program, *line, "--output", str(folder)), 600)
        assert ended == status, err
    assert same_end(tmp_path / "a", tmp_path / "b")
