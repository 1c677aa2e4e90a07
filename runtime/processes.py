"""Several processes that work on one run together, as torchrun or `launcher` starts them.

Process 0 writes; the others compute their shard.  Whether to stop is agreed on, so that none waits for one that left.
Messages between processes go over gloo on the CPU, whatever the gradients take, so that waiting for them can be
interrupted when a process ends.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import PeerFailedError, PeerLostError, status_of
from runtime.randomness import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all: number `rank` of `world`, and `local_rank` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def shard(self) -> Shard:
        """The slice of the global batch that this process computes."""
        return Shard(self.rank, self.world)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @contextmanager
    def process_group(self, device: torch.device) -> Iterator[None]:
        """Within, the processes can communicate.  Raises PeerLostError where one of them does not appear."""
        if self.world == 1 or dist.is_initialized():
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self.translate_peer_errors():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield
        dist.destroy_process_group()  # not after a failure, where others may never come to it

    @contextmanager
    def translate_peer_errors(self) -> Iterator[None]:
        """Raises PeerLostError in place of the RuntimeError of a communication whose other end is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and _is_about_communication(error):
                line = str(error).strip().splitlines()[0][:200]
                raise PeerLostError(f"another process of this run has ended or cannot be reached ({line})") from None
            raise

    def broadcast_from_main(self, action: Callable[[], T]) -> T:
        """Process 0 runs `action`; all get what it returns.

        Raises:
            PeerFailedError: in the other processes, if it failed in process 0; with the exit status to end with.
        """
        if self.world == 1:
            return action()
        message: list[Any] = [None, None]  # what it returned, or the exit status
        if self.main:
            try:
                message = [action(), None]
            except BaseException as error:
                with contextlib.suppress(RuntimeError):  # the others have failed too; the reason of this one is raised
                    dist.broadcast_object_list([None, status_of(error)])
                raise
        with self.translate_peer_errors():
            dist.broadcast_object_list(message)
        result, status = message
        if status is not None:
            raise PeerFailedError(status)
        return result

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, in order, in each of them."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        with self.translate_peer_errors():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def all_reduce_max(self, value: int) -> int:
        """The largest of a small whole number over all processes, in each of them."""
        if self.world == 1:
            return value
        number = torch.tensor(value)
        with self.translate_peer_errors():
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sums over all processes of `values` on the CPU, in each of them."""
        if self.world > 1:
            with self.translate_peer_errors():
                dist.all_reduce(values)
        return values

    def parallel(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module`, the gradients of whose parameters become the means over all processes."""
        if self.world == 1:
            return module
        with self.translate_peer_errors():
            return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def from_environment() -> Processes:
    """As torchrun says it in RANK, WORLD_SIZE and LOCAL_RANK; one process where it does not."""
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    return Processes(rank, int(os.environ.get("WORLD_SIZE", "1")), local_rank)


def started_by_launcher() -> bool:
    """Whether torchrun or `launcher` started this process, be it the only one."""
    return "WORLD_SIZE" in os.environ


def _is_about_communication(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection", "peer", "socket", "timed out", "rendezvous", "store", "process group")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
