"""What TensorBoard shows of a run."""

import time
from pathlib import Path
from typing import Any

import pytest


def tensorboard_folder(folder: Path) -> Path:
    """Where a run with its files in `folder` writes for TensorBoard."""
    return folder / "tb" / "vma"


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them: tag -> (step, value)."""
    events = _events(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tensorboard_images(folder: Path) -> dict[str, list[int]]:
    """The steps of the pictures that TensorBoard shows."""
    events = _events(folder)
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    assert list(folder.glob("events.*")), f"no curves in {folder}"
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def tensorboard_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorBoard name its files as if a second passed between any two, as it does between two real runs."""
    from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]

    real = time.time
    seconds = iter(range(10**6))

    class Clock:
        @staticmethod
        def time() -> float:
            return real() + next(seconds)

    monkeypatch.setattr(event_file_writer, "time", Clock)
