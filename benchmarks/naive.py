"""Runs another program, an obvious implementation that is not part of this repository, and reads the rates it prints.

It is called with `--device cpu|cuda --batch B --memory M --seconds S` and must print
`train_targets_per_s RATE` and, for memories of 1 and 19, `eval_targets_per_s memory=M RATE`.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.errors import DataError

TEST_MEMORIES = (1, 19)

_NUMBER = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)"


@dataclass(frozen=True)
class NaiveRates:
    """Targets per second of training, and of ELBO@1000 by memory size."""

    train: float
    test: dict[int, float]


@dataclass(frozen=True)
class Naive:
    """The program at `path`, with as many threads as this process and on its device."""

    path: Path
    device: torch.device
    batch: int  # targets in a step
    memory: int  # images in a memory, in training
    seconds: float  # a measurement

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataError(f"--naive {self.path}: there is no such file; name a program that prints its rates")

    def measure(self) -> NaiveRates:
        """Run it once.  Raises DataError where it fails or prints something else."""
        command = [sys.executable, str(self.path), "--device", self.device.type, "--batch", str(self.batch)]
        command += ["--memory", str(self.memory), "--seconds", str(self.seconds)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            command, env={**os.environ, **threads, **only(self.device)}, capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed no reason"])[-1]
            raise DataError(f"--naive {self.path}: ended with exit status {done.returncode}: {last}")
        return parse(done.stdout, self.path)


def parse(output: str, path: Path) -> NaiveRates:
    """The rates in what the program printed.  Raises DataError."""
    train = re.findall(rf"^train_targets_per_s {_NUMBER}$", output, re.MULTILINE)
    test = dict(re.findall(rf"^eval_targets_per_s memory=([0-9]+) {_NUMBER}$", output, re.MULTILINE))
    try:
        rates = NaiveRates(float(train[0]), {memory: float(test[str(memory)]) for memory in TEST_MEMORIES})
        if len(train) != 1 or min(rates.train, *rates.test.values()) <= 0:
            raise ValueError
    except (IndexError, KeyError, ValueError):
        raise DataError(
            f"--naive {path}: it printed {output.strip()[:200]!r} and not one line `train_targets_per_s RATE` "
            f"and lines `eval_targets_per_s memory=M RATE` for M = {' and '.join(map(str, TEST_MEMORIES))}"
        ) from None
    return rates


def only(device: torch.device) -> dict[str, str]:
    """The environment in which a child sees no other GPU than `device`."""
    if device.type != "cuda":
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[device.index or 0] if visible else str(device.index or 0)}
