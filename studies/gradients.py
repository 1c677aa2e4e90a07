"""How noisy is the gradient?  Its estimators at the same weights, on the same batches.

    python -m studies.gradients --config configs/vma_tuned.yaml --checkpoint pretrained/vma_tuned.safetensors

writes `gradients.csv` and `.md` into `--output`.

A gradient of all weights is a vector; its variance is the trace of its covariance.  That of `g`, which depends on the
batch b and on the noise e of the samples, has two parts, `Var g = E_b Var_e g + Var_b E_e g`: what an estimator can
change, and what another batch would.  Every batch is seen with two noises, g and h, so that each part has an unbiased
estimate without a long run.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import commands
import config as configuration
import parsers
from config import Config
from errors import UserError
from files import write_atomically
from interrupts import StopRequest
from models.vma.vma import VMA
from randomness import StepNoise
from reports import comma_separated
from run import Parser, device, leave, roots
from studies.estimator import status_of_study
from trainer import Batches

ESTIMATORS = {
    "vimco, K = 4, all samples": ("vimco", 4, "all", "standard"),
    "vimco, K = 4, one sample": ("vimco", 4, "one", "standard"),
    "vimco, K = 4, one sample, doubly reparameterised": ("vimco", 4, "one", "doubly"),
    "vimco, K = 8, all samples": ("vimco", 8, "all", "standard"),
    "vimco, K = 8, one sample": ("vimco", 8, "one", "standard"),
    "marginal, K = 1, one address": ("marginal", 1, "one", "standard"),
}
COLUMNS = ("estimator", "noise", "noise_stderr", "between_batches", "signal", "batch_size", "batches")

Row = dict[str, str | int | float]


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m studies.gradients", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=Path, required=True, metavar="YAML", help="the configuration of the training")
    p.add_argument("--checkpoint", type=Path, metavar="PATH", help="the weights (those of the configuration)")
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--device", type=device, metavar="auto|cpu|cuda|cuda:N", help="beats the key gpus")
    p.add_argument("--batches", type=int, default=40, metavar="N", help="training batches, two or more (40)")
    p.add_argument("--output", type=Path, default=Path("runs/gradients"), metavar="DIR", help="where files go")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py.  Nothing is written before the end."""
    return status_of_study(execute, parser().parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    if args.batches < 2:
        raise UserError(f"--batches: {args.batches}: a variance takes two or more")
    configs = {name: configured(args, name) for name in ESTIMATORS}
    first = next(iter(configs.values()))
    where = commands.Run(first, args.device, args.checkpoint, None, stop).device_for(train=False)
    batches = parsers.train_loader(first, parsers.training_images(first, where))
    rows = []
    for name, config in configs.items():
        model = commands.Run(config, args.device, args.checkpoint, None, stop).trained(where)
        rows.append(measured(name, model, batches, args.batches, config.train_spec.seed, where))
    write_atomically(args.output / "gradients.csv", comma_separated(rows, COLUMNS))
    write_atomically(args.output / "gradients.md", markdown(rows, first).encode())
    print(markdown(rows, first))
    print(f"written: {args.output}/gradients.csv, .md")


def configured(args: argparse.Namespace, name: str) -> Config:
    """The configuration of the arguments with one of the estimators."""
    objective, k, backward, z_gradient = ESTIMATORS[name]
    overrides = (
        f"train_spec.objective={objective}",
        f"model.importance_num={k}",
        f"train_spec.backward={backward}",
        f"train_spec.z_gradient={z_gradient}",
    )
    return configuration.load(args.config, [*roots(args.root), *overrides])


# --- the moments ------------------------------------------------------------------------------------------------------


class Moments:
    """Unbiased estimates of the parts of a gradient's variance, from pairs of gradients, one pair for each batch."""

    def __init__(self) -> None:
        self._halves: list[float] = []
        self._squares: list[float] = []
        self._sum: Tensor | float = 0.0

    def add(self, g: Tensor, h: Tensor) -> None:
        """The gradients [P] of one batch with two independent noises."""
        g, h = g.double(), h.double()
        self._halves.append((g - h).square().sum().item() / 2)
        self._squares.append((g * h).sum().item())
        self._sum = self._sum + (g + h) / 2

    def noise(self) -> tuple[float, float]:
        """E_b Var_e g and its standard error: half of |g - h|^2, averaged over batches."""
        return statistics.mean(self._halves), statistics.stdev(self._halves) / len(self._halves) ** 0.5

    def signal(self) -> float:
        """|E g|^2, from products of different batches: (|sum_b m_b|^2 - sum_b |m_b|^2) / (n (n-1)), m_b = (g+h)/2.

        It may come out negative where there is little of it.
        """
        n = len(self._halves)
        of_means = sum(self._squares) + sum(self._halves) / 2  # |m_b|^2 = g h + |g - h|^2 / 4
        whole = torch.as_tensor(self._sum).square().sum().item()
        return (whole - of_means) / (n * (n - 1))

    def between_batches(self) -> float:
        """Var_b E_e g: E_b[g h], which is E_b |E_e g|^2, less the signal."""
        return statistics.mean(self._squares) - self.signal()


def measured(name: str, model: VMA, batches: Batches, n: int, seed: int, where: torch.device) -> Row:
    """A row of the table: the parts of the variance over the first n batches."""
    moments = Moments()
    for number in tqdm(range(n), desc=name, unit="batch", dynamic_ncols=True):
        batch = batches.at(number)
        g, h = (gradient(model, batch, StepNoise(where, seed, "noise", number, which)) for which in (0, 1))
        moments.add(g, h)
    noise, error = moments.noise()
    return {
        "estimator": name,
        "noise": noise,
        "noise_stderr": error,
        "between_batches": moments.between_batches(),
        "signal": moments.signal(),
        "batch_size": batches.batch_size,
        "batches": n,
    }


def gradient(model: VMA, batch: object, noise: StepNoise) -> Tensor:
    """That of the loss by all weights, [P], as a training step has it before clipping."""
    model.zero_grad(set_to_none=True)
    loss, _ = model.loss(batch, noise)  # type: ignore[arg-type]
    loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


# --- the report -------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], config: Config) -> str:
    """The rows for people, the noise relative to that of the first too."""
    first, data = float(rows[0]["noise"]), config.train_data
    lines = [
        f"Gradient of all weights on {rows[0]['batches']} training batches of {rows[0]['batch_size']} targets, two "
        f"draws of the samples for each; {data.kind}, {data.split} split, {data.resize} x {data.resize} by "
        f"{data.resample}. Noise: variance given the batch (trace of the covariance), ± one standard error; batches: "
        "variance of its mean between batches; signal: squared norm of the mean.",
        "",
        "| estimator | noise | ± s.e. | to the first | batches | signal |",
        f"|{'---|' * 6}",
    ]
    for row in rows:
        numbers = [f"{row['noise']:.1f}", f"{row['noise_stderr']:.1f}", f"{float(row['noise']) / first:.2f}"]
        numbers += [f"{row['between_batches']:.1f}", f"{row['signal']:.1f}"]
        lines.append(f"| {row['estimator']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    leave(main())
