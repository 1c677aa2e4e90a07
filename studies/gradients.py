"""How noisy is the gradient?  Its estimators at the same weights, on the same batches.

    python -m studies.gradients --config configs/vma_tuned.yaml --checkpoint pretrained/vma_tuned.safetensors

writes `gradients.csv`, `.md` and `.npz` (the noise of each batch) into `--output`.

A gradient of all weights is a vector; its variance is the trace of its covariance.  That of `g`, which depends on the
batch b and on the noise e of everything that is drawn for it (addresses, z, the sample that goes backward), has two
parts, `Var g = E_b Var_e g + Var_b E_e g`: what an estimator can change, and what another batch would.  Every batch
gives two gradients, g and h, with independent noises, so that each part has an unbiased estimate without a long run.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import commands
import config as configuration
import parsers
from config import Config
from models.base import MemoryModel
from reports.tables import comma_separated
from run import leave, roots
from runtime.arrays import npz
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.randomness import StepNoise
from runtime.signals import StopRequest
from studies import program
from trainer import Batches

ESTIMATORS = {
    "vimco, K = 4, all samples": ("vimco", 4, "all", "standard"),
    "vimco, K = 4, one sample": ("vimco", 4, 1, "standard"),
    "vimco, K = 4, one sample, doubly reparameterised": ("vimco", 4, 1, "dreg"),
    "vimco, K = 8, all samples": ("vimco", 8, "all", "standard"),
    "vimco, K = 8, one sample": ("vimco", 8, 1, "standard"),
    "marginal, K = 1, one address": ("marginal", 1, 1, "standard"),
}
COLUMNS = (
    "estimator",
    "noise",
    "noise_stderr",
    "to_first",
    "to_first_stderr",
    "between_batches",
    "signal",
    "batch_size",
    "batches",
)

Row = dict[str, str | int | float]


def parser() -> argparse.ArgumentParser:
    p = program.parser("gradients", __doc__)
    p.add_argument("--config", type=Path, required=True, metavar="YAML", help="the configuration of the training")
    p.add_argument("--checkpoint", type=Path, metavar="PATH", help="the weights (those of the configuration)")
    p.add_argument("--batches", type=int, default=40, metavar="N", help="training batches, two or more (40)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py.  Nothing is written before the end."""
    return program.status(execute, parser().parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    if args.batches < 2:
        raise UserError(f"--batches: {args.batches}: a variance takes two or more")
    sessions = {
        name: commands.Session(configured(args, name), stop, args.device, args.checkpoint) for name in ESTIMATORS
    }
    first = next(iter(sessions.values()))
    where, seed = first.device_for(training=False), first.config.train_spec.seed
    batches = parsers.train_loader(first.config, parsers.training_images(first.config, where))
    found = {}
    for name, session in sessions.items():
        found[name] = moments(name, session.load_model(where), batches, args.batches, seed, where)
    rows = [row(name, one, next(iter(found.values())), batches.batch_size) for name, one in found.items()]
    noises = npz({name: np.array(one.noises) for name, one in found.items()})
    write_atomically(args.output / "gradients.npz", noises)
    write_atomically(args.output / "gradients.csv", comma_separated(rows, COLUMNS))
    text = markdown(rows, first.config)
    write_atomically(args.output / "gradients.md", text.encode())
    print(text)
    print(f"written: {args.output}/gradients.csv, .md, .npz")


def configured(args: argparse.Namespace, name: str) -> Config:
    """The configuration of the arguments with one of the estimators."""
    objective, k, gradient_samples, z_gradient = ESTIMATORS[name]
    overrides = (
        f"train_spec.objective={objective}",
        f"model.importance_num={k}",
        f"train_spec.gradient_samples={gradient_samples}",
        f"train_spec.z_gradient={z_gradient}",
    )
    return configuration.load(args.config, [*roots(args.root), *overrides])


# --- the moments ------------------------------------------------------------------------------------------------------


class Moments:
    """Unbiased estimates of the parts of a gradient's variance, from pairs of gradients, one pair for each batch.

    `noises`: |g - h|^2 / 2 of each batch, whose mean is the noise E_b Var_e g.
    """

    def __init__(self) -> None:
        self.noises: list[float] = []
        self._products: list[float] = []
        self._sum: Tensor | float = 0.0

    def add(self, g: Tensor, h: Tensor) -> None:
        """The gradients [P] of one batch with two independent noises."""
        g, h = g.double(), h.double()
        self.noises.append((g - h).square().sum().item() / 2)
        self._products.append((g * h).sum().item())
        self._sum = self._sum + (g + h) / 2

    def signal(self) -> float:
        """|E g|^2, from products of different batches: (|sum_b m_b|^2 - sum_b |m_b|^2) / (n (n-1)), m_b = (g+h)/2.

        It may come out negative where there is little of it.
        """
        n = len(self.noises)
        of_means = sum(self._products) + sum(self.noises) / 2  # |m_b|^2 = g h + |g - h|^2 / 4
        whole = torch.as_tensor(self._sum).square().sum().item()
        return (whole - of_means) / (n * (n - 1))

    def between_batches(self) -> float:
        """Var_b E_e g: E_b[g h], which is E_b |E_e g|^2, less the signal."""
        return statistics.mean(self._products) - self.signal()


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Of the means of two lists about the same batches, and its standard error (delta method)."""
    r = statistics.mean(a) / statistics.mean(b)
    rest = [one - r * other for one, other in zip(a, b, strict=True)]
    return r, statistics.stdev(rest) / len(a) ** 0.5 / statistics.mean(b)


def moments(name: str, model: MemoryModel, batches: Batches, n: int, seed: int, where: torch.device) -> Moments:
    """Those of the gradient of the model's loss over the first n batches."""
    found = Moments()
    for number in tqdm(range(n), desc=name, unit="batch", dynamic_ncols=True):
        batch = batches.at(number)
        g, h = (gradient(model, batch, StepNoise(where, seed, "noise", number, which)) for which in (0, 1))
        found.add(g, h)
    return found


def row(name: str, found: Moments, first: Moments, batch_size: int) -> Row:
    """A row of the table, its noise beside that of the first."""
    to_first, error = ratio(found.noises, first.noises)
    return {
        "estimator": name,
        "noise": statistics.mean(found.noises),
        "noise_stderr": statistics.stdev(found.noises) / len(found.noises) ** 0.5,
        "to_first": to_first,
        "to_first_stderr": error,
        "between_batches": found.between_batches(),
        "signal": found.signal(),
        "batch_size": batch_size,
        "batches": len(found.noises),
    }


def gradient(model: MemoryModel, batch: object, noise: StepNoise) -> Tensor:
    """That of the loss by all weights, [P], in float32 and before clipping."""
    model.zero_grad(set_to_none=True)
    loss, _ = model.loss(batch, noise)  # type: ignore[arg-type]
    loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


# --- the report -------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], config: Config) -> str:
    """The rows for people."""
    data = config.train_data
    lines = [
        f"Gradient of all weights on {rows[0]['batches']} training batches of {rows[0]['batch_size']} targets, two "
        f"draws of the samples for each; {data.kind}, {data.split} split, {data.resize} x {data.resize} by "
        f"{data.resample}. Noise: variance given the batch (trace of the covariance); to the first: ratio on the same "
        "batches; batches: variance of the mean between batches; signal: squared norm of the mean. ± one standard "
        "error.",
        "",
        "| estimator | noise | ± s.e. | to the first | ± s.e. | batches | signal |",
        f"|{'---|' * 7}",
    ]
    for one in rows:
        numbers = [f"{one['noise']:.0f}", f"{one['noise_stderr']:.0f}"]
        numbers += [f"{one['to_first']:.2f}", f"{one['to_first_stderr']:.2f}"]
        numbers += [f"{one['between_batches']:.0f}", f"{one['signal']:.0f}"]
        lines.append(f"| {one['estimator']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    leave(main())
