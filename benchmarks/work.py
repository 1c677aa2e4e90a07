"""What is measured: a step of the training and a batch of the test, as the program runs them, and the networks alone.

`K` importance samples · `M` images in a memory.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.benchmark import Timer

import commands
import config as configuration
import evaluator
import parsers
from config import Config
from data.composition import EpisodeSpec
from data.episodes import GridEpisodes, spread_targets
from data.omniglot import DRAWERS
from runtime.allocator import keep_freed_memory
from runtime.signals import StopRequest


@dataclass(frozen=True)
class Benchmark:
    """What is measured, where, and how long: the configuration in the file at `path`, changed by `overrides`."""

    path: Path
    overrides: tuple[str, ...]
    device: torch.device
    rounds: int
    seconds: float  # a measurement
    naive: Path | None = None  # the program to compare with

    @cached_property
    def config(self) -> Config:
        return self.variant()

    def variant(self, *more: str) -> Config:
        """The configuration without validation, with more overrides.  Raises UserError."""
        return configuration.load(self.path, (*self.overrides, "train_data.held_out_classes=0", *more))


# --- the program ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Called, it does what the program does with `targets` targets."""

    targets: int
    model: nn.Module
    call: Callable[[], object]
    precision: str
    tf32: bool  # which the training allows convolutions on a GPU, and the test does not

    def __call__(self) -> object:
        torch.backends.cudnn.allow_tf32 = self.tf32
        return self.call()


def rate(call: Callable[[], object], targets: int, seconds: float) -> float:
    """Targets per second of a call that works on `targets` of them, measured for at least so many seconds."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return targets / timer.blocked_autorange(min_run_time=seconds).mean


def training(config: Config, device: torch.device) -> Work:
    """A step of `run.py --train`; nothing is written."""
    trainer = commands.train.build_trainer(commands.Session(config, StopRequest(), str(device)))
    return Work(config.train_data.batch_size, trainer.model, trainer.step, config.train_spec.precision, tf32=True)


def scoring(config: Config, device: torch.device, memory: int, k: int) -> Work:
    """A batch of `run.py --test`: ELBO@k of as many targets and samples at once as there, memories of `memory` images.

    Memories that are too large for a class have 16 images of each of several.
    """
    keep_freed_memory()
    Distribution.set_default_validate_args(False)
    images, model = parsers.test_images(config, device), parsers.build_model(config, device).eval()
    targets, chunk = evaluator.sizes_at_once(device, config.test_data.batch_size, config.test_spec.chunk)
    chosen = spread_targets(images.counts, min(targets, len(images.images)))
    spec = EpisodeSpec(timesteps=memory, exact=False, max_batch_cls=1)
    if memory >= DRAWERS:
        spec = EpisodeSpec(timesteps=memory, exact=True, max_img_per_class=16)
    episodes = GridEpisodes(images, spec, chosen, config.test_spec.seed, f"M={memory}")

    def call() -> evaluator.PerTarget:
        return evaluator.evaluate_cell(model, episodes, ("benchmark",), k, len(chosen), chunk, lambda done: None)

    return Work(len(chosen), model, call, "fp32", tf32=False)


# --- the networks alone -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A call of a network: random inputs of its shapes, and which outputs the gradient came back to."""

    network: nn.Module
    method: str
    inputs: Any
    gradient: bool
    used: set[int]


class Floor:
    """What a step or a batch puts through encoders and decoders, forward and backward, and nothing in between.

    Not in it: episodes, addressing, gathering, heads, likelihoods, objective, optimizer, checks.  The calls of one
    `work` are recorded, to be done again on random inputs.
    """

    def __init__(self, work: Work) -> None:
        self._calls: list[_Call] = []
        self._device, self._bf16 = next(work.model.parameters()).device, work.precision == "bf16"
        ours = {name: m for name, m in work.model.named_modules() if type(m).__module__.startswith("autoencoders.")}
        outermost = [m for name, m in ours.items() if not any(name.startswith(f"{other}.") for other in ours)]
        methods = [(m, method) for m in outermost for method in ("forward", "precompute_skips") if hasattr(m, method)]
        with ExitStack() as recording:
            for network, method in methods:
                setattr(network, method, self._recorded(network, method))
                recording.callback(delattr, network, method)
            work()
        of_calls = tree_leaves([call.inputs for call in self._calls])
        self._wanted = [p for p in (*work.model.parameters(), *of_calls) if p.requires_grad]
        self._gradients = [torch.randn_like(output) for output in self._outputs()]

    def _recorded(self, network: nn.Module, method: str) -> Callable[..., Any]:
        function = getattr(network, method)
        known: dict[str, _Call] = {}  # of equal calls the inputs are stored once

        def call(*inputs: Any) -> Any:
            outputs, gradient = function(*inputs), torch.is_grad_enabled()
            shapes = [(x.shape, x.dtype, x.requires_grad) for x in tree_leaves(inputs)]
            new = _Call(network, method, tree_map(_random_like, inputs), gradient, set())
            self._calls.append(known.setdefault(f"{shapes} {gradient}", new))
            for number, output in enumerate(tree_leaves(outputs)):
                if output.requires_grad:
                    output.register_hook(lambda _, used=self._calls[-1].used, number=number: used.add(number))
            return outputs

        return call

    def __call__(self) -> dict[int, Tensor | None]:
        """The gradients of everything that has one, by the id of its tensor."""
        outputs = self._outputs()
        found = torch.autograd.grad(outputs, self._wanted, self._gradients, allow_unused=True) if outputs else []
        return dict(zip(map(id, self._wanted), found, strict=False))

    def _outputs(self) -> list[Tensor]:
        """Those of which the gradient is taken: not of one that in the step has a gradient by its images alone."""
        outputs: list[Tensor] = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            for call in self._calls:
                with torch.set_grad_enabled(call.gradient):
                    found = tree_leaves(getattr(call.network, call.method)(*call.inputs))
                outputs += [found[number] for number in sorted(call.used) if found[number].requires_grad]
        return outputs


def _random_like(x: Tensor) -> Tensor:
    """No gradient of an image [N, H, W] is taken; a real step needs that of the dummies, a few of its images."""
    return torch.rand_like(x, requires_grad=x.requires_grad and x.dim() != 3 and torch.is_grad_enabled())
