"""Configuration -> objects.  The only file that pairs names in YAML with classes."""

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import lr_scheduler

from autoencoders.base import Architecture
from autoencoders.published import Published
from autoencoders.residual import Residual
from config import Config, DataConfig, MixtureConfig, ModelConfig, SchedulerSpec, TrainDataConfig, TrainSpec, cell_name
from config.constraints import episode_spec
from data.augmentation import Augmentation, RandomMaps, Warp
from data.composition import EpisodeSpec
from data.episodes import EpisodeLoader, GridEpisodes, MixedLoader, spread_targets
from data.images import ClassImages, hold_out, resample
from data.registry import DATA_SETS
from models.base import Likelihood, MemoryModel
from models.causal import CausalLikelihood
from models.likelihoods import BernoulliPixels, NormalPixels
from models.orders import EveryOrder
from models.vma.distributions import AddressPosterior, AddressPrior, DiagonalNormalHead, LatentPosterior, LatentPrior
from models.vma.likelihood import ImageLikelihood, LatentFreeImageLikelihood
from models.vma.model import VMA
from models.vma.neighbours import PLANES
from models.vma.placements import Placements
from models.vma.soft_read import SoftRead
from runtime.errors import DataError, UserError
from runtime.randomness import Shard, seed_of

_log = logging.getLogger(__name__)

# Called with the keys of the section.
AUTOENCODERS: dict[str, Callable[..., Architecture]] = {"published": Published, "residual": Residual}
LIKELIHOODS: dict[str, Callable[[ModelConfig], Likelihood]] = {
    "bernoulli": lambda model: BernoulliPixels(),
    "normal": lambda model: NormalPixels(),
    "causal": lambda model: CausalLikelihood(**model.causal.model_dump()),
}


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on, and of held-out classes to validate on (maybe none)."""

    train: ClassImages
    held_out: ClassImages
    drawings: ClassImages | None = None  # those of `train` at full size, where they are augmented

    def digest(self) -> str:
        """SHA-256 in hexadecimal: equal exactly where the same images are trained on, and the same held out."""
        return hashlib.sha256((self.train.digest() + self.held_out.digest()).encode()).hexdigest()


def training_images(config: Config, device: torch.device) -> TrainingImages:
    """The training classes, less those held out by the seed.  Raises DataError, UserError."""
    data = config.train_data
    drawings = DATA_SETS[data.kind].load(data, "train")
    if data.held_out_classes >= drawings.num_classes:  # of a kind whose classes only reading counts
        raise DataError(
            f"train_data.held_out_classes: {data.held_out_classes} leaves nothing to train on, {data.root} has "
            f"{drawings.num_classes} classes; use fewer"
        )
    train, held_out = hold_out(_resampled(data, drawings), data.held_out_classes, config.train_spec.seed)
    seen = None
    if data.augment is not None:
        seen = hold_out(drawings, data.held_out_classes, config.train_spec.seed)[0].to(device)
    return TrainingImages(train.to(device), held_out.to(device), seen)


def test_images(config: Config, device: torch.device) -> ClassImages:
    """The classes of the test, or those that `test_spec.subset` names instead.  Raises DataError, UserError."""
    if config.test_spec.subset == "test":
        data = config.test_data
        return _resampled(data, DATA_SETS[data.kind].load(data, "test")).to(device)
    images = training_images(config, device)
    return images.train if config.test_spec.subset == "train" else images.held_out


def _resampled(data: DataConfig, drawings: ClassImages) -> ClassImages:
    try:
        return resample(drawings, data.resize, data.resample)
    except ValueError as error:
        raise UserError(f"resize: {data.resize} and resample: {data.resample}: {error}") from None


def train_loader(config: Config, images: TrainingImages, shard: Shard = Shard()) -> EpisodeLoader | MixedLoader:
    """Episodes to train on.  Raises UserError where the memory does not fit the classes."""
    data, seed = config.train_data, config.train_spec.seed
    augmentation = None
    if data.augment is not None and images.drawings is not None:
        warp = Warp(images.drawings, data.resize, data.resample)
        augmentation = Augmentation(RandomMaps(**data.augment.model_dump()), warp)

    def loader(path: str, composition: TrainDataConfig | MixtureConfig) -> EpisodeLoader:
        spec = episode_spec(composition)
        with _naming_the_smallest_class(path, data, images.train):
            return EpisodeLoader(images.train, spec, data.batch_size, seed, "train", shard, augmentation)

    first = loader("train_data", data)
    if not data.mixture:
        return first
    others = [loader(f"train_data.mixture[{number}]", one) for number, one in enumerate(data.mixture)]
    return MixedLoader([first, *others], [1.0, *(one.weight for one in data.mixture)], seed)


@contextmanager
def _naming_the_smallest_class(path: str, data: DataConfig, images: ClassImages) -> Iterator[None]:
    """Where only reading counts the images, what does not fit them is said here, and of which class."""
    try:
        yield
    except UserError as error:
        if DATA_SETS[data.kind].counts(data, "train"):
            raise
        fewest = int(images.counts.argmin())
        there = f"{images.names[fewest]} has {images.counts[fewest]} images, the fewest of {images.num_classes} classes"
        raise DataError(f"{path}.{error} (in {data.root}, {there})") from None


def most_processes(data: TrainDataConfig, most: int) -> int:
    """The largest number of processes, at most `most`, that the batch divides among with every composition."""
    shared = [data.targets_per_memory, *(one.targets_per_memory for one in data.mixture)]
    return max((n for n in range(1, most + 1) if all(data.batch_size % (n * unit) == 0 for unit in shared)), default=1)


def validation_loader(config: Config, images: TrainingImages) -> EpisodeLoader | None:
    """Episodes of the held-out classes; None where no class is held out."""
    if not images.held_out.num_classes:
        return None
    data, seed = config.val_data, config.train_spec.seed
    with _naming_the_smallest_class("val_data", config.train_data, images.held_out):
        return EpisodeLoader(images.held_out, episode_spec(data), data.batch_size, seed, "validation")


def grid_episodes(config: Config, images: ClassImages, max_batch_cls: int, timesteps: int) -> GridEpisodes:
    """The episodes of one cell of the test grid."""
    own_class = config.test_spec.own_class
    spec = EpisodeSpec(timesteps=timesteps, exact=False, max_batch_cls=max_batch_cls, own_class=own_class)
    try:
        targets = spread_targets(images.counts, config.test_spec.targets)
    except UserError as error:
        raise UserError(f"test_spec.{error} (in {config.test_data.root})") from None
    with _naming_the_smallest_class("test_spec.test_params", config.test_data, images):
        return GridEpisodes(images, spec, targets, config.test_spec.seed, cell_name(max_batch_cls, timesteps))


# --- model ------------------------------------------------------------------------------------------------------------


def build_model(config: Config, device: torch.device) -> MemoryModel:
    """The model with weights drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", config.train_spec.seed))
        networks = AUTOENCODERS[config.model.autoencoder.kind](**config.model.autoencoder.model_dump(exclude={"kind"}))
        build: Callable[..., MemoryModel] = _soft_read if config.model.read == "soft" else _vma
        model = build(config, networks, LIKELIHOODS[config.model.likelihood](config.model))
    if config.model.orders > 1:
        model = EveryOrder(model, config.model.orders, config.train_spec.orders)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _vma(config: Config, networks: Architecture, likelihood: Likelihood) -> VMA:
    model, spec, side = config.model, config.train_spec, config.train_data.resize
    latent, hidden = model.latent_dim, model.head_hidden
    code = latent or model.matching_dim  # of the memory image; as wide as z, or else as an embedding
    features = 2 * code  # as published
    placements = Placements(model.max_shift, model.scales)
    planes = 1 + PLANES if model.neighbours else 1
    decoder = networks.decoder(side, latent + code, likelihood.channels, planes)
    p_x = ImageLikelihood if latent else LatentFreeImageLikelihood
    return VMA(
        address_encoder=networks.address_encoder(side, model.matching_dim),
        encoder=networks.encoder(side, features, planes),
        p_a=AddressPrior(model.num_dummies, learned=model.address_prior == "learned"),
        p_z=LatentPrior(features, latent, hidden),
        p_x=p_x(decoder, likelihood, features, code, placements),
        q_a=AddressPosterior(scaled=model.address_scale == "sqrt"),
        q_z=LatentPosterior(features, latent, hidden),
        side=side,
        num_dummies=model.num_dummies,
        importance_num=model.importance_num,
        objective=spec.objective,
        use_dreg=spec.z_gradient == "dreg",
        gradient_samples=spec.gradient_samples,
        placements=placements,
        with_neighbours=model.neighbours,
        summed_addresses=config.test_spec.addresses,
        address_rounds=config.test_spec.address_rounds,
        sampled_addresses=config.test_spec.sampled_addresses,
    )


def _soft_read(config: Config, networks: Architecture, likelihood: Likelihood) -> SoftRead:
    model, side = config.model, config.train_data.resize
    latent, features = model.latent_dim, 2 * model.latent_dim
    return SoftRead(
        address_encoder=networks.address_encoder(side, model.matching_dim),
        encoder=networks.encoder(side, features),
        p_x=ImageLikelihood(networks.decoder(side, 2 * latent, likelihood.channels), likelihood, features, latent),
        q_z=DiagonalNormalHead(features, latent, model.head_hidden),
        query=nn.Linear(latent, model.matching_dim),
        side=side,
        num_dummies=model.num_dummies,
        importance_num=model.importance_num,
    )


# --- optimisation -----------------------------------------------------------------------------------------------------


def build_optimizer(spec: TrainSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `spec` names, fused into one kernel where that exists on every device."""
    kind = getattr(torch.optim, spec.optimizer)
    taken = inspect.signature(kind).parameters
    options: dict[str, object] = {"betas": spec.betas} if "betas" in taken else {}
    if "fused" in taken and kind is not torch.optim.Adagrad:  # before torch 2.13 that of Adagrad is not on GPUs
        options["fused"] = True
    return kind(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, **options)


def build_scheduler(spec: TrainSpec, optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler | None:
    """Linear warm-up over `warmup` steps, then the named scheduler, counted in steps.

    Raises:
        UserError: the scheduler does not work with this optimizer.
    """
    main = _named_scheduler(spec.scheduler, optimizer) if spec.scheduler else None
    if not spec.warmup:
        return main
    warm_up = lr_scheduler.LinearLR(optimizer, 1 / (spec.warmup + 1), total_iters=spec.warmup)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, main], [spec.warmup]) if main else warm_up


def _named_scheduler(spec: SchedulerSpec, optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    try:
        scheduler: lr_scheduler.LRScheduler = getattr(lr_scheduler, spec.kind)(optimizer, **spec.arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"train_spec.scheduler: {spec.kind}: {error}") from None
    return scheduler
