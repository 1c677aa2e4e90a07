"""Numbers that are not finite, in a run of the real model: it stops before they reach the weights and says where."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers.logs import curves, same_end
from helpers.program import main
from helpers.toys import Toy, toy_trainer
from torch import Tensor, nn

from models.vma.model import VMA
from runtime import checkpoints
from runtime.errors import NonFiniteError
from trainer import Trainer


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> list[dict[str, Tensor]]:
    """Loss or gradient of this step becomes `what`; the weights before and after every step are noted."""
    real_step, real_loss = Trainer.step, VMA.loss
    now, seen = [-1], []

    def noted(trainer: Trainer, batch: object) -> dict[str, Tensor]:
        now[0] = trainer.progress.step
        seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        try:
            return real_step(trainer, batch)
        finally:
            seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
            now[0] = -1

    def loss(model: VMA, *args: object) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = real_loss(model, *args)  # type: ignore[arg-type]
        if now[0] == step:
            broken_gradient = what == "gradient"
            value = value + (model.dummies.sum() * 0).sqrt() if broken_gradient else value * float(what)
        return value, metrics

    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.setattr(VMA, "loss", loss)
    return seen


@pytest.mark.parametrize("what", ["nan", pytest.param("inf", marks=pytest.mark.slow), "gradient"])
def test_the_run_stops_with_the_weights_of_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with monkeypatch.context() as patch:
        seen = break_at(patch, 6, what)
        assert main(tmp_path, "--train", "--export", str(tmp_path / "w.safetensors")) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "step 6" in err
    for term in ("bound", "kl_a", "kl_z", "reconstruction"):
        assert term in err
    *_, before, after = seen
    assert len(seen) == 14
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())
    for name, step in (("vma.pt", 4), ("vma.last.pt", 4)):
        saved = checkpoints.load(tmp_path / name)
        assert saved["progress"]["step"] == step
        assert all(value.isfinite().all() for value in saved["model"].values())

    # without the fault the step is finite, and the training goes on as if nothing had been
    assert main(tmp_path, *replay_command(err)) == 0
    assert "step 6, seed 0: loss" in (out := capsys.readouterr().out) and "all finite" in out
    assert main(tmp_path, "--train") == 0
    assert main(tmp_path / "whole", "--train") == 0
    assert curves(tmp_path) == curves(tmp_path / "whole")
    assert same_end(tmp_path, tmp_path / "whole")


def replay_command(err: str) -> list[str]:
    """The arguments of the command that was printed, after the configuration's."""
    (line,) = (line for line in err.splitlines() if "replay" in line)
    words = shlex.split(line.partition("run.py ")[2])
    assert words[0] == "--config"
    return [word for word in words[2:] if word != "--set"]  # which `main` puts there itself


def test_a_learning_rate_that_explodes_ends_with_a_sentence_and_can_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explosive = ("train_spec.lr=1e30", "train_spec.optimizer=SGD")
    assert main(tmp_path, "--train", *explosive) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    found = re.search(r"step (\d+) is not finite: (loss .*?); no weight", err)
    assert found and "targets " in found[2]
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert all(value.isfinite().all() for value in checkpoints.load(tmp_path / "vma.nonfinite.pt")["model"].values())

    assert main(tmp_path, *replay_command(err), "--checkpoint", "of the test.pt") == 1
    again = capsys.readouterr().err
    assert f"step {found[1]} is not finite: {found[2]}; in the gradient of [" in again
    assert "Traceback" not in again
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == kept

    assert main(tmp_path, *replay_command(err), "train_spec.seed=1") == 2  # another run
    assert "train_spec.seed" in capsys.readouterr().err
    assert main(tmp_path, "--train", "--restart", "train_spec.steps=2") == 0
    assert not (tmp_path / "vma.nonfinite.pt").exists()


def test_weights_that_are_not_finite_stop_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "good", "--train", "train_spec.steps=1") == 0
    state = checkpoints.load(tmp_path / "good" / "vma.pt")
    state["model"]["dummies"][0, 0, 0] = float("nan")
    checkpoints.save(tmp_path / "bad.pt", state)
    assert main(tmp_path / "run", "--train", f"train_spec.init_from={tmp_path / 'bad.pt'}") == 1
    err = capsys.readouterr().err
    assert "NonFiniteError: step 0: Expected parameter" in err and "Traceback" not in err and len(err) < 1000


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_explode_just_before_a_validation_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    """Their last step was finite, so it is the validation that finds out."""
    scheduler = "train_spec.scheduler={kind: MultiStepLR, milestones: [1], gamma: 1e32}"
    rate = ("train_spec.lr=1e30",) if steps == 1 else (scheduler,)
    assert main(tmp_path, "--train", f"train_spec.steps={steps}", f"train_spec.val_every={steps}", *rate) == 1
    err = capsys.readouterr().err
    assert f"NonFiniteError: step {steps}: the bound of the validation is " in err and "Traceback" not in err
    assert not (tmp_path / "vma.pt").exists()
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 0


def test_weights_that_explode_in_the_last_step_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without validation nothing else looks at them."""
    explosive = (
        "train_spec.lr=1e30",
        "train_spec.optimizer=SGD",
        "train_spec.steps=1",
        "train_data.held_out_classes=0",
    )
    assert main(tmp_path, "--train", "--test", *explosive, "val_data.kind=glyphs") == 1
    err = capsys.readouterr().err
    assert "step 1: the bound of another batch with the last weights is " in err and "--restart" in err
    assert "Traceback" not in err
    assert not (tmp_path / "vma.pt").exists() and not (tmp_path / "table.csv").exists()
    assert all(value.isfinite().all() for value in checkpoints.load(tmp_path / "vma.last.pt")["model"].values())


@pytest.mark.parametrize("value", [float("nan"), 1e32])
def test_weights_of_another_program_give_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    state = checkpoints.load(tmp_path / "vma.pt")
    for weight in state["model"].values():
        weight.fill_(value)
    checkpoints.save(tmp_path / "vma.pt", state)
    capsys.readouterr()
    assert main(tmp_path, "--test") == 1
    err = capsys.readouterr().err
    assert ("its weights are not finite" if value != value else "C=1 M=1: the bound of a target is not finite") in err
    assert "train_spec.lr" in err and "Traceback" not in err
    assert not (tmp_path / "table.csv").exists() and not (tmp_path / "table.npz").exists()
    if value != value:
        assert main(tmp_path, "--export", str(tmp_path / "a.safetensors")) == 1
        assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("other", [["--train"], ["--test"], ["--sample"], ["--export", "a.safetensors"]])
def test_a_replay_is_asked_for_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(tmp_path, *other, "--replay", "vma.nonfinite.pt")
    assert ended.value.code == 2 and "--replay computes one step and nothing else" in capsys.readouterr().err


def test_a_weight_that_no_bound_depends_on_is_looked_at_too(tmp_path: Path) -> None:
    model = Toy()
    model.unused = nn.Parameter(torch.tensor(float("inf")))
    with pytest.raises(NonFiniteError, match=r"step 0: the weights unused are not finite; .*--restart"):
        toy_trainer(tmp_path, model=model).save_weights()
    assert not (tmp_path / "toy.pt").exists()
