"""Outputs that cannot be written are found before the work that leads to them, and none is shared."""

import os
from pathlib import Path

import pytest
from helpers.program import main

from runtime.files import exclusive_lock

ALL = ("--train", "--test", "--sample")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.is_dir() or not any(path.iterdir())}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("test_spec.output_file={folder}/file/table.csv", "{folder}/file: no folder can be made here"),
        ("test_spec.output_file={folder}/{name}.csv", "{name}.csv: cannot write (File name too long)"),
        ("train_spec.checkpoint_path={folder}/{name}.pt", "{name}.pt: cannot write (File name too long)"),
        ("test_spec.output_file={folder}/pipe.csv", "{folder}/pipe.csv: cannot write (not a file)"),
        ("train_spec.log_file={folder}/file/log.jsonl", "{folder}/file: no folder can be made here"),
        ("train_spec.log_file=/proc/log.jsonl", "/proc/log.jsonl: cannot write"),
        ("train_spec.log_file={folder}/empty", "{folder}/empty: cannot write (not a file)"),
        ("train_spec.checkpoint_path={folder}/file/vma.pt", "{folder}/file: no folder can be made here"),
        ("--logdir {folder}/file/tb", "{folder}/file/tb: no folder can be made here"),
        ("--export {folder}/file/w.safetensors", "{folder}/file: no folder can be made here"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "empty").mkdir()
    place = {"folder": tmp_path, "name": 246 * "n"}
    run = tmp_path / "run"
    assert main(run, *ALL, *change.format(**place).split()) == 1
    out, err = capsys.readouterr()
    assert said.format(**place) in err and len(err.splitlines()) == 1 and not out
    assert files(tmp_path) == {"file", "pipe.csv", "empty", "small.yaml"}


def test_pictures_that_cannot_be_written_are_found_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").write_text("")
    assert main(tmp_path, "--train", "--sample") == 1
    said = f"{tmp_path}/samples: no folder can be made here, because {tmp_path}/samples is a file\n"
    assert capsys.readouterr().err == said
    assert files(tmp_path) == {"samples", "small.yaml"}
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0  # which writes none


def test_a_picture_of_drawings_that_cannot_be_written_is_found_before_the_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    asked = ("--sample", "--memory", str(tmp_path), "--checkpoint", "/none.pt", "--output", str(tmp_path / "file"))
    assert main(tmp_path, *asked) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}/file: no folder can be made here")


@pytest.mark.parametrize(
    ("change", "name", "keys"),
    [
        ("test_spec.output_file={}/vma.csv", "vma.resolved.yaml", "checkpoint_path and test_spec.output_file"),
        ("test_spec.output_file={}/log.curves.csv", "log.curves.png", "train_spec.log_file and test_spec.output_file"),
        ("test_spec.output_file={}/samples/C1_M1.csv", "samples/C1_M1.png", "test_spec.output_file and samples"),
    ],
)
def test_two_outputs_with_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, name: str, keys: str
) -> None:
    for command in (ALL, ("--train",)):
        assert main(tmp_path, *command, change.format(tmp_path)) == 2
        err = capsys.readouterr().err
        assert f"{tmp_path}/{name}: two files of this run would have this name" in err and keys in err
    assert files(tmp_path) == {"small.yaml"}


def test_the_log_of_a_training_that_goes_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    with exclusive_lock(log, "training"):
        assert main(tmp_path, "--train", f"train_spec.checkpoint_path={tmp_path}/other.pt") == 2
    assert f"{log}: another training writes to it" in capsys.readouterr().err
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0


def test_no_log_is_no_trouble(tmp_path: Path) -> None:
    for name in ("null", "/dev/null"):
        assert main(tmp_path / name[1:], "--train", "train_spec.steps=1", f"train_spec.log_file={name}") == 0
    assert not Path("/dev/.null.lock").exists()
