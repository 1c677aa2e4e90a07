"""The benchmark's logic, as far as it does not depend on a clock: what is compared is comparable, and what is measured
is written down."""

import csv
import importlib.util
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, ROOT
from helpers.config import small_yaml
from helpers.program import drawn_once, process_restored
from torch import Tensor
from torch.utils._pytree import tree_leaves

import run
from benchmarks import parts, throughput, time_to_bound, work
from benchmarks.parts import BenchmarkError, Point, quantity
from benchmarks.work import Benchmark, Floor, Work
from models.vma.model import EncodedMemory
from runtime.errors import DataError, UserError
from trainer import Trainer

NAIVE_OUTPUT = "train_targets_per_s 12.25\neval_targets_per_s memory=1 0.278\neval_targets_per_s memory=19 2.5e-1\n"


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    with process_restored(), drawn_once():
        yield


def small(folder: Path, *overrides: str, naive: Path | None = None) -> Benchmark:
    path = folder / "small.yaml"
    path.write_text(small_yaml(folder))
    return Benchmark(path, overrides, CPU, rounds=1, seconds=1e-3, naive=naive)


# --- timers -----------------------------------------------------------------------------------------------------------


def test_tasks_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    numbers = iter(range(100))

    def task(name: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            order.append(name)
            return {name: next(numbers), f"{name} too": -1.0}

        return run

    found = parts.in_turn({name: task(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert found["a"] == [0, 5, 6] and found["b"] == [1, 4, 7] and found["c"] == [2, 3, 8]
    assert found["a too"] == [-1.0] * 3


def test_a_rate_counts_targets_a_second() -> None:
    taken: list[float] = []

    def call() -> None:
        began = time.perf_counter()
        time.sleep(0.02)
        taken.append(time.perf_counter() - began)

    found = work.rate(call, 8, 0.1)
    assert found == pytest.approx(8 * len(taken) / sum(taken), rel=0.5)


# --- the naive program ------------------------------------------------------------------------------------------------


def naive_rates(folder: Path, source: str) -> parts.Rates:
    path = folder / "naive.py"
    path.write_text(source)
    return parts.naive_rates(small(folder, naive=path))


@pytest.mark.parametrize(
    "output",
    ["", "train_targets_per_s fast\n", NAIVE_OUTPUT * 2, NAIVE_OUTPUT.replace("memory=19", "memory=18"),
     NAIVE_OUTPUT.replace("12.25", "0"), NAIVE_OUTPUT.replace("2.5e-1", "nan")],
)  # fmt: skip
def test_other_output_is_an_error_of_one_line(tmp_path: Path, output: str) -> None:
    with pytest.raises(DataError, match=r"--naive .*naive.py: it printed .*train_targets_per_s RATE") as caught:
        naive_rates(tmp_path, f"print({output!r})")
    assert "\n" not in str(caught.value) and caught.value.status == 3


def test_the_naive_program_is_asked_for_the_same_work(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    source = (
        f"import os, pathlib, sys\nprint('some words first')\nprint({NAIVE_OUTPUT!r})\n"
        f"pathlib.Path({str(asked)!r}).write_text(repr((sys.argv[1:], os.environ['OMP_NUM_THREADS'])))"
    )
    assert naive_rates(tmp_path, source) == {"naive train": 12.25, "naive test M=1": 0.278, "naive test M=19": 0.25}
    arguments = ["--device", "cpu", "--batch", "8", "--memory", "4", "--seconds", "0.001"]
    assert asked.read_text() == repr((arguments, "1"))


def test_a_naive_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--naive .*naive.py .*exit status 1: ValueError: no luck"):
        naive_rates(tmp_path, "raise ValueError('no luck')")


def test_a_naive_program_that_is_not_there_ends_with_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--naive", str(tmp_path / "none.py"), "--output", str(tmp_path / "out")]
    assert throughput.main([*arguments, "--config", str(ROOT / "configs" / "quickstart.yaml"), "--parts", "speed"]) == 3
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the floor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    ("train_data.targets_per_memory=4",),
    ("train_data.targets_per_memory=1",),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal"),
    ("train_data.targets_per_memory=4", "train_spec.gradient_samples=1"),
    ("train_data.targets_per_memory=1", "train_spec.objective=marginal", "train_spec.gradient_samples=1"),
])  # fmt: skip
def test_the_floor_of_training_is_what_a_step_needs(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Every distinct image is encoded once, one of a memory for its features only if it is picked."""
    config = small(tmp_path, *overrides).config
    step = work.training(config, CPU)
    with counted(step.model) as real, picks() as picked:
        step()
    data, k = config.train_data, config.model.importance_num
    memory = data.batch_size // data.targets_per_memory * data.timesteps + config.model.num_dummies
    decodes = k * data.batch_size
    if config.train_spec.objective == "marginal":
        decodes, picked = decodes * (data.timesteps + config.model.num_dummies), [memory]
    needed = {
        "address_encoder": memory + data.batch_size,
        "encoder": picked[0] + data.batch_size,
        "p_x.decoder.precompute_skips": picked[0],
        "p_x.decoder": decodes + (data.batch_size if config.train_spec.gradient_samples == 1 else 0),
    }
    assert dict(real) == needed
    floor_counts_as(work.training(config, CPU), needed)


@pytest.mark.parametrize(("memory", "k"), [(1, 60), (3, 410)])
def test_the_floor_of_the_test_is_what_a_batch_needs(tmp_path: Path, memory: int, k: int) -> None:
    config = small(tmp_path).config
    batch = work.scoring(config, CPU, memory, k)
    with counted(batch.model) as real:
        values = batch()
    assert all(len(value) == batch.targets for value in values.values())  # type: ignore[attr-defined]
    images = batch.targets * memory + config.model.num_dummies
    needed = {
        "address_encoder": images + batch.targets,
        "encoder": images + batch.targets,
        "p_x.decoder.precompute_skips": images,
        "p_x.decoder": batch.targets * k,
    }
    assert dict(real) == needed
    floor_counts_as(batch, needed)
    assert all(p.grad is None for p in batch.model.parameters())


def floor_counts_as(of: Work, needed: dict[str, int]) -> None:
    """The floor puts so many rows through the networks."""
    floor = Floor(of)
    assert "forward" not in vars(of.model.address_encoder)  # what recorded is taken away
    with counted(of.model) as found:
        floor()
    assert dict(found) == needed


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


CAUSAL = (
    "model.autoencoder={kind: residual, channels: [4, 4, 6], blocks: [1, 1], address_channels: [4, 4]}",
    "model.likelihood=causal", "model.latent_dim=0", "train_spec.objective=marginal",
)  # fmt: skip


@pytest.mark.parametrize("overrides", [(), CAUSAL], ids=["published", "causal"])
def test_the_floor_takes_the_gradients_of_a_step(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """With the causal model one map is made of the images alone; nothing of a network has its gradient from there."""
    step = work.training(small(tmp_path, *overrides).config, CPU)
    floor = Floor(step)
    found = floor()
    networks = ("address_encoder.", "encoder.", "p_x.decoder.")
    named = dict(step.model.named_parameters())
    real = {name for name, p in named.items() if p.grad is not None and name.startswith(networks)}
    assert {name for name, p in named.items() if found[id(p)] is not None} == real
    again = floor()  # gradients do not add up from call to call
    for key, one in found.items():
        assert one is None or torch.allclose(one, again[key])  # type: ignore[arg-type]
    of_inputs = [one for key, one in found.items() if key not in map(id, named.values())]
    assert len(of_inputs) > 2 and all(one is not None for one in of_inputs)  # maps, codes and skip parts


# --- what is measured -------------------------------------------------------------------------------------------------


def test_steps_that_differ_in_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = "train_data.mixture=[{timesteps: 2, max_img_per_class: 2}]"
    (tmp_path / "small.yaml").write_text(small_yaml(tmp_path))
    given = ["--config", str(tmp_path / "small.yaml"), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert throughput.main([*given, "--set", "train_data.batch_size=8", "--set", mixture]) == 2
    assert "train_data.mixture: its steps differ in work" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [1, 8, 19, 32, 128, 512])
def test_memories_of_every_size_can_be_composed(tmp_path: Path, memory: int) -> None:
    config = small(tmp_path).config
    batch = work.scoring(config, CPU, memory, 1)
    with counted(batch.model) as rows:
        batch()
    assert rows["address_encoder"] == batch.targets * (memory + 1) + config.model.num_dummies


def test_the_plan_of_growth_names_valid_configurations() -> None:
    overrides = ("train_data.batch_size=32",)
    benchmark = Benchmark(ROOT / "configs" / "vma.yaml", overrides, CPU, 1, 1.0)
    plans = parts.plan(benchmark)
    for name, series in plans.items():
        for value, point in series.points.items():
            config = benchmark.variant(*point.overrides)
            memory = point.memory if point.k else config.train_data.timesteps
            samples = point.k or config.model.importance_num
            assert {"M": memory, "K": samples}[series.axis] == value, name
    assert list(plans["train_M"].points) == list(plans["test_M"].points) == [8, 32, 128, 512]
    assert list(plans["train_K"].points) == [4, 16, 64] and list(plans["test_K"].points) == [50, 1000, 4000]


def test_a_batch_that_does_not_fit_the_plan_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="batch_size"):
        Benchmark(ROOT / "configs" / "vma.yaml", ("train_data.batch_size=30",), CPU, 1, 1.0).variant()
    benchmark = Benchmark(ROOT / "configs" / "quickstart.yaml", ("train_data.targets_per_memory=4",), CPU, 1, 1.0)
    with pytest.raises(UserError, match="targets_per_memory: 4 is not a multiple of 8"):
        parts.plan(benchmark)


def test_no_files_are_announced_where_none_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work.training(small(tmp_path).config, CPU)()
    assert not capsys.readouterr().out and not [path for path in tmp_path.rglob("*") if path.suffix != ".yaml"]


@pytest.mark.parametrize("point", [Point(("train_data.targets_per_memory=1",)), Point((), memory=3, k=50)])
def test_a_point_has_a_rate_and_a_peak(tmp_path: Path, point: Point) -> None:
    found = parts.at(point, small(tmp_path), threads=1)
    assert found["targets_per_s"] > 0 and found["peak"] >= found["before"] > 0


def test_where_ram_cannot_be_measured_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS; the parts that need none are measured."""
    monkeypatch.setattr(parts, "_SELF", tmp_path / "absent")
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(BenchmarkError, match="RAM of a process is read from /proc"):
        parts.at(Point((), memory=3, k=5), small(tmp_path), threads=1)
    assert throughput.described(small(tmp_path))["hardware"]["cores"] == os.cpu_count()


def test_every_point_has_a_process_of_its_own(tmp_path: Path) -> None:
    processes = [parts.in_fresh_process(os.getppid), *(parts.in_fresh_process(os.getpid) for _ in range(2))]
    assert processes[0] == os.getpid() and len(set(processes)) == 3
    with pytest.raises(BenchmarkError, match="the process that measures 9 was ended"):
        parts.in_fresh_process(os._exit, 9)


def test_growth_has_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {5: Point((), 3, 5), 6: Point((), 3, 6)}
    monkeypatch.setattr(parts, "plan", lambda benchmark: {"one": parts.Series("K", "fixed", points)})
    monkeypatch.setattr(parts, "in_fresh_process", lambda function, *args: {"targets_per_s": args[0].k, "peak": 7.0})
    found = parts.measure_growth(small(tmp_path))
    assert found["one"]["points"] == [{"value": k, "targets_per_s": k, "peak": 7.0} for k in (5, 6)]


# --- the whole program ------------------------------------------------------------------------------------------------

_FAKE_RUN = """
import json, sys
sets = dict(one.split("=", 1) for one in sys.argv if "=" in one)
steps, every = int(sets["train_spec.steps"]), int(sets["train_spec.log_every"])
assert "--train" in sys.argv and sys.argv[sys.argv.index("--device") + 1] == "cpu"
with open(sys.argv[sys.argv.index("--output") + 1] + "/train.jsonl", "w") as log:
    print(json.dumps({"subset": "validation", "step": 0}), file=log)
    for step in range(every, steps + 1, every):
        print(json.dumps({"subset": "train", "step": step, "targets_per_s": 100 * step}), file=log)
"""


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs in the place of ours, which take no time."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "commands.py").touch()
    (folder / "run.py").write_text(_FAKE_RUN)
    monkeypatch.setattr(parts, "_ROOT", folder)
    monkeypatch.setattr(parts, "_LAUNCHER", ("-X", "utf8", "-W"))  # and then the number of processes
    return folder


def test_the_time_to_the_first_step_ends_with_the_first_row(tmp_path: Path, fake_program: Path) -> None:
    found = parts.measure_start(small(tmp_path))
    assert found["to_first_step"]["median"] > 0 and found["imports"]["unit"] == "s"
    (fake_program / "run.py").write_text("print('first'); print('no data')")
    with pytest.raises(BenchmarkError, match="a training has 0 rows, not 1"):
        parts.measure_start(small(tmp_path))
    (fake_program / "commands.py").write_text("raise ImportError('no torch')")
    with pytest.raises(BenchmarkError, match=r"import commands \.\.\.: exit status 1: ImportError: no torch"):
        parts.measure_start(small(tmp_path))


def test_rates_of_processes_come_from_the_log_without_its_first_row(tmp_path: Path, fake_program: Path) -> None:
    found = parts.measure_processes(small(tmp_path))
    assert found["rates"]["2"] == {"unit": "targets/s", "median": 1200, "rounds": [800, 1200, 1600]}
    assert found["times_one_process"] == {"1": 1.0, "2": 1.0}
    (fake_program / "run.py").write_text("raise SystemExit('two write to this file')")
    with pytest.raises(BenchmarkError, match="exit status 1: two write to this file"):
        parts.measure_processes(small(tmp_path))


def test_the_launcher_is_torchrun() -> None:
    assert importlib.util.find_spec("torch.distributed.run") is not None
    assert parts._LAUNCHER == ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


# --- what is written --------------------------------------------------------------------------------------------------


def rate(value: float) -> dict[str, Any]:
    return quantity("targets/s", (value,))


SPEED = {
    key: {"title": title, "ours": rate(ours), "networks_alone": rate(2 * ours), "share_of_floor": 0.5,
          "naive": rate(ours / 8), "times_naive": 8.0}
    for key, title, ours in (
        ("train_shared", "training, 16 targets share a memory, fp32", 64.0),
        ("train_unshared", "training, no sharing, fp32", 32.0),
        ("test_M1", "ELBO@1000, M = 1", 2.0),
        ("test_M19", "ELBO@1000, M = 19", 1.0),
    )
}  # fmt: skip
POINTS = [{"value": v, "targets_per_s": 10.0 / v, "peak": 100.0 + v, "before": 90.0} for v in (4, 16)]
GROWTH = {"test_K": {"axis": "K", "fixed": "test, M = 19", "units": {}, "points": POINTS}}
START = {"to_first_step": quantity("s", (4.5,)), "imports": quantity("s", (2.0,))}
PROCESSES = {"backend": "gloo", "rates": {"1": rate(8), "2": rate(12)}, "times_one_process": {"1": 1.0, "2": 1.5}}


def run_canned(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(parts, "measure_speed", lambda *arguments: SPEED)
    monkeypatch.setattr(parts, "measure_growth", lambda *arguments: GROWTH)
    monkeypatch.setattr(parts, "measure_start", lambda *arguments: START)
    monkeypatch.setattr(throughput, "_CPU_BATCH", 16)
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--device", "cpu"]
    return throughput.main([*config, "--output", str(folder), *more])


def test_everything_is_written_and_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "measure_processes", lambda *arguments: PROCESSES)
    assert run_canned(tmp_path, monkeypatch, "--rounds", "2", "--seconds", "3") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json"]
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["complete"] is True
    measured = {"speed": SPEED, "growth": GROWTH, "start": START, "processes": PROCESSES}
    assert {name: results[name] for name in measured} == measured
    settings = results["settings"]
    assert settings["rounds"] == 2 and settings["seconds"] == {"unit": "s", "value": 3.0}
    assert settings["batch"] == {"unit": "targets", "value": 16} and settings["images"] == "glyphs"
    assert results["hardware"]["threads"] == 1 and results["software"]["torch"] == torch.__version__
    table = capsys.readouterr().out
    assert throughput.table(results) in table
    for part in (" 64 |", " 8.00 |", " 0.500 |", "K = 16", "4.50 |", "2.50 |", "1.50 |"):
        assert part in table, part


def test_a_part_without_numbers_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> dict[str, Any]:
        raise BenchmarkError("2 processes: exit status 1, no such thing")

    monkeypatch.setattr(parts, "measure_processes", fail)
    assert run_canned(tmp_path, monkeypatch) == 1
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["complete"] is False and results["speed"] == SPEED
    assert results["processes"] == {"error": "2 processes: exit status 1, no such thing"}
    assert "processes: not measured: 2 processes: exit status 1" in capsys.readouterr().out


def test_single_parts_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_canned(tmp_path, monkeypatch, "--parts", "start") == 0
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["start"] == START and not {"speed", "growth", "processes"} & results.keys()


@pytest.mark.parametrize("wrong", [("--parts", "everything"), ("--rounds", "0"), ("--seconds", "0")])
def test_wrong_arguments_end_with_status_2(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        throughput.main(wrong)
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_files_are_named_after_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = throughput.described

    def on_a_gpu(*arguments: Any) -> dict[str, Any]:
        found = real(*arguments)
        return found | {"hardware": found["hardware"] | {"gpu": "NVIDIA H200 (80GB)"}}

    monkeypatch.setattr(throughput, "described", on_a_gpu)
    assert run_canned(tmp_path, monkeypatch, "--parts", "start") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nvidia-h200-80gb.json"]


def test_the_results_that_are_here_can_be_shown() -> None:
    results = json.loads((ROOT / "results" / "throughput" / "cpu.json").read_text())
    for shown in ("| training, 16 targets share a memory, fp32 | ", " 6.30 | ", " side = 52 | ", " 1.72 |"):
        assert shown in throughput.table(results), shown


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


def test_a_training_that_began_with_other_weights_is_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(small_yaml(tmp_path).replace("lr: 1e-2", "lr: 1e-2, init_from: earlier.pt"))
    assert time_to_bound.main(["--config", str(path), "--targets", "12", "--output", str(tmp_path / "out")]) == 2
    assert "an earlier training would not be timed" in capsys.readouterr().err
