"""The benchmark's logic, as far as it does not depend on a clock: what is compared is comparable, and what is measured
is written down."""

import dataclasses
import importlib.util
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, ROOT
from helpers.config import small_yaml
from helpers.program import glyphs_drawn_once, process_restored
from torch import Tensor, nn

import parsers
from benchmarks import figure, floor, growth, hardware, naive, program, report, speed, subjects, throughput
from benchmarks.measure import BenchmarkError, Series, Timer, in_turn
from benchmarks.subjects import Benchmark
from data import omniglot
from models.vma.model import VMA
from runtime.errors import DataError, UserError

NAIVE_OUTPUT = "train_targets_per_s 12.25\neval_targets_per_s memory=1 0.278\neval_targets_per_s memory=19 2.5e-1\n"


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with process_restored(), glyphs_drawn_once:
        yield


def small(folder: Path, *overrides: str) -> Benchmark:
    path = folder / "small.yaml"
    path.write_text(small_yaml(folder))
    return subjects.benchmark(path, overrides, CPU, rounds=1, seconds=1e-3)


# --- timers -----------------------------------------------------------------------------------------------------------


class Clock:
    """Time passes only in calls, `seconds` in each."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.calls = 100.0, seconds, 0

    def __call__(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self.seconds
        self.calls += 1


@pytest.mark.parametrize(("seconds", "calls"), [(7.0, 1), (5.0, 1), (2.0, 1 + 3), (0.5, 1 + 10)])
def test_a_timer_calls_for_as_long_as_it_should(seconds: float, calls: int) -> None:
    clock = Clock(seconds)
    assert Timer(5.0, clock=clock).seconds_per_call(clock.call) == pytest.approx(seconds)
    assert clock.calls == calls


def test_a_timer_waits_for_the_device_before_and_after_and_not_in_between() -> None:
    events: list[str] = []
    clock = Clock(1.0)

    def call() -> None:
        clock.call()
        events.append("call")

    Timer(2.0, wait=lambda: events.append("wait"), clock=clock).seconds_per_call(call)
    assert events == ["wait", "call", "wait", "wait", "call", "call", "wait"]


def test_tasks_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    numbers = iter(range(100))

    def task(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            order.append(name)
            return {name: next(numbers), f"{name} too": -1.0}

        return run

    found = in_turn({name: task(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert found["a"] == [0, 5, 6] and found["b"] == [1, 4, 7] and found["c"] == [2, 3, 8]
    assert found["a too"] == [-1.0] * 3


def test_a_series_tells_its_median() -> None:
    assert Series("s", (5.0, 1.0, 2.0)).as_json() == {"unit": "s", "median": 2.0, "rounds": [5.0, 1.0, 2.0]}
    assert Series("s", (1.0, 2.0)).median == 1.5


# --- the naive program ------------------------------------------------------------------------------------------------


def program_at(folder: Path, source: str) -> Path:
    path = folder / "naive.py"
    path.write_text(source)
    return path


def test_rates_are_read_from_what_the_naive_program_prints(tmp_path: Path) -> None:
    rates = naive.parse(f"some words first\n{NAIVE_OUTPUT}", tmp_path)
    assert rates == naive.NaiveRates(12.25, {1: 0.278, 19: 0.25})


@pytest.mark.parametrize(
    "output",
    ["", "train_targets_per_s fast\n", NAIVE_OUTPUT * 2, NAIVE_OUTPUT.replace("memory=19", "memory=18"),
     NAIVE_OUTPUT.replace("12.25", "0"), NAIVE_OUTPUT.replace("2.5e-1", "nan")],
)  # fmt: skip
def test_other_output_is_an_error_of_one_line(tmp_path: Path, output: str) -> None:
    with pytest.raises(DataError, match=r"--naive .*it printed .*train_targets_per_s RATE") as caught:
        naive.parse(output, tmp_path / "naive.py")
    assert "\n" not in str(caught.value) and caught.value.status == 3


def test_the_naive_program_is_asked_for_the_same_work(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    source = (
        f"import os, pathlib, sys\nprint({NAIVE_OUTPUT!r})\n"
        f"pathlib.Path({str(asked)!r}).write_text(repr((sys.argv[1:], os.environ['OMP_NUM_THREADS'])))"
    )
    rates = naive.Naive(program_at(tmp_path, source), CPU, batch=32, memory=8, seconds=1.5).measure()
    assert rates.train == 12.25
    arguments = ["--device", "cpu", "--batch", "32", "--memory", "8", "--seconds", "1.5"]
    assert asked.read_text() == repr((arguments, "1"))


def test_a_naive_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ended with exit status 1: ValueError: no luck"):
        naive.Naive(program_at(tmp_path, "raise ValueError('no luck')"), CPU, 32, 8, 1.0).measure()


def test_a_naive_program_that_is_not_there_ends_with_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--naive", str(tmp_path / "none.py"), "--output", str(tmp_path / "out")]
    assert throughput.main([*arguments, "--config", str(ROOT / "configs" / "quickstart.yaml"), "--parts", "speed"]) == 3
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_child_sees_the_gpu_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert naive.only(CPU) == {}
    assert naive.only(torch.device("cuda", 1)) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert naive.only(torch.device("cuda", 1)) == {"CUDA_VISIBLE_DEVICES": "6"}


# --- the floor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    ("train_data.targets_per_memory=4",),
    ("train_data.targets_per_memory=1",),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal"),
    ("train_data.targets_per_memory=4", "train_spec.gradient_samples=1"),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal", "train_spec.gradient_samples=1"),
])  # fmt: skip
def test_the_floor_of_training_is_what_a_step_needs(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    benchmark = small(tmp_path, *overrides)
    trainer = subjects.training(benchmark.config, CPU)
    model = trainer.model
    with counted(model) as real, floor.picks() as picked:  # type: ignore[arg-type]
        trainer.step()
    rows = floor.rows_of_training(benchmark.config, parsers.build_model(benchmark.config, CPU), trainer.train)
    if benchmark.config.train_spec.objective == "vimco":
        # this very step's picks, which differ a little from one step to the next
        assert abs(rows.picked - picked[0]) <= 4
        rows = dataclasses.replace(rows, picked=picked[0])
    assert dict(real) == rows.counts()
    assert counted_of(benchmark, rows, training=True) == rows.counts()


@pytest.mark.parametrize(("memory", "samples"), [(1, 60), (3, 410)])
def test_the_floor_of_the_test_is_what_a_batch_needs(tmp_path: Path, memory: int, samples: int) -> None:
    benchmark = small(tmp_path)
    batch = subjects.scoring(benchmark.config, CPU, memory, samples)
    with counted(batch.model) as real:
        values = batch()
    assert all(len(value) == batch.targets for value in values.values())
    rows = floor.rows_of_test(benchmark.config, batch, memory)
    assert dict(real) == rows.counts()
    assert counted_of(benchmark, rows, training=False) == rows.counts()


@contextmanager
def counted(model: VMA) -> Iterator[Counter[str]]:
    """Within, the rows that go through each network of `model` are counted."""
    rows: Counter[str] = Counter()
    decoder: Any = model.p_x.network
    precompute_skips = decoder.precompute_skips

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows[name] += len(inputs[0])

        return hook

    def counted_parts(maps: Any) -> Any:
        rows["skip parts"] += len(maps[0])
        return precompute_skips(maps)

    networks = {"address encoder": model.address_encoder, "feature encoder": model.encoder, "decoder": decoder}
    hooks = [network.register_forward_pre_hook(count(name)) for name, network in networks.items()]
    decoder.precompute_skips = counted_parts
    try:
        yield rows
    finally:
        del decoder.precompute_skips
        for hook in hooks:
            hook.remove()


def counted_of(benchmark: Benchmark, rows: floor.Rows, *, training: bool) -> dict[str, int]:
    """The rows that the floor itself puts through the networks."""
    model = parsers.build_model(benchmark.config, CPU)
    alone = floor.Floor(model, rows, training=training)
    with counted(model) as found:
        alone()
    return dict(found)


def test_the_floor_takes_the_gradients_of_a_step(tmp_path: Path) -> None:
    config = small(tmp_path).config
    trainer, model = subjects.training(config, CPU), parsers.build_model(config, CPU)
    trainer.step()
    alone = floor.Floor(model, floor.rows_of_training(config, model, trainer.train), training=True)
    alone()
    networks = ("address_encoder.", "encoder.", "p_x.network.")
    real = {name for name, p in trainer.model.named_parameters() if p.grad is not None and name.startswith(networks)}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == real
    assert alone.code.grad is not None and all(part.grad is not None for part in alone.skips)
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    alone()  # gradients do not add up from call to call
    assert all(torch.allclose(before[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)


def test_the_floor_of_the_test_takes_no_gradient(tmp_path: Path) -> None:
    benchmark = small(tmp_path)
    model = parsers.build_model(benchmark.config, CPU)
    floor.Floor(model, floor.Rows(memory=5, picked=5, targets=3, decodes=9, at_once=6), training=False)()
    assert all(p.grad is None for p in model.parameters())


# --- what is measured -------------------------------------------------------------------------------------------------


def test_images_that_are_not_there_are_replaced_by_glyphs(tmp_path: Path) -> None:
    published = ROOT / "configs" / "vma.yaml"
    root = [f"{section}.root={tmp_path}" for section in subjects.SECTIONS]
    found = subjects.benchmark(published, root, CPU, 1, 1.0)
    assert {getattr(found.config, section).kind for section in subjects.SECTIONS} == {"glyphs"}
    assert found.config.train_data.timesteps == 32 and found.config.train_data.held_out_classes == 0
    assert found.variant("train_data.targets_per_memory=1").train_data.kind == "glyphs"
    (tmp_path / "images_background.npz").touch()
    assert subjects.benchmark(published, root, CPU, 1, 1.0).config.train_data.kind == "glyphs"
    (tmp_path / omniglot.FOLDER).mkdir()
    (tmp_path / omniglot.FOLDER / "images_evaluation.zip").touch()
    assert subjects.benchmark(published, root, CPU, 1, 1.0).config.train_data.kind == "omniglot"


def test_steps_that_differ_in_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_data\.mixture"):
        small(tmp_path, "train_data.mixture=[{timesteps: 2, max_img_per_class: 2}]")


@pytest.mark.parametrize("memory", [1, 8, 19, 20, 32, 128, 512])
@pytest.mark.parametrize("classes", [60, 659])
def test_memories_of_every_size_can_be_composed(memory: int, classes: int) -> None:
    spec = subjects.memory_of_test(memory, classes)
    assert spec.timesteps == memory
    if memory % 4 == 0 or memory < 20:
        spec.check(classes, 20)


@pytest.mark.parametrize("quick", [True, False])
def test_the_plan_of_growth_names_valid_configurations(quick: bool) -> None:
    overrides = ["train_data.batch_size=32"]
    benchmark = subjects.benchmark(ROOT / "configs" / "vma.yaml", overrides, CPU, 1, 1.0, quick)
    plans = growth.plan(benchmark)
    for name, series in plans.items():
        for value, point in series.points.items():
            config = benchmark.variant(*point.overrides)
            memory = config.train_data.timesteps if point.training else point.memory
            samples = config.model.importance_num if point.training else point.samples
            assert {"M": memory, "K": samples, "side": config.test_data.resize}[series.axis] == value, name
    assert plans["train_K"].points[4] == plans["train_side"].points[26]  # measured once
    if not quick:
        assert list(plans["train_M"].points) == list(plans["test_M"].points) == [8, 32, 128, 512]
        assert list(plans["train_K"].points) == [4, 16, 64] and list(plans["test_K"].points) == [50, 1000, 4000]


def test_a_batch_that_does_not_fit_the_plan_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="batch_size"):
        subjects.benchmark(ROOT / "configs" / "vma.yaml", ["train_data.batch_size=30"], CPU, 1, 1.0)
    benchmark = subjects.benchmark(
        ROOT / "configs" / "quickstart.yaml", ["train_data.targets_per_memory=4"], CPU, 1, 1.0
    )
    with pytest.raises(UserError, match="targets_per_memory: 4 is not a multiple of 8"):
        growth.plan(benchmark)


def test_the_child_measures_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [growth.Point(True, ("train_data.targets_per_memory=1",)), growth.Point(False, (), memory=3, samples=50)]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(growth._order(points, small(tmp_path)))))
    growth.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["targets_per_s"] > 0 and line["peak"] >= line["before"] > 0


def fake_python(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`sys.executable` is a shell script from now on."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_every_point_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "plan", lambda benchmark: {
        "one": growth.Series("K", "fixed", {5: growth.Point(False, (), 3, 5), 6: growth.Point(False, (), 3, 6)}),
        "two": growth.Series("M", "fixed", {3: growth.Point(False, (), 3, 5)}),
    })  # fmt: skip
    answer = '{"targets_per_s": 2.5, "peak": 7, "before": 6}'
    fake_python(tmp_path, monkeypatch, f"cat >> {tmp_path}/orders; echo >> {tmp_path}/orders; echo '{answer}'")
    found = growth.measure(small(tmp_path), lambda line: None)
    orders = [json.loads(line) for line in (tmp_path / "orders").read_text().splitlines()]
    assert [[point["samples"] for point in order["points"]] for order in orders] == [[5], [6]]
    assert [point["value"] for point in found["one"]["points"]] == [5, 6]
    assert found["two"]["points"] == [{"value": 3, "targets_per_s": 2.5, "peak": 7, "before": 6}]
    fake_python(tmp_path, monkeypatch, "exit 9")
    with pytest.raises(BenchmarkError, match="ended with 9"):
        growth.measure(small(tmp_path), lambda line: None)


# --- the whole program ------------------------------------------------------------------------------------------------

_FAKE_RUN = """
import json, sys
sets = dict(one.split("=", 1) for one in sys.argv if "=" in one)
steps, every = int(sets["train_spec.steps"]), int(sets["train_spec.log_every"])
assert "--train" in sys.argv and sys.argv[sys.argv.index("--device") + 1] == "cpu"
with open(json.loads(sets["train_spec.log_file"]), "w") as log:
    print(json.dumps({"subset": "validation", "step": 0}), file=log)
    for step in range(every, steps + 1, every):
        print(json.dumps({"subset": "train", "step": step, "targets_per_s": 100 * step}), file=log)
    log.write('{"subset": "tr')
"""


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs in the place of ours, which take no time."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "commands.py").touch()
    (folder / "run.py").write_text(_FAKE_RUN)
    monkeypatch.setattr(program, "_ROOT", folder)
    monkeypatch.setattr(program, "_launcher", lambda count: [sys.executable])
    return folder


def test_the_time_to_the_first_step_ends_with_the_first_row(tmp_path: Path, fake_program: Path) -> None:
    said: list[str] = []
    found = program.first_step(small(tmp_path), said.append)
    assert found["to_first_step"]["median"] > 0 and found["imports"]["unit"] == "s" and len(said) == 1
    (fake_program / "run.py").write_text("print('first'); print('no data')")
    with pytest.raises(BenchmarkError, match="before its first step: no data"):
        program.first_step(small(tmp_path), said.append)
    (fake_program / "commands.py").write_text("raise ImportError('no torch')")
    with pytest.raises(BenchmarkError, match="import commands: ImportError: no torch"):
        program.first_step(small(tmp_path), said.append)


def test_rates_of_processes_come_from_the_log_without_its_first_row(tmp_path: Path, fake_program: Path) -> None:
    found = program.processes_table(small(tmp_path), lambda line: None)
    assert found["rates"]["2"] == {"unit": "targets/s", "median": 1200, "rounds": [800, 1200, 1600]}
    assert found["times_one_process"] == {"1": 1.0, "2": 1.0}
    (fake_program / "run.py").write_text("raise SystemExit('two write to this file')")
    with pytest.raises(BenchmarkError, match="1 processes: exit status 1, two write to this file"):
        program.processes_table(small(tmp_path), lambda line: None)


def test_the_launcher_is_torchrun() -> None:
    assert importlib.util.find_spec("torch.distributed.run") is not None
    assert program._launcher(2)[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


# --- what is written --------------------------------------------------------------------------------------------------


def rate(value: float) -> dict[str, Any]:
    return Series("targets/s", (value,)).as_json()


SPEED = {
    key: {"title": title, "ours": rate(ours), "networks_alone": rate(2 * ours), "share_of_floor": 0.5,
          "naive": rate(ours / 8), "times_naive": 8.0, "rows_of_floor": {"decoder": 4}}
    for key, title, ours in (
        ("train_shared", "training, 16 targets share a memory, fp32", 64.0),
        ("train_unshared", "training, no sharing, fp32", 32.0),
        ("test_M1", "ELBO@1000, M = 1", 2.0),
        ("test_M19", "ELBO@1000, M = 19", 1.0),
    )
}  # fmt: skip
POINTS = [{"value": v, "targets_per_s": 10.0 / v, "peak": 100.0 + v, "before": 90.0} for v in (4, 16)]
GROWTH = {"test_K": {"axis": "K", "fixed": "test, M = 19", "units": {}, "points": POINTS}}
START = {"note": "to the end", "after_imports": {"unit": "s", "median": 2.5},
         "to_first_step": Series("s", (4.5,)).as_json(), "imports": Series("s", (2.0,)).as_json()}  # fmt: skip
PROCESSES = {"backend": "gloo", "rates": {"1": rate(8), "2": rate(12)}, "times_one_process": {"1": 1.0, "2": 1.5}}


def run_canned(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(speed, "measure", lambda *arguments: SPEED)
    monkeypatch.setattr(growth, "measure", lambda *arguments: GROWTH)
    monkeypatch.setattr(program, "first_step", lambda *arguments: START)
    monkeypatch.setattr(throughput, "_CPU_BATCH", 16)
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--device", "cpu"]
    return throughput.main([*config, "--output", str(folder), *more])


def test_everything_is_written_and_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "processes_table", lambda *arguments: PROCESSES)
    assert run_canned(tmp_path, monkeypatch, "--rounds", "2", "--seconds", "3") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.png"]
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert results["complete"] is True
    parts = {"speed": SPEED, "growth": GROWTH, "start": START, "processes": PROCESSES}
    assert {name: results[name] for name in parts} == parts
    settings = results["settings"]
    assert settings["rounds"] == 2 and settings["seconds"] == {"unit": "s", "value": 3.0}
    assert settings["batch"] == {"unit": "targets", "value": 16} and settings["images"] == "glyphs"
    assert results["hardware"]["threads"] == 1 and results["software"]["torch"] == torch.__version__
    table = capsys.readouterr().out
    assert report.table(results) in table
    for part in (" 64 |", " 8.00 |", " 0.500 |", "K = 16", "4.50 |", "1.50 |", "published test, 14 cells, ELBO@1000"):
        assert part in table, part


def test_a_part_without_numbers_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> dict[str, Any]:
        raise BenchmarkError("2 processes: exit status 1, no such thing")

    monkeypatch.setattr(program, "processes_table", fail)
    monkeypatch.setattr(figure, "draw", lambda results: b"")
    assert run_canned(tmp_path, monkeypatch) == 1
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["complete"] is False and results["speed"] == SPEED
    assert results["processes"] == {"error": "2 processes: exit status 1, no such thing"}
    assert "processes: not measured: 2 processes: exit status 1" in capsys.readouterr().out


def test_single_parts_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "draw", lambda results: b"")
    assert run_canned(tmp_path, monkeypatch, "--parts", "start") == 0
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["start"] == START and not {"speed", "growth", "processes", "whole_runs"} & results.keys()


@pytest.mark.parametrize("wrong", [("--parts", "speed,everything"), ("--rounds", "0"), ("--seconds", "0")])
def test_wrong_arguments_end_with_status_2(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        throughput.main(wrong)
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_whole_runs_are_extrapolated_from_the_rates() -> None:
    found = {name: part["value"] for name, part in speed.whole_runs(SPEED, 25_600_000).items()}
    assert found["training, 16 targets share a memory, fp32"] == pytest.approx(25_600_000 / 64 / 3600)
    # 1/2 s a target at M = 1 and 1 s at M = 19; the seven sizes add up to 44
    seconds = 2 * 13_180 * (7 * 0.5 + 0.5 * (44 - 7) / 18)
    assert found["published test, 14 cells, ELBO@1000"] == pytest.approx(seconds / 3600)


def test_files_are_named_after_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.name_of(CPU) == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (80GB)")
    assert hardware.name_of(torch.device("cuda")) == "nvidia-h200-80gb"
