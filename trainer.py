"""The training loop: step, validate, log, save, resume.  Nothing in it is about memories or addresses.

`B` targets of a batch, of whatever shape.
"""

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

from runtime import checkpoints
from runtime.errors import NonFiniteError, PeerFailedError, status_of
from runtime.means import Means, Metrics
from runtime.metric_logger import MetricLogger
from runtime.processes import Processes
from runtime.randomness import StepNoise
from runtime.signals import Stopped, StopRequest

# Files beside the checkpoint `<stem>.pt`.
STATE = ".last.pt"  # all that resuming needs
PREVIOUS_STATE = ".last-but-one.pt"  # for the case that a disk damages the last one
DAMAGED = ".damaged.pt"  # a last one that was not whole when it was read
EVIDENCE = ".nonfinite.pt"  # the state before a step that gave NaN or Inf

_FAILED = 1 << 10  # agreed on in place of a signal: something could not be read or written

_REMEDY = "train anew (--restart) with a lower train_spec.lr or with train_spec.grad_clip=1"

T = TypeVar("T")


class Batches(Protocol):
    """Endless batches, a function of the step; `batch_size` targets in each."""

    batch_size: int

    def at(self, step: int) -> Any: ...


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, how often to validate, save and log: in steps; `val_targets` in targets."""

    steps: int
    val_every: int
    save_every: int
    log_every: int
    val_targets: int
    seed: int = 0
    precision: str = "fp32"
    grad_clip: float | None = None
    ema_decay: float = 0.0


class Loss(nn.Module):
    """A model's loss as a module of its own, since parallel training listens to the call of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, noise: StepNoise) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.loss(batch, noise)  # type: ignore[operator]


@dataclass
class Progress:
    """How far the run is; everything else of its state lies in the weights and the optimizer."""

    step: int = 0
    last_validated_step: int = -1  # the step of the last validation that was finished
    best: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0  # of training, over all sessions, up to the last row of the log

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # which may have been read from a file
            if type(value) is not type(getattr(Progress, name)):
                raise TypeError(f"progress: {name} is {value!r}")


class Trainer:
    """Trains `model`, whose `loss(batch, noise)` gives a scalar and metrics [B] that include "bound".

    `checkpoint_path` gets the weights of the best validation (without validation, of the end); `state_path` beside it
    gets all that resuming needs.  In both are `config_text`, which says what was trained, and the digest of its
    `images`.  Of several `processes` each trains on its shard of every batch, and the first writes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        train: Batches,
        validation: Batches | None,
        config: TrainerConfig,
        *,
        checkpoint_path: Path,
        config_text: str,
        images: str = "",
        stop: StopRequest,
        log_images: Callable[[nn.Module, MetricLogger, int], None] | None = None,
        processes: Processes = Processes(),
    ) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.train, self.validation, self.config = train, validation, config
        self.checkpoint_path, self.state_path = checkpoint_path, checkpoint_path.with_suffix(STATE)
        self.config_text, self.images, self.stop = config_text, images, stop
        self.log_images = log_images or (lambda model, logger, step: None)
        self.device = next(model.parameters()).device
        self.processes = processes
        self.loss = processes.parallel(Loss(model), self.device)
        self.averaged = copy.deepcopy(model).requires_grad_(False) if config.ema_decay else None
        self.progress = Progress()
        self.means = Means(processes.world)  # of the steps since the last row of the log
        self._saved_step = 0  # the step of the last state that was saved
        self._failure: OSError | None = None  # what ends the training as soon as its state is saved

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.averaged if self.averaged is not None else self.model

    def fit(self, logger: MetricLogger) -> None:
        """Train to the last step.

        Raises:
            Stopped: a signal came, to any of the processes; the state is saved.
            NonFiniteError: loss or gradient is not finite, and the weights are left as they were before that step; or
                the bound of the validation is not.  Files saved before stay.
            OSError: a checkpoint could not be written, and the one before is intact; or something else could not be
                read or written, and the state is saved.
            PeerFailedError, PeerLostError: another process could not go on.
        """
        progress, steps = self.progress.step, self.config.steps
        options = {
            "unit": "step",
            "dynamic_ncols": True,
            "mininterval": 1.0,
            "smoothing": 0,
            "disable": not self.processes.main,
        }
        with self.stop.deferred(), tqdm(initial=progress, total=steps, **options) as bar:
            self._loop(logger, bar)

    def _loop(self, logger: MetricLogger, bar: tqdm) -> None:
        config, progress = self.config, self.progress
        if not self.processes.broadcast_from_main(self.state_path.exists):  # others may not see the disk of the first
            self._save(logger)  # so that weights never stand without the state of their run
        logged_step, clock = progress.step, time.monotonic()
        while progress.step < config.steps:
            paused = time.monotonic()
            validated = self._validate_if_due(logger)
            if validated or (progress.step % config.save_every == 0 and progress.step > self._saved_step):
                self._save(logger)  # after a validation: otherwise resuming would log it again
            clock += time.monotonic() - paused
            batch = self._read(self.train, progress.step)
            self._check_stop(logger)
            self.means.add(self.step(batch))
            bar.update()
            if self._is_due(config.log_every):
                means = self.means.pop(self.processes)  # waits for the device
                self._log(logger, bar, means, progress.step - logged_step, time.monotonic() - clock)
                logged_step, clock = progress.step, time.monotonic()
        self._validate_if_due(logger)
        if self.validation is None:
            self._check_last_weights()
            self.save_weights()
        self._save(logger)
        if self._failure:
            raise self._failure

    @torch.no_grad()
    def _validate_if_due(self, logger: MetricLogger) -> bool:
        """Validate, where there are images for it, and log pictures; whether a validation was logged."""
        step = self.progress.step
        if not step or not self._is_due(self.config.val_every) or self.progress.last_validated_step >= step:
            return False
        if self.validation is not None:
            self._validate(self.validation, logger)
        self.progress.last_validated_step = step
        if self.processes.main:
            self._attempt(lambda: self.log_images(self.evaluated, logger, step))
        return self.validation is not None

    def _save(self, logger: MetricLogger) -> None:
        logger.flush()
        self.save_state()

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; an OSError of it waits until all processes can save and end together."""
        try:
            return action()
        except OSError as error:
            self._failure = error
        return None

    def _read(self, batches: Batches, number: int) -> Any:
        """That batch; None where it cannot be read, and `_check_stop` will not return."""
        return self._attempt(lambda: batches.at(number))

    def _check_stop(self, logger: MetricLogger) -> None:
        """Save the state and end, in all processes at the same point, if a signal or an OSError came to one.

        Raises Stopped, or the OSError; in the other processes PeerFailedError.
        """
        if reason := self.processes.all_reduce_max(_FAILED if self._failure else self.stop.received):
            self._save(logger)
            if reason < _FAILED:
                raise Stopped(reason)
            raise self._failure or PeerFailedError(status_of(OSError()))

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step >= self.config.steps

    def step(self, batch: Any = None) -> dict[str, Tensor]:
        """One update of the weights; metrics [B] and, as scalars, loss and gradient norm.  Raises NonFiniteError.

        A `batch` is that of the present step, where it has been read already.
        """
        loss, norm, metrics = self.gradient(batch)
        self._check_finite(loss, norm, metrics)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.averaged is not None:
            self._average(self.averaged)
        self.progress.step += 1
        return {"loss": loss, "gradient_norm": norm, **metrics}

    @torch.no_grad()
    def _average(self, averaged: nn.Module) -> None:
        """A moving average whose decay rises to `ema_decay`, so that the first weights are soon forgotten.

        `torch.optim.swa_utils.AveragedModel` counts its updates in a tensor, for which a step would have to wait.
        """
        decay = min(self.config.ema_decay, (1 + self.progress.step) / (10 + self.progress.step))
        torch._foreach_lerp_(list(averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def gradient(self, batch: Any = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, clipped gradient's norm before clipping, and metrics [B] of the present step; weights stay.

        Raises:
            NonFiniteError: in the first step, where distributions check what they get.
        """
        number = self.progress.step
        noise = StepNoise(self.device, self.config.seed, "train", number, shard=self.processes.shard)
        with self.processes.translate_peer_errors():
            if batch is None:
                batch = self.train.at(number)  # not in bf16: augmentation computes with coordinates of pixels
            with self._autocast():
                loss, metrics = self.loss(batch, noise) if number else self._first_loss(batch, noise)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        return loss, norm, metrics

    def _first_loss(self, batch: Any, noise: StepNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the first step, where distributions check what they get.

        Raises:
            NonFiniteError: in all processes, if it happened in one: the others would wait for its gradient.
        """
        fault: ValueError | None = None
        Distribution.set_default_validate_args(True)
        try:
            result = self.loss(batch, noise)
        except ValueError as error:
            fault = error
        finally:
            Distribution.set_default_validate_args(False)  # it doubles the cost of a likelihood
        if self.processes.all_reduce_max(int(fault is not None)):
            said = str(fault).splitlines()[0] if fault else "another process met what is not finite"
            raise NonFiniteError(f"step 0: {said}") from fault
        return result

    def replay(self) -> str:
        """The terms of the present step, computed without changing anything.  Raises NonFiniteError."""
        loss, norm, metrics = self.gradient()
        text = terms_text(loss, norm, metrics)
        if not torch.isfinite(loss + norm):
            at_fault = [name for name, p in self.model.named_parameters() if _broken(p.grad)]
            raise NonFiniteError(f"step {self.progress.step} is not finite: {text}; in the gradient of {at_fault}")
        return f"{text}; all finite"

    def _check_finite(self, loss: Tensor, norm: Tensor, metrics: Mapping[str, Tensor]) -> None:
        finite = bool(torch.isfinite(loss + norm))  # one NaN gradient would make every weight NaN
        if not self.processes.all_reduce_max(int(not finite)):
            return
        place = f" in process {self.processes.rank} of {self.processes.world}" if self.processes.world > 1 else ""
        error = NonFiniteError(
            f"step {self.progress.step} is not finite{place}: {terms_text(loss, norm, metrics)}; "
            f"no weight was changed by it, and what was saved before is kept; {_REMEDY}"
        )
        with contextlib.suppress(OSError, PeerFailedError):
            self.save_state(evidence := self.checkpoint_path.with_suffix(EVIDENCE))
            error.evidence = evidence
        raise error

    def _log(self, logger: MetricLogger, bar: tqdm, means: Metrics, steps: int, seconds: float) -> None:
        """A row of the means over the last `steps` steps, which took `seconds`."""
        self.progress.seconds += seconds
        rate, lr = steps * self.train.batch_size / max(seconds, 1e-9), self.optimizer.param_groups[0]["lr"]
        means |= {"lr": lr, "targets_per_s": rate, "seconds": self.progress.seconds}
        logger.log_scalars("train", self.progress.step, means)
        bar.set_postfix_str(f"loss {means['loss']:.2f}, bound {means['bound']:.2f} nats, {rate:.0f} targets/s")

    def _validate(self, validation: Batches, logger: MetricLogger) -> None:
        """Log the means of the validation, and save the weights if they are the best so far."""
        step, values = self.progress.step, self._validation_means(validation, logger)
        logger.log_scalars("validation", step, values)
        if values["bound"] > self.progress.best:
            self.progress.best, self.progress.best_step = values["bound"], step
            self.save_weights()
        if self.processes.main:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            best = f"best bound {self.progress.best:.2f} nats at step {self.progress.best_step}"
            tqdm.write(f"step {step}: validation {shown}; {best}")

    def _validation_means(self, validation: Batches, logger: MetricLogger) -> Metrics:
        """Over `val_targets` targets, whose batches the processes share.

        Raises NonFiniteError, and what `_check_stop` does.
        """
        means = Means()
        batches = -(-self.config.val_targets // validation.batch_size)
        for first in range(0, batches, self.processes.world):
            number = first + self.processes.rank
            batch = self._read(validation, number) if number < batches else None
            self._check_stop(logger)
            if batch is not None:
                noise = StepNoise(self.device, self.config.seed, "validation", number)
                with self._autocast():
                    means.add(self.evaluated.loss(batch, noise)[1])  # type: ignore[operator]
        values = means.pop(self.processes)
        if not math.isfinite(values["bound"]):
            raise self._not_finite(f"the bound of the validation is {values['bound']}")
        return values

    @torch.no_grad()
    def _check_last_weights(self) -> None:
        """The last step was finite before it changed the weights.  Raises NonFiniteError if another is not."""
        step = self.progress.step
        noise = StepNoise(self.device, self.config.seed, "train", step, shard=self.processes.shard)
        batch = self.train.at(step)
        with self._autocast():
            bound = self.evaluated.loss(batch, noise)[1]["bound"].mean()  # type: ignore[operator]
        if self.processes.all_reduce_max(int(not bound.isfinite())):
            raise self._not_finite(f"the bound of another batch with the last weights is {bound.item()}")

    def _not_finite(self, found: str) -> NonFiniteError:
        return NonFiniteError(f"step {self.progress.step}: {found}; what was saved before is kept; {_REMEDY}")

    def save_weights(self) -> None:
        """Write the file that tests read.  Raises OSError, NonFiniteError."""
        if broken := [name for name, value in self.evaluated.state_dict().items() if _broken(value)]:
            raise self._not_finite(f"the weights {', '.join(broken[:3])} are not finite")
        self.processes.broadcast_from_main(
            lambda: checkpoints.save(self.checkpoint_path, self._checkpoint(self.evaluated))
        )

    def save_state(self, path: Path | None = None) -> None:
        """Write all that resuming needs, to `state_path` or elsewhere.  Raises OSError."""
        state = self._checkpoint(self.model) | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "means": self.means.state(self.processes),
        }
        previous = self.checkpoint_path.with_suffix(PREVIOUS_STATE) if path is None else None
        self.processes.broadcast_from_main(lambda: checkpoints.save(path or self.state_path, state, previous))
        if path is None:
            self._saved_step = self.progress.step

    def _checkpoint(self, model: nn.Module) -> dict[str, Any]:
        progress = vars(self.progress).copy()
        return {"config": self.config_text, "images": self.images, "model": model.state_dict(), "progress": progress}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights instead of random ones."""
        self.model.load_state_dict(weights)
        if self.averaged is not None:
            self.averaged.load_state_dict(weights)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `save_state` wrote.

        Raises:
            AttributeError, LookupError, RuntimeError, TypeError, ValueError, ...: it is the state of something else.
        """
        fresh = self._tried_optimizer().state_dict()["state"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.means.restore(state["means"], self.processes)
        self.progress = Progress(**state["progress"])
        self._saved_step = self.progress.step
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():  # fused kernels do not look where they read
                if getattr(value, "shape", None) != getattr(fresh[number][name], "shape", None):
                    raise ValueError(f"optimizer: {name} of parameter {number} has another shape")
        self._tried_optimizer()

    def _tried_optimizer(self) -> torch.optim.Optimizer:
        """A copy after a step of it and of the scheduler, so that what is missing for that is found now."""
        optimizer, scheduler = copy.deepcopy((self.optimizer, self.scheduler))
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        with warnings.catch_warnings(action="ignore"):  # the step of a copy does not count itself for the scheduler
            if scheduler is not None and self.progress.step < self.config.steps:  # some refuse more
                scheduler.step()
        return optimizer

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _broken(values: Tensor | None) -> bool:
    return values is not None and not bool(values.isfinite().all())


def terms_text(loss: Tensor, norm: Tensor, metrics: Mapping[str, Tensor]) -> str:
    """The terms of a step, and which targets of the batch have one that is not finite."""
    means = {"loss": loss, "gradient norm": norm, **metrics}
    terms = ", ".join(f"{name} {value.detach().mean().item():.6g}" for name, value in means.items())
    wrong = sum((~value.isfinite()).int() for value in metrics.values() if value.numel() > 1)
    places = torch.as_tensor(wrong).flatten().nonzero().flatten().tolist()
    listed = ", ".join(map(str, places[:8])) + (", …" if len(places) > 8 else "")
    return terms + (f"; targets {listed} of its batch of {torch.as_tensor(wrong).numel()}" if places else "")
