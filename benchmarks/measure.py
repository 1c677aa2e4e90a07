"""Timers, and measurements of several things in turn, so that what disturbs the machine disturbs all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Clock = Callable[[], float]  # seconds
Rates = Mapping[str, float]  # name of what was measured -> value, in a unit that its name implies


class BenchmarkError(Exception):
    """A part of the benchmark did not give its numbers."""


@dataclass(frozen=True)
class Series:
    """One quantity, measured in several rounds."""

    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def as_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "median": self.median, "rounds": list(self.rounds)}


@dataclass(frozen=True)
class Timer:
    """Times a call over about `seconds`; `wait` returns when the device has done all that it was given."""

    seconds: float
    wait: Callable[[], object] = lambda: None
    clock: Clock = time.perf_counter

    def seconds_per_call(self, call: Callable[[], object]) -> float:
        """The first call says how many are needed, and is the measurement itself where it takes long enough."""
        first = self._timed(call, 1)
        return first if first >= self.seconds else self._timed(call, math.ceil(self.seconds / max(first, 1e-9)))

    def _timed(self, call: Callable[[], object], times: int) -> float:
        self.wait()
        started = self.clock()
        for _ in range(times):  # without waiting in between: neither does the program
            call()
        self.wait()
        return (self.clock() - started) / times


def timer(device: torch.device, seconds: float) -> Timer:
    """A timer for what runs on `device`."""
    return Timer(seconds, (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None)


def in_turn(
    tasks: Mapping[str, Callable[[], Rates]], rounds: int, say: Callable[[str], object] = lambda line: None
) -> dict[str, list[float]]:
    """Run every task once a round, every other round in reverse order -> each value of each round, by its name.

    The reversal cancels a drift of the machine's speed to first order.
    """
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in list(tasks) if number % 2 == 0 else reversed(list(tasks)):
            values = tasks[name]()
            for key, value in values.items():
                found.setdefault(key, []).append(value)
            say(f"round {number + 1} of {rounds}: {name}: " + ", ".join(f"{value:.4g}" for value in values.values()))
    return found
