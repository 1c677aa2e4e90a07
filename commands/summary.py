"""What is about to run, in three lines."""

from pathlib import Path

import torch
from torch import nn

from config import Config
from config.constraints import episode_spec
from data.images import ClassImages
from parsers import TrainingImages
from reports.cells import log_likelihood_of
from runtime.processes import Processes


def of_training(
    config: Config,
    model: nn.Module,
    images: TrainingImages,
    device: torch.device,
    processes: Processes,
    tensorboard: Path,
) -> str:
    """The machine and the model; the images and the memories made of them; the length, and the files."""
    spec, targets = config.train_spec, config.train_data.batch_size
    held_out = f"{_counted(images.held_out)} to validate on" if images.held_out.num_classes else "no validation"
    files = ", ".join(map(str, filter(None, (spec.checkpoint_path, spec.log_file, tensorboard))))
    return (
        f"{_machine(device, processes)}; {_parameters(model)}\n"
        f"{_counted(images.train)} to train on, {held_out}; {memories(config)}\n"
        f"{spec.steps:,} steps of {targets} targets, {spec.steps * targets:,} in all; written: {files}"
    )


def of_test(
    config: Config, model: nn.Module, images: ClassImages, device: torch.device, processes: Processes, weights: Path
) -> str:
    """The machine and the model; the images and the memories made of them; the number of targets, and the files."""
    spec, cells = config.test_spec, config.test_cells
    targets = spec.targets or len(images.images)
    bound = f"the bound of {spec.samples:,} samples" if spec.samples else log_likelihood_of(config)
    return (
        f"{_machine(device, processes)}; {_parameters(model)}, of {weights}\n"
        f"{_counted(images)} to test on; M = {_listed(spec.test_params.timesteps)} images in a memory, "
        f"of C = {_listed(spec.test_params.max_batch_cls)} classes at most\n"
        f"{len(cells)} {'cells' if len(cells) > 1 else 'cell'} of {targets:,} targets, {bound}; "
        f"written: {spec.output_file}"
    )


def memories(config: Config) -> str:
    """How the memories of the training are composed; of a mixture each composition with its part of the steps."""
    data = config.train_data
    weighted = [(1.0, episode_spec(data)), *((one.weight, episode_spec(one)) for one in data.mixture)]
    if len(weighted) == 1:
        return f"memories of {weighted[0][1].in_words}"
    total = sum(weight for weight, _ in weighted)
    return "memories of " + "; or ".join(f"{spec.in_words} ({weight / total:.0%})" for weight, spec in weighted)


def _machine(device: torch.device, processes: Processes) -> str:
    threads = torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    name = on_cpu if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{processes.world} processes, each on {name}" if processes.world > 1 else name


def _parameters(model: nn.Module) -> str:
    return f"{sum(value.numel() for value in model.parameters()):,} parameters"


def _counted(images: ClassImages) -> str:
    return f"{images.num_classes:,} classes with {len(images.images):,} images"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
