"""A disk that is full: the previous checkpoint is intact, the message is clear, and a log alone stops nothing."""

import errno
import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.faults import files_of_at_most
from helpers.logs import curves, rows, same_end
from helpers.program import main
from helpers.tensorboard import tensorboard_folder, tensorboard_scalars

from data.episodes import EpisodeLoader, Episodes
from runtime import checkpoints


def full_from_step(monkeypatch: pytest.MonkeyPatch, step: int, size: int) -> None:
    """From this step of the training on, files end at `size` bytes."""
    original = EpisodeLoader.at

    def at(loader: EpisodeLoader, asked: int) -> Episodes:
        if (loader.subset, asked) == ("train", step):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return original(loader, asked)

    monkeypatch.setattr(EpisodeLoader, "at", at)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, files_of_at_most(10**9):
        full_from_step(patch, 6, 5000)
        assert main(tmp_path, "--train", "train_spec.save_every=2", "train_spec.val_every=100") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and "File too large" in err
    assert str(tmp_path) in err  # which file it was
    whole = [path for path in tmp_path.glob("vma.last*.pt") if checkpoints.load(path)["progress"]["step"] == 6]
    assert len(whole) == 1
    assert not list(tmp_path.glob(".*.part"))
    assert main(tmp_path, "--train", "train_spec.save_every=2", "train_spec.val_every=100") == 0
    assert main(tmp_path / "whole", "--train", "train_spec.save_every=2", "train_spec.val_every=100") == 0
    assert curves(tmp_path) == curves(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_log_that_cannot_grow_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log reaches the limit, checkpoints do not."""
    log = tmp_path / "log.jsonl"
    assert main(tmp_path, "--train", "train_spec.steps=4") == 0
    size = max(path.stat().st_size for path in tmp_path.glob("*.pt")) + 20_000
    filler = '{"subset": "train", "step": 1, "bound": 0, "filler": "' + size * "x" + '"}\n'
    log.write_text(filler)
    assert log.stat().st_size > size
    with files_of_at_most(size):
        assert main(tmp_path, "--train", "train_spec.steps=8") == 0
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 8


@pytest.mark.parametrize(
    ("what", "times", "saved"),
    [(("train", 7), 1, 7), (("validation", 0), 4, 8)],  # one for each validation, and one for its picture
)
def test_what_else_fails_saves_the_training_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: tuple[str, int],
    times: int, saved: int,
) -> None:  # fmt: skip
    """A disk that cannot be read, at a step, and while the picture of a validation is drawn."""
    original, asked = EpisodeLoader.at, list[tuple[str, int]]()

    def at(loader: EpisodeLoader, step: int) -> Episodes:
        asked.append((loader.subset, step))
        if asked[-1] == what and asked.count(what) == times:
            raise OSError(errno.EIO, "Input/output error", "drawings.npz")
        return original(loader, step)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeLoader, "at", at)
        assert main(tmp_path, "--train", "train_spec.save_every=100") == 1
    assert "drawings.npz: Input/output error" in capsys.readouterr().err
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == saved
    for folder in (tmp_path, tmp_path / "whole"):
        assert main(folder, "--train", "train_spec.save_every=100") == 0
    assert curves(tmp_path) == curves(tmp_path / "whole")
    assert same_end(tmp_path, tmp_path / "whole")


def test_a_table_that_cannot_be_written_keeps_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path, "--train", "--test", "train_spec.steps=1") == 0
    names = ("table.csv", "table.md", "table.npz", "table.png")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    with files_of_at_most(2000):  # the configuration fits, bounds of the targets and plot do not
        assert main(tmp_path, "--test", "test_spec.importance_num=50", "test_spec.targets=60") == 1
    assert "Traceback" not in capsys.readouterr().err
    aside = {name: tmp_path / name.replace("table", "table.before-1") for name in names}
    assert {name: path.read_bytes() for name, path in aside.items()} == before
    np.load(aside["table.npz"]).close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    in_the_way = f"no folder can be made here, because {tmp_path / 'file'} is a file"
    for name in ("file", "file/below"):
        assert main(tmp_path, "--train", "--output", str(tmp_path / name)) == 1
        assert capsys.readouterr().err == f"{tmp_path / name}: {in_the_way}\n"
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    capsys.readouterr()
    for command in (
        ["--test", f"test_spec.output_file={tmp_path}/file/a.csv"],
        ["--export", f"{tmp_path}/file/a.safetensors"],
    ):
        assert main(tmp_path, *command) == 1
        assert in_the_way in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_ends_the_training_with_its_state_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        assert main(folder, "--train", "train_spec.steps=4") == 0
        room = os.statvfs(folder)
        (folder / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize))
        assert main(folder, "--train", "train_spec.steps=8") == 1
        err = capsys.readouterr().err
        assert "No space left" in err
        states = [checkpoints.load(path)["progress"]["step"] for path in folder.glob("vma.last*.pt")]
        assert 4 in states
        (folder / "filler").unlink()
        assert main(folder, "--train", "train_spec.steps=8") == 0
        steps = sorted(row["step"] for row in rows(folder, "train"))
        assert steps == list(range(1, 9))
        assert [step for step, _ in tensorboard_scalars(tensorboard_folder(folder))["train/loss"]] == steps
    finally:
        subprocess.run(["umount", str(folder)], check=True)
