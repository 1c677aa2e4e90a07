"""What many tests need: a small configuration, a toy for the trainer, and the program in this process or its own."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import config as configuration
import run
from config import Config
from data import glyphs
from runtime import checkpoints, launcher
from runtime.metric_logger import MetricLogger
from runtime.signals import StopRequest
from trainer import Trainer, TrainerConfig

_glyphs = functools.cache(glyphs.load)  # drawing them takes most of the time of a small run

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

_CONFIG = """\
model: {{kind: vma, autoencoder: omniglot, likelihood: bernoulli, latent_dim: 4, matching_dim: 4, importance_num: 2,
  channels: [4, 4], hidden: [8, 8]}}
train_data: {{kind: glyphs, batch_size: 8, timesteps: 4, exact: true, max_img_per_class: 2, targets_per_memory: 4,
  held_out_classes: 3, iter: 4, resize: 20, classes: 8}}
val_data: {{kind: glyphs, batch_size: 8, timesteps: 4, exact: true, max_img_per_class: 2, resize: 20, classes: 8}}
test_data: {{kind: glyphs, batch_size: 16, resize: 20, classes: 8}}
train_spec: {{checkpoint_path: "{folder}/vma.pt", log_file: "{folder}/log.jsonl", gpus: [], steps: 10, lr: 1e-2,
  val_targets: 16, log_every: 1}}
test_spec: {{output_file: "{folder}/table.csv", gpus: [], importance_num: 60, targets: 12,
  test_params: {{max_batch_cls: [1, 2], timesteps: [1, 3]}}}}
"""


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- the program ------------------------------------------------------------------------------------------------------


def text(folder: Path) -> str:
    """The small configuration; all that is written lies in `folder`."""
    return _CONFIG.format(folder=folder)


def config(folder: Path, *overrides: str) -> Config:
    return configuration.parse(text(folder), "small.yaml", overrides)


def arguments(folder: Path, *more: str) -> list[str]:
    """The command line that runs the small configuration in `folder`; `more` holds flags and `key=value` overrides."""
    path = folder / "config" / "small.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(folder))
    flags = [part for one in more for part in ([one] if one.startswith("-") or "=" not in one else ["--set", one])]
    return ["--config", str(path), *flags]


def main(folder: Path, *more: str) -> int:
    """The exit status of the program, run in this process."""
    with as_it_was():
        glyphs.load = _glyphs
        return run.main(arguments(folder, *more))


@contextmanager
def as_it_was() -> Iterator[None]:
    """What the program changes in its process is put back: signal handlers, validation of distributions, TF32."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    validates, load = Distribution._validate_args, glyphs.load
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        glyphs.load = load
        Distribution.set_default_validate_args(validates)
        torch.backends.cudnn.allow_tf32 = tf32
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """A request to stop that hears the signals of this process."""
    with as_it_was():
        stop = StopRequest()
        stop.install()
        yield stop


def start(*command: str) -> subprocess.Popen[str]:
    """`python command...` from the folder of the project, with as many threads as this process."""
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_program(folder: Path, *more: str) -> subprocess.Popen[str]:
    return start("run.py", *arguments(folder, *more))


_TOGETHER = """
import sys
from runtime import launcher
launcher.POLL, world, *command = float(sys.argv[1]), int(sys.argv[2]), sys.executable, *sys.argv[3:]
sys.exit(launcher.run(command, world))
"""


def start_together(world: int, *command: str, poll: float = launcher.POLL) -> subprocess.Popen[str]:
    """`python command...` in `world` processes that work on one run, looked at every `poll` seconds."""
    return start("-c", _TOGETHER, str(poll), str(world), *command)


_NAPPING = """\
import os, sys, time
import run
from runtime import signals
from data.episodes import EpisodeLoader

at, handle, heard = EpisodeLoader.at, signals.StopRequest._handle, []

def hear(stop, number, frame):
    heard.append(number)
    open({folder!r} + "/heard", "w").close()
    handle(stop, number, frame)

def asked(loader, step):
    while step == {step} and loader._split == "train" and (not heard or {for_ever}):
        time.sleep(0.01)
    return at(loader, step)

signals.StopRequest._handle, EpisodeLoader.at = hear, asked
run.leave(run.main())
"""


def napping(folder: Path, step: int, *more: str, for_ever: bool = False) -> list[str]:
    """The program, which waits before `step` of its training for a signal (`heard` says that one came), or for ever."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "napping.py"
    program.write_text(_NAPPING.format(folder=str(folder), step=step, for_ever=for_ever))
    return [str(program), *arguments(folder, *more)]


class Makes:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def finish(process: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Until `condition` holds; AssertionError where `process` ends before."""
    deadline = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None  # before the condition, which the process may have met at last
        if condition():
            return
        if ended:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def rows(folder: Path, part: str | None = None) -> list[dict[str, Any]]:
    """The rows of the log, without those numbers that depend on the clock."""
    path = folder / "log.jsonl"
    every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    clock = ("seconds", "targets_per_s")
    return [{k: v for k, v in row.items() if k not in clock} for row in every if part in (None, row["subset"])]


def curves(folder: Path) -> dict[tuple[str, int, str], str]:
    """The log as (part, step, name) -> hexadecimal number; AssertionError where an entry is there twice."""
    found = {
        (row["subset"], row["step"], name): float(value).hex()
        for row in rows(folder)
        for name, value in row.items()
        if name not in ("subset", "step")
    }
    assert len({(part, step) for part, step, _ in found}) == len(rows(folder))
    return found


def logged(folder: Path, step: int) -> Callable[[], bool]:
    """Whether the log has come to `step` of the training."""

    def condition() -> bool:
        try:
            return any(row["step"] >= step for row in rows(folder, "train"))
        except (ValueError, OSError):  # in the middle of a line
            return False

    return condition


def same_weights(a: Path, b: Path) -> bool:
    """Whether the two checkpoints hold equal models."""
    one, two = checkpoints.load(a)["model"], checkpoints.load(b)["model"]
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def same_end(a: Path, b: Path) -> bool:
    """Whether two runs ended with equal weights, those of the best validation and those of the last step."""
    return all(same_weights(a / name, b / name) for name in ("vma.pt", "vma.last.pt"))


# --- a toy for the trainer --------------------------------------------------------------------------------------------


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
        error = (self.linear(x).squeeze(1) + 0.1 * noise.normal(1, len(x))[0] - y).square()
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
        config="toy",
        stop=stop or StopRequest(),
    )


def toy_logger(folder: Path, start: int = 0) -> MetricLogger:
    """A logger without TensorBoard."""
    return MetricLogger(folder / "log.jsonl", None, start)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def tensorboard(folder: Path) -> Path:
    """Where a run with its files in `folder` writes for TensorBoard."""
    return folder / "tb" / "vma"


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them: tag -> (step, value)."""
    events = _events(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def board_pictures(folder: Path) -> dict[str, list[int]]:
    """The steps of the pictures that TensorBoard shows."""
    events = _events(folder)
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    assert list(folder.glob("events.*")), f"no curves in {folder}"
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def count_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorBoard name its files as if a second passed between any two, as it does between two real runs."""
    from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]

    real = time.time
    seconds = iter(range(10**6))

    class Clock:
        @staticmethod
        def time() -> float:
            return real() + next(seconds)

    monkeypatch.setattr(event_file_writer, "time", Clock)
