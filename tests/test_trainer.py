"""The trainer, on a toy: its steps are those of a plain loop, and it notices what is due and what is wrong."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU
from helpers.logs import rows
from helpers.toys import Toy, ToyBatches, toy_logger, toy_trainer
from torch import Tensor, nn
from torch.optim import lr_scheduler

import trainer
from runtime import checkpoints
from runtime.errors import NonFiniteError
from runtime.means import Means
from runtime.processes import Processes
from runtime.randomness import StepNoise


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def history(model: nn.Module, step: Callable[[], object], steps: int) -> list[list[Tensor]]:
    """The weights after each step."""
    found = []
    for _ in range(steps):
        step()
        found.append(weights(model))
    return found


# --- one step after another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)])
def test_training_is_the_plain_loop(tmp_path: Path, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    batches = ToyBatches("train", 8, 5)
    mine = toy_trainer(tmp_path, batches, ToyBatches("validation", 8), optimizer=optimizer)
    mine.fit(toy_logger(tmp_path))

    model = Toy()
    plain = optimizer(model.parameters(), lr=0.05)
    losses = []
    for number in range(10):
        loss, _ = model.loss(batches.at(number), StepNoise(CPU, 3, "train", number))
        plain.zero_grad()
        loss.backward()
        plain.step()
        losses.append(float(loss.detach()))

    assert equal(weights(mine.model), weights(model))
    assert [row["loss"] for row in rows(tmp_path, "train")] == losses
    assert not equal(weights(model), weights(Toy()))


def test_training_does_not_touch_the_common_random_state(tmp_path: Path) -> None:
    a, b = toy_trainer(tmp_path), toy_trainer(tmp_path)
    before = torch.get_rng_state()
    a.fit(toy_logger(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    b.fit(toy_logger(tmp_path))
    assert equal(weights(a.model), weights(b.model))


def test_large_gradients_are_scaled_to_the_given_norm(tmp_path: Path) -> None:
    limit, batches = 0.5, ToyBatches("train", 8)
    mine = toy_trainer(tmp_path, batches, optimizer=torch.optim.SGD, grad_clip=limit)
    model = Toy()
    clipped = 0
    for number in range(60):
        metrics = mine.step()
        loss, _ = model.loss(batches.at(number), StepNoise(CPU, 3, "train", number))
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)  # what it was before
        clipped += norm > limit
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p.sub_(0.05 * g * min(1.0, limit / norm))
        for a, b in zip(weights(mine.model), weights(model), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert clipped > 10


def test_the_average_is_the_closed_form(tmp_path: Path) -> None:
    """Weights of step n enter with 1 - d_n and decay by d_m in every later step m; d_m rises to the decay at m = 8."""
    decay, steps = 0.5, 20
    d = [min(decay, (1 + n) / (10 + n)) for n in range(steps)]
    assert d[7] < decay == d[8] == d[-1]
    mine = toy_trainer(tmp_path, ema_decay=decay, steps=steps)
    assert equal(weights(mine.evaluated), weights(Toy()))  # before the first step
    averages = []

    def step() -> None:
        mine.step()
        averages.append([value.clone() for value in weights(mine.evaluated)])

    w = history(mine.model, step, steps)
    for last in (1, 2, steps):
        for i in range(2):
            exact = math.prod(d[:last]) * weights(Toy())[i].double()
            exact = exact + sum((1 - d[n]) * math.prod(d[n + 1 : last]) * w[n][i].double() for n in range(last))
            torch.testing.assert_close(averages[last - 1][i].double(), exact, rtol=1e-5, atol=1e-6)
    mine.save_weights()
    saved = checkpoints.load(tmp_path / "toy.pt")["model"]
    assert equal(list(saved.values()), weights(mine.evaluated))
    assert not equal(list(saved.values()), weights(mine.model))
    assert saved.keys() == Toy().state_dict().keys()


def test_bfloat16_is_for_the_model_not_for_its_images(tmp_path: Path) -> None:
    """Augmentation computes with coordinates of pixels, which bfloat16 would round."""
    drawn: list[bool] = []

    def visit(step: int) -> None:
        drawn.append(torch.is_autocast_enabled("cpu"))

    computed: list[torch.dtype] = []
    model = Toy()
    model.linear.register_forward_hook(lambda module, inputs, output: computed.append(output.dtype))
    parts = ToyBatches("train", 8, visit=visit), ToyBatches("validation", 8, visit=visit)
    toy_trainer(tmp_path, *parts, model=model, precision="bf16", steps=4).fit(toy_logger(tmp_path))
    assert len(drawn) == len(computed) >= 6 and not any(drawn)
    assert set(computed) == {torch.bfloat16}


def test_the_learning_rate_of_every_step_is_logged(tmp_path: Path) -> None:
    halves = partial(lr_scheduler.StepLR, step_size=3, gamma=0.5)
    toy_trainer(tmp_path, scheduler=halves).fit(toy_logger(tmp_path))
    assert [row["lr"] for row in rows(tmp_path, "train")] == [0.05 * 0.5 ** (n // 3) for n in range(1, 11)]


# --- what is due ------------------------------------------------------------------------------------------------------


class Known(nn.Module):
    """Validates to the bound that `bounds` holds for the number of steps so far; steps count up the weight."""

    def __init__(self, bounds: Mapping[int, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.bounds = bounds

    def loss(self, batch: tuple[Tensor, Tensor], noise: StepNoise) -> tuple[Tensor, dict[str, Tensor]]:
        bound = torch.full((len(batch[0]),), self.bounds.get(round(-float(self.w.detach()) / 0.05), 0.0))
        return self.w.sum(), {"bound": bound}


def test_the_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    model = Known({2: -5.0, 4: -3.0, 6: -4.0, 8: -3.0, 9: -8.0})
    validation = ToyBatches("validation", 4)
    mine = toy_trainer(
        tmp_path, None, validation, model=model, optimizer=torch.optim.SGD, steps=9, val_every=2, val_targets=4
    )
    mine.fit(toy_logger(tmp_path))
    assert [(row["step"], row["bound"]) for row in rows(tmp_path, "validation")] == [
        (2, -5.0), (4, -3.0), (6, -4.0), (8, -3.0), (9, -8.0)
    ]  # fmt: skip
    kept, last = checkpoints.load(tmp_path / "toy.pt"), checkpoints.load(mine.state_path)
    assert kept["progress"]["step"] == kept["progress"]["best_step"] == 4  # the first of equals
    assert float(kept["model"]["w"]) == pytest.approx(-0.2)
    assert float(last["model"]["w"]) == pytest.approx(-0.45)


def test_without_validation_the_weights_of_the_end_are_kept(tmp_path: Path) -> None:
    mine = toy_trainer(tmp_path)
    mine.fit(toy_logger(tmp_path))
    saved = checkpoints.load(tmp_path / "toy.pt")
    assert equal(list(saved["model"].values()), weights(mine.model))
    assert saved["config"] == "toy" and saved["progress"]["step"] == 10
    assert not rows(tmp_path, "validation")


def test_states_are_saved_when_due_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    mine = toy_trainer(tmp_path, steps=8, save_every=3)
    monkeypatch.setattr(mine, "save_state", lambda: saved.append(mine.progress.step))
    mine.fit(toy_logger(tmp_path))
    assert saved == [0, 3, 6, 8]


def test_the_state_that_was_resumed_is_not_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the place of the one before, which is there for the case that a disk spoils this one."""
    toy_trainer(tmp_path, steps=6, save_every=3).fit(toy_logger(tmp_path))
    saved = []
    mine = toy_trainer(tmp_path, steps=12, save_every=3)
    mine.resume(checkpoints.load(mine.state_path))
    monkeypatch.setattr(mine, "save_state", lambda: saved.append(mine.progress.step))
    mine.fit(toy_logger(tmp_path))
    assert saved == [9, 12]


def test_validation_uses_the_same_targets_and_noise_every_time(tmp_path: Path) -> None:
    seen: list[int] = []
    validation = ToyBatches("validation", 6, 4, visit=seen.append)
    mine = toy_trainer(tmp_path, None, validation, val_targets=13, steps=2, val_every=1)
    expected = []
    monitor = toy_trainer(tmp_path / "monitor")
    for _ in range(2):
        monitor.step()
        loss: Callable[..., Any] = monitor.model.loss  # type: ignore[assignment]
        bounds = [loss(validation.at(n), StepNoise(CPU, 3, "validation", n))[1]["bound"] for n in range(3)]
        expected.append(float(torch.cat(bounds).double().mean()))
    seen.clear()
    mine.fit(toy_logger(tmp_path))
    assert seen == 2 * [0, 1, 2]  # 13 targets need three batches of 6
    assert [row["bound"] for row in rows(tmp_path, "validation")] == pytest.approx(expected, rel=1e-6)


def test_the_average_is_what_is_validated(tmp_path: Path) -> None:
    validation = ToyBatches("validation", 8)
    mine = toy_trainer(tmp_path, None, validation, ema_decay=0.9, val_targets=8)
    mine.fit(toy_logger(tmp_path))
    noise = StepNoise(CPU, 3, "validation", 0)
    bound = float(mine.evaluated.loss(validation.at(0), noise)[1]["bound"].mean())  # type: ignore[operator]
    assert rows(tmp_path, "validation")[-1]["bound"] == pytest.approx(bound, rel=1e-6)


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_means_of_unequal_counts_weigh_every_value_once() -> None:
    means = Means()
    means.add({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(5.0)})
    means.add({"a": torch.tensor([[6.0], [7.0], [9.0]])})
    assert means.pop(Processes()) == {"a": 5.0, "b": 5.0}
    assert means.pop(Processes()) == {}
    means.add({"a": torch.tensor([3.0])})
    assert means.pop(Processes()) == {"a": 3.0}


@pytest.mark.parametrize(("log_every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (10, [7])])
def test_rows_come_when_due_and_at_the_end(tmp_path: Path, log_every: int, steps: list[int]) -> None:
    toy_trainer(tmp_path, steps=7, log_every=log_every).fit(toy_logger(tmp_path))
    assert [row["step"] for row in rows(tmp_path, "train")] == steps


def test_steps_count_alike_whatever_the_number_of_processes() -> None:
    """Two processes say of a step that its loss is 1 and 3; then one goes on, and says 5: (2 + 5) / 2."""
    shards = []
    for loss in (1.0, 3.0):
        means = Means(world=2)
        means.add({"loss": torch.tensor(loss), "bound": torch.tensor([1.0, 2.0])})
        shards += means.state(Processes())
    alone = Means()
    alone.restore(shards, Processes())
    alone.add({"loss": torch.tensor(5.0), "bound": torch.tensor([0.0, 0.0, 6.0, 6.0])})
    assert alone.pop(Processes()) == {"loss": 3.5, "bound": 2.25}


@pytest.mark.parametrize("val_every", [3, 4, 100])
def test_a_row_is_the_mean_of_all_targets_since_the_row_before(tmp_path: Path, val_every: int) -> None:
    batches = ToyBatches("train", 8, 3, 5)
    mine = toy_trainer(tmp_path, batches, ToyBatches("validation", 8), log_every=4, val_every=val_every)
    mine.fit(toy_logger(tmp_path))
    again = toy_trainer(tmp_path, batches)
    single = [again.step() for _ in range(10)]
    for row, first, last in zip(rows(tmp_path, "train"), (0, 4, 8), (4, 8, 10), strict=True):
        bounds = torch.cat([metrics["bound"] for metrics in single[first:last]])
        losses = torch.stack([metrics["loss"].detach() for metrics in single[first:last]])
        assert row["bound"] == pytest.approx(float(bounds.double().mean()), rel=1e-6)
        assert row["loss"] == pytest.approx(float(losses.double().mean()), rel=1e-6)


def test_speed_and_time_are_those_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def passes(seconds: float) -> Callable[[int], None]:
        def visit(step: int) -> None:
            clock[0] += seconds

        return visit

    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock[0])
    train, validation = ToyBatches("train", 8, visit=passes(1)), ToyBatches("validation", 16, visit=passes(100))
    mine = toy_trainer(tmp_path, train, validation, log_every=5, val_every=3, save_every=100)
    logger = toy_logger(tmp_path)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(logger, "log_scalars", lambda part, step, values: told.append({"subset": part, **values}))
    mine.fit(logger)
    speeds = [row["targets_per_s"] for row in told if row["subset"] == "train"]
    assert speeds == [8.0, 8.0]
    assert mine.progress.seconds == 10.0


# --- numbers that are not finite --------------------------------------------------------------------------------------


class Broken(Toy):
    """From its `at`-th loss on, loss or gradient is what `what` says."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.at, self.what, self.calls = at, what, 0

    def loss(self, batch: tuple[Tensor, Tensor], noise: StepNoise) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(batch, noise)
        self.calls += 1
        if self.calls <= self.at:
            return loss, metrics
        if self.what == "gradient inf":
            loss = loss + (self.linear.weight.sum() * 0).sqrt()  # the value is right, its derivative is not
        elif self.what == "one gradient nan":
            self.linear.bias.register_hook(lambda g: g * math.nan)
        else:
            loss = loss * float(self.what)
        return loss, metrics


@pytest.mark.parametrize("what", ["nan", "inf", "-inf", "gradient inf", "one gradient nan"])
@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("at", [0, 7])
def test_what_is_not_finite_ends_the_training_before_the_step(
    tmp_path: Path, what: str, grad_clip: float | None, at: int
) -> None:
    model = Broken(at, what)
    halves = partial(lr_scheduler.StepLR, step_size=3, gamma=0.5)
    mine = toy_trainer(tmp_path, model=model, grad_clip=grad_clip, scheduler=halves, ema_decay=0.5)
    with pytest.raises(NonFiniteError, match=rf"step {at}\b.*loss.*bound -") as caught:
        mine.fit(toy_logger(tmp_path))
    assert isinstance(caught.value, ArithmeticError)

    whole = toy_trainer(tmp_path / "whole", grad_clip=grad_clip, scheduler=halves, ema_decay=0.5)
    for _ in range(at):
        whole.step()
    assert equal(weights(model), weights(whole.model))
    assert equal(weights(mine.evaluated), weights(whole.evaluated))
    assert mine.progress.step == at
    assert all(p.isfinite().all() for p in weights(model))
    for state in mine.optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())
    if at > 5:
        assert checkpoints.load(mine.state_path)["progress"]["step"] == 5
    assert not mine.checkpoint_path.exists()


def test_a_training_that_ends_without_a_validation_validates_and_saves(tmp_path: Path) -> None:
    """As when one is stopped before its first validation, and resumed with fewer steps than it has done."""
    first = toy_trainer(tmp_path, validation=ToyBatches("validation", 16), val_every=100)
    for _ in range(5):
        first.step()
    first.save_state()
    mine = toy_trainer(tmp_path, validation=ToyBatches("validation", 16), val_every=100, steps=3)
    mine.resume(checkpoints.load(mine.state_path))
    assert not mine.checkpoint_path.exists()
    mine.fit(toy_logger(tmp_path, 5))
    assert [row["step"] for row in rows(tmp_path, "validation")] == [5]
    assert checkpoints.load(mine.checkpoint_path)["progress"]["best_step"] == 5
    mine.fit(toy_logger(tmp_path, 5))
    assert len(rows(tmp_path, "validation")) == 1, "once"


def test_a_validation_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = Toy()
    mine = toy_trainer(tmp_path, validation=ToyBatches("validation", 16), model=model, val_every=3, save_every=2)

    def broken(batch: tuple[Tensor, Tensor], noise: StepNoise) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = Toy.loss(model, batch, noise)
        wrong = not torch.is_grad_enabled() and mine.progress.step > 3
        return loss, {**metrics, "bound": metrics["bound"] * math.nan} if wrong else metrics

    model.loss = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"step 6: the bound of the validation is nan; .*--restart"):
        mine.fit(toy_logger(tmp_path))
    assert checkpoints.load(mine.checkpoint_path)["progress"]["best_step"] == 3
    assert checkpoints.load(mine.state_path)["progress"]["step"] == 4  # not the state with such weights
