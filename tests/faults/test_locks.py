"""Locks and what lies around the writing of a file, on file systems that cannot do all of it."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest
from helpers.program import main

from data.episodes import EpisodeLoader, Episodes
from runtime import checkpoints, files
from runtime.files import exclusive_lock, write_atomically


@pytest.mark.parametrize(
    ("module", "call", "error", "said"),
    [
        (fcntl, "flock", errno.ENOLCK, "nothing keeps another training from writing to"),
        (fcntl, "flock", errno.ENOSYS, "nothing keeps another training from writing to"),
        (fcntl, "flock", errno.EOPNOTSUPP, "nothing keeps another training from writing to"),
        (os, "fsync", errno.EINVAL, "may be lost when the power fails"),
        (os, "fchmod", errno.EPERM, "permissions of files cannot be set"),
    ],
)
def test_a_file_system_that_cannot_do_all_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: object,
    call: str,
    error: int,
    said: str,
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    files._warn_once.cache_clear()
    monkeypatch.setattr(module, call, unsupported)
    assert main(tmp_path, "--train", "train_spec.steps=2", "train_spec.log_file=null", "train_spec.save_every=1") == 0
    (text,) = {record.getMessage() for record in caplog.records}
    assert said in text and os.strerror(error) in text
    assert len(caplog.records) == 1
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 2


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_disk_that_fails_is_no_such_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "a", b"content")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_no_way_to_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious, lock = tmp_path / "precious", tmp_path / ".vma.pt.lock"
    precious.write_text("years of work")
    lock.symlink_to(precious)
    assert main(tmp_path, "--train") == 1
    assert capsys.readouterr().err == f"{lock}: a link, which is not followed\n"
    lock.unlink()
    os.link(precious, lock)
    with exclusive_lock(tmp_path / "vma.pt", "training"):
        pass
    assert precious.read_text() == "years of work"


@pytest.mark.timeout(30)
def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".vma.pt.lock")
    with pytest.raises(OSError, match=r"\.vma\.pt\.lock"):
        exclusive_lock(tmp_path / "vma.pt", "training").__enter__()


@pytest.mark.parametrize("taken", [True, False])
def test_a_run_whose_folder_was_taken_stops_at_its_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: bool
) -> None:
    """One whose folder was only removed makes it again."""
    run = tmp_path / "run"
    original = EpisodeLoader.at

    def at(loader: EpisodeLoader, asked: int) -> Episodes:
        if (loader.subset, asked) == ("train", 3):
            shutil.move(run, tmp_path / "away")
            if taken:
                run.mkdir()
                for name in (".vma.pt.lock", "vma.last.pt"):
                    (run / name).write_bytes(b"of another run")
        return original(loader, asked)

    monkeypatch.setattr(EpisodeLoader, "at", at)
    status = main(run, "--train", "train_spec.save_every=2", f"train_spec.log_file={run}/log.jsonl")
    if taken:
        assert status == 1
        assert "the folder was removed, and another run has taken it" in capsys.readouterr().err
        assert (run / "vma.last.pt").read_bytes() == b"of another run"
        assert not (run / "vma.pt").exists() and not (run / "log.jsonl").exists()
        assert checkpoints.load(tmp_path / "away" / "vma.last.pt")["progress"]["step"] == 2
    else:
        assert status == 0
        assert checkpoints.load(run / "vma.last.pt")["progress"]["step"] == 10
