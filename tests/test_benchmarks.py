"""The benchmarks, as far as they do not depend on a clock: what is counted, and what is written down."""

import csv
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU
from helpers.config import small_config, small_yaml
from helpers.program import drawn_once, process_restored
from torch import Tensor
from torch.utils._pytree import tree_leaves

import evaluator
import parsers
import run
from benchmarks import throughput, time_to_bound
from commands import Session, train
from models.vma.model import EncodedMemory
from runtime.signals import StopRequest
from trainer import Trainer


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with process_restored(), drawn_once():
        yield


# --- throughput -------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still but for calls that are made to take time, of so many cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(throughput.time, "process_time", lambda: self.now * cores)

    def timed(self, function: Callable[..., Any], seconds: Iterable[float]) -> Callable[..., Any]:
        durations = iter(seconds)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.now += next(durations)
            return function(*args, **kwargs)

        return call


def test_speed_is_the_targets_that_were_worked_on_by_the_time_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two busy cores, with steps whose duration changes from stretch to stretch, and some that do not fill one."""
    clock = Clock(monkeypatch, cores=2)
    assert throughput.SECONDS == 2
    stretches = [(100.0, 1), (0.5, 4), (1.0, 2), (2.0, 1), (0.125, 16), (0.75, 3)]  # the first does not count
    steps = [seconds for seconds, calls in stretches for _ in range(calls)]
    asked: list[tuple[int, int, int]] = []

    def recorded(model: Any, episodes: Any, key: Any, k: int, *others: Any) -> evaluator.PerTarget:
        asked.append((len(episodes), episodes.batch(slice(None)).memory.shape[1], k))
        return real(model, episodes, key, k, *others)

    real = evaluator.evaluate_cell
    monkeypatch.setattr(Trainer, "step", clock.timed(Trainer.step, steps))
    monkeypatch.setattr(evaluator, "evaluate_cell", clock.timed(recorded, [4.0] * 6 + [16.0] * 6))
    (tmp_path / "small.yaml").write_text(small_yaml(tmp_path))
    refuses = "train_spec.scheduler={kind: OneCycleLR, max_lr: 0.1, total_steps: 10}"  # there are 27 steps
    given = ["--config", str(tmp_path / "small.yaml"), "--device", "cpu", "--set", refuses]
    assert throughput.main([*given, "--output", str(tmp_path / "found.json")]) == 0

    found = json.loads((tmp_path / "found.json").read_text())
    keys = ("targets_per_s", "slowest", "fastest", "targets_per_core_second")
    assert {row["name"]: tuple(row[key] for key in keys) for row in found["rows"]} == {
        "ELBO@60, C=1 M=1": (1.0, 1.0, 1.0, 0.5),
        "ELBO@60, C=2 M=3": (0.25, 0.25, 0.25, 0.125),
        "training, 8 targets a step": (8 / 0.75, 4.0, 64.0, 4 / 0.75),
    }
    assert asked == [(4, 1, 60)] * 6 + [(4, 3, 60)] * 6
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    assert all(50 < row["peak_mib"] < physical for row in found["rows"])  # torch alone takes more than 50 MiB
    assert found["overrides"] == [refuses] and f"torch {torch.__version__}" in found["machine"]
    shown = capsys.readouterr().out
    assert found["machine"] in shown and "| training, 8 targets a step | 10.67 | 4.00 | 64.00 | 5.33 | " in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "small.yaml"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--set", "train_data.timesteps=5"), "train_data.timesteps: 5"),
        (("--set", "train_data.nonsense=1"), "nonsense"),
        (("--device", "cuda:9999"), "cuda:9999"),
        (("--device", "tpu"), "'tpu' is none of auto, cpu, cuda"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    tmp_path: Path, wrong: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(small_yaml(tmp_path))
    try:
        status = throughput.main(["--config", str(tmp_path / "small.yaml"), *wrong])
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert status == 2 and said in err and not out and "Traceback" not in err


# --- what makes it fast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    ("train_data.targets_per_memory=4",),
    ("train_data.targets_per_memory=1",),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal"),
    ("train_data.targets_per_memory=4", "train_spec.gradient_samples=1"),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal", "train_spec.gradient_samples=1"),
])  # fmt: skip
def test_a_step_encodes_every_distinct_image_once(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """One of a memory for its features only if it is picked."""
    config = small_config(tmp_path, *overrides)
    trainer = train.build_trainer(Session(config, StopRequest(), "cpu"))
    with counted(trainer.model) as rows, picks() as picked:
        trainer.step()
    data, k = config.train_data, config.model.importance_num
    memory = data.batch_size // data.targets_per_memory * data.timesteps + config.model.num_dummies
    decodes = k * data.batch_size
    if config.train_spec.objective == "marginal":
        decodes, picked = decodes * (data.timesteps + config.model.num_dummies), [memory]
    assert dict(rows) == {
        "address_encoder": memory + data.batch_size,
        "encoder": picked[0] + data.batch_size,
        "p_x.decoder.precompute_skips": picked[0],
        "p_x.decoder": decodes + (data.batch_size if config.train_spec.gradient_samples == 1 else 0),
    }


@pytest.mark.parametrize(("memory", "k"), [(1, 60), (3, 410)])
def test_the_test_encodes_every_image_once(tmp_path: Path, memory: int, k: int) -> None:
    config = small_config(tmp_path, f"test_spec.importance_num={k}")
    model = parsers.build_model(config, CPU).eval()
    episodes = parsers.grid_episodes(config, parsers.test_images(config, CPU), 1, memory)
    with counted(model) as rows:
        evaluator.evaluate_cell(model, episodes, ("test",), k, len(episodes), 50, lambda done: None)
    images = len(episodes) * memory + config.model.num_dummies
    assert dict(rows) == {
        "address_encoder": images + len(episodes),
        "encoder": images + len(episodes),
        "p_x.decoder.precompute_skips": images,
        "p_x.decoder": len(episodes) * k,
    }


@contextmanager
def picks() -> Iterator[list[int]]:
    """Within, a number for each time that images of memories are picked: how many distinct ones."""
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        rows_of = EncodedMemory.rows

        def counting(memory: EncodedMemory, a: Tensor) -> Tensor:
            rows = rows_of(memory, a)
            found.append(len(rows.unique()))
            return rows

        patch.setattr(EncodedMemory, "rows", counting)
        yield found


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """Within, the rows that go through each network of `model` are counted."""
    rows: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            rows[name] += len(tree_leaves(inputs)[0])
            return function(*inputs)

        return call

    decoder = model.p_x.decoder
    with pytest.MonkeyPatch.context() as patch:
        for name, network in (
            ("address_encoder", model.address_encoder), ("encoder", model.encoder), ("p_x.decoder", decoder)
        ):  # fmt: skip
            patch.setattr(network, "forward", counting(name, network.forward))
        patch.setattr(decoder, "precompute_skips", counting("p_x.decoder.precompute_skips", decoder.precompute_skips))
        yield rows


# --- time to a bound --------------------------------------------------------------------------------------------------


def test_bounds_are_measured_against_the_processor_time_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two configurations, tested every 3 of 7 steps of a second each; interrupted and resumed, nothing changes."""
    clock = iter(range(1000))  # a second between any two looks at it, so for each step
    monkeypatch.setattr(time_to_bound.time, "process_time", lambda: float(next(clock)))
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    paths[0].write_text(small_yaml(tmp_path))
    paths[1].write_text(small_yaml(tmp_path).replace("lr: 1e-2", "lr: 1e-3, ema_decay: 0.5"))
    sizes = f"--memory 3 --samples 7 --targets 12 --interval {3 / 3600} --limit {7 / 3600}".split()
    command = [*sizes, "--target", "1e6", "--config", *map(str, paths), "--output"]
    assert time_to_bound.main([*command, str(tmp_path / "whole")]) == 0
    assert "two: 1e+06 nats after 0.00 core-hours" in capsys.readouterr().out
    for name in ("one", "two"):
        rows = time_to_bound.read(tmp_path / "whole" / f"{name}.csv")
        assert [(row["core_seconds"], row["targets_seen"]) for row in rows] == [(3, 24), (6, 48), (7, 56)]
    assert (tmp_path / "whole" / "time_to_bound.png").read_bytes().startswith(b"\x89PNG")

    of_run = ["test_spec.targets=12", "test_spec.importance_num=7", f"test_spec.output_file={tmp_path}/run.csv"]
    of_run += ["test_spec.test_params.max_batch_cls=[1]", "test_spec.test_params.timesteps=[3]"]
    for name, saved in (("one", "vma.last.pt"), ("two", "vma.last.pt")):
        given = ["--config", str(tmp_path / f"{name}.yaml"), "--test", "--checkpoint"]
        sets = [part for one in of_run for part in ("--set", one)]
        assert run.main([*given, str(tmp_path / "whole" / name / saved), *sets]) == 0
        with (tmp_path / "run.csv").open() as file:
            assert float(next(csv.DictReader(file))["ELBO"]) == pytest.approx(
                time_to_bound.read(tmp_path / "whole" / f"{name}.csv")[-1]["nats"], abs=1e-3
            )

    steps = iter([*range(4), None])  # a signal after the fourth step, between two tests
    real = Trainer.step

    def interrupted(trainer: Trainer) -> Any:
        found = real(trainer)
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert time_to_bound.main([*command, str(tmp_path / "part")]) == 128 + signal.SIGINT
    assert time_to_bound.main([*command, str(tmp_path / "part")]) == 0
    for name in ("one.csv", "two.csv"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    capsys.readouterr()
    assert time_to_bound.main([*command, str(tmp_path / "part"), "--set", "test_spec.subset=held_out"]) == 2
    assert "C=1 M=3, 12 targets, test, ELBO@7, seed 0, now glyphs" in capsys.readouterr().err
    assert time_to_bound.main([*command, str(tmp_path / "part"), "--set", "train_data.held_out_classes=2"]) == 2
    assert "this run was begun with another configuration" in capsys.readouterr().err
    shutil.copy(tmp_path / "run.csv", tmp_path / "part")  # a table of another program is not drawn
    assert time_to_bound.main([*command, str(tmp_path / "part")]) == 0
    for damaged in (b"\xff\xfe", b"config,test,core_seconds\none,C=1,x", b"config,core_seconds\none,1"):
        (tmp_path / "part" / "one.csv").write_bytes(damaged)
        capsys.readouterr()
        assert time_to_bound.main([*command, str(tmp_path / "part")]) == 3
        assert "one.csv: no table of this benchmark, or damaged; move it away" in capsys.readouterr().err


def test_a_training_that_began_with_other_weights_is_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(small_yaml(tmp_path).replace("lr: 1e-2", "lr: 1e-2, init_from: earlier.pt"))
    assert time_to_bound.main(["--config", str(path), "--targets", "12", "--output", str(tmp_path / "out")]) == 2
    assert "an earlier training would not be timed" in capsys.readouterr().err
