"""Studies: the numbers are those of the definitions, and a study that was begun goes on."""

import csv
import itertools
import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.config import arguments, small_config, small_yaml
from helpers.program import main, process_restored, start, wait_for
from torch import Tensor

import config as configuration
import evaluator
import run
from data.episodes import Episodes
from evaluator import PerTarget
from models.objectives import log_mean_exp
from models.vma.model import VMA
from runtime.arrays import npz
from runtime.files import exclusive_lock
from runtime.signals import Stopped
from studies import ablations, estimator, gradients, seeds
from studies.trainings import Training


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def nothing_changes() -> Iterator[None]:
    with process_restored():
        yield


# --- estimator --------------------------------------------------------------------------------------------------------


def test_the_bound_of_k_samples_is_the_mean_over_groups() -> None:
    log_w = 30 * torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (1, 4, 24):
        bounds = [math.log(sum(map(math.exp, log_w[first : first + k])) / k) for first in range(0, 24, k)]
        assert estimator.nested(log_w, k).item() == pytest.approx(sum(bounds) / len(bounds), rel=1e-12)


def test_every_row_is_the_mean_of_its_bound_over_groups_of_samples(
    tiny_model: Callable[..., VMA], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact sum too: summed over addresses first, then averaged over the groups of K."""
    source = torch.Generator().manual_seed(2)
    log_w = 5 * torch.randn(3, 12, generator=source, dtype=torch.float64)  # [n, K]
    log_v = 5 * torch.randn(3, 6, 4, generator=source, dtype=torch.float64)  # [n, K, S]
    drawn = [iter(log_w), iter(log_v)]
    monkeypatch.setattr(estimator, "sampled_weights", lambda *args: next(drawn[0]))
    monkeypatch.setattr(estimator, "address_weights", lambda *args: next(drawn[1]))
    pictures = torch.zeros(1, 2, 20, 20, dtype=torch.float64)
    number = torch.zeros(1, 2, dtype=torch.int64)

    class Any3:
        def batch(self, which: slice) -> Episodes:
            return Episodes(pictures[:, :1], pictures, number[:, :1] + which.start, number, number[:, :1], number)

    sizes, model = (1, 2, 3, 6, 12), tiny_model()
    targets = [estimator.bounds(model, Any3(), number, ("k",), sizes) for number in range(3)]  # type: ignore[arg-type]
    found = list(estimator.summarised(targets, sizes, slots=2 + len(model.dummies)))
    assert [(row["estimator"][:5], row["K"]) for row in found] == [  # type: ignore[index]
        ("sampl", 1), ("sampl", 2), ("sampl", 3), ("sampl", 6), ("sampl", 12),
        ("exact", 1), ("exact", 2), ("exact", 3), ("exact", 6),
    ]  # fmt: skip
    for row in found:
        k, bounds = int(row["K"]), []
        for i in range(3):
            weights = log_w[i].exp() if row["estimator"] == "sampled addresses" else log_v[i].exp().sum(1)
            groups = [math.log(sum(weights[first : first + k]) / k) for first in range(0, len(weights), k)]
            bounds.append(sum(groups) / len(groups))
        mean = sum(bounds) / 3
        spread = math.sqrt(sum((bound - mean) ** 2 for bound in bounds) / 2 / 3)
        assert [row["ELBO"], row["stderr"]] == pytest.approx([-mean, spread], rel=1e-10)


@pytest.mark.parametrize("placements", [1, 9])
@torch.no_grad()
def test_both_estimators_estimate_the_same_likelihood(placements: int, tiny_model: Callable[..., VMA]) -> None:
    """The weights of either have the mean p(x|M): equal within 4 standard errors (delta method)."""
    model = tiny_model(f"model.max_shift={int(placements > 1)}", gain=0.5).float()
    if placements > 1:
        model.q_s.log_scale.fill_(-5.0)  # undecided, else few samples have all the weight
    source = torch.Generator().manual_seed(1)
    pictures = (torch.rand(1, 4, 20, 20, generator=source) < 0.3).float()
    index, classes = torch.tensor([[5]]), torch.zeros(1, 3, dtype=torch.int64)
    one = Episodes(pictures[:, :1], pictures[:, 1:], classes[:, :1], classes, index, classes)
    k = 6000
    m = model.encode_memory(one.memory, precompute_features=True)
    targets = model.encode_targets(one.x, m)
    log_w = estimator.sampled_weights(model, one, m, targets, ("k", 0), k)
    log_v = estimator.address_weights(model, one, m, targets, ("k", 0), k // 5)
    assert log_w.shape == (k,) and log_v.shape == (k // 5, 3 * placements + len(model.dummies))
    found, error = zip(*((log_mean_exp(log), (log - log_mean_exp(log)).exp().std() / len(log) ** 0.5)
                         for log in (log_w, log_v.logsumexp(1))), strict=True)  # fmt: skip
    assert max(error) < 0.1
    assert abs(found[0] - found[1]) < 4 * math.hypot(*error)
    assert torch.equal(
        estimator.sampled_weights(model, one, m, targets, ("k", 0), 7), log_w[:7]
    )  # more samples, the same first ones


def test_the_estimator_study_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=2") == 0
    sizes = ["--device", "cpu", "--targets", "6", "--memory", "3", "--sizes", "1,5,50"]
    assert estimator.main([*arguments(tmp_path), *sizes, "--output", str(tmp_path / "e")]) == 0
    found = rows(tmp_path / "e" / "estimator.csv")
    assert [(row["estimator"].split()[0], row["K"], row["decodes"]) for row in found] == [
        ("sampled", "1", "1"), ("sampled", "5", "5"), ("sampled", "50", "50"),
        ("exact", "1", "5"), ("exact", "5", "25"),
    ]  # fmt: skip
    elbo = [float(row["ELBO"]) for row in found]
    assert elbo[0] > elbo[1] > elbo[2] and all(row["targets"] == "6" for row in found)
    assert [float(row["gap"]) for row in found] == pytest.approx([value - elbo[2] for value in elbo], abs=2e-4)
    assert (tmp_path / "e" / "estimator.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "e" / "estimator.md").read_text() in capsys.readouterr().out


def interrupted_after(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, calls: int | None) -> list[int]:
    """Let `module.name` be called so often, and then a signal come; the calls so far."""
    made, real = [0], getattr(module, name)

    def counted(*args: Any, **options: Any) -> Any:
        if made[0] == calls:
            raise Stopped(signal.SIGINT)
        made[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return made


@pytest.mark.parametrize(
    ("study", "name", "more", "calls"),
    [
        (estimator, "bounds", ["--targets", "5", "--memory", "3", "--sizes", "1,5"], 5),
        (gradients, "moments", ["--batches", "2"], 6),
    ],
)
def test_an_interrupted_study_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], study: ModuleType,
    name: str, more: list[str], calls: int,
) -> None:  # fmt: skip
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    csv_file = f"{study.__name__.rpartition('.')[2]}.csv"
    command = [*arguments(tmp_path), "--device", "cpu", *more, "--output"]
    assert study.main([*command, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupted_after(patch, study, name, 2)
        assert study.main([*command, str(tmp_path / "part")]) == 128 + signal.SIGINT
        assert "stopped by SIGINT; the same command resumes" in capsys.readouterr().err
        assert not (tmp_path / "part" / csv_file).exists()
    made = interrupted_after(monkeypatch, study, name, None)
    assert study.main([*command, str(tmp_path / "part")]) == 0 and made == [calls - 2]
    assert (tmp_path / "part" / csv_file).read_bytes() == (tmp_path / "whole" / csv_file).read_bytes()
    before = {path: path.read_bytes() for path in (tmp_path / "part").iterdir()}
    (stored,) = (tmp_path / "part").glob("*.npz")
    with exclusive_lock(stored, "study"):
        assert study.main([*command, str(tmp_path / "part")]) == 2
    assert "another study writes to it" in capsys.readouterr().err
    assert main(tmp_path, "--train", "--restart", "train_spec.steps=2") == 0  # other weights
    assert study.main([*command, str(tmp_path / "part")]) == 2 and made == [calls - 2]
    assert "is of another model, or of other settings; choose another --output" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "part").iterdir()}
    for damaged in tmp_path.glob("part/*.npz"):
        damaged.write_bytes(b"PK rubbish")
    assert study.main([*command, str(tmp_path / "part")]) == 0 and made == [calls - 2 + calls]


@pytest.mark.parametrize(("memory", "summed"), [("1", ["5"]), ("3", ["2"])])
def test_only_numbers_of_samples_that_divide_are_summed(tmp_path: Path, memory: str, summed: list[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    more = ["--sizes", "2,5,10", "--targets", "3", "--classes", "1", "--memory", memory, "--output", str(tmp_path)]
    assert estimator.main([*arguments(tmp_path), *more]) == 0
    assert [row["K"] for row in rows(tmp_path / "estimator.csv") if row["estimator"].startswith("exact")] == summed


def test_an_estimator_study_is_of_one_order_of_the_pixels(tmp_path: Path) -> None:
    orders = ("model.likelihood=causal", "model.orders=2", "train_spec.orders=2")
    assert main(tmp_path, "--train", "train_spec.steps=1", *orders) == 0
    more = ["--sizes", "1,5", "--targets", "3", "--memory", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert estimator.main(["--config", str(tmp_path / "vma.resolved.yaml"), *more]) == 0
    assert len(rows(tmp_path / "estimator.csv")) > 1


def test_a_wrong_estimator_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimator.main([*arguments(tmp_path), "--output", str(tmp_path / "e")]) == 2
    assert "vma.pt: there is no such checkpoint" in capsys.readouterr().err
    for sizes in ("3,10", "0,10", "x"):
        with pytest.raises(SystemExit, match="2"):
            estimator.main([*arguments(tmp_path), "--sizes", sizes])
    assert not (tmp_path / "e").exists()


# --- gradients --------------------------------------------------------------------------------------------------------


def moments_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, ...]:
    moments = gradients.moments(pairs)
    return float(np.mean(moments["noise"])), *gradients.between_and_signal(moments)


def test_the_parts_of_a_variance_are_those_of_the_definitions() -> None:
    """Against sums over coordinates, and over all pairs of different batches."""
    pairs = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise, between, signal = moments_of((g, h) for g, h in pairs)
    assert noise == pytest.approx(pairs.var(dim=1).sum(1).mean().item())
    means = pairs.mean(1)
    products = [(means[i] @ means[j]).item() for i, j in itertools.permutations(range(5), 2)]
    assert signal == pytest.approx(sum(products) / 20)
    assert between == pytest.approx(sum((g @ h).item() for g, h in pairs) / 5 - signal)


def test_the_parts_of_a_variance_have_no_bias() -> None:
    """Over everything that three batches of two kinds with two noises each may show: 4^3 x 2^3 equally likely cases."""
    gradient = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[0.5, 0.0], [-2.0, 4.0]]], dtype=torch.float64)  # [b, e, P]
    one = [(gradient[b, e], gradient[b, f]) for b, e, f in itertools.product(range(2), repeat=3)]
    cases = [moments_of(case) for case in itertools.product(one, repeat=3)]
    noise, between, signal = (sum(values) / len(cases) for values in zip(*cases, strict=True))
    of_batch = gradient.mean(1)
    assert noise == pytest.approx(gradient.var(dim=1, correction=0).sum().item() / 2)
    assert between == pytest.approx(of_batch.var(dim=0, correction=0).sum().item())
    assert signal == pytest.approx(of_batch.mean(0).square().sum().item())


def test_a_ratio_has_the_error_of_the_jackknife() -> None:
    """The delta method agrees with leaving each batch out in turn, as it does to first order."""
    source = np.random.default_rng(0)
    b = 5 + source.random(60)
    a = (0.7 * b + 0.1 * source.random(60)).tolist()
    found, error = gradients.ratio(a, b.tolist())
    without = [np.delete(a, i).mean() / np.delete(b, i).mean() for i in range(60)]
    assert found == pytest.approx(np.mean(a) / b.mean())
    assert error == pytest.approx(np.std(without) * 59**0.5, rel=0.05)


def test_the_gradients_study_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row has its own estimator, all have the same weights and batches, and no two gradients the same noise."""
    assert main(tmp_path, "--train", "train_spec.steps=2") == 0
    used: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    compute = gradients.gradient

    def noted(model: VMA, batch: Any, noise: Any) -> Tensor:
        found = compute(model, batch, noise)
        kind = (model.objective, model.importance_num, model.gradient_samples, model.use_dreg)
        weights = sum(p.double().sum().item() for p in model.parameters())
        used.setdefault(kind, []).append((weights, batch.x.sum().item(), found.norm().item()))
        return found

    monkeypatch.setattr(gradients, "gradient", noted)
    command = [*arguments(tmp_path), "--device", "cpu", "--batches", "3", "--output", str(tmp_path / "g")]
    assert gradients.main(command) == 0
    found = rows(tmp_path / "g" / "gradients.csv")
    assert [row["estimator"] for row in found] == list(gradients.ESTIMATORS)
    assert len(used) == len(found)
    seen = [[(weights, x) for weights, x, _ in calls] for calls in used.values()]
    assert all(calls == seen[0] for calls in seen) and len({x for _, x in seen[0]}) == 3
    for row, calls in zip(found, used.values(), strict=True):
        assert len({norm for *_, norm in calls}) == 6
        assert float(row["noise"]) > 0 and row["batches"] == "3" and row["batch_size"] == "8"
    noises = np.load(tmp_path / "g" / "gradients.npz")
    assert [noises[f"{name}/noise"].mean() for name in gradients.ESTIMATORS] == pytest.approx(
        [float(row["noise"]) for row in found], rel=1e-3
    )
    assert (tmp_path / "g" / "gradients.md").read_text() in capsys.readouterr().out


def test_one_batch_has_no_variance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradients.main([*arguments(tmp_path), "--batches", "1"]) == 2
    assert "--batches: 1" in capsys.readouterr().err


# --- ablations --------------------------------------------------------------------------------------------------------


def listed(folder: Path, content: str) -> Path:
    (folder / "small.yaml").write_text(small_yaml(folder))
    path = folder / "list.yaml"
    path.write_text(content.format(config=folder / "small.yaml"))
    return path


LIST = """
config: {config}
set: [train_spec.steps=2, "test_spec.test_params.max_batch_cls=[1]"]
rows: {{plain: [], "other: K": [model.importance_num=3]}}
"""


def test_the_ablations_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = listed(tmp_path, LIST), tmp_path / "ablations"
    assert ablations.main([str(path), "--output", str(output), "--device", "cpu", "--only", "plain"]) == 0
    weights = (output / "plain" / "vma.pt").read_bytes()
    computed, real = [], evaluator.evaluate_cell

    def counted(*args: Any, **options: Any) -> PerTarget:
        computed.append(args)
        return real(*args, **options)

    monkeypatch.setattr(evaluator, "evaluate_cell", counted)
    assert ablations.main([str(path), "--output", str(output), "--device", "cpu"]) == 0
    assert (output / "plain" / "vma.pt").read_bytes() == weights and len(computed) == 2  # those of the other row
    found = rows(output / "ablations.csv")
    assert [(row["row"], row["cell"]) for row in found] == [
        ("plain", "C=1 M=1"), ("plain", "C=1 M=3"), ("other: K", "C=1 M=1"), ("other: K", "C=1 M=3"),
    ]  # fmt: skip
    for row in found:
        with np.load(output / row["row"] / "results.npz") as own, np.load(output / "plain" / "results.npz") as plain:
            bound, other = own[f"{row['cell']}/bound"], plain[f"{row['cell']}/bound"]
        gaps = [b - a for a, b in zip(bound, other, strict=True)]
        mean = sum(gaps) / len(gaps)
        spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
        assert [float(row[name]) for name in ("ELBO", "difference", "difference_stderr")] == pytest.approx(
            [-bound.mean(), mean, spread], abs=1e-4
        )
    assert "| other: K |" in (output / "ablations.md").read_text()


def test_rows_are_known_again_where_their_folder_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, LIST)
    monkeypatch.chdir(tmp_path)
    assert ablations.main([str(path), "--output", "here"]) == 0
    table = (tmp_path / "here" / "ablations.csv").read_bytes()
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(evaluator, "evaluate_cell", None)  # it would be called
    assert ablations.main([str(path), "--output", str(tmp_path / "there"), "--only", "plain"]) == 0
    assert (tmp_path / "there" / "ablations.csv").read_bytes() == table


def test_the_folder_of_the_data_may_come_from_the_command_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def noted(arguments: list[str]) -> int:
        asked.append(arguments)
        return 7

    monkeypatch.setattr(run, "main", noted)
    path = listed(tmp_path, LIST)
    there = tmp_path / "small.yaml"
    there.write_text(there.read_text().replace("kind: glyphs", "kind: omniglot").replace(", classes: 8", ""))
    assert ablations.main([str(path), "--output", str(tmp_path / "out"), "--root", "drawings"]) == 7
    args = run.parser().parse_args(asked[0])
    given = [*configuration.overrides(args.root), *args.overrides]
    assert configuration.load(args.config, given).test_data.root == "drawings"


def test_nothing_takes_the_place_of_the_first_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = listed(tmp_path, LIST), tmp_path / "ablations"
    assert ablations.main([str(path), "--output", str(output), "--only", "other: K"]) == 0
    assert (
        "until they and the first row are done" in capsys.readouterr().out and not (output / "ablations.csv").exists()
    )


@pytest.mark.parametrize("change", ["train_spec.steps=3", "train_spec.gradient_samples=1"])
def test_rows_that_were_trained_with_another_list_are_not_taken_for_those_of_this(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """A finished training would be, since these keys may change where a run is resumed."""
    path, output = listed(tmp_path, LIST), tmp_path / "ablations"
    assert ablations.main([str(path), "--output", str(output), "--only", "plain"]) == 0
    before = {file: file.read_bytes() for file in output.rglob("*.*") if file.is_file()}
    changed = str(listed(tmp_path, LIST.replace("train_spec.steps=2", f"train_spec.steps=2, {change}")))
    assert ablations.main([changed, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert f"{output / 'plain'}: trained with another configuration; remove that folder" in said and change[:16] in said
    assert {file: file.read_bytes() for file in output.rglob("*.*") if file.is_file()} == before


@pytest.mark.parametrize("change", ["train_spec.seed=1", "test_spec.seed=1", "test_spec.importance_num=7"])
def test_rows_with_other_targets_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """Another seed of the training holds out other classes.  Nothing is trained before that is found."""
    content = LIST.replace("model.importance_num=3", change).replace("set: [", "set: [test_spec.subset=held_out, ")
    assert ablations.main([str(listed(tmp_path, content)), "--output", str(tmp_path / "ablations")]) == 2
    said = capsys.readouterr().err
    assert "rows.other: K: tested otherwise than the first row:\n" in said and f"{change.partition('=')[0]}: " in said
    assert not (tmp_path / "ablations").exists()


def test_another_seed_is_that_of_all_rows(tmp_path: Path) -> None:
    trainings = ablations.read(listed(tmp_path, LIST), tmp_path, seed=3)
    assert {one.config.train_spec.seed for one in trainings.values()} == {3} and len(trainings) == 2


def test_the_seed_of_the_command_is_that_of_the_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def ends(arguments: list[str]) -> int:
        given.append(arguments)
        return 1

    monkeypatch.setattr(run, "main", ends)
    assert ablations.main([str(listed(tmp_path, LIST)), "--seed", "3", "--output", str(tmp_path / "a")]) == 1
    assert "--set=train_spec.seed=3" in given[0]


def test_a_training_is_tested_by_its_own_weights(tmp_path: Path) -> None:
    """Whatever the configuration says, such as that of a test of other ones."""
    path = tmp_path / "small.yaml"
    path.write_text(configuration.dump(small_config(tmp_path, "test_spec.checkpoint_path=other.pt")))
    assert Training(path, [], tmp_path / "t").config.test_checkpoint == str(tmp_path / "t" / "vma.pt")


def test_a_study_is_a_program_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert seeds.main(seeds_of(tmp_path)) == 2
    assert "WORLD_SIZE is set" in capsys.readouterr().err


def test_another_batch_is_tested_on_the_same_targets(tmp_path: Path) -> None:
    content = LIST.replace("model.importance_num=3", "train_data.batch_size=4, test_spec.chunk=3")
    ablations.read(listed(tmp_path, content), tmp_path)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("model.importance_nun=3", "did you mean importance_num"),
        (
            'train_spec.optimizer=Adagrad, "train_spec.scheduler={{kind: CyclicLR, base_lr: 0.1, max_lr: 1}}"',
            "CyclicLR: optimizer must support",
        ),
    ],
)
def test_a_mistake_in_a_later_row_is_found_before_the_first_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str, said: str
) -> None:
    content = LIST.replace("model.importance_num=3", mistake)
    command = [str(listed(tmp_path, content)), "--output", str(tmp_path / "ablations")]
    assert ablations.main(command) == ablations.main([*command, "--only", "plain"]) == 2
    assert capsys.readouterr().err.count(said) == 2
    assert not (tmp_path / "ablations").exists()


@pytest.mark.parametrize("path", sorted(ROOT.glob("studies/*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_the_lists_that_are_here_can_be_trained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ablations.read(path, Path("unused"))


def test_rows_that_were_tested_with_another_list_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = listed(tmp_path, LIST), tmp_path / "ablations"
    assert ablations.main([str(path), "--output", str(output)]) == 0
    changed = str(
        listed(tmp_path, LIST.replace("train_spec.steps=2", "train_spec.steps=2, test_spec.importance_num=5"))
    )
    assert ablations.main([changed, "--output", str(output), "--only", "plain"]) == 0
    assert "as the list says, on the same images: other: K\n" in capsys.readouterr().out
    assert {row["row"] for row in rows(output / "ablations.csv")} == {"plain"}
    assert ablations.main([changed, "--output", str(output)]) == 0
    assert {row["row"] for row in rows(output / "ablations.csv")} == {"plain", "other: K"}


def test_a_study_goes_on_whatever_was_left_of_a_later_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = listed(tmp_path, LIST), tmp_path / "ablations"
    command = [str(path), "--output", str(output)]
    assert ablations.main(command) == 0
    expected = (output / "ablations.csv").read_bytes()
    store = output / "other: K" / "results.npz"
    with np.load(store) as file:
        whole = dict(file)
    stopped = {name: value for name, value in whole.items() if name.startswith("C=1 M=1")}  # in the second cell
    other = np.array(json.dumps(json.loads(str(whole["C=1 M=1/key"])) | {"images": "others"}))
    other_images = {name: other if name.endswith("/key") else value for name, value in whole.items()}
    for left in (b"PK rubbish", npz(stopped), npz(other_images)):
        store.write_bytes(left)
        assert ablations.main([*command, "--only", "plain"]) == 0
        assert "as the list says, on the same images: other: K\n" in capsys.readouterr().out
        assert {row["row"] for row in rows(output / "ablations.csv")} == {"plain"}
        assert ablations.main(command) == 0
        assert (output / "ablations.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("config: a\nset: []\nrows: {{}}", "expected the keys"),
        ("config: a\nset: [3]\nrows: {{a: []}}", "set: expected a list of KEY=VALUE"),
        ("config: a\nset: []\nrows: {{a: {{b: c}}}}", "rows.a: expected a list"),
        ("config: a\nset: []\nrows: {{a: [], a: []}}", "given twice"),
        ("config: absent.yaml\nset: []\nrows: {{a: []}}", "absent.yaml"),
        ("config: {config}\nset: []\nrows: {{a: [train_spec.setps=3]}}", "steps"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations.main([str(listed(tmp_path, content)), "--output", str(tmp_path / "ablations")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ablations").exists()


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_a_cell_has_mean_and_deviation_of_its_trainings(tmp_path: Path) -> None:
    """Of the bounds 4, 5 and 9 of three trainings: 6 and the square root of (4 + 1 + 9) / 2."""
    shared = {"timesteps": 3, "targets": 12, "importance_num": 60}
    of_each = {"seed_0": 4.0, "seed_2": 5.0, "seed_7": 9.0}
    tables = {name: [{"max_batch_cls": c, "ELBO": nll + c, **shared} for c in (1, 2)] for name, nll in of_each.items()}
    found = seeds.summarised(tables, "ELBO")
    for c, row in enumerate(found, 1):
        values = {
            "ELBO": 6.0 + c,
            "sd": pytest.approx(math.sqrt(7)),
            **{name: nll + c for name, nll in of_each.items()},
        }
        assert row == {"max_batch_cls": c, "trainings": 3, **shared, **values}
    text = seeds.markdown(found, small_config(tmp_path))
    assert "| 2 | 3 | 8.00 | 2.65 |" in text and "| C | M | ELBO@60 | s.d. |" in text and "3 trainings" in text


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0..4", [0, 1, 2, 3, 4]), ("0,3,7", [0, 3, 7]), ("5,0..2", [5, 0, 1, 2])],
)
def test_seeds_are_a_range_or_a_list(text: str, numbers: list[int]) -> None:
    assert seeds.seeds(text) == numbers


@pytest.mark.parametrize("text", ["", "3", "4..0", "1,1", "0..2,2", "-1..2", "0...4", "a", "0..99999999", "1,,2"])
def test_what_is_no_list_of_seeds_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        seeds.main(["--config", "absent.yaml", f"--seeds={text}"])
    assert "--seeds" in capsys.readouterr().err


def seeds_of(folder: Path, *more: str) -> list[str]:
    """The command line of a study of two seeds of a training of six steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(small_yaml(folder))
    short = ["--set", "train_spec.steps=6", "--set", "train_spec.save_every=2"]
    return ["--config", str(folder / "small.yaml"), "--seeds", "0,2", "--output", str(folder / "seeds"), *short, *more]


@pytest.mark.slow
def test_the_seeds_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed in the second training, the study goes on there; its numbers are those of the tables of the trainings."""
    output = tmp_path / "seeds"
    study = start("-m", "studies.seeds", *seeds_of(tmp_path, "--set", "train_spec.val_every=1"))
    wait_for(lambda: (output / "seed_2" / "vma.last.pt").exists(), study)
    study.kill()
    study.communicate()
    computed = [output / "seed_0" / name for name in ("vma.pt", "results.npz")]
    before, log = [path.stat().st_mtime_ns for path in computed], (output / "seed_0" / "train.jsonl").read_bytes()
    assert seeds.main(seeds_of(tmp_path, "--set", "train_spec.val_every=1")) == 0
    assert [path.stat().st_mtime_ns for path in computed] == before
    assert (output / "seed_0" / "train.jsonl").read_bytes() == log
    tables = {name: rows(output / name / "results.csv") for name in ("seed_0", "seed_2")}
    for i, row in enumerate(rows(output / "seeds.csv")):
        one, two = (float(tables[name][i]["ELBO"]) for name in tables)
        assert one != two and [float(row[name]) for name in tables] == [one, two]
        assert float(row["ELBO"]) == pytest.approx((one + two) / 2, abs=1e-4)
        assert float(row["sd"]) == pytest.approx(abs(one - two) / math.sqrt(2), abs=2e-4)
    assert (output / "seeds.md").read_text() in capsys.readouterr().out
    steps = [row["step"] for row in map(json.loads, (output / "seed_2" / "train.jsonl").read_text().splitlines())]
    assert steps == sorted(steps)


@pytest.mark.parametrize("override", ["train_spec.seed=4", "output=elsewhere"])
def test_what_the_seeds_set_is_not_set(
    tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "main", None)  # it would be called
    assert seeds.main([*seeds_of(tmp_path), "--set", override]) == 2
    assert f"--set {override.partition('=')[0]}: is given by --seeds and --output here" in capsys.readouterr().err


def test_seeds_of_another_configuration_are_not_taken_for_those_of_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "seeds" / "seed_2").mkdir(parents=True)
    trained = small_config(tmp_path, "train_spec.steps=8", "train_spec.seed=2")
    (tmp_path / "seeds" / "seed_2" / "vma.resolved.yaml").write_text(configuration.dump(trained))
    monkeypatch.setattr(run, "main", None)  # it would be called
    assert seeds.main(seeds_of(tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'seeds' / 'seed_2'}: trained with another configuration" in said
    assert "train_spec.steps: 8 in the checkpoint, 6 now" in said


def test_an_exit_status_ends_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def noted(arguments: list[str]) -> int:
        asked.append(arguments)
        return 143 if len(asked) == 2 else 0

    monkeypatch.setattr(run, "main", noted)
    assert seeds.main([*seeds_of(tmp_path, "--device", "cpu", "--root", "there")]) == 143
    for seed, given in zip((0, 2), asked, strict=True):
        args = run.parser().parse_args(given)
        config = configuration.load(args.config, args.overrides)
        assert (config.train_spec.seed, config.train_spec.steps, config.train_data.root) == (seed, 6, "there")
        assert config.test_spec.output_file == str(tmp_path / "seeds" / f"seed_{seed}" / "results.csv")
        assert args.train and args.test and args.device == "cpu"
