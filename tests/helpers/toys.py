"""A toy model, its batches and a trainer for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.metric_logger import MetricLogger
from runtime.signals import StopRequest
from trainer import Trainer, TrainerConfig


class Toy(nn.Module):
    """Regression whose prediction is noisy; the metric is a bound for every target."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
            self.linear.bias.fill_(0.25)

    def loss(self, batch: tuple[Tensor, Tensor], noise: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        error = (self.linear(x).squeeze(1) + 0.1 * noise.normal("error", 1, len(x))[0] - y).square()
        return error.mean(), {"bound": -error.detach()}


class ToyBatches:
    """Batch of a step, as large as `sizes` says in turn; `visit` is told of every step."""

    def __init__(self, name: str, *sizes: int, visit: Callable[[int], object] = lambda step: None) -> None:
        self.name, self.sizes, self.visit, self.batch_size = name, sizes, visit, sizes[0]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        self.visit(step)
        numbers = torch.Generator().manual_seed(1000 * len(self.name) + step)
        x = torch.randn(self.sizes[step % len(self.sizes)], 3, generator=numbers)
        return x, x @ torch.tensor([1.0, 2.0, 3.0]) + torch.randn(len(x), generator=numbers)


def toy_trainer(
    folder: Path,
    train: ToyBatches | None = None,
    validation: ToyBatches | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    scheduler: Callable[..., Any] | None = None,
    stop: StopRequest | None = None,
    **plan: Any,
) -> Trainer:
    """A trainer for the toy with a learning rate of 0.05; `plan` changes the plan of 10 steps."""
    model = model or Toy()
    steps = optimizer(model.parameters(), lr=0.05)
    whole = {"steps": 10, "val_every": 4, "save_every": 5, "log_every": 1, "val_targets": 16, "seed": 3, **plan}
    return Trainer(
        model,
        steps,
        scheduler(steps) if scheduler else None,
        train or ToyBatches("train", 8),
        validation,
        TrainerConfig(**whole),
        checkpoint_path=folder / "toy.pt",
        config_text="toy",
        stop=stop or StopRequest(),
    )


def toy_logger(folder: Path, start: int = 0) -> MetricLogger:
    """A logger without TensorBoard."""
    return MetricLogger(folder / "log.jsonl", None, start)
