"""Several processes that work on one run together, as torchrun or `launcher` starts them.

Process 0 writes; the others compute their shard.  Whether to stop is agreed on, so that none waits for one that left.
Messages between processes go over gloo on the CPU, whatever the gradients take, so that waiting for them can be
interrupted when a process ends.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import PeerFailedError, PeerLostError, UserError, status_of
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
    def process_group(self, device: torch.device, patience: float = 120) -> Iterator[None]:
        """Within, the processes can communicate.

        Raises UserError, and PeerLostError where one of them does not appear within `patience` seconds.
        """
        if self.world == 1 or dist.is_initialized():
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self.translate_peer_errors():
            backend, store = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", self._meet(patience)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        yield
        dist.destroy_process_group()  # not after a failure, where others may never come to it

    def _meet(self, patience: float) -> dist.Store:
        """A store, when all processes have come to it.  PyTorch's own rendezvous does not say which one is missing."""
        host, port, until = *_address(), time.monotonic() + patience
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process has the store
        if not (serves := self.main and not agent):
            while not _answers(host, port):
                _wait_until(until, f"{host}:{port} does not answer: process 0 is missing")
        tcp = dist.TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=timedelta(seconds=patience))
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", tcp)
        here = [f"process {rank}" for rank in range(self.world)]
        store.set(here[self.rank], "is here")
        while not store.check(here):
            missing = ", ".join(one for one in here if not store.check([one]))
            _wait_until(until, f"of {self.world} processes that meet at {host}:{port}, these are missing: {missing}")
        store.set_timeout(timedelta(minutes=30))  # PyTorch's own, for all that follows
        return store

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
    """As torchrun says it in RANK, WORLD_SIZE and LOCAL_RANK; one process where it does not.  Raises UserError."""
    rank, world, local_rank = _number("RANK", "0"), _number("WORLD_SIZE", "1"), _number("LOCAL_RANK", "0")
    if rank >= world:
        said = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in ("RANK", "WORLD_SIZE"))
        raise UserError(f"{said} in the environment: RANK must be below WORLD_SIZE; torchrun sets both, or unset both")
    return Processes(rank, world, local_rank)


def _number(name: str, default: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text := os.environ.get(name, default)):
        raise UserError(f"{name}={text} in the environment: expected a whole number; torchrun sets it, or unset it")
    return int(text)


def _address() -> tuple[str, int]:
    """Where the processes meet."""
    host, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", "0")
    if not host or not 0 < port < 1 << 16:
        said = "where several processes meet; torchrun sets them"
        raise UserError(f"MASTER_ADDR={host}, MASTER_PORT={port} in the environment: expected host and port, {said}")
    return host, port


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def _wait_until(end: float, problem: str) -> None:
    """Wait a moment.  Raises PeerLostError when the time is over."""
    if time.monotonic() > end:
        raise PeerLostError(f"{problem}; start them all, or raise train_spec.rendezvous")
    time.sleep(0.1)


def started_by_launcher() -> bool:
    """Whether torchrun or `launcher` started this process, be it the only one."""
    return "WORLD_SIZE" in os.environ


def _is_about_communication(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection", "peer", "socket", "timed out", "rendezvous", "store", "process group")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
