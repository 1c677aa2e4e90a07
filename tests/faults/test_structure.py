"""Checkpoints that are whole, with the right SHA-256, but built otherwise: one sentence and status 3."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.program import main

from runtime import checkpoints

State = dict[str, Any]
RUN = ("train_spec.warmup=2", "train_spec.ema_decay=0.5", "train_spec.log_every=5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that can be resumed.  Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(folder, "--train", "train_spec.steps=2", *RUN) == 0
    return folder


def without(*keys: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def put(value: object, *keys: Any) -> Callable[[State], None]:
    """`value` in place of what the keys lead to."""

    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def transposed(state: State) -> None:
    """Of the weight that comes first among those with another shape then."""
    for weights in filter(None, (state["model"], state.get("averaged"))):
        name = next(name for name, value in weights.items() if value.dim() > 1 and value.shape[0] != value.shape[1])
        weights[name] = weights[name].transpose(0, 1).contiguous()


def renamed(state: State) -> None:
    for weights in filter(None, (state["model"], state.get("averaged"))):
        weights["new"] = weights.pop(next(iter(weights)))


OF_BOTH: dict[str, Callable[[State], object]] = {
    "no model": lambda state: [state.pop(name, None) for name in ("model", "averaged")],
    "no configuration": without("config"),
    "a number as configuration": put(3, "config"),
    "a list as configuration": put([1, "a"], "config"),
    "bytes as configuration": put(b"model: {}", "config"),
    "a tensor as configuration": put(torch.zeros(2), "config"),
    "a list as model": lambda state: state.update(model=[torch.zeros(2)], averaged=[torch.zeros(2)]),
    "text as model": lambda state: state.update(model="weights", averaged="weights"),
    "numbers in the model": lambda state: state.update(model={"a": 1}, averaged={"a": 1}),
    "other shapes": transposed,
    "other names": renamed,
}
OF_A_STATE: dict[str, Callable[[State], object]] = {
    "no progress": without("progress"),
    "a list as progress": put([1, 2], "progress"),
    "text as step": put("2", "progress", "step"),
    "a tensor as best": put(torch.zeros(2), "progress", "best"),
    "progress of something more": put(1, "progress", "epoch"),
    "no means": without("means"),
    "text as means": put("loss", "means"),
    "means of text": put([{"loss": ("a", "b")}], "means"),
    "no scheduler": without("scheduler"),
    "a number as scheduler": put(3, "scheduler"),
    "text in the scheduler": put("abc", "scheduler", "last_epoch"),
    "no average": put(None, "averaged"),
    "a list as optimizer": put([1], "optimizer"),
    "an optimizer without groups": without("optimizer", "param_groups"),
    "an optimizer of other groups": put([], "optimizer", "param_groups"),
    "an optimizer without state": without("optimizer", "state"),
    "text as learning rate": put("fast", "optimizer", "param_groups", 0, "lr"),
    "no betas": without("optimizer", "param_groups", 0, "betas"),  # type: ignore[arg-type]
    "moments of another shape": put(torch.zeros(3, 1, 7), "optimizer", "state", 0, "exp_avg"),
    "no second moments": without("optimizer", "state", 0, "exp_avg_sq"),  # type: ignore[arg-type]
}


def changed(path: Path, change: Callable[[State], object]) -> None:
    state = checkpoints.load(path)
    change(state)
    checkpoints.save(path, state)


def assert_one_sentence(text: str, path: Path) -> None:
    assert f"{path}: not a checkpoint of this version of the program (" in text
    assert len(text.splitlines()) == 1
    assert not any(word in text for word in ("Traceback", "weights_only", "torch.load"))


@pytest.mark.parametrize("change", OF_BOTH)
def test_weights_of_another_structure_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    path = tmp_path / "named.pt"
    shutil.copy(trained / "vma.pt", path)
    changed(path, OF_BOTH[change])
    for command in ("--test", "--sample"):
        assert main(tmp_path, command, "--checkpoint", str(path)) == 3
        assert_one_sentence(capsys.readouterr().err, path)
    assert main(tmp_path / "new", "--train", f"train_spec.init_from={path}") == 3
    assert f"{path}: not a checkpoint of this version of the program (" in capsys.readouterr().err


@pytest.mark.parametrize("change", OF_BOTH | OF_A_STATE)
def test_a_state_of_another_structure_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "vma.last-but-one.pt").unlink()
    changed(tmp_path / "vma.last.pt", (OF_BOTH | OF_A_STATE)[change])
    before = (tmp_path / "vma.last.pt").read_bytes()
    assert main(tmp_path, "--train", "train_spec.steps=3", *RUN) == 3
    assert_one_sentence(capsys.readouterr().err, tmp_path / "vma.last.pt")
    assert (tmp_path / "vma.last.pt").read_bytes() == before
