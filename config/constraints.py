"""What must fit together in a configuration, and the values that would work where it does not.

The sections come as they were read, each right by itself.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from config.schema import DataConfig, MixtureConfig, ModelConfig, TestDataConfig, TestSpec, TrainDataConfig, TrainSpec
from data.composition import EpisodeSpec
from data.registry import DATA_SETS, Counts, kinds_that_read

Problem: TypeAlias = tuple[str, str]  # dotted path, what is wrong and what would work

_ENOUGH = Counts(*3 * [10**18])  # more than any number in a configuration
_BESIDE_WEIGHTS = (".pt", ".last.pt", ".last-but-one.pt", ".damaged.pt", ".nonfinite.pt", ".resolved.yaml")
_BESIDE_TABLE = (".csv", ".md", ".png", ".npz", ".resolved.yaml")


def contradictions(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems between fields, as far as the sections they need are there: those that a check has as arguments."""
    for check in _CHECKS:
        needed = inspect.signature(check).parameters
        if needed.keys() <= sections.keys():
            yield from check(*(sections[name] for name in needed))


def episode_spec(data: DataConfig | MixtureConfig) -> EpisodeSpec:
    """How the memories of a section are composed."""
    keys = ("timesteps", "exact", "max_img_per_class", "max_batch_cls", "targets_per_memory")
    return EpisodeSpec(**{key: getattr(data, key) for key in keys if hasattr(data, key)})


# --- images and memories ----------------------------------------------------------------------------------------------


def _train_data(train_data: TrainDataConfig) -> Iterator[Problem]:
    """Every composition must fit the batch, and the classes that are not held out."""
    yield from _keys_of_other_kinds("train_data", train_data)
    kind, held, data_set = train_data.kind, train_data.held_out_classes, DATA_SETS[train_data.kind]
    there = data_set.counts(train_data, "train")
    if data_set.same_classes and held:
        text = f"{held} classes cannot be held out where all classes of kind {kind} are tested; use 0"
        yield "train_data.held_out_classes", text
    elif there and held >= there.classes:
        text = f"{held} leaves nothing to train on, kind {kind} has {there.classes} classes; use fewer"
        yield "train_data.held_out_classes", text
    elif there:
        there = there._replace(classes=there.classes - held)
    yield from _composition("train_data", train_data, there, train_data.batch_size)
    for number, one in enumerate(train_data.mixture):
        path = f"train_data.mixture[{number}]"
        yield from _composition(path, one, there, train_data.batch_size, fixed=("batch_size",))


def _val_data(train_data: TrainDataConfig, val_data: DataConfig) -> Iterator[Problem]:
    """Validation draws its memories from the held-out classes; without any there is no validation."""
    data_set = DATA_SETS[train_data.kind]
    yield from _keys_of_other_kinds("val_data", val_data)
    of_the_kind = {"split", "classes"}.intersection(data_set.reads)
    yield from _same(train_data, "val_data", val_data, "kind", "resize", "resample", *of_the_kind)
    there = data_set.counts(train_data, "train")
    yield from (problems := list(_composition("val_data", val_data, there, val_data.batch_size)))
    held, needed = train_data.held_out_classes, episode_spec(val_data).most_classes
    if not problems and not data_set.same_classes and 0 < held < needed:
        text = f"{held} classes are too few for a memory of val_data, which may need {needed} (timesteps"
        way_out = f"use 0 (no validation), {needed} or more, or a smaller val_data.timesteps"
        yield "train_data.held_out_classes", f"{text} {val_data.timesteps}); {way_out}"


def _test_data(train_data: TrainDataConfig, test_data: TestDataConfig) -> Iterator[Problem]:
    yield from _keys_of_other_kinds("test_data", test_data)
    yield from _same(train_data, "test_data", test_data, "kind", "resize", "resample", "split")


def _composition(
    path: str, data: DataConfig | MixtureConfig, there: Counts | None, batch_size: int, fixed: Collection[str] = ()
) -> Iterator[Problem]:
    """Where only reading the images tells how many there are, they are taken to be enough; the episodes check again."""
    there = there or _ENOUGH
    for key, text in episode_spec(data).problems(there.classes, there.smallest, batch_size, fixed):
        yield f"{path}.{key}", text


def _keys_of_other_kinds(section: str, data: DataConfig) -> Iterator[Problem]:
    reads = DATA_SETS[data.kind].reads
    if "root" in reads and data.root is None:
        yield f"{section}.root", f"missing; kind {data.kind} needs the folder where the data is or may be put"
    for key in ("split", "classes"):
        value, default = getattr(data, key), type(data).model_fields[key].default
        if key not in reads and value != default:
            text = f"{value} is for kind {kinds_that_read(key)}, this is kind {data.kind}; use {default}"
            yield f"{section}.{key}", f"{text} or leave it out"


def _same(train_data: TrainDataConfig, section: str, data: DataConfig, *keys: str) -> Iterator[Problem]:
    for key in keys:
        here, there = getattr(data, key), getattr(train_data, key)
        if here != there:
            yield f"{section}.{key}", f"{here} differs from train_data.{key} {there}; use the same for both"


def _test_grid(test_data: TestDataConfig, test_spec: TestSpec) -> Iterator[Problem]:
    """Every cell draws by max_batch_cls with exact: false, so one class may have to fill a memory."""
    there = DATA_SETS[test_data.kind].counts(test_data, "test")
    if test_spec.subset != "test" or there is None:
        return  # the episodes check
    grid = test_spec.test_params
    for key, values, most, what in (
        ("test_params.timesteps", grid.timesteps, there.smallest - 1, "images of a class of test_data less the target"),
        ("test_params.max_batch_cls", grid.max_batch_cls, there.classes, "classes of test_data"),
        ("targets", (test_spec.targets or 0,), there.images, "images of test_data"),
    ):
        if large := [value for value in values if value > most]:
            yield f"test_spec.{key}", f"{large[0]} is more than {most}, the {what}; use up to {most}"


def _without_dummies(
    model: ModelConfig, train_data: TrainDataConfig, val_data: DataConfig, test_spec: TestSpec
) -> Iterator[Problem]:
    smallest = {"train_data": train_data.timesteps, "val_data": val_data.timesteps}
    smallest["test_spec.test_params"] = min(test_spec.test_params.timesteps)
    for path, timesteps in smallest.items():
        if not timesteps and not model.num_dummies:
            text = "0 leaves nothing to address where model.num_dummies is 0; use 1 or more of either"
            yield f"{path}.timesteps", text


# --- model, training and test -----------------------------------------------------------------------------------------


def _samples(model: ModelConfig, train_spec: TrainSpec) -> Iterator[Problem]:
    if train_spec.objective == "vimco" and model.importance_num < 2:
        text = "is too few for train_spec.objective vimco, which compares samples; use 2 or more, or objective marginal"
        yield "model.importance_num", f"{model.importance_num} {text}"


def _warmup(train_spec: TrainSpec) -> Iterator[Problem]:
    if (warmup := train_spec.warmup) > (steps := train_spec.steps):
        yield "train_spec.warmup", f"{warmup} is more than train_spec.steps {steps}; use up to {steps}"


def _scheduler(train_spec: TrainSpec) -> Iterator[Problem]:
    """Beyond its length the rate of some would rise again, or there is none."""
    steps = train_spec.steps - train_spec.warmup
    for name in ("T_max", "total_steps"):
        if (length := getattr(train_spec.scheduler, name, steps)) < steps:
            text = f"{length} is less than the {steps} steps of the schedule; use {steps} or more"
            yield f"train_spec.scheduler.{name}", text


def _subset(train_data: TrainDataConfig, test_spec: TestSpec) -> Iterator[Problem]:
    if test_spec.subset == "held_out" and not train_data.held_out_classes:
        text = "held_out has no classes where train_data.held_out_classes is 0; use test or train"
        yield "test_spec.subset", text


def _metric(model: ModelConfig, test_spec: TestSpec) -> Iterator[Problem]:
    metric, samples, latent = test_spec.metric, test_spec.importance_num, model.latent_dim
    if metric not in ("nll", "elbo", f"elbo@{samples}"):
        text = f"{metric} differs from test_spec.importance_num {samples}; use elbo or elbo@{samples}"
        yield "test_spec.metric", text
    if metric == "nll" and latent:
        text = f"nll is an exact sum over addresses; with model.latent_dim {latent} there is only a bound"
        yield "test_spec.metric", f"{text}; use elbo, or latent_dim 0"
    if test_spec.addresses and metric != "nll":
        text = f"{test_spec.addresses} of the addresses are summed over by metric nll, and this is {metric}"
        yield "test_spec.addresses", f"{text}; use null, or metric nll"
    if test_spec.sampled_addresses and not test_spec.addresses:
        text = f"{test_spec.sampled_addresses} are drawn beside likely ones, and test_spec.addresses null sums over all"
        yield "test_spec.sampled_addresses", f"{text}; use 0, or a number of addresses"
    if (rounds := test_spec.address_rounds) > (test_spec.addresses or 1):
        text = f"{rounds} rounds need as many addresses, and test_spec.addresses is {test_spec.addresses or 'null'}"
        yield "test_spec.address_rounds", f"{text}; use 1, or at least {rounds} addresses"


def _orders(model: ModelConfig, train_spec: TrainSpec) -> Iterator[Problem]:
    if (drawn := train_spec.orders or 1) > model.orders:
        text = f"{drawn} orders cannot be drawn of model.orders {model.orders}"
        yield "train_spec.orders", f"{text}; use up to {model.orders}, or null"
    if model.orders > 1 and model.likelihood != "causal":
        text = f"{model.orders} orders of pixels, which model.likelihood {model.likelihood} draws in none"
        yield "model.orders", f"{text}; use 1, or likelihood causal"


def _scales(model: ModelConfig) -> Iterator[Problem]:
    if list(model.scales) != (rising := sorted({1.0, *model.scales})):
        yield "model.scales", f"{list(model.scales)} must contain 1, the image as it is, and rise; use {rising}"


def _read(model: ModelConfig, train_spec: TrainSpec) -> Iterator[Problem]:
    if model.read != "soft":
        return
    if not model.latent_dim:
        yield "model.read", "with soft z decides what is read, and model.latent_dim 0 leaves no z; use address"
    if model.max_shift:
        yield "model.max_shift", f"{model.max_shift} moves the picked image, and model.read soft picks none; use 0"
    if len(model.scales) > 1:
        yield "model.scales", f"{list(model.scales)} stretch the picked image, and model.read soft picks none; use [1]"
    if model.neighbours:
        yield "model.neighbours", "true looks beside the picked image, and model.read soft picks none; use false"
    for name, only in (("objective", "vimco"), ("gradient_samples", "all"), ("z_gradient", "standard")):
        if (value := getattr(train_spec, name)) != only:
            yield f"train_spec.{name}", f"{value} needs addresses, which model.read soft has none of; use {only}"


def _files(train_spec: TrainSpec, test_spec: TestSpec) -> Iterator[Problem]:
    """Files that are written must not be written over, and be read as what they are."""
    weights, table, log = train_spec.checkpoint_path, test_spec.output_file, train_spec.log_file
    for path, name, end in (("train_spec.checkpoint_path", weights, ".pt"), ("test_spec.output_file", table, ".csv")):
        if not name.endswith(end):
            yield path, f"{name} does not end in {end}, as the names of its neighbours need"
    taken = {weights.removesuffix(".pt") + end for end in _BESIDE_WEIGHTS}
    if log in taken | {table.removesuffix(".csv") + end for end in _BESIDE_TABLE}:
        yield "train_spec.log_file", f"{log} is the name of another file; choose another"


_CHECKS: tuple[Callable[..., Iterator[Problem]], ...] = (
    _train_data, _val_data, _test_data, _test_grid, _without_dummies, _samples, _warmup, _scheduler, _subset, _metric,
    _orders, _scales, _read, _files,
)  # fmt: skip
