"""The schema of the configuration: strict YAML in, a frozen, typed and complete `Config` out.

Imports no torch, so a mistake in a file is answered at once.  Every mistake is listed in one `ConfigError`.
"""

import difflib
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from config import strict_yaml
from config.constraints import Problem, contradictions
from data.registry import DATA_SETS
from runtime.errors import UserError

_log = logging.getLogger(__name__)

# Keys of the published configuration that have no use here: episodes are drawn on the device, without worker processes,
# the loss is always the full one, and schedulers count steps.
PUBLISHED_WITHOUT_USE = ("train_spec.full_loss", "train_spec.scheduler.times", "train_spec.n_jobs", "test_spec.n_jobs")

# What a resumed run may change without becoming another run.  A key stands for everything below it.
MAY_CHANGE_ON_RESUME = (
    "train_spec.steps",
    "train_spec.checkpoint_path",
    "train_spec.log_file",
    "train_spec.gpus",
    "train_spec.val_every",
    "train_spec.log_every",
    "train_spec.save_every",
    "train_spec.gradient_samples",
    "train_data.root",
    "train_data.iter",
    "val_data.root",
    "test_data",
    "test_spec",
)

# What must agree between a checkpoint and the config that goes on from its weights.
NETWORK_KEYS = (
    "model.kind",
    "model.autoencoder",
    "model.likelihood",
    "model.latent_dim",
    "model.matching_dim",
    "model.num_dummies",
    "model.address_prior",
    "model.channels",
    "model.hidden",
    "test_data.resize",
)

# What must agree between a checkpoint and the config it is tested with.
MODEL_KEYS = (
    *NETWORK_KEYS,
    "test_data.resample",
    "test_data.split",  # classes of one split's test are among those of the other's training
)
# What chooses the classes that are trained on and held out.
HELD_OUT_KEYS = (
    "train_data.kind",
    "train_data.split",
    "train_data.classes",
    "train_data.held_out_classes",
    "train_spec.seed",
)

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD")

_LONGEST_LIST = 1000
_LARGEST = 10**15
_STEPS_PER_EPOCH = 1000


class ConfigError(UserError):
    """The configuration is wrong; the message has one line for every mistake."""


# --- types of single values -------------------------------------------------------------------------------------------


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e5


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text; put quotes around it if it looks like something else")
    if not value or not value.isprintable():
        raise ValueError("expected text that is not empty and has no control characters")
    return value


def _expand(value: object) -> object:
    """A list of whole numbers as a tuple, with `a..b` written out."""
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of whole numbers, such as [1..5, 10]")
    numbers: list[object] = []
    for item in value[: _LONGEST_LIST + 1]:
        ends = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", item) if isinstance(item, str) else None
        if not ends:
            numbers.append(_whole(item))
            continue
        first, last = int(ends[1]), int(ends[2])
        if not first <= last < first + _LONGEST_LIST:
            raise ValueError(f"expected a range {item} that rises, by less than {_LONGEST_LIST}")
        numbers += range(first, last + 1)
    if len(numbers) > _LONGEST_LIST:
        raise ValueError(f"expected at most {_LONGEST_LIST} numbers")
    if twice := sorted(n for n, times in Counter(n for n in numbers if isinstance(n, int)).items() if times > 1):
        raise ValueError(f"expected every number once, {twice[0]} is there twice")
    return tuple(numbers)


def _gpus(value: object) -> object:
    if value == "auto":
        return value
    numbers = _expand(value) if isinstance(value, list | tuple) else None
    if not isinstance(numbers, tuple) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("expected auto, [] for the CPU, or a list of GPU numbers such as [0, 1]")
    return numbers


def _pair(value: object) -> object:
    return tuple(_whole(item) for item in value) if isinstance(value, list | tuple) else value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else () if value is None else value


def _side(value: object) -> object:
    """The side of a square image, given as n or as [n, n]."""
    if not isinstance(value, list | tuple):
        return _whole(value)
    if len(value) != 2 or value[0] != value[1]:
        raise ValueError("expected one number or two equal ones; images are square")
    return _whole(value[0])


def _optimizer(value: object) -> str:
    names = {name.lower(): name for name in OPTIMIZERS}
    if not isinstance(value, str) or value.lower() not in names:
        raise ValueError(f"expected one of {', '.join(OPTIMIZERS)}")
    return names[value.lower()]


def _data_kind(value: object) -> str:
    if not isinstance(value, str) or value not in DATA_SETS:
        raise ValueError(f"expected one of {', '.join(DATA_SETS)}")
    return value


def _metric(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"elbo(@[1-9][0-9]{0,8})?", value.lower()):
        raise ValueError("expected elbo, or elbo@N with N equal to importance_num")
    return value.lower()


def _argument(value: object) -> object:
    """An argument of a scheduler: a number, text, a switch, null, or a list of these (kept as a tuple)."""
    if isinstance(value, list | tuple):
        return tuple(_argument(item) for item in value)
    if isinstance(value, str):
        return _text(value)
    if value is not None and not isinstance(value, int | float):
        raise ValueError("expected a number, text, true or false, or a list of these")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("expected a finite number")
    return value


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(le=_LARGEST, ge=-_LARGEST)]
Positive: TypeAlias = Annotated[Whole, Field(ge=1)]
Natural: TypeAlias = Annotated[Whole, Field(ge=0)]
Text: TypeAlias = Annotated[str, PlainValidator(_text)]
Gpus: TypeAlias = Annotated[tuple[int, ...] | Literal["auto"], PlainValidator(_gpus)]
Widths: TypeAlias = Annotated[tuple[Positive, Positive], BeforeValidator(_pair)]
Side: TypeAlias = Annotated[int, BeforeValidator(_side), Field(ge=20, le=64)]
Optimizer: TypeAlias = Annotated[str, PlainValidator(_optimizer)]
DataKind: TypeAlias = Annotated[str, PlainValidator(_data_kind)]
Metric: TypeAlias = Annotated[str, PlainValidator(_metric)]
Argument: TypeAlias = Annotated[Any, PlainValidator(_argument)]
PositiveList: TypeAlias = Annotated[tuple[Positive, ...], BeforeValidator(_expand), Field(min_length=1)]
NaturalList: TypeAlias = Annotated[tuple[Natural, ...], BeforeValidator(_expand), Field(min_length=1)]


# --- sections ---------------------------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The networks."""

    kind: Literal["vma"] = "vma"
    autoencoder: Literal["omniglot"] = "omniglot"
    likelihood: Literal["bernoulli", "normal"] = "bernoulli"
    latent_dim: Positive = 64
    matching_dim: Positive = 200
    importance_num: Positive = 4
    num_dummies: Natural = 2
    address_prior: Literal["uniform", "learned"] = "uniform"
    channels: Widths = (48, 64)  # feature maps at the two finer scales and at the coarser ones
    hidden: Widths = (100, 256)  # dense layers of the encoder and of the decoder


class DataConfig(_Section):
    """Images, and the memories that are composed of them."""

    kind: DataKind
    root: Text | None = None
    batch_size: Positive  # targets
    timesteps: Natural  # images in a memory
    exact: bool
    max_img_per_class: Positive | None = None
    max_batch_cls: Positive | None = None
    iter: Positive | None = None  # steps per epoch
    resize: Side = 26
    split: Literal["official", "45-5"] = "official"
    resample: Literal["nearest-exact", "nearest", "maxpool"] = "nearest-exact"
    classes: Positive = 200  # of training, glyphs only


class AugmentConfig(_Section):
    """One random map for all images of a class in an episode."""

    keep: Annotated[float, Field(ge=0, le=1)] = 0.5  # probability that a class is left alone
    flips: bool = True
    turns: bool = True  # by quarters
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0  # degrees, at most
    scale: Annotated[float, Field(ge=0, le=1)] = 0.15  # at most by 1 + scale, up or down
    shear: Annotated[float, Field(ge=0, le=1)] = 0.15  # at most


class MixtureConfig(_Section):
    """One more composition of memories to train with, drawn for a step with a probability ~ `weight`."""

    weight: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0  # that of the composition in train_data itself is 1
    timesteps: Positive
    exact: bool = True
    max_img_per_class: Positive | None = None
    max_batch_cls: Positive | None = None
    targets_per_memory: Positive = 1


class TrainDataConfig(DataConfig):
    """The images of training; those of validation are taken from them, class by class."""

    targets_per_memory: Positive = 1
    held_out_classes: Natural = 48  # 0 for kinds whose test has the classes of the training, such as mnist
    augment: AugmentConfig | None = None
    mixture: Annotated[tuple[MixtureConfig, ...], BeforeValidator(_tuple)] = ()

    @model_validator(mode="before")
    @classmethod
    def _none_of_tested_classes(cls, values: Any) -> Any:
        kind = values.get("kind") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind in DATA_SETS and DATA_SETS[kind].same_classes:
            return {"held_out_classes": 0, **values}
        return values


class TestDataConfig(DataConfig):
    """The images of the test.  What its memories hold is said by the grid in `TestParams`."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest makes of the name

    timesteps: Natural = 0
    exact: bool = False


class SchedulerSpec(_Section):
    """A class of torch.optim.lr_scheduler by name; every further key is an argument of it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Argument]

    kind: Text

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Everything but `kind`; lists are tuples."""
        return MappingProxyType(self.__pydantic_extra__)

    @model_validator(mode="after")
    def _named(self) -> "SchedulerSpec":
        if odd := [key for key in self.__pydantic_extra__ if not key.isidentifier() or len(key) > 60]:
            raise ValueError(f"expected names of arguments, {strict_yaml.shown(odd[0])} is none")
        return self


class TrainSpec(_Section):
    """The course of a training."""

    checkpoint_path: Text
    log_file: Text | None = None
    gpus: Gpus = "auto"
    init_from: Text | None = None  # weights to begin with
    steps: Positive
    optimizer: Optimizer = "Adam"
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scheduler: SchedulerSpec | None = None
    seed: Natural = 0
    objective: Literal["vimco", "marginal"] = "vimco"
    z_gradient: Literal["standard", "dreg"] = "standard"
    gradient_samples: Literal["all", 1] = "all"
    precision: Literal["fp32", "bf16"] = "fp32"
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: Natural = 0
    val_every: Positive | None = None
    val_targets: Positive = 2000
    log_every: Positive = 100
    save_every: Positive | None = None


class TestParams(_Section):
    """The grid: one cell for every pair of a number of classes and a memory size."""

    __test__: ClassVar[bool] = False

    max_batch_cls: PositiveList
    timesteps: NaturalList


class TestSpec(_Section):
    """The test."""

    __test__: ClassVar[bool] = False

    metric: Metric = "elbo"
    checkpoint_path: Text | None = None
    output_file: Text
    gpus: Gpus = "auto"
    test_params: TestParams
    importance_num: Positive = 1000
    targets: Positive | None = None
    subset: Literal["test", "train", "held_out"] = "test"
    own_class: bool = True
    seed: Natural = 0
    chunk: Positive | None = None


class Config(_Section):
    """Everything that defines a run.  Its parts fit together: an instance that contradicts itself cannot be made."""

    model: ModelConfig
    train_data: TrainDataConfig
    val_data: DataConfig
    test_data: TestDataConfig
    train_spec: TrainSpec
    test_spec: TestSpec

    @property
    def steps_per_epoch(self) -> int:
        return self.train_data.iter or _STEPS_PER_EPOCH

    @property
    def val_every(self) -> int:
        """Steps between two validations."""
        return self.train_spec.val_every or self.steps_per_epoch

    @property
    def save_every(self) -> int:
        """Steps between two saved states."""
        return self.train_spec.save_every or self.steps_per_epoch

    @property
    def test_checkpoint(self) -> str:
        """The checkpoint that the test reads."""
        return self.test_spec.checkpoint_path or self.train_spec.checkpoint_path

    @property
    def test_cells(self) -> list[tuple[int, int]]:
        """(max_batch_cls, timesteps) of every cell of the test grid."""
        params = self.test_spec.test_params
        return [(c, m) for c in params.max_batch_cls for m in params.timesteps]

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        sections = {name: getattr(self, name) for name in Config.model_fields}
        if wrong := [f"{path}: {text}" for path, text in contradictions(sections)]:
            raise ValueError("\n".join(wrong))
        return self


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file, changed by `dotted.key=value` overrides.  Raises ConfigError."""
    try:
        text = strict_yaml.read(path)
    except strict_yaml.StrictYamlError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(text, str(path), overrides)


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration written in `text`; `source` names it in messages.  Raises ConfigError with all mistakes."""
    try:
        raw = strict_yaml.parse(text)
    except strict_yaml.StrictYamlError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected sections ({', '.join(Config.model_fields)}), found {_kind_of(raw)}")
    overridden = [_override(raw, one) for one in overrides]
    _drop_unused(raw, source)
    problems = list(_correct_keys(raw, Config))
    sections, more = _sections(raw)
    problems += [*more, *contradictions(sections)]
    if problems:
        raise ConfigError("\n".join(f"{_origin(path, source, overridden)}: {path}: {text}" for path, text in problems))
    return Config.model_validate(sections)


def _override(raw: dict[str, Any], text: str) -> str:
    """Put `dotted.key=value` into `raw` and return the key."""
    path, equals, value = text.partition("=")
    path = path.strip()
    *parents, last = path.split(".")
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {strict_yaml.shown(text)}: expected dotted.key=value, such as train_spec.steps=200")
    try:
        new = strict_yaml.parse(value)
    except strict_yaml.StrictYamlError as error:
        hint = "; write null for nothing" if not value.strip() else ""
        raise ConfigError(f"--set {strict_yaml.shown(path)}: {error}{hint}") from None
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {strict_yaml.shown(path)}: {strict_yaml.shown(key)} is a value, not a section")
    node[last] = new
    return path


def _origin(path: str, source: str, overridden: Collection[str]) -> str:
    """Where the value at `path` was given."""
    path = path.partition("[")[0]
    return "--set" if _below(path, overridden) or any(_below(key, (path,)) for key in overridden) else source


def _drop_unused(raw: dict[str, Any], source: str) -> None:
    for path in PUBLISHED_WITHOUT_USE:
        *parents, last = path.split(".")
        node: Any = raw
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            del node[last]
            _log.warning("%s: %s has no use here and is ignored", source, path)


def _correct_keys(raw: dict[str, Any], schema: type[BaseModel], prefix: str = "") -> Iterator[Problem]:
    """Unknown keys.  Each is taken for the one that was probably meant, or out of `raw`, to find the other mistakes."""
    for key in [key for key in raw if key not in schema.model_fields]:
        value, missing = raw.pop(key), [name for name in schema.model_fields if name not in raw]
        near = difflib.get_close_matches(key, schema.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(schema.model_fields)}"
        if near and near[0] in missing:
            raw[near[0]] = value
        yield f"{prefix}{strict_yaml.shown(key)}", f"unknown key; {hint}"
    for name, field in schema.model_fields.items():
        below, value = _section_in(field.annotation), raw.get(name)
        if below is None or below.model_config.get("extra") == "allow":
            continue
        parts = enumerate(value) if isinstance(value, list) else ()
        within = {prefix + name: value, **{f"{prefix}{name}[{i}]": part for i, part in parts}}
        for path, section in within.items():
            if isinstance(section, dict):
                yield from _correct_keys(section, below, f"{path}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The schema in a type such as `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _sections(raw: Mapping[str, Any]) -> tuple[dict[str, BaseModel], list[Problem]]:
    """The sections that are right by themselves, and the mistakes in the others."""
    sections: dict[str, BaseModel] = {}
    problems: list[Problem] = []
    for name, field in Config.model_fields.items():
        schema = field.annotation
        assert isinstance(schema, type) and issubclass(schema, BaseModel)
        if name not in raw:
            problems.append((name, f"missing section; its keys are {', '.join(schema.model_fields)}"))
            continue
        try:
            sections[name] = schema.model_validate(raw[name])
        except ValidationError as error:
            problems += [_described(name, dict(one)) for one in error.errors(include_url=False)]
    return sections, problems


def _described(section: str, error: Mapping[str, Any]) -> Problem:
    parts = (f"[{part}]" if isinstance(part, int) else f".{strict_yaml.shown(part)}" for part in error["loc"])
    path = section + "".join(parts)
    if error["type"] == "missing":
        return path, "missing; this key has no default"
    if error["type"] == "model_type":
        return path, f"expected a section with keys, found {_kind_of(error['input'])}"
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return path, f"value {_shown(error['input'])}: {text.replace('a valid integer', 'a whole number')}"


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else "a section" if isinstance(value, dict) else _shown(value)


def _shown(value: object) -> str:
    return strict_yaml.shown(repr(value) if isinstance(value, str) else _yaml(value))


def _yaml(value: object) -> str:
    """A value on one line, as it is written in the file."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value)


# --- writing and comparing --------------------------------------------------------------------------------------------


_NOT_PLAIN = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # some are switches to other readers


class _Dumper(yaml.SafeDumper):
    """Writes what strict_yaml reads back: no aliases, and quotes around all that is not plainly a word or a path."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z_]*([./-][A-Za-z_]+)*", text) and text.lower() not in _NOT_PLAIN
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _write_list(dumper: yaml.SafeDumper, values: Sequence[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(tuple, _write_list)


def dump(config: Config) -> str:
    """The complete resolved configuration as YAML; `parse` reads it back to an equal object."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30)


def differences(a: Config, b: Config, ignore: Collection[str] = (), only: Collection[str] | None = None) -> list[str]:
    """What differs between the config of a checkpoint, `a`, and the present one, `b`, a line for each key.

    `ignore` and `only` hold dotted keys; each stands for everything below it.
    """
    then, now = dict(_leaves(a.model_dump())), dict(_leaves(b.model_dump()))
    return [
        f"{path}: {then.get(path, 'not set')} in the checkpoint, {now.get(path, 'not set')} now"
        for path in dict.fromkeys((*then, *now))
        if then.get(path) != now.get(path) and not _below(path, ignore) and (only is None or _below(path, only))
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _yaml(value)


def _below(path: str, keys: Collection[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)
