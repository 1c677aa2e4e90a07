"""What must fit together in a configuration, and the values that would work where it does not.

The sections come as they were read, each right by itself.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from config.schema import DataConfig, MixtureConfig, ModelConfig, TestDataConfig, TestSpec, TrainDataConfig, TrainSpec
from data.composition import EpisodeSpec
from data.registry import DATA_SETS, Counts, kinds_that_read

Problem: TypeAlias = tuple[str, str]  # dotted path, what is wrong and what would work


def contradictions(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems between fields, as far as the sections they need are there."""
    for needed, check in _CHECKS:
        if all(name in sections for name in needed):
            yield from check(*(sections[name] for name in needed))


def _train_memory(data: TrainDataConfig) -> Iterator[Problem]:
    yield from _composition("train_data", data, _trained_on(data))


def _mixture(data: TrainDataConfig) -> Iterator[Problem]:
    """Every further composition must fit the classes and the batch as the first one does."""
    there = _trained_on(data)
    for number, one in enumerate(data.mixture):
        for key, text in _problems(episode_spec(one), there, data.batch_size, fixed=("batch_size",)):
            yield f"train_data.mixture[{number}].{key}", text


def _validation_memory(train: TrainDataConfig, val: DataConfig) -> Iterator[Problem]:
    """Validation draws its memories from the held-out classes; without any there is no validation."""
    there = counts(train, "train")
    yield from _composition("val_data", val, there)
    if DATA_SETS[train.kind].same_classes or not train.held_out_classes or any(_composition("val_data", val, there)):
        return
    if (needed := episode_spec(val).most_classes) > train.held_out_classes:
        yield (
            "train_data.held_out_classes",
            f"{train.held_out_classes} classes are too few for a memory of val_data, which may need {needed} "
            f"(timesteps {val.timesteps}); use 0 (no validation), {needed} or more, or a smaller val_data.timesteps",
        )


def _held_out(data: TrainDataConfig) -> Iterator[Problem]:
    path, held, there = "train_data.held_out_classes", data.held_out_classes, counts(data, "train")
    if DATA_SETS[data.kind].same_classes and held:
        yield path, f"{held} classes cannot be held out where all classes of kind {data.kind} are tested; use 0"
    elif there and held >= there.classes:
        yield path, f"{held} leaves nothing to train on, kind {data.kind} has {there.classes} classes; use fewer"


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


def _test_grid(data: TestDataConfig, spec: TestSpec) -> Iterator[Problem]:
    """Every cell draws by max_batch_cls with exact: false, so one class may have to fill a memory."""
    there = counts(data, "test")
    if spec.subset != "test" or there is None:
        return  # episodes check themselves
    path, most = "test_spec.test_params", there.smallest - 1
    if large := [m for m in spec.test_params.timesteps if m > most]:
        text = f"{large[0]} is more than {most}, the images of a class of test_data less the target; use up to {most}"
        yield f"{path}.timesteps", text
    if many := [c for c in spec.test_params.max_batch_cls if c > there.classes]:
        text = f"{many[0]} is more than {there.classes}, the classes of test_data; use up to {there.classes}"
        yield f"{path}.max_batch_cls", text


def _same_images(train: TrainDataConfig, val: DataConfig, test: TestDataConfig) -> Iterator[Problem]:
    for name, other in (("val_data", val), ("test_data", test)):
        for field in ("kind", "resize", "resample", "split"):
            here, there = getattr(other, field), getattr(train, field)
            if here != there:
                yield f"{name}.{field}", f"{here} differs from train_data.{field} {there}; use the same for both"
    if train.kind == val.kind and "classes" in DATA_SETS[train.kind].reads and val.classes != train.classes:
        text = f"{val.classes} differs from train_data.classes {train.classes}, part of which they are; use the same"
        yield "val_data.classes", text


def _source(section: str) -> Callable[[DataConfig], Iterator[Problem]]:
    """The check of the keys of one data section that only some kinds of images have."""

    def check(data: DataConfig) -> Iterator[Problem]:
        reads = DATA_SETS[data.kind].reads
        if "root" in reads and data.root is None:
            yield f"{section}.root", f"missing; kind {data.kind} needs the folder where the data is or may be put"
        for key in ("split", "classes"):
            value, default = getattr(data, key), type(data).model_fields[key].default
            if key not in reads and value != default:
                text = f"{value} is for kind {kinds_that_read(key)}, this is kind {data.kind}; use {default}"
                yield f"{section}.{key}", f"{text} or leave it out"

    return check


def _samples(model: ModelConfig, spec: TrainSpec) -> Iterator[Problem]:
    if spec.objective == "vimco" and model.importance_num < 2:
        text = "is too few for train_spec.objective vimco, which compares samples; use 2 or more, or objective marginal"
        yield "model.importance_num", f"{model.importance_num} {text}"


def _dummies(model: ModelConfig, train: TrainDataConfig, val: DataConfig, spec: TestSpec) -> Iterator[Problem]:
    if model.num_dummies:
        return
    smallest = {"train_data": train.timesteps, "val_data": val.timesteps}
    smallest["test_spec.test_params"] = min(spec.test_params.timesteps)
    for path in (path for path, timesteps in smallest.items() if not timesteps):
        text = "0 leaves nothing to address where model.num_dummies is 0; use 1 or more of either"
        yield f"{path}.timesteps", text


def _subset(train: TrainDataConfig, spec: TestSpec) -> Iterator[Problem]:
    if spec.subset == "held_out" and not train.held_out_classes:
        text = "held_out has no classes where train_data.held_out_classes is 0; use test or train"
        yield "test_spec.subset", text


def _warmup(spec: TrainSpec) -> Iterator[Problem]:
    if spec.warmup > spec.steps:
        yield "train_spec.warmup", f"{spec.warmup} is more than train_spec.steps {spec.steps}; use up to {spec.steps}"


def _metric_samples(spec: TestSpec) -> Iterator[Problem]:
    if "@" in spec.metric and int(spec.metric.partition("@")[2]) != spec.importance_num:
        samples = spec.importance_num
        text = f"{spec.metric} differs from test_spec.importance_num {samples}; use elbo or elbo@{samples}"
        yield "test_spec.metric", text


def _test_size(data: TestDataConfig, spec: TestSpec) -> Iterator[Problem]:
    there = counts(data, "test")
    if spec.targets and spec.subset == "test" and there and spec.targets > there.images:
        yield "test_spec.targets", f"{spec.targets} is more than the {there.images} images of test_data; use null"


def _files(train: TrainSpec, test: TestSpec) -> Iterator[Problem]:
    """Files that are written must not be written over, and be read as what they are."""
    if not train.checkpoint_path.endswith(".pt"):
        text = f"{train.checkpoint_path} does not end in .pt, as the names of its neighbours need"
        yield "train_spec.checkpoint_path", text
    if not test.output_file.endswith(".csv"):
        yield "test_spec.output_file", f"{test.output_file} does not end in .csv, as the names of its neighbours need"
    table, weights = test.output_file.removesuffix(".csv"), train.checkpoint_path.removesuffix(".pt")
    of_weights = (".pt", ".last.pt", ".last-but-one.pt", ".nonfinite.pt", ".resolved.yaml")
    of_table = (".csv", ".md", ".png", ".npz", ".resolved.yaml")
    if train.log_file in {weights + end for end in of_weights} | {table + end for end in of_table}:
        yield "train_spec.log_file", f"{train.log_file} is the name of another file; choose another"


_CHECKS: tuple[tuple[tuple[str, ...], Callable[..., Iterator[Problem]]], ...] = (
    *(((name,), _source(name)) for name in ("train_data", "val_data", "test_data")),
    (("train_data",), _train_memory),
    (("train_data",), _mixture),
    (("train_data",), _held_out),
    (("train_data", "val_data"), _validation_memory),
    (("train_data", "val_data", "test_data"), _same_images),
    (("test_data", "test_spec"), _test_grid),
    (("model", "train_spec"), _samples),
    (("model", "train_data", "val_data", "test_spec"), _dummies),
    (("train_data", "test_spec"), _subset),
    (("train_spec",), _warmup),
    (("test_spec",), _metric_samples),
    (("test_data", "test_spec"), _test_size),
    (("train_spec", "test_spec"), _files),
)
