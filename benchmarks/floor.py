"""The work that cannot be avoided: the networks alone, each on as many rows as a step or a test batch needs.

Every distinct image goes through the encoders once (an image of a memory through the feature encoder only if it is
picked), every sample through the decoder, forward and in training backward.  Not in the floor: episodes, addressing,
gathering, heads, likelihoods, objective, optimizer, checks.

`K` samples · `G` memories · `T` targets of each · `M` images in a memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects import Scoring, as_in_the_test
from config import Config
from models.vma.model import VMA, Memory
from runtime.randomness import StepNoise
from trainer import Batches

_INK = 0.14  # share of ink in the images
_STEPS = 5  # over which distinct picks are averaged


@dataclass(frozen=True)
class Rows:
    """What must go through each network, and how much of it at once."""

    memory: int  # images of all memories and the dummies, through the address encoder
    picked: int  # the distinct ones of these that are picked, through the feature encoder and on to the skip parts
    targets: int  # images, through both encoders
    decodes: int  # codes through the decoder
    at_once: int  # as many codes are decoded at once, the last time what is left
    beforehand: int = 0  # codes that in training go through the decoder without gradient

    def counts(self) -> dict[str, int]:
        """Rows through each network, by its name."""
        return {
            "address encoder": self.memory + self.targets,
            "feature encoder": self.picked + self.targets,
            "skip parts": self.picked,
            "decoder": self.decodes + self.beforehand,
        }


def rows_of_training(config: Config, model: VMA, train: Batches) -> Rows:
    """Rows of a step of `train`; of images that are picked, as many as `model` picks at the beginning, on average.

    With objective marginal every address is decoded, and nothing is picked.  With `gradient_samples` 1 a single sample
    of each target is decoded with gradient, and all before without it.
    """
    data, k = config.train_data, config.model.importance_num
    memory = data.batch_size // data.targets_per_memory * data.timesteps + config.model.num_dummies
    if config.train_spec.objective == "marginal":
        decodes = k * data.batch_size * (data.timesteps + config.model.num_dummies)
        return _of_training(config, memory, memory, decodes)
    with torch.no_grad(), picks() as picked:
        for step in range(_STEPS):
            model.loss(train.at(step), StepNoise(model.dummies.device, config.train_spec.seed, "train", step))
    return _of_training(config, memory, round(sum(picked) / len(picked)), k * data.batch_size)


def _of_training(config: Config, memory: int, picked: int, decodes: int) -> Rows:
    targets = config.train_data.batch_size
    if config.train_spec.gradient_samples == 1:
        return Rows(memory, picked, targets, targets, targets, beforehand=decodes)
    return Rows(memory, picked, targets, decodes, decodes)


def rows_of_test(config: Config, batch: Scoring, memory: int) -> Rows:
    """Rows of a batch of the test with memories of `memory` images."""
    images = batch.targets * memory + config.model.num_dummies
    decodes = batch.targets * batch.samples
    return Rows(images, min(images, decodes), batch.targets, decodes, min(batch.targets * batch.chunk, decodes))


class Floor:
    """The networks of `model`, alone, on random images: called, it does the work of one step or one test batch.

    Gradients are those of all parameters, of the codes and of the skip parts.  No gradient of an image is taken; the
    real step needs that of the dummies, two of its images.
    """

    def __init__(self, model: VMA, rows: Rows, *, training: bool, precision: str = "fp32") -> None:
        self.rows, self.training, self.precision = rows, training, precision
        self.model = model.train(training)
        side, self.device = model.dummies.shape[-1], model.dummies.device
        self.memory, self.picked, self.targets = (
            (torch.rand(n, side, side, device=self.device) < _INK).float()
            for n in (rows.memory, rows.picked, rows.targets)
        )
        self.code, self.skips = self._inputs(rows.at_once, training)
        self.code_before, self.skips_before = self._inputs(rows.beforehand, False)
        self._gradients: list[Tensor] = []
        self._work = self._step if training else self._batch
        if training:
            self._gradients = [torch.randn_like(output) for output in self._outputs()]

    def _inputs(self, number: int, gradient: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Random codes and skip parts for so many decodes."""
        with torch.no_grad(), self._arithmetic():
            _, maps = self.model.encoder(self.targets[:1])
            parts = [part.expand(number, *part.shape[1:]) for part in self._decoder.precompute_skips(maps)]
        code = torch.randn(number, 2 * self.model.p_x.code.out_features, device=self.device)
        skips = tuple(part.contiguous(memory_format=torch.channels_last).requires_grad_(gradient) for part in parts)
        return code.requires_grad_(gradient), skips

    @property
    def _decoder(self) -> Any:
        return self.model.p_x.network

    def __call__(self) -> None:
        self._work()

    def _step(self) -> None:
        for leaf in (*self.model.parameters(), *self.skips, self.code):
            leaf.grad = None
        torch.autograd.backward(self._outputs(), self._gradients)

    def _batch(self) -> None:
        with as_in_the_test(), torch.no_grad():
            self._outputs()

    def _outputs(self) -> list[Tensor]:
        """All that the rest of the model takes from the networks."""
        with self._arithmetic():
            keys, _ = self.model.address_encoder(self.memory)
            vectors, maps = self.model.encoder(self.picked)
            skips = self._decoder.precompute_skips(maps)
            query, _ = self.model.address_encoder(self.targets)
            features, _ = self.model.encoder(self.targets)
            outputs = [keys, vectors, *skips, query, features]
            if self.rows.beforehand:
                with torch.no_grad():
                    self._decoder(self.code_before, self.skips_before)
            for first in range(0, self.rows.decodes, self.rows.at_once):
                left = self.rows.decodes - first
                if left >= self.rows.at_once:  # a slice of everything would cost a copy in the backward pass
                    image = self._decoder(self.code, self.skips)
                else:
                    image = self._decoder(self.code[:left], [part[:left] for part in self.skips])
                if first == 0:
                    outputs.append(image)
        return outputs

    def _arithmetic(self) -> torch.autocast | nullcontext[None]:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()


def captured(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On a GPU `work` as one CUDA graph, so that the floor holds no time of the host; elsewhere `work` itself."""
    if device.type != "cuda":
        return work
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@contextmanager
def picks() -> Iterator[list[int]]:
    """Within, a number for each time that images of memories are picked: how many distinct ones."""
    found: list[int] = []
    rows_of = Memory.rows

    def counting(memory: Memory, a: Tensor) -> Tensor:
        rows = rows_of(memory, a)
        found.append(len(rows.unique()))
        return rows

    Memory.rows = counting  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Memory.rows = rows_of  # type: ignore[method-assign]
