"""What is about to run is said at the start, and the time left is that of all of it."""

import re
from pathlib import Path

import pytest
from helpers.config import small_config
from helpers.program import main

from commands import summary
from data.composition import EpisodeSpec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (EpisodeSpec(32, True, max_img_per_class=4), "32 images, 4 of each of 8 classes"),
        (EpisodeSpec(10, True, max_batch_cls=2), "10 images, 5 of each of 2 classes"),
        (EpisodeSpec(5, True, max_img_per_class=5), "5 images of one class"),
        (EpisodeSpec(1, True, max_img_per_class=1), "1 image of one class"),
        (EpisodeSpec(16, False, max_img_per_class=4), "16 images, at most 4 of a class"),
        (EpisodeSpec(10, False, max_batch_cls=3), "10 images of 1 to 3 classes"),
        (EpisodeSpec(5, False, max_batch_cls=1), "5 images of one class"),
        (EpisodeSpec(0, False, max_batch_cls=1), "no images"),
    ],
)
def test_a_composition_in_words(spec: EpisodeSpec, expected: str) -> None:
    assert spec.in_words == expected


def test_a_mixture_in_words(tmp_path: Path) -> None:
    other = "train_data.mixture=[{timesteps: 2, max_img_per_class: 2, targets_per_memory: 4, weight: 3}]"
    said = summary.memories(small_config(tmp_path, other))
    assert said == "memories of 4 images, 2 of each of 2 classes (25%); or 2 images of one class (75%)"


def test_training_and_test_say_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tmp_path, "--train", "--test", "train_spec.steps=2", "test_spec.importance_num=2") == 0
    out, err = capsys.readouterr()
    machine, images, length, *_ = out.splitlines()
    parameters = re.fullmatch(r"CPU, 1 thread; ([0-9,]+ parameters)", machine)
    assert parameters
    assert images == (
        "5 classes with 100 images to train on, 3 classes with 60 images to validate on; "
        "memories of 4 images, 2 of each of 2 classes"
    )
    files = f"{tmp_path}/vma.pt, {tmp_path}/log.jsonl, {tmp_path}/tb/vma"
    assert length == f"2 steps of 8 targets, 16 in all; written: {files}"
    start = out.splitlines().index(f"{machine}, of {tmp_path}/vma.pt")
    assert out.splitlines()[start + 1 : start + 3] == [
        "60 classes with 1,200 images to test on; M = 1, 3 images in a memory, of C = 1, 2 classes at most",
        f"4 cells of 12 targets, the bound of 2 samples; written: {tmp_path}/table.csv",
    ]
    assert "48/48 [" in err and "/12 [" not in err, "one bar for the whole grid"
    assert not caplog.records, "the CPU was asked for"

    (tmp_path / "table.npz").unlink()
    few = ("test_spec.importance_num=2", "test_spec.test_params.timesteps=[1]")
    assert main(tmp_path, "--test", *few) == 0
    assert "\n2 cells of 12 targets" in capsys.readouterr().out
    assert main(tmp_path, "--test", *few, "test_spec.test_params.max_batch_cls=[1]") == 0
    assert "\n1 cell of 12 targets" in capsys.readouterr().out
    assert main(tmp_path, "--test", "test_spec.importance_num=2") == 0
    assert " 24/48 [00:00" in capsys.readouterr().err, "it goes on where the finished cells end"


def test_a_fall_back_to_the_cpu_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(tmp_path, "--train", "train_spec.steps=1", "train_spec.gpus=auto", "--device", "cpu") == 0
    assert not caplog.records
    assert main(tmp_path, "--train", "train_spec.steps=2", "train_spec.gpus=auto") == 0
    assert "no GPU was found, so this runs on the CPU" in caplog.text
    caplog.clear()
    exported = str(tmp_path / "w.safetensors")
    assert main(tmp_path, "--export", exported, "train_spec.gpus=auto", "test_spec.gpus=auto") == 0
    assert not caplog.records, "which computes nothing"
