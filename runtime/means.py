"""Means of metrics over steps and processes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.processes import Processes

Metrics = dict[str, float]
Sums = dict[str, tuple[float, float]]  # (sum, count) by name

_NOTHING = (0.0, 0.0)


class Means:
    """Sums on the device, divided once and read only when asked for.

    A scalar is what each of `world` processes says of the same step, so it counts as one of them: the steps of a run
    count alike, with however many processes they were made.
    """

    def __init__(self, world: int = 1) -> None:
        self._scalar = 1 / world
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            each, count = (1, value.numel()) if value.dim() else (self._scalar, self._scalar)
            self._sums[name] = self._sums.get(name, 0.0) + each * value.detach().sum()
            self._counts[name] = self._counts.get(name, 0.0) + count

    def state(self, processes: Processes) -> list[Sums]:
        """The sums of every process, for `restore`.  Waits for the device."""
        return processes.all_gather({name: (float(total), self._counts[name]) for name, total in self._sums.items()})

    def restore(self, state: Sequence[Sums], processes: Processes) -> None:
        """Go on from an earlier `state`, whatever the number of processes then."""
        mine = state[processes.rank :: processes.world]
        names = dict.fromkeys(name for sums in mine for name in sums)
        self._sums = {name: torch.tensor(sum(sums.get(name, _NOTHING)[0] for sums in mine)) for name in names}
        self._counts = {name: sum(sums.get(name, _NOTHING)[1] for sums in mine) for name in names}

    def pop(self, processes: Processes) -> Metrics:
        """The means so far, over all processes; the sums start anew."""
        shards = self.state(processes)
        self._sums, self._counts = {}, {}
        names = dict.fromkeys(name for sums in shards for name in sums)
        of = {name: [sums[name] for sums in shards if name in sums] for name in names}
        return {name: sum(total for total, _ in own) / sum(count for _, count in own) for name, own in of.items()}
