"""The schedulers of torch.optim.lr_scheduler that YAML can describe, and their arguments.  No torch here.

Left out are those that take functions, other schedulers or a measured value, and arguments that are functions.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from config.strict_yaml import quoted


class Argument(NamedTuple):
    """What to write for an argument, and what fits."""

    what: str
    fits: Callable[[Any], bool]
    needed: bool = False


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _are_steps(value: object) -> bool:
    return type(value) is int and value >= 1


def _one_of(*names: str) -> Argument:
    return Argument(f"one of {', '.join(names)}", lambda value: value in names)


_STEPS = Argument("a number of steps, such as 1000", _are_steps)
_STEPS_OR_NULL = Argument(f"{_STEPS.what}, or null", lambda value: value is None or _are_steps(value))
_LIST = Argument(
    "a list of numbers of steps, such as [60000, 80000]",
    lambda value: isinstance(value, tuple) and len(value) > 0 and all(map(_are_steps, value)),
)
_NUMBER = Argument("a number, such as 0.1", _is_number)
_FRACTION = Argument("a number from 0 to 1, such as 0.3", lambda value: _is_number(value) and 0 <= value <= 1)
_POSITIVE_FRACTION = Argument(
    "a number above 0 and up to 1, such as 0.3", lambda value: _is_number(value) and 0 < value <= 1
)
_SWITCH = Argument("true or false", lambda value: type(value) is bool)
_MOMENTA = {"cycle_momentum": _SWITCH, "base_momentum": _NUMBER, "max_momentum": _NUMBER}


def _needed(argument: Argument) -> Argument:
    return argument._replace(needed=True)


SCHEDULERS: Mapping[str, Mapping[str, Argument]] = {
    "ConstantLR": {"factor": _FRACTION, "total_iters": _STEPS},
    "CosineAnnealingLR": {"T_max": _needed(_STEPS), "eta_min": _NUMBER},
    "CosineAnnealingWarmRestarts": {"T_0": _needed(_STEPS), "T_mult": _STEPS, "eta_min": _NUMBER},
    "CyclicLR": {
        "base_lr": _needed(_NUMBER),
        "max_lr": _needed(_NUMBER),
        "step_size_up": _STEPS,
        "step_size_down": _STEPS_OR_NULL,
        "mode": _one_of("triangular", "triangular2", "exp_range"),
        "gamma": _NUMBER,
        "scale_mode": _one_of("cycle", "iterations"),
        **_MOMENTA,
    },
    "ExponentialLR": {"gamma": _needed(_NUMBER)},
    "LinearLR": {"start_factor": _POSITIVE_FRACTION, "end_factor": _FRACTION, "total_iters": _STEPS},
    "MultiStepLR": {"milestones": _needed(_LIST), "gamma": _NUMBER},
    "OneCycleLR": {
        "max_lr": _needed(_NUMBER),
        "total_steps": _needed(_STEPS),
        "pct_start": _FRACTION,
        "anneal_strategy": _one_of("cos", "linear"),
        **_MOMENTA,
        "div_factor": _NUMBER,
        "final_div_factor": _NUMBER,
        "three_phase": _SWITCH,
    },
    "PolynomialLR": {"total_iters": _STEPS, "power": _NUMBER},
    "StepLR": {"step_size": _needed(_STEPS), "gamma": _NUMBER},
}

# Arguments that say when the schedule ends; after that the rate would rise again, or there is none.
_LENGTH = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}


def problems(kind: str, given: Mapping[str, Any], steps: int) -> Iterator[tuple[str, str]]:
    """Arguments at fault, of a schedule for `steps` steps, and what is wrong with them."""
    known = SCHEDULERS[kind]
    for name, argument in known.items():
        if argument.needed and name not in given:
            yield name, f"missing; {kind} needs {argument.what}"
    for name, value in given.items():
        if name not in known:
            yield name, f"{kind} has no such argument; it has {', '.join(known)}"
        elif not known[name].fits(value):
            yield (
                name,
                f"value {quoted(value)}: expected {known[name].what}",
            )
        elif name == _LENGTH.get(kind) and value < steps:
            yield name, f"{value} is less than the {steps} steps of the schedule; use {steps} or more"
