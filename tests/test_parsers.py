"""Parsers: names become objects, sizes fit, seeds decide, and what cannot be built is said in a sentence."""

import contextlib
import inspect
import os
from pathlib import Path

import pytest
import torch
from helpers import CPU, ROOT
from helpers.config import small_config
from helpers.toys import toy_trainer
from torch import nn
from torch.optim import lr_scheduler

import config as configuration
import parsers
from config import Config, SchedulerSpec, TrainSpec
from config.schema import KINDS, OPTIMIZERS, Section, of_kind
from models.vma.model import VMA
from runtime import checkpoints, devices
from runtime.errors import UserError
from runtime.randomness import Shard, StepNoise

SCHEDULERS: dict[str, dict[str, object]] = {
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingLR": {"T_max": 10},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "cycle_momentum": False},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.5, "total_iters": 4},
    "MultiStepLR": {"milestones": (3, 6), "gamma": 0.1},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 40},
    "PolynomialLR": {"total_iters": 8, "power": 2.0},
    "StepLR": {"step_size": 3, "gamma": 0.5},
}


def spec(folder: Path, *overrides: str) -> TrainSpec:
    return small_config(folder, *overrides).train_spec


def scheduler_spec(kind: str, **arguments: object) -> Section:
    return of_kind(SchedulerSpec, kind).model_validate({"kind": kind, **arguments})


def built(train_spec: TrainSpec) -> tuple[torch.optim.Optimizer, lr_scheduler.LRScheduler | None]:
    optimizer = parsers.build_optimizer(train_spec, nn.Linear(2, 1))
    return optimizer, parsers.build_scheduler(train_spec, optimizer)


def rates(train_spec: TrainSpec, steps: int) -> list[float]:
    """The learning rate of each step."""
    optimizer, scheduler = built(train_spec)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "argument", "there", "expected"),
    [
        ((), None, 2, "cpu"),
        ("auto", None, 0, "cpu"),
        ("auto", None, 2, "cuda:0"),
        ((1,), None, 2, "cuda:1"),
        ((1,), "cpu", 2, "cpu"),
        ((), "cuda:1", 2, "cuda:1"),
        ((), "cuda", 2, "cuda:0"),
        ((), "auto", 0, "cpu"),
        ((7,), "auto", 1, "cuda:0"),
    ],
)
def test_the_argument_beats_the_key(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...] | str, argument: str | None, there: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert devices.devices_of(gpus, argument)[0] == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "argument", "there"), [((0,), None, 0), ((2,), None, 2), ((), "cuda:2", 2), ((), "cuda", 0)]
)
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...], argument: str | None, there: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError, match=rf"device cuda.*shows {there} GPUs.*--device cpu") as caught:
        devices.devices_of(gpus, argument)
    assert caught.value.status == 2


# --- schedulers -------------------------------------------------------------------------------------------------------


def test_the_arguments_of_schedulers_are_those_of_pytorch() -> None:
    """All classes but those that need functions, other schedulers or a measured value; OneCycleLR counts in steps."""
    need_more = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}
    there = {
        name: inspect.signature(kind).parameters
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert KINDS[SchedulerSpec].keys() == SCHEDULERS.keys() == there.keys() - need_more
    not_ours = {"optimizer", "last_epoch", "scale_fn", "epochs", "steps_per_epoch"}
    for name, section in KINDS[SchedulerSpec].items():
        theirs = {key: argument.default for key, argument in there[name].items() if key not in not_ours}
        needed = {key for key, default in theirs.items() if default is inspect.Parameter.empty}
        needed |= {"total_steps"} if name == "OneCycleLR" else set()
        fields = {key: field for key, field in section.model_fields.items() if key != "kind"}
        assert {key for key, field in fields.items() if field.is_required()} == needed, name
        defaults = {key: field.default for key, field in fields.items() if key not in needed}
        assert defaults == {key: default for key, default in theirs.items() if key not in needed}, name


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_scheduler_resumes_from_its_saved_state(tmp_path: Path, kind: str, warmup: int) -> None:
    train_spec = spec(tmp_path, f"train_spec.warmup={warmup}").model_copy(
        update={"scheduler": scheduler_spec(kind, **SCHEDULERS[kind])}
    )

    def scheduled(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler | None:
        return parsers.build_scheduler(train_spec, optimizer)

    whole, first, second = (toy_trainer(tmp_path, scheduler=scheduled) for _ in range(3))
    expected = []
    for _ in range(12):
        whole.step()
        expected.append(whole.optimizer.param_groups[0]["lr"])
    for _ in range(5):
        first.step()
    first.save_state()
    second.resume(checkpoints.load(first.state_path))
    found = []
    for _ in range(7):
        second.step()
        found.append(second.optimizer.param_groups[0]["lr"])
    assert found == expected[5:]
    assert len(set(expected)) > 1
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_scheduler_the_rate_stays(tmp_path: Path) -> None:
    assert rates(spec(tmp_path), 5) == 5 * [0.01]


def test_the_warmup_rises_in_a_line_and_then_stays(tmp_path: Path) -> None:
    expected = [0.01 * min(1, (step + 1) / 5) for step in range(8)]
    assert rates(spec(tmp_path, "train_spec.warmup=4"), 8) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("StepLR", lambda s: 0.5 ** (s // 3)),
        ("MultiStepLR", lambda s: 0.1 ** ((s >= 3) + (s >= 6))),
        ("ExponentialLR", lambda s: 0.9**s),
        ("PolynomialLR", lambda s: max(0.0, 1 - s / 8) ** 2),
        ("CosineAnnealingLR", lambda s: (1 + torch.tensor(torch.pi * s / 10).cos().item()) / 2),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_scheduler_begins_after_the_warmup(tmp_path: Path, kind: str, formula, warmup: int) -> None:  # type: ignore[no-untyped-def]
    train_spec = spec(tmp_path, f"train_spec.warmup={warmup}")
    train_spec = train_spec.model_copy(update={"scheduler": scheduler_spec(kind, **SCHEDULERS[kind])})
    risen = [0.01 * (step + 1) / (warmup + 1) for step in range(warmup)]
    assert rates(train_spec, warmup + 10) == pytest.approx(risen + [0.01 * formula(s) for s in range(10)], abs=1e-8)


def test_a_scheduler_that_does_not_work_with_the_optimizer_is_said(tmp_path: Path) -> None:
    cycle = "train_spec.scheduler={kind: CyclicLR, base_lr: 0.1, max_lr: 1}"
    with pytest.raises(UserError, match=r"train_spec\.scheduler: CyclicLR: .*momentum"):
        built(spec(tmp_path, cycle, "train_spec.optimizer=Adagrad"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_from_its_saved_state(tmp_path: Path, name: str) -> None:
    keys = [f"train_spec.optimizer={name}", "train_spec.weight_decay=0.1", "train_spec.betas=[0.8, 0.9]"]
    train_spec = spec(tmp_path, *keys)
    pytorch = inspect.signature(getattr(torch.optim, name)).parameters
    assert "betas" not in pytorch or pytorch["betas"].default == TrainSpec.model_fields["betas"].default

    def optimizer(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        holder = nn.ParameterList(parameters)
        made = parsers.build_optimizer(train_spec, holder)
        assert type(made).__name__ == name
        assert made.defaults.get("betas") == ((0.8, 0.9) if "betas" in pytorch else None)
        assert not (name == "Adagrad" and made.defaults["fused"])  # no GPU's before torch 2.13
        assert made.param_groups[0]["lr"] == 0.01 and made.param_groups[0]["weight_decay"] == 0.1
        return made

    whole, first, second = (toy_trainer(tmp_path, optimizer=optimizer) for _ in range(3))
    for _ in range(9):
        whole.step()
    for _ in range(4):
        first.step()
    first.save_state()
    second.resume(checkpoints.load(first.state_path))
    for _ in range(5):
        second.step()
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [20, 26, 28, 47, 64])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_networks_fit_the_images(tmp_path: Path, side: int, likelihood: str) -> None:
    sizes = [f"{part}.resize={side}" for part in ("train_data", "val_data", "test_data")]
    small = small_config(tmp_path, *sizes, f"model.likelihood={likelihood}")
    model = parsers.build_model(small, CPU)
    assert model.get_parameter("dummies").shape == (2, side, side)
    batch = parsers.train_loader(small, parsers.training_images(small, CPU)).at(0)
    assert batch.x.shape == (2, 4, side, side)
    loss, metrics = model.loss(batch, StepNoise(CPU, 0))
    assert loss.isfinite() and metrics["bound"].shape == (2, 4)
    samples, _ = model.sample(batch.memory, StepNoise(CPU, 0), 3)
    assert samples.shape == (3, 2, side, side)


def count(folder: Path, *overrides: str) -> int:
    return sum(p.numel() for p in parsers.build_model(small_config(folder, *overrides), CPU).parameters())


@pytest.mark.parametrize(
    "override",
    [
        "model.channels=[8, 4]",
        "model.channels=[4, 8]",
        "model.hidden=[9, 8]",
        "model.hidden=[8, 9]",
        "model.latent_dim=5",
        "model.matching_dim=5",
        "model.num_dummies=3",
        "model.address_prior=learned",
        "model.head_hidden=5",
    ],
)
def test_every_size_of_the_model_is_read(tmp_path: Path, override: str) -> None:
    assert count(tmp_path, override) > count(tmp_path)


def test_the_model_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    plain = parsers.build_model(small_config(tmp_path), CPU)
    assert isinstance(plain, VMA) and not list(plain.p_a.parameters())
    assert (plain.importance_num, plain.objective, plain.p_x.memory_code.out_features) == (2, "vimco", 4)
    other = parsers.build_model(
        small_config(
            tmp_path, "model.address_prior=learned", "model.importance_num=7", "train_spec.objective=marginal"
        ),
        CPU,
    )
    assert isinstance(other, VMA) and [p.shape for p in other.p_a.parameters()] == [(2,)]
    assert (other.importance_num, other.objective) == (7, "marginal")


def digest(small: Config) -> str:
    return checkpoints.digest(parsers.build_model(small, CPU).state_dict())


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = digest(small_config(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert digest(small_config(tmp_path, "train_spec.lr=1", "train_spec.steps=7")) == first
    assert digest(small_config(tmp_path, "train_spec.seed=1")) != first


# --- the data ---------------------------------------------------------------------------------------------------------


def test_held_out_classes_are_not_trained_on(tmp_path: Path) -> None:
    small = small_config(tmp_path)
    images = parsers.training_images(small, CPU)
    assert (images.train.num_classes, images.held_out.num_classes) == (5, 3)
    assert not set(images.train.names) & set(images.held_out.names)
    assert images.train.images.shape[1:] == (20, 20)
    assert parsers.training_images(small, CPU).held_out.names == images.held_out.names
    drawn = {
        parsers.training_images(small_config(tmp_path, f"train_spec.seed={n}"), CPU).held_out.names for n in range(4)
    }
    assert len(drawn) > 1


def test_without_held_out_classes_there_is_no_validation(tmp_path: Path) -> None:
    small = small_config(tmp_path, "train_data.held_out_classes=0")
    images = parsers.training_images(small, CPU)
    assert images.train.num_classes == 8
    assert parsers.validation_loader(small, images) is None


def test_test_classes_are_others(tmp_path: Path) -> None:
    small = small_config(tmp_path)
    train, test = parsers.training_images(small, CPU), parsers.test_images(small, CPU)
    assert not set(test.names) & {*train.train.names, *train.held_out.names}


def test_loaders_compose_what_the_configuration_says(tmp_path: Path) -> None:
    small = small_config(tmp_path)
    images = parsers.training_images(small, CPU)
    train = parsers.train_loader(small, images)
    assert train.at(0).x.shape[:2] == (2, 4) and train.at(0).memory.shape[:2] == (2, 4)
    validation = parsers.validation_loader(small, images)
    assert validation is not None
    assert validation.at(0).x.shape[:2] == (8, 1)
    assert not torch.equal(train.at(0).x_index, train.at(1).x_index)
    other = parsers.train_loader(small_config(tmp_path, "train_spec.seed=1"), images)
    assert not torch.equal(train.at(0).x_index, other.at(0).x_index)


def test_cells_share_their_targets(tmp_path: Path) -> None:
    small = small_config(tmp_path)
    test = parsers.test_images(small, CPU)
    cells = [parsers.grid_episodes(small, test, c, m) for c, m in ((1, 1), (1, 3), (2, 3))]
    first, *others = [cell.batch(slice(None)).x_index for cell in cells]
    assert len(cells[0]) == 12
    assert all(torch.equal(first, other) for other in others)
    assert len(parsers.grid_episodes(small_config(tmp_path, "test_spec.targets=null"), test, 1, 1)) == len(test.images)


@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="the environment variable OMNIGLOT_ROOT is not set")
def test_the_published_experiment_has_its_images() -> None:
    root = os.environ["OMNIGLOT_ROOT"]
    overrides = [f'{part}.root="{root}"' for part in ("train_data", "val_data", "test_data")]
    published = configuration.load(ROOT / "configs" / "vma.yaml", overrides)
    images, test = parsers.training_images(published, CPU), parsers.test_images(published, CPU)
    assert (images.train.num_classes, images.held_out.num_classes) == (916, 48)
    assert test.num_classes == 659 and test.images.shape == (13180, 26, 26)
    assert not set(test.names) & {*images.train.names, *images.held_out.names}
    for c, m in ((1, 1), (1, 19), (2, 19)):
        cell = parsers.grid_episodes(published, test, c, m)
        assert len(cell) == 13180
        batch = cell.batch(slice(0, 13180, 97))
        assert batch.memory.shape[1] == m
        assert not (batch.memory_index == batch.x_index).any()
    validation = parsers.validation_loader(published, images)
    assert validation is not None and validation.at(0).x.shape[1:] == (1, 26, 26)


@pytest.mark.parametrize("batch", [8, 16, 24, 48])
@pytest.mark.parametrize("more", [None, 6])
def test_a_training_takes_as_many_gpus_as_its_batch_divides_among(tmp_path: Path, batch: int, more: int | None) -> None:
    one = f"{{weight: 1, timesteps: 3, max_img_per_class: 1, targets_per_memory: {more}}}"
    if more and batch % more:
        return
    configured = small_config(
        tmp_path, f"train_data.batch_size={batch}", f"train_data.mixture={'null' if more is None else f'[{one}]'}"
    )
    images = parsers.training_images(configured, CPU)
    for most in range(1, 9):
        works = []
        for world in range(1, most + 1):
            with contextlib.suppress(UserError):
                parsers.train_loader(configured, images, Shard(0, world))
                works.append(world)
        assert parsers.most_processes(configured.train_data, most) == max(works)


@pytest.mark.parametrize("subset", ["train", "held_out"])
def test_a_test_may_be_of_the_classes_of_the_training(tmp_path: Path, subset: str) -> None:
    config = small_config(tmp_path, f"test_spec.subset={subset}")
    tested, training = parsers.test_images(config, CPU), parsers.training_images(config, CPU)
    assert tested.names == getattr(training, subset).names
    assert not set(tested.names) & set((training.held_out if subset == "train" else training.train).names)


def test_a_control_has_memories_of_other_classes_only(tmp_path: Path) -> None:
    config = small_config(tmp_path, "test_spec.own_class=false")
    b = parsers.grid_episodes(config, parsers.test_images(config, CPU), 2, 3).batch(slice(None))
    assert not (b.memory_class == b.x_class).any()
