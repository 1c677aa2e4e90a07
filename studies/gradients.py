"""How noisy is the gradient?  Its estimators at the same weights, on the same batches.

    python -m studies.gradients --config configs/vma_tuned.yaml --checkpoint pretrained/vma_tuned.safetensors

writes `gradients.csv`, `.md` and `.npz` (the noise of each batch) into `--output`; interrupted, the same
command goes on with the estimator that was not finished.

A gradient of all weights is a vector; its variance is the trace of its covariance.  That of `g`, which depends on the
batch b and on the noise e of everything that is drawn for it (addresses, z, the sample that goes backward), has two
parts, `Var g = E_b Var_e g + Var_b E_e g`: what an estimator can change, and what another batch would.  Every batch
gives two gradients, g and h, with independent noises, so that each part has an unbiased estimate without a long run.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

import config as configuration
import parsers
from config import Config
from models.base import MemoryModel
from reports.cells import images_described
from reports.tables import markdown_table
from run import standalone
from runtime.errors import UserError
from runtime.randomness import StepNoise
from runtime.signals import StopRequest
from studies import program

ESTIMATORS = {
    "vimco, K = 4, all samples": ("vimco", 4, "all", "standard"),
    "vimco, K = 4, one sample": ("vimco", 4, 1, "standard"),
    "vimco, K = 4, one sample, doubly reparameterised": ("vimco", 4, 1, "dreg"),
    "vimco, K = 8, all samples": ("vimco", 8, "all", "standard"),
    "vimco, K = 8, one sample": ("vimco", 8, 1, "standard"),
    "marginal, K = 1, one address": ("marginal", 1, 1, "standard"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("gradients", __doc__)
    program.add_model(p)
    p.add_argument("--batches", type=int, default=40, metavar="N", help="training batches, two or more (40)")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    if args.batches < 2:
        raise UserError(f"--batches: {args.batches}: a variance takes two or more")
    configs = {name: configured(args, name) for name in ESTIMATORS}
    first = next(iter(configs.values()))
    model = program.load_model(first, stop, args.device, args.checkpoint)
    device = next(model.parameters()).device
    images = parsers.training_images(first, device)
    batches = parsers.train_loader(first, images)

    def compute(name: str) -> dict[str, np.ndarray]:
        model, seed = program.load_model(configs[name], stop, args.device, args.checkpoint), first.train_spec.seed
        pairs = (
            [gradient(model, batch, StepNoise(device, seed, "noise", number, which)) for which in (0, 1)]
            for number, batch in ((n, batches.at(n)) for n in range(args.batches))
        )
        return moments(pairs)

    settings = {"batches": args.batches, "images": images.train.digest()}
    found = program.resumed(args.output / "gradients.npz", model, first, settings, ESTIMATORS, compute)
    rows = [row(name, one, next(iter(found.values())), batches.batch_size) for name, one in found.items()]
    program.write(args.output, "gradients", rows, markdown(rows, first))


def configured(args: argparse.Namespace, name: str) -> Config:
    """The configuration of the arguments with one of the estimators."""
    keys = ("train_spec.objective", "model.importance_num", "train_spec.gradient_samples", "train_spec.z_gradient")
    own = [f"{key}={value}" for key, value in zip(keys, ESTIMATORS[name], strict=True)]
    return configuration.load(args.config, [*configuration.overrides(args.root), *own])


# --- the moments ------------------------------------------------------------------------------------------------------


def moments(pairs: Iterable[Sequence[Tensor]]) -> dict[str, np.ndarray]:
    """Of pairs of gradients g, h [P], one for each of n batches with two independent noises: what estimates the parts.

    noise [n]: |g - h|^2 / 2, whose mean is E_b Var_e g; product [n]: g h; sum: |sum_b m_b|^2 with m_b = (g + h) / 2.
    """
    noise, product, total = [], [], torch.zeros(())
    for one, other in pairs:
        g, h = one.double(), other.double()
        noise.append((g - h).square().sum().item() / 2)
        product.append((g * h).sum().item())
        total = total + (g + h) / 2
    return {"noise": np.array(noise), "product": np.array(product), "sum": np.array(total.square().sum().item())}


def between_and_signal(found: dict[str, np.ndarray]) -> tuple[float, float]:
    """Var_b E_e g = E_b[g h] - |E g|^2, and the signal |E g|^2, which may come out negative where it is small.

    The signal is the mean of products of different batches, (|sum_b m_b|^2 - sum_b |m_b|^2) / (n (n-1)).
    """
    noise, product = found["noise"].tolist(), found["product"].tolist()
    of_means = sum(product) + sum(noise) / 2  # |m_b|^2 = g h + |g - h|^2 / 4
    signal = (float(found["sum"]) - of_means) / (len(noise) * (len(noise) - 1))
    return statistics.mean(product) - signal, signal


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Of the means of two lists about the same batches, and its standard error (delta method)."""
    r = statistics.mean(a) / statistics.mean(b)
    rest = [one - r * other for one, other in zip(a, b, strict=True)]
    return r, statistics.stdev(rest) / len(a) ** 0.5 / statistics.mean(b)


def row(name: str, found: dict[str, np.ndarray], first: dict[str, np.ndarray], batch_size: int) -> program.Row:
    """A row of the table, its noise beside that of the first."""
    noise = found["noise"].tolist()
    to_first, error = ratio(noise, first["noise"].tolist())
    between, signal = between_and_signal(found)
    return {
        "estimator": name,
        "noise": statistics.mean(noise),
        "noise_stderr": statistics.stdev(noise) / len(noise) ** 0.5,
        "to_first": to_first,
        "to_first_stderr": error,
        "between_batches": between,
        "signal": signal,
        "batch_size": batch_size,
        "batches": len(noise),
    }


def gradient(model: MemoryModel, batch: object, noise: StepNoise) -> Tensor:
    """That of the loss by all weights, [P], in float32 and before clipping."""
    model.zero_grad(set_to_none=True)
    loss, _ = model.loss(batch, noise)  # type: ignore[arg-type]
    loss.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


_LINE = (
    "{estimator} | {noise:.0f} | {noise_stderr:.0f} | {to_first:.2f} | {to_first_stderr:.2f} | {between_batches:.0f} | "
    "{signal:z.0f}"
)


def markdown(rows: Sequence[program.Row], config: Config) -> str:
    """The rows for people."""
    return markdown_table(
        f"Gradient of all weights on {rows[0]['batches']} training batches of {rows[0]['batch_size']} targets, two "
        f"draws of the samples for each; {images_described(config.train_data)}. Noise: variance given the batch (trace "
        "of the covariance); to the first: ratio on the same batches; batches: variance of the mean between batches; "
        "signal: squared norm of the mean. ± one standard error.",
        "estimator | noise | ± s.e. | to the first | ± s.e. | batches | signal",
        map(_LINE.format_map, rows),
    )


if __name__ == "__main__":
    standalone(main)
