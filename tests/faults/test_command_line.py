"""Mistakes on the command line and in the configuration: one clear answer, the right status, no traceback."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.config import arguments
from helpers.program import finish, main, process_restored, start, start_program

from runtime import checkpoints


def answer(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str]:
    """Exit status and stderr of a command line, run in this process."""
    import run

    with process_restored():
        try:
            status = run.main(list(line))
        except SystemExit as left:
            status = int(left.code or 0)
    return status, capsys.readouterr().err


def test_help_is_fast_and_needs_no_torch() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "importtime", "run.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # seconds of the processor
    assert done.returncode == 0
    assert "--config" in done.stdout and "--restart" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not {"torch", "numpy", "pydantic", "matplotlib"} & imported


def test_a_misspelt_key_is_answered_without_torch(tmp_path: Path) -> None:
    process = start("-X", "importtime", "run.py", *arguments(tmp_path, "--train", "train_spec.stesp=5"))
    status, _, err = finish(process)
    imports = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    said = "\n".join(line for line in err.splitlines() if not line.startswith("import time:"))
    assert status == 2
    assert "torch" not in imports and "pydantic" in imports
    assert said == "--set: train_spec.stesp: unknown key; did you mean steps?"
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--train"], "--config"),
        (["--config", "configs/vma.yaml"], "nothing to do: give --train, --test or --sample"),
        (["--config", "configs/vma.yaml", "--test", "--restart"], "--restart is for --train"),
        (["--config", "configs/vma.yaml", "--train", "--checkpoint", "a.pt"], "set train_spec.init_from"),
        (["--config", "configs/vma.yaml", "--export", "a.bin"], "--export a.bin: the name must end in .safetensors"),
        (["--config", "configs/vma.yaml", "--train", "--fast"], "--fast"),
        (["--config", "configs/vma.yaml", "--train", "extra"], "extra"),
        (["--config", "configs/vma.yaml", "--train", "--device", "gpu"], "'gpu' is none of auto, cpu, cuda"),
        (["--config", "configs/none.yaml", "--train"], "configs/none.yaml: no such file"),
        (["--config", "configs", "--train"], "configs: cannot be read: this is a folder"),
        (["--config", "run.py", "--train"], "run.py"),
        (["--config", "configs/vma.yaml", "--train", "--set", "steps"], "dotted.key=value"),
        (["--config", "configs/vma.yaml", "--train", "--set", "train_spec.lr=fast"], "train_spec.lr"),
    ],
)
def test_a_mistake_is_status_2_and_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: list[str], said: str
) -> None:
    monkeypatch.chdir(ROOT)
    status, err = answer(capsys, *line)
    assert status == 2
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (("--test",), 2, "vma.pt: there is no such checkpoint; train first"),
        (("--sample",), 2, "there is no such checkpoint"),
        (("--test", "--checkpoint", "/none/at.pt"), 3, "/none/at.pt: there is no such checkpoint"),
        (("--test", "--checkpoint", str(ROOT)), 3, "cannot be read"),
        (("--train", "--device", "cuda:99"), 2, "device cuda:99: this machine shows"),
        (("--train", "train_spec.gpus=[99]"), 2, "device cuda:99: this machine shows"),
        (("--test", "--device", "cuda:99"), 2, "device cuda:99"),
        (("--train", "train_spec.scheduler={kind: Cosine}"), 2, "expected one of ConstantLR"),
        (("--train", "train_spec.scheduler={kind: StepLR}"), 2, "step_size: missing; this key has no default"),
        (("--train", "train_spec.scheduler={kind: StepLR, step_size: 2, gama: 1}"), 2, "gama"),
        (("--train", "train_spec.step=5"), 2, "train_spec.step: unknown key; did you mean steps?"),
        (("--train", "model.importance_num=1"), 2, "model.importance_num"),
        (("--train", "train_data.batch_size=10"), 2, "train_data.batch_size"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], status: int, said: str
) -> None:
    assert main(tmp_path, *more) == status
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    assert left == {"small.yaml"}  # nothing was written


def test_another_model_is_status_2_with_the_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    capsys.readouterr()
    assert main(tmp_path, "--test", "model.latent_dim=5", "model.channels=[4, 5]", "train_spec.lr=1") == 2
    err = capsys.readouterr().err
    assert "model.latent_dim: 4 in the checkpoint, 5 now" in err
    assert "model.autoencoder.channels: [4, 4] in the checkpoint, [4, 5] now" in err
    assert "train_spec.lr" not in err  # what does not matter for the test is free
    assert main(tmp_path, "--test", "train_spec.lr=1", "model.importance_num=3") == 0


@pytest.mark.parametrize("change", ["train_spec.seed=1", "train_data.held_out_classes=4"])
def test_other_training_classes_than_those_of_the_checkpoint_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """Held-out classes of another seed would be classes that the model was trained on."""
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    for subset in ("held_out", "train"):
        assert main(tmp_path, "--test", f"test_spec.subset={subset}", change) == 2
        err = capsys.readouterr().err
        assert change.partition("=")[0] in err and subset in err
        assert main(tmp_path, "--test", f"test_spec.subset={subset}") == 0
    assert main(tmp_path, "--test", change) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("test_spec.subset=held_out", "test_spec.targets=61"), "61"),
        (("test_spec.checkpoint_path=elsewhere.pt",), "elsewhere.pt: there is no such checkpoint"),
    ],
)
def test_a_test_that_cannot_run_is_refused_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], said: str
) -> None:
    assert main(tmp_path, "--train", "--test", *change) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "vma.last.pt").exists()


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.pt"
    for state in ({"model": {"w": torch.zeros(2)}}, {"model": {}, "config": "a: [", "progress": {}}):
        checkpoints.save(path, state)
        assert main(tmp_path, "--test", "--checkpoint", str(path)) == 3
        assert f"{path}: not a checkpoint of this version" in capsys.readouterr().err


def test_weights_put_in_place_of_a_state_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    (tmp_path / "vma.pt").replace(tmp_path / "vma.last.pt")
    (tmp_path / "vma.last-but-one.pt").unlink()
    assert main(tmp_path, "--train", "train_spec.steps=2") in (2, 3)
    assert str(tmp_path / "vma.last.pt") in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_process_answers_without_a_traceback(tmp_path: Path) -> None:
    status, _, err = finish(start_program(tmp_path, "--train", "--device", "cuda:99"))
    assert status == 2
    assert "device cuda:99" in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["cuda:200", "cuda:9999", "cuda:99999", "cuda:٣", "cuda:-1", "gpu"])
def test_devices_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    try:
        status = main(tmp_path, "--train", "--device", name)
    except SystemExit as left:  # argparse
        status = left.code  # type: ignore[assignment]
    assert status == 2
    assert name in capsys.readouterr().err


def test_the_log_of_another_run_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    log = (tmp_path / "log.jsonl").read_text()
    other = f"train_spec.checkpoint_path={tmp_path / 'other.pt'}"
    assert main(tmp_path, "--train", other, "train_spec.steps=1") == 2
    assert "log.jsonl holds the log of another run" in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == log
    assert (
        main(tmp_path, "--train", other, f"train_spec.log_file={tmp_path / 'other.jsonl'}", "train_spec.steps=1") == 0
    )


def test_home_and_variables_are_replaced_in_the_paths_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HERE", str(tmp_path))
    assert main(tmp_path, "--train", "--output", "~/run", "--logdir", "$HERE/tb", "train_spec.steps=1") == 0
    assert (tmp_path / "home" / "run" / "vma.pt").exists() and list((tmp_path / "tb").iterdir())
    assert main(tmp_path, "--checkpoint", "~/run/vma.pt", "--export", "${HERE}/w.safetensors") == 0
    assert (tmp_path / "w.safetensors").exists()
    for flag in ("--checkpoint", "--logdir", "--export", "--replay", "--config"):
        with pytest.raises(SystemExit, match="2"):
            main(tmp_path, "--test", flag, "$NOPE/x")
        assert f"argument {flag}: $NOPE/x: the environment variable NOPE is not set" in capsys.readouterr().err
