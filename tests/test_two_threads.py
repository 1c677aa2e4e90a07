"""The same run twice is the same run with two threads too, for which no sum may depend on who comes first."""

from pathlib import Path

import pytest
import torch
from helpers import CPU, ROOT
from helpers.logs import same_end
from helpers.program import finish, main, start
from torch import Tensor

import config as configuration
import parsers
from runtime.randomness import StepNoise

DRAWN = (
    *(f"{part}.kind=glyphs" for part in ("train_data", "val_data", "test_data")),
    *("train_data.batch_size=32", "train_data.classes=40", "train_data.held_out_classes=8", "test_spec.targets=100"),
)
# Other alphabets are read by the same networks, and there are none of glyphs.
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml") if "45-5" not in path.name)


def gradients(config: configuration.Config, device: torch.device = CPU) -> dict[str, Tensor]:
    """Of the second step: that of the first is the same however distributions are checked."""
    model = parsers.build_model(config, device)
    loader = parsers.train_loader(config, parsers.training_images(config, device))
    model.loss(loader.at(1), StepNoise(device, 0, "train", 1))[0].backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_of_every_configuration_is_the_same_each_time(name: str) -> None:
    """Of every autoencoder and likelihood that is configured; the network's sizes are those of the file."""
    torch.set_num_threads(2)
    config = configuration.load(ROOT / "configs" / name, DRAWN)
    once = gradients(config)
    for _ in range(2):
        again = gradients(config)
        assert once.keys() == again.keys()
        assert [key for key in once if not torch.equal(once[key], again[key])] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_repeats_the_gradient_where_it_is_told_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # without warn_only: an operation that cannot be is an error here
    try:
        config = configuration.load(ROOT / "configs" / name, DRAWN)
        once, again = (gradients(config, torch.device("cuda")) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert once.keys() == again.keys()
    assert [key for key in once if not torch.equal(once[key], again[key])] == []


@pytest.mark.parametrize("wanted", [True, False])
def test_a_training_takes_deterministic_operations_where_it_is_told_to(tmp_path: Path, wanted: bool) -> None:
    try:
        assert main(tmp_path, "--train", "train_spec.steps=1", f"train_spec.deterministic={str(wanted).lower()}") == 0
        assert torch.are_deterministic_algorithms_enabled() == wanted
    finally:
        torch.use_deterministic_algorithms(False)


_KILLED = """
import os, signal, sys
import run, trainer

step = trainer.Trainer.step

def dies(trainer, batch):
    if trainer.progress.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, batch)

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
    keys = (*DRAWN, "train_data.targets_per_memory=1", "train_spec.steps=3",
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
