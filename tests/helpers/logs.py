"""Reads the log and the weights that a run leaves, to compare it with another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from runtime import checkpoints


def rows(folder: Path, subset: str | None = None) -> list[dict[str, Any]]:
    """The rows of the log, without those numbers that depend on the clock."""
    path = folder / "log.jsonl"
    every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    clock = ("seconds", "targets_per_s")
    return [{k: v for k, v in row.items() if k not in clock} for row in every if subset in (None, row["subset"])]


def curves(folder: Path) -> dict[tuple[str, int, str], str]:
    """The log as (subset, step, name) -> hexadecimal number; AssertionError where an entry is there twice."""
    found = {
        (row["subset"], row["step"], name): float(value).hex()
        for row in rows(folder)
        for name, value in row.items()
        if name not in ("subset", "step")
    }
    assert len({(subset, step) for subset, step, _ in found}) == len(rows(folder))
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
