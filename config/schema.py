"""The sections of the configuration: their keys, the types and defaults of these, and what each means.

The meanings are printed in docs/configuration.md.  What must fit together is in `constraints`.
"""

import difflib
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, create_model

from data.registry import DATA_SETS
from runtime.paths import expanded

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD")
LIKELIHOODS = ["bernoulli", "normal", "causal"]

_LONGEST_LIST = 1000
_LARGEST = 10**15
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_METRIC = re.compile(r"elbo(@[1-9][0-9]{0,8})?|nll", re.IGNORECASE)

# --- types of single values -------------------------------------------------------------------------------------------


def expected(what: str, fits: Callable[[Any], object]) -> BeforeValidator:
    """Values that `fits` holds for; the mistake is told with `what` was expected."""

    def check(value: object) -> object:
        if not fits(value):
            raise ValueError(f"expected {what}")
        return value

    return BeforeValidator(check)


def one_of(names: Collection[str]) -> BeforeValidator:
    """One of the names, which may be written in any case."""

    def check(value: object) -> str:
        found = [name for name in names if isinstance(value, str) and name.lower() == value.lower()]
        if not found:
            near = difflib.get_close_matches(str(value), names, n=1)
            raise ValueError(f"expected one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else ""))
        return found[0]

    return BeforeValidator(check)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1.5e3


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else () if value is None else value


def _side(value: object) -> object:
    """The side of a square image, given as n or as [n, n]."""
    if not isinstance(value, list):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise ValueError("expected one number or two equal ones; images are square")
    return value[0]


def _expand(value: object) -> object:
    """A list of whole numbers as a tuple, with `a..b` written out."""
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of whole numbers, such as [1..5, 10]")
    numbers: list[object] = []
    for item in value[: _LONGEST_LIST + 1]:
        if not isinstance(item, str) or not (ends := _RANGE.fullmatch(item)):
            numbers.append(_whole(item))
            continue
        first, last = int(ends[1]), int(ends[2])
        if not first <= last < first + _LONGEST_LIST:
            raise ValueError(f"expected a range {item} that rises, by less than {_LONGEST_LIST}")
        numbers += range(first, last + 1)
    if len(numbers) > _LONGEST_LIST:
        raise ValueError(f"expected at most {_LONGEST_LIST} numbers")
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise ValueError(f"expected every number once, {twice[0]} is there twice")
    return tuple(numbers)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _are_gpus(value: object) -> bool:
    return value == "auto" or (isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value))


def _list_of(number: int, what: str) -> tuple[BeforeValidator, BeforeValidator]:
    return expected(what, lambda value: isinstance(value, tuple) and len(value) == number), BeforeValidator(_tuple)


_not_empty = expected("at least one whole number, such as [1..5, 10]", bool)

Whole: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(le=_LARGEST, ge=-_LARGEST)]
Positive: TypeAlias = Annotated[Whole, Field(ge=1)]
Natural: TypeAlias = Annotated[Whole, Field(ge=0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Side: TypeAlias = Annotated[Whole, Field(ge=20, le=64), BeforeValidator(_side)]
Steps: TypeAlias = Annotated[
    tuple[Positive, ...],
    expected("a list of numbers of steps, such as [60000, 80000]", lambda value: isinstance(value, tuple) and value),
    BeforeValidator(_tuple),
]
Scales: TypeAlias = Annotated[
    tuple[Annotated[float, Field(ge=0.5, le=2)], ...],
    Field(max_length=9),
    expected("a list of numbers, such as [0.8, 1, 1.25]", lambda value: isinstance(value, tuple)),
    BeforeValidator(_tuple),
]
Betas: TypeAlias = Annotated[tuple[Beta, Beta], *_list_of(2, "two numbers below 1, such as [0.9, 0.999]")]
Widths: TypeAlias = Annotated[tuple[Positive, Positive], *_list_of(2, "two whole numbers, such as [48, 64]")]
ThreeWidths: TypeAlias = Annotated[
    tuple[Positive, Positive, Positive], *_list_of(3, "three whole numbers, such as [32, 32, 64]")
]
PositiveList: TypeAlias = Annotated[tuple[Positive, ...], _not_empty, BeforeValidator(_expand)]
NaturalList: TypeAlias = Annotated[tuple[Natural, ...], _not_empty, BeforeValidator(_expand)]
Gpus: TypeAlias = Annotated[
    tuple[int, ...] | Literal["auto"],
    expected("auto, [] for the CPU, or a list of GPU numbers such as [0, 1]", _are_gpus),
    BeforeValidator(lambda value: _expand(value) if isinstance(value, list) else value),
]
PathText: TypeAlias = Annotated[
    str,
    expected("text that is not empty and has no control characters, in quotes if it looks like a number", _is_text),
    AfterValidator(expanded),
]
Metric: TypeAlias = Annotated[
    str,
    AfterValidator(str.lower),
    expected("elbo, elbo@N with N equal to importance_num, or nll", lambda value: _METRIC.fullmatch(str(value))),
]
Likelihood: TypeAlias = Annotated[str, one_of(LIKELIHOODS)]


# --- sections ---------------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A mapping in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def section_of(annotation: Any) -> type[Section] | None:
    """The schema in a type such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((section for part in get_args(annotation) if (section := section_of(part))), None)


def key(default: Any, meaning: str, **limits: Any) -> Any:
    """A key of a section; the default `...` is none."""
    return Field(default, description=meaning, **limits)


def of_kind(base: type[Section], kind: object) -> type[Section]:
    """The section of that kind, in whatever case its name is written; `base`, which has no other keys, for no kind."""
    return next((schema for name, schema in KINDS[base].items() if name.lower() == str(kind).lower()), base)


def by_kind(base: type[Section]) -> BeforeValidator:
    """A section whose key `kind` says what its other keys are."""

    def read(value: object) -> object:
        if not isinstance(value, dict):
            return value
        kind = base.model_validate({key: value[key] for key in value if key == "kind"}).model_dump()["kind"]
        return of_kind(base, kind).model_validate({**value, "kind": kind})

    return BeforeValidator(read)


AUTOENCODERS: dict[str, type[Section]] = {}


class Autoencoder(Section):
    """The convolutional encoder and decoder; each kind has keys of its own."""

    kind: Annotated[str, one_of(AUTOENCODERS)] = "published"


class PublishedAutoencoder(Autoencoder):
    """The networks of the published code."""

    kind: Literal["published"] = "published"
    channels: Widths = key((48, 64), "feature maps at the two finer scales, and at the coarser ones")
    hidden: Widths = key((100, 256), "width of the dense layers of the encoder, and of the decoder")


class ResidualAutoencoder(Autoencoder):
    """Residual blocks at half and quarter resolution, for a short training on a few cores."""

    kind: Literal["residual"] = "residual"
    channels: ThreeWidths = key((12, 32, 64), "feature maps at full, half and quarter resolution")
    blocks: Widths = key((2, 2), "residual blocks of the decoder at half and at quarter resolution")
    encoder_blocks: Widths = key((1, 1), "those of the encoder")
    address_channels: Widths = key((16, 32), "feature maps of the address encoder at half and at quarter resolution")


AUTOENCODERS |= {"published": PublishedAutoencoder, "residual": ResidualAutoencoder}


class CausalConfig(Section):
    """The networks of `likelihood: causal`."""

    trunk_channels: Positive = key(48, "channels of the masked convolutions that see only the target")
    trunk_blocks: Natural = key(3, "number of their blocks")
    fusion_channels: Positive = key(32, "channels of the masked convolutions that also see the decoder's output")
    fusion_blocks: Natural = key(2, "number of their blocks")


class ModelConfig(Section):
    """The networks."""

    kind: Annotated[str, one_of(("vma",))] = key("vma", "the model")
    read: Literal["address", "soft"] = key(
        "address", "soft: no address, z reads an average of the memory by soft attention, a baseline"
    )
    autoencoder: Annotated[SerializeAsAny[Autoencoder], by_kind(Autoencoder)] = key(
        PublishedAutoencoder(), "encoder and decoder: a name, or a section with `kind`"
    )
    likelihood: Likelihood = key(
        "bernoulli", "p(x | z, m_a): bernoulli, normal (unit variance) or causal (autoregressive)"
    )
    causal: CausalConfig = key(CausalConfig(), "networks of the causal likelihood; not read with others")
    latent_dim: Natural = key(64, "size of z; 0: no z")
    matching_dim: Positive = key(200, "size of the embeddings whose dot products address the memory")
    importance_num: Positive = key(4, "K, samples of (a, z) a target in training; vimco needs 2 or more")
    num_dummies: Natural = key(2, "learned images appended to every memory")
    address_prior: Literal["uniform", "learned"] = key(
        "uniform", "p(a | M): uniform over memory and dummies, or with a learned logit for each dummy"
    )
    address_scale: Literal["none", "sqrt"] = key(
        "none", "sqrt: dot products are divided by the square root of matching_dim"
    )
    max_shift: Annotated[Natural, Field(le=8)] = key(
        0, "pixels by which an address may move what is made of the picked image, down and right"
    )
    scales: Scales = key((1.0,), "by how much an address may stretch it, down and right each; 1 is one of them")
    neighbours: bool = key(
        False, "features of a picked image also depend on the other images of its memory, laid onto it"
    )
    orders: Annotated[Literal[1, 2, 4, 8], expected("1, 2, 4 or 8", lambda value: type(value) is int)] = key(
        1, "of the pixels, over which p(x | M) is averaged; causal likelihoods only"
    )
    head_hidden: Natural = key(0, "width of a hidden layer in q(z | x, m_a) and p(z | m_a); 0: linear, as published")


class DataConfig(Section):
    """Images, and the memories that are composed of them."""

    kind: Annotated[str, one_of(DATA_SETS)] = key(
        ..., "the data set: omniglot, mnist, folder (yours) or glyphs (drawn here)"
    )
    root: PathText | None = key(None, "folder of the data; what can be downloaded is put there")
    batch_size: Positive = key(..., "targets in a step")
    timesteps: Natural = key(..., "M, images in a memory")
    exact: bool = key(..., "exactly as many as the next two keys say; false: at most as many, drawn each time")
    max_img_per_class: Positive | None = key(None, "images of a class in a memory; or else the next key")
    max_batch_cls: Positive | None = key(None, "C, classes in a memory")
    iter: Positive | None = key(None, "steps in an epoch (1000 for null); read in train_data only")
    resize: Side = key(26, "side of the images in pixels, 20 to 64")
    split: Literal["official", "45-5"] = key("official", "classes to train on and to test; omniglot only")
    resample: Literal["nearest-exact", "nearest", "maxpool"] = key("nearest-exact", "how images are resized")
    classes: Annotated[Positive, Field(le=100_000)] = key(200, "classes drawn for training; glyphs only")


class AugmentConfig(Section):
    """One random map for all images of a class in an episode, which makes it a new class."""

    keep: Fraction = key(0.5, "probability that a class is left alone")
    flips: bool = key(True, "mirror images")
    turns: bool = key(True, "turns by quarters")
    rotation: float = key(15.0, "degrees, at most", ge=0, le=180)
    scale: Fraction = key(0.15, "each axis by a factor of at most 1 + scale, up or down")
    shear: Fraction = key(0.15, "at most")


class MixtureConfig(Section):
    """One more composition of memories to train with, drawn for a step with a probability ~ `weight`."""

    weight: float = key(
        1.0, "how often, relative to the composition of train_data itself, whose weight is 1", ge=1e-6, le=1e6
    )
    timesteps: Positive = key(..., "as in train_data, like the next keys")
    exact: bool = True
    max_img_per_class: Positive | None = None
    max_batch_cls: Positive | None = None
    targets_per_memory: Positive = 1


Mixture: TypeAlias = Annotated[
    tuple[MixtureConfig, ...],
    expected("a list, such as [{timesteps: 5, max_img_per_class: 5}]", lambda value: isinstance(value, tuple)),
    BeforeValidator(_tuple),
]


class TrainDataConfig(DataConfig):
    """The images of training; those of validation are taken from them, class by class."""

    targets_per_memory: Positive = key(1, "targets that share a memory, equally many of each class in it")
    held_out_classes: Natural = key(48, "classes for validation only, chosen by the seed; 0 for mnist")
    augment: AugmentConfig | None = key(None, "random maps of classes")
    mixture: Mixture = key((), "a list of further compositions of memories, one of which is drawn for every step")


class TestDataConfig(DataConfig):
    """The images of the test.  What its memories hold is set by test_spec.test_params."""

    timesteps: Natural = key(0, "not read, like the next three: the memories are those of test_params")
    exact: bool = key(False, "not read")


# The schedulers of torch.optim.lr_scheduler that take no functions, other schedulers or measured values: the types of
# their arguments, and the defaults that they have there.
_MOMENTA = {"cycle_momentum": (bool, True), "base_momentum": (float, 0.8), "max_momentum": (float, 0.9)}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": (Fraction, 1 / 3), "total_iters": (Positive, 5)},
    "CosineAnnealingLR": {"T_max": (Positive, ...), "eta_min": (float, 0.0)},
    "CosineAnnealingWarmRestarts": {"T_0": (Positive, ...), "T_mult": (Positive, 1), "eta_min": (float, 0.0)},
    "CyclicLR": {
        "base_lr": (float, ...),
        "max_lr": (float, ...),
        "step_size_up": (Positive, 2000),
        "step_size_down": (Positive | None, None),
        "mode": (Literal["triangular", "triangular2", "exp_range"], "triangular"),
        "gamma": (float, 1.0),
        "scale_mode": (Literal["cycle", "iterations"], "cycle"),
        **_MOMENTA,
    },
    "ExponentialLR": {"gamma": (float, ...)},
    "LinearLR": {
        "start_factor": (Annotated[Fraction, Field(gt=0)], 1 / 3),
        "end_factor": (Fraction, 1.0),
        "total_iters": (Positive, 5),
    },
    "MultiStepLR": {"milestones": (Steps, ...), "gamma": (float, 0.1)},
    "OneCycleLR": {
        "max_lr": (float, ...),
        "total_steps": (Positive, ...),
        "pct_start": (Fraction, 0.3),
        "anneal_strategy": (Literal["cos", "linear"], "cos"),
        **_MOMENTA,
        "base_momentum": (float, 0.85),
        "max_momentum": (float, 0.95),
        "div_factor": (float, 25.0),
        "final_div_factor": (float, 1e4),
        "three_phase": (bool, False),
    },
    "PolynomialLR": {"total_iters": (Positive, 5), "power": (float, 1.0)},
    "StepLR": {"step_size": (Positive, ...), "gamma": (float, 0.1)},
}


class SchedulerSpec(Section):
    """A class of torch.optim.lr_scheduler by name; every further key is an argument of it."""

    kind: Annotated[str, one_of(_SCHEDULERS)] = key(
        ..., "a class of torch.optim.lr_scheduler; the other keys are its arguments"
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but `kind`; lists are tuples."""
        return self.model_dump(exclude={"kind"})


KINDS: dict[type[Section], dict[str, type[Section]]] = {
    Autoencoder: AUTOENCODERS,
    SchedulerSpec: {
        name: create_model(name, __base__=SchedulerSpec, **arguments) for name, arguments in _SCHEDULERS.items()
    },
}


class TrainSpec(Section):
    """The course of a training."""

    checkpoint_path: PathText = key(..., "the best weights; the state for resuming is NAME.last.pt beside them")
    log_file: PathText | None = key(None, "a line of JSON every log_every steps; null: train.jsonl in `output`")
    gpus: Gpus = key("auto", "numbers of GPUs; auto: the most that divide the batch; []: the CPU")
    init_from: PathText | None = key(None, "a checkpoint, to start from its weights")
    steps: Positive = key(..., "length of the training")
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = key("Adam", "a class of torch.optim")
    betas: Betas = key((0.9, 0.999), "decays of its averages: Adam, AdamW, NAdam, RAdam, Adamax; not read by others")
    lr: float = key(..., "learning rate", gt=0)
    weight_decay: float = key(0.0, "of the optimizer", ge=0)
    scheduler: Annotated[SerializeAsAny[SchedulerSpec] | None, by_kind(SchedulerSpec)] = key(
        None, "schedule of the learning rate, counted in steps"
    )
    seed: Natural = key(0, "of weights, episodes, noise and the choice of held-out classes")
    objective: Literal["vimco", "marginal"] = key("vimco", "marginal is the exact sum over addresses")
    z_gradient: Literal["standard", "dreg"] = key(
        "standard", "dreg is the doubly reparameterised one, for q(z | x, m_a)"
    )
    gradient_samples: Annotated[Literal["all", 1], expected("all or 1", lambda value: value is not True)] = key(
        "all", "samples the gradient goes through: all K, or 1, drawn by its weight"
    )
    orders: Positive | None = key(None, "of the pixels, so many drawn for each memory; null: all of model.orders")
    precision: Literal["fp32", "bf16"] = key("fp32", "of the networks in training")
    deterministic: bool = key(False, "a GPU repeats a training bit for bit, which a CPU always does; slower")
    grad_clip: Annotated[float, Field(gt=0)] | None = key(None, "largest norm of the gradient")
    ema_decay: float = key(0.0, "of the moving average of the weights that is tested; 0: off", ge=0, lt=1)
    warmup: Natural = key(0, "steps over which the learning rate rises to lr")
    val_every: Positive | None = key(None, "steps between validations; null: an epoch (train_data.iter)")
    val_targets: Positive = key(2000, "targets of one validation, always the same ones; rounded up to whole batches")
    log_every: Positive = key(100, "steps between lines in the log")
    save_every: Positive | None = key(None, "steps between saved states; null: an epoch")
    rendezvous: Positive = key(120, "seconds that several processes wait for each other at the start, also of a test")


class TestParams(Section):
    """The grid: one cell for every pair of a number of classes and a memory size."""

    max_batch_cls: PositiveList = key(..., "C: a memory holds 1 to C classes, the target's own among them")
    timesteps: NaturalList = key(..., "M, images in a memory")


class TestSpec(Section):
    """The test."""

    metric: Metric = key("elbo", "the bound with importance_num samples; nll: exact, with latent_dim 0")
    checkpoint_path: PathText | None = key(None, "the weights; null: those of train_spec")
    output_file: PathText = key(..., "the table; beside it Markdown, a plot and the bound of every target")
    gpus: Gpus = key("auto", "as in train_spec")
    test_params: TestParams = key(..., "the grid: one cell for every pair of the two")
    importance_num: Positive = key(1000, "K")
    addresses: Positive | None = key(None, "nll: sum over so many likely ones only, a bound; null: all")
    address_rounds: Positive = key(
        1, "in which these are chosen; later ones correct q(a | M, x) near the addresses already evaluated"
    )
    sampled_addresses: Natural = key(0, "further addresses, drawn to estimate the rest of the sum without bias")
    targets: Positive | None = key(None, "targets per cell, spread evenly over classes; null: every image once")
    subset: Literal["test", "train", "held_out"] = key("test", "the classes of targets and memories")
    own_class: bool = key(True, "false: a control, memories of other classes only")
    seed: Natural = key(0, "of memories and noise")
    chunk: Positive | None = key(None, "samples decoded at once; null: as many as suit the device; not read with nll")

    @property
    def samples(self) -> int | None:
        """K of the bound; None: no samples, the exact log-likelihood."""
        return None if self.metric == "nll" else self.importance_num

    def at_once(self, timesteps: int) -> int | None:
        """Samples of a target that are computed at once, or without any its memory images; None: as suits."""
        return self.chunk if self.samples else max(1, timesteps)

    @property
    def column(self) -> str:
        """The name of the bound in a table."""
        return "ELBO" if self.samples else "NLL"

    @property
    def title(self) -> str:
        """The header the field uses, NLL or such as ELBO@1000."""
        return f"ELBO@{self.samples}" if self.samples else "NLL"
