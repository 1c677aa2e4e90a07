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


def contradictions(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems between fields, as far as the sections they need are there: those that a check has as arguments."""
    for name in ("train_data", "val_data", "test_data"):
        if name in sections:
            yield from _source(name, sections[name])
    for check in _CHECKS:
        needed = inspect.signature(check).parameters
        if needed.keys() <= sections.keys():
            yield from check(*(sections[name] for name in needed))


def _train_memories(train_data: TrainDataConfig) -> Iterator[Problem]:
    """Every further composition must fit the classes and the batch as the first one does."""
    there = _trained_on(train_data)
    yield from _composition("train_data", train_data, there)
    for number, one in enumerate(train_data.mixture):
        for key, text in _problems(episode_spec(one), there, train_data.batch_size, fixed=("batch_size",)):
            yield f"train_data.mixture[{number}].{key}", text


def _validation_memory(train_data: TrainDataConfig, val_data: DataConfig) -> Iterator[Problem]:
    """Validation draws its memories from the held-out classes; without any there is no validation."""
    yield from (problems := list(_composition("val_data", val_data, counts(train_data, "train"))))
    held = train_data.held_out_classes
    if problems or DATA_SETS[train_data.kind].same_classes or not held:
        return
    if (needed := episode_spec(val_data).most_classes) > held:
        text = f"{held} classes are too few for a memory of val_data, which may need {needed} (timesteps"
        way_out = f"use 0 (no validation), {needed} or more, or a smaller val_data.timesteps"
        yield "train_data.held_out_classes", f"{text} {val_data.timesteps}); {way_out}"


def _held_out(train_data: TrainDataConfig) -> Iterator[Problem]:
    path, kind, held = "train_data.held_out_classes", train_data.kind, train_data.held_out_classes
    there = counts(train_data, "train")
    if DATA_SETS[kind].same_classes and held:
        yield path, f"{held} classes cannot be held out where all classes of kind {kind} are tested; use 0"
    elif there and held >= there.classes:
        yield path, f"{held} leaves nothing to train on, kind {kind} has {there.classes} classes; use fewer"


def counts(data: DataConfig, subset: str) -> Counts | None:
    """How much there is to draw from, where it is known before the images are read."""
    return DATA_SETS[data.kind].counts(data, subset)


def _trained_on(data: TrainDataConfig) -> Counts | None:
    """Without the classes that are held out; with them where `_held_out` finds fault with their number."""
    there = counts(data, "train")
    if there and data.held_out_classes < there.classes:
        return there._replace(classes=there.classes - data.held_out_classes)
    return there


def episode_spec(data: DataConfig | MixtureConfig) -> EpisodeSpec:
    """How the memories of a section are composed."""
    return EpisodeSpec(
        timesteps=data.timesteps,
        exact=data.exact,
        max_img_per_class=data.max_img_per_class,
        max_batch_cls=data.max_batch_cls,
        targets_per_memory=getattr(data, "targets_per_memory", 1),
    )


def _composition(section: str, data: DataConfig, there: Counts | None) -> Iterator[Problem]:
    """What keeps memories from being composed of what is there."""
    for key, text in _problems(episode_spec(data), there, data.batch_size):
        yield f"{section}.{key}", text


def _problems(
    spec: EpisodeSpec, there: Counts | None, batch_size: int, fixed: Collection[str] = ()
) -> Iterator[Problem]:
    """Where only reading the images tells how many there are, they are taken to be enough; the episodes check again."""
    classes, smallest = (there.classes, there.smallest) if there else (_ENOUGH, _ENOUGH)
    return spec.problems(classes, smallest, batch_size, fixed)


_ENOUGH = 10**18  # more than any number in a configuration


def _test_grid(test_data: TestDataConfig, test_spec: TestSpec) -> Iterator[Problem]:
    """Every cell draws by max_batch_cls with exact: false, so one class may have to fill a memory."""
    there = counts(test_data, "test")
    if test_spec.subset != "test" or there is None:
        return  # episodes check themselves
    path, most = "test_spec.test_params", there.smallest - 1
    if large := [m for m in test_spec.test_params.timesteps if m > most]:
        text = f"{large[0]} is more than {most}, the images of a class of test_data less the target; use up to {most}"
        yield f"{path}.timesteps", text
    if many := [c for c in test_spec.test_params.max_batch_cls if c > there.classes]:
        text = f"{many[0]} is more than {there.classes}, the classes of test_data; use up to {there.classes}"
        yield f"{path}.max_batch_cls", text
    if (targets := test_spec.targets) and targets > there.images:
        yield "test_spec.targets", f"{targets} is more than the {there.images} images of test_data; use null"


def _same_images(train_data: TrainDataConfig, val_data: DataConfig, test_data: TestDataConfig) -> Iterator[Problem]:
    for name, other in (("val_data", val_data), ("test_data", test_data)):
        for key in ("kind", "resize", "resample", "split"):
            here, there = getattr(other, key), getattr(train_data, key)
            if here != there:
                yield f"{name}.{key}", f"{here} differs from train_data.{key} {there}; use the same for both"
    kind, here, there = train_data.kind, val_data.classes, train_data.classes
    if kind == val_data.kind and "classes" in DATA_SETS[kind].reads and here != there:
        text = f"{here} differs from train_data.classes {there}, part of which they are; use the same"
        yield "val_data.classes", text


def _source(section: str, data: DataConfig) -> Iterator[Problem]:
    """The keys of a data section that only some kinds of images have."""
    reads = DATA_SETS[data.kind].reads
    if "root" in reads and data.root is None:
        yield f"{section}.root", f"missing; kind {data.kind} needs the folder where the data is or may be put"
    for key in ("split", "classes"):
        value, default = getattr(data, key), type(data).model_fields[key].default
        if key not in reads and value != default:
            text = f"{value} is for kind {kinds_that_read(key)}, this is kind {data.kind}; use {default}"
            yield f"{section}.{key}", f"{text} or leave it out"


def _samples(model: ModelConfig, train_spec: TrainSpec) -> Iterator[Problem]:
    if train_spec.objective == "vimco" and model.importance_num < 2:
        text = "is too few for train_spec.objective vimco, which compares samples; use 2 or more, or objective marginal"
        yield "model.importance_num", f"{model.importance_num} {text}"


def _dummies(
    model: ModelConfig, train_data: TrainDataConfig, val_data: DataConfig, test_spec: TestSpec
) -> Iterator[Problem]:
    if model.num_dummies:
        return
    smallest = {"train_data": train_data.timesteps, "val_data": val_data.timesteps}
    smallest["test_spec.test_params"] = min(test_spec.test_params.timesteps)
    for path in (path for path, timesteps in smallest.items() if not timesteps):
        text = "0 leaves nothing to address where model.num_dummies is 0; use 1 or more of either"
        yield f"{path}.timesteps", text


def _subset(train_data: TrainDataConfig, test_spec: TestSpec) -> Iterator[Problem]:
    if test_spec.subset == "held_out" and not train_data.held_out_classes:
        text = "held_out has no classes where train_data.held_out_classes is 0; use test or train"
        yield "test_spec.subset", text


def _warmup(train_spec: TrainSpec) -> Iterator[Problem]:
    if (warmup := train_spec.warmup) > (steps := train_spec.steps):
        yield "train_spec.warmup", f"{warmup} is more than train_spec.steps {steps}; use up to {steps}"


def _metric_samples(test_spec: TestSpec) -> Iterator[Problem]:
    metric, samples = test_spec.metric, test_spec.importance_num
    if "@" in metric and int(metric.partition("@")[2]) != samples:
        text = f"{metric} differs from test_spec.importance_num {samples}; use elbo or elbo@{samples}"
        yield "test_spec.metric", text


def _exact(model: ModelConfig, test_spec: TestSpec) -> Iterator[Problem]:
    if test_spec.samples is None and model.latent_dim:
        text = f"nll is an exact sum over addresses; with model.latent_dim {model.latent_dim} there is only a bound"
        yield "test_spec.metric", f"{text}; use elbo, or latent_dim 0"


def _files(train_spec: TrainSpec, test_spec: TestSpec) -> Iterator[Problem]:
    """Files that are written must not be written over, and be read as what they are."""
    weights, table, log = train_spec.checkpoint_path, test_spec.output_file, train_spec.log_file
    if not weights.endswith(".pt"):
        yield "train_spec.checkpoint_path", f"{weights} does not end in .pt, as the names of its neighbours need"
    if not table.endswith(".csv"):
        yield "test_spec.output_file", f"{table} does not end in .csv, as the names of its neighbours need"
    taken = {weights.removesuffix(".pt") + end for end in _BESIDE_WEIGHTS}
    if log in taken | {table.removesuffix(".csv") + end for end in _BESIDE_TABLE}:
        yield "train_spec.log_file", f"{log} is the name of another file; choose another"


_BESIDE_WEIGHTS = (".pt", ".last.pt", ".last-but-one.pt", ".nonfinite.pt", ".resolved.yaml")
_BESIDE_TABLE = (".csv", ".md", ".png", ".npz", ".resolved.yaml")

_CHECKS: tuple[Callable[..., Iterator[Problem]], ...] = (
    _train_memories, _held_out, _validation_memory, _same_images, _test_grid, _samples, _dummies, _subset, _warmup,
    _metric_samples, _exact, _files,
)  # fmt: skip
