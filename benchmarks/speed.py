"""Targets per second of training and of ELBO@1000: ours, the naive program's, and those of the networks alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import parsers
from benchmarks import subjects
from benchmarks.floor import Floor, Rows, captured, rows_of_test, rows_of_training
from benchmarks.measure import Rates, Series, in_turn, timer
from benchmarks.naive import TEST_MEMORIES, Naive
from benchmarks.subjects import Benchmark

TEST_SAMPLES = 1000  # K of the published test
PUBLISHED_TARGETS = 13_180  # evaluation images, the targets of every cell
PUBLISHED_CELLS = [(c, m) for c in (1, 2) for m in (1, 2, 3, 4, 5, 10, 19)]
_UNIT = "targets/s"


@dataclass(frozen=True)
class Subject:
    """What is timed beside its floor; `naive` names the rate of the naive program that it is compared with."""

    key: str
    title: str
    targets: int  # a call
    call: Callable[[], object]
    floor: Callable[[], object]
    rows: Rows
    naive: str


def measure(benchmark: Benchmark, naive: Naive | None, say: Callable[[str], object]) -> dict[str, Any]:
    """Everything in turn, round after round.  Raises DataError where the naive program does not do as it should."""
    clock = timer(benchmark.device, benchmark.seconds)
    found = [*_trainings(benchmark), *_tests(benchmark)]
    tasks: dict[str, Callable[[], Rates]] = {}
    if naive is not None:
        tasks["naive"] = lambda: _naive_rates(naive)  # first, so that its mistakes show at once
    for subject in found:
        tasks[subject.key] = lambda s=subject: {s.key: s.targets / clock.seconds_per_call(s.call)}  # type: ignore[misc]
        tasks[f"{subject.key} floor"] = lambda s=subject: {  # type: ignore[misc]
            f"{s.key} floor": s.targets / clock.seconds_per_call(s.floor)
        }
    for subject in found:
        say(f"warming up: {subject.title}")
        for _ in range(1 if benchmark.device.type == "cpu" else 10):
            subject.call()
            subject.floor()
    series = {name: Series(_UNIT, tuple(values)) for name, values in in_turn(tasks, benchmark.rounds, say).items()}
    return {subject.key: _compared(subject, series) for subject in found}


def _naive_rates(naive: Naive) -> Rates:
    rates = naive.measure()
    return {"naive train": rates.train, **{f"naive test M={m}": rate for m, rate in rates.test.items()}}


def _compared(subject: Subject, series: Mapping[str, Series]) -> dict[str, Any]:
    ours, lowest, naive = series[subject.key], series[f"{subject.key} floor"], series.get(subject.naive)
    return {
        "title": subject.title,
        "ours": ours.as_json(),
        "networks_alone": lowest.as_json(),
        "share_of_floor": ours.median / lowest.median,
        "naive": naive.as_json() if naive else None,
        "times_naive": ours.median / naive.median if naive else None,
        "rows_of_floor": subject.rows.counts(),
    }


def _trainings(benchmark: Benchmark) -> list[Subject]:
    """The configured sharing of memories and none; on a GPU the shared one in the other precision too."""
    device, data = benchmark.device, benchmark.config.train_data
    precision = benchmark.config.train_spec.precision
    variants = [(t, precision) for t in dict.fromkeys((data.targets_per_memory, 1))]
    if device.type == "cuda":
        variants.append((data.targets_per_memory, "bf16" if precision == "fp32" else "fp32"))
    found = []
    for t, arithmetic in variants:
        config = benchmark.variant(f"train_data.targets_per_memory={t}", f"train_spec.precision={arithmetic}")
        trainer, model = subjects.training(config, device), parsers.build_model(config, device)
        rows = rows_of_training(config, model, trainer.train)
        alone = Floor(model, rows, training=True, precision=arithmetic)
        sharing = f"{t} targets share a memory" if t > 1 else "no sharing"
        found.append(
            Subject(
                key=("train_shared" if t > 1 else "train_unshared") + (f"_{arithmetic}" * (arithmetic != precision)),
                title=f"training, {sharing}, {arithmetic}",
                targets=config.train_data.batch_size,
                call=trainer.step,
                floor=captured(alone, device),
                rows=rows,
                naive="naive train",
            )
        )
    return found


def _tests(benchmark: Benchmark) -> list[Subject]:
    config, device = benchmark.config, benchmark.device
    found = []
    for m in TEST_MEMORIES:
        batch = subjects.scoring(config, device, m, TEST_SAMPLES)
        rows = rows_of_test(config, batch, m)
        alone = Floor(parsers.build_model(config, device), rows, training=False)
        found.append(
            Subject(
                key=f"test_M{m}",
                title=f"ELBO@{TEST_SAMPLES}, M = {m}",
                targets=batch.targets,
                call=batch,
                floor=captured(alone, device),
                rows=rows,
                naive=f"naive test M={m}",
            )
        )
    return found


def whole_runs(speed: Mapping[str, Any], training_targets: int) -> dict[str, Any]:
    """Hours that the whole training and the whole published test would take at the measured rates.

    Seconds per target of the test are taken to be linear in M.
    """
    hours = {
        f"{row['title']}": {
            "unit": "h",
            "value": training_targets / row["ours"]["median"] / 3600,
            "targets": training_targets,
        }
        for key, row in speed.items()
        if key.startswith("train")
    }
    few, many = TEST_MEMORIES
    slow, fast = (1 / speed[f"test_M{m}"]["ours"]["median"] for m in (many, few))
    per_target = [fast + (slow - fast) * (m - few) / (many - few) for _, m in PUBLISHED_CELLS]
    cells = len(PUBLISHED_CELLS)
    test = {
        "unit": "h",
        "value": PUBLISHED_TARGETS * sum(per_target) / 3600,
        "targets": PUBLISHED_TARGETS * cells,
    }
    return {**hours, f"published test, {cells} cells, ELBO@{TEST_SAMPLES}": test}
