"""A disk that is full for the log alone, in a process of its own: one warning, no traceback, the training goes on."""

from pathlib import Path

import pytest
from helpers.config import arguments
from helpers.logs import rows
from helpers.program import finish, start
from helpers.tensorboard import tensorboard_folder, tensorboard_scalars

from runtime import checkpoints

_LIMITED = """
import resource, sys
import run

size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
run.standalone(run.main, sys.argv[2:])
"""

# Checkpoints of 42 kB, and some 20 kB for TensorBoard with every validation: it alone meets a limit of 52 kB.
RUN = ("train_spec.optimizer=SGD", "train_spec.lr=1e-4", "train_spec.val_every=1", "train_spec.val_targets=8")


def test_tensorboard_that_meets_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    line = arguments(tmp_path, "--train", *RUN, "train_spec.steps=16")
    status, _, err = finish(start("-c", _LIMITED, "52000", *line))
    assert status == 0, err
    (events,) = tensorboard_folder(tmp_path).iterdir()
    assert events.stat().st_size <= 52_000
    assert err.count("the log cannot be written") == 1
    assert not any(word in err for word in ("Traceback", "Exception", "Error "))
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 17))  # the other log goes on
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 16
    shown = [step for step, _ in tensorboard_scalars(tensorboard_folder(tmp_path))["train/loss"]]
    assert shown == list(range(1, len(shown) + 1)) and len(shown) < 16  # what was written can be read


@pytest.mark.slow
def test_a_log_that_meets_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    """The log is as large as a file may be from the start; TensorBoard goes on."""
    line = arguments(tmp_path, "--train", *RUN, "train_spec.steps=4")
    (tmp_path / "log.jsonl").write_text("x" * 210_000 + "\n")
    status, _, err = finish(start("-c", _LIMITED, "200000", *line, "--restart"))
    assert status == 0, err
    assert "Traceback" not in err
    assert len(tensorboard_scalars(tensorboard_folder(tmp_path))["train/loss"]) == 4
