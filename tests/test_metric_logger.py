"""The logger: what is written, what a resumed run takes back, and that trouble with it never ends a training."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.tensorboard import tensorboard_clock, tensorboard_images, tensorboard_scalars

from runtime.metric_logger import MetricLogger, read_log


def lines(path: Path) -> list[tuple[str, int, float]]:
    return [(row["subset"], row["step"], row["bound"]) for row in map(json.loads, path.read_text().splitlines())]


def write(logger: MetricLogger, steps: range, sign: float = 1) -> None:
    for step in steps:
        logger.log_scalars("train", step, {"bound": sign * step, "lr": 0.1})
        if step % 4 == 0:
            logger.log_scalars("validation", step, {"bound": sign * step / 2})
            logger.log_image("train/grid", step, np.full((4, 6), step, np.uint8))


def test_what_is_told_is_written(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path / "new" / "log.jsonl", tmp_path / "tb", 0)
    write(logger, range(1, 6))
    logger.log_image("colour", 1, np.zeros((4, 6, 3), np.uint8))
    logger.close()
    assert lines(tmp_path / "new" / "log.jsonl") == [
        ("train", 1, 1), ("train", 2, 2), ("train", 3, 3), ("train", 4, 4), ("validation", 4, 2), ("train", 5, 5)
    ]  # fmt: skip
    curves = tensorboard_scalars(tmp_path / "tb")
    assert curves["train/bound"] == [(n, n) for n in range(1, 6)]
    assert [step for step, _ in curves["train/lr"]] == [1, 2, 3, 4, 5]
    assert curves["validation/bound"] == [(4, 2.0)]
    assert tensorboard_images(tmp_path / "tb") == {"train/grid": [4], "colour": [1]}


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path / "log.jsonl", None, 0)
    write(logger, range(1, 3))
    assert len(lines(tmp_path / "log.jsonl")) == 2
    logger.close()


@pytest.mark.parametrize("start", [1, 4, 5, 9])
def test_a_resumed_run_takes_back_what_lies_beyond_its_start(
    tmp_path: Path, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard_clock(monkeypatch)
    log, tb = tmp_path / "log.jsonl", tmp_path / "tb"
    first = MetricLogger(log, tb, None)
    write(first, range(1, 10))
    first.close()
    second = MetricLogger(log, tb, start)
    write(second, range(start + 1, 13), sign=-1)
    second.close()
    sign = {step: 1 if step <= start else -1 for step in range(13)}
    train = [("train", step, sign[step] * step) for step in range(1, 13)]
    validation = [("validation", step, sign[step] * step / 2) for step in (4, 8, 12)]
    assert sorted(lines(log)) == sorted(train + validation)
    curves = tensorboard_scalars(tb)
    assert curves["train/bound"] == [(step, bound) for _, step, bound in train]
    assert curves["validation/bound"] == [(step, bound) for _, step, bound in validation]
    assert tensorboard_images(tb) == {"train/grid": [4, 8, 12]}


def test_a_run_that_goes_on_within_the_second_it_was_begun_in_is_read_whole(tmp_path: Path) -> None:
    begun = MetricLogger(None, tmp_path, 0)
    begun.log_scalars("train", 1, {"bound": 1})
    begun.close()
    (file,) = tmp_path.iterdir()
    *start, _, last = file.name.split(".")
    file.rename(tmp_path / ".".join([*start, "9999999", last]))  # a process whose number comes last of all
    resumed = MetricLogger(None, tmp_path, 1)
    resumed.log_scalars("train", 2, {"bound": 2})
    resumed.close()
    assert tensorboard_scalars(tmp_path)["train/bound"] == [(1, 1), (2, 2)]


def test_a_run_from_the_beginning_replaces_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorboard_clock(monkeypatch)
    for sign in (1, -1):
        logger = MetricLogger(tmp_path / "log.jsonl", tmp_path / "tb", None)
        write(logger, range(0, 4), sign)
        logger.close()
    assert [bound for part, _, bound in lines(tmp_path / "log.jsonl") if part == "train"] == [0, -1, -2, -3]
    assert tensorboard_scalars(tmp_path / "tb")["train/bound"] == [(0, 0), (1, -1), (2, -2), (3, -3)]


def test_a_row_that_was_cut_off_is_taken_back(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    good = '{"subset": "train", "step": 1, "bound": 1.0}\n'
    log.write_text(good + '{"subset": "train", "st')
    MetricLogger(log, None, 5).close()
    assert log.read_text() == good
    assert log.with_suffix(".unreadable").read_text() == '{"subset": "train", "st\n'


def test_a_row_after_a_half_one_has_a_line_of_its_own(tmp_path: Path) -> None:
    """A disk that was full for a while."""
    log = tmp_path / "log.jsonl"
    logger = MetricLogger(log, None, None)
    logger.log_scalars("train", 1, {"bound": 1.0})
    with log.open("a") as file:
        file.write('{"subset": "train", "st')
    logger.log_scalars("train", 3, {"bound": 3.0})
    logger.close()
    rows, unreadable = read_log(log)
    assert [row["step"] for row in rows] == [1, 3] and unreadable == [b'{"subset": "train", "st']


NO_ROWS = [
    b"\xff\xfe\x00rubbish",
    b"",
    b"null",
    b"7",
    b"[" * 10**5,
    b'{"subset": "train", "bound": 1.0}',
    b'{"subset": "train", "step": 1e999}',
    b'{"subset": "train", "step": 1.5}',
    b'{"subset": "train", "step": 1, "bound": ' + b"9" * 400 + b"}",
    b'{"subset": "train", "step": ' + b"9" * 5000 + b"}",
    b'{"subset": ["train"], "step": 1}',
    b'{"subset": "train", "step": 1, "bound": 1.0}\xe9',
    b'{"step": 1}',
    b'{"subset": "train", "step": 1, "bound": null}',
]


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: ascii(line)[:30])
def test_what_is_no_row_is_put_aside_and_no_row_is_there_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    log, row = tmp_path / "log.jsonl", '{"subset": "train", "step": %d, "bound": 1.0}\n'
    log.write_bytes((row % 1).encode() + line + b"\n" + (row % 2 + row % 3).encode())
    logger = MetricLogger(log, None, 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(log) in caplog.text
    logger.log_scalars("train", 3, {"bound": 1.0})
    logger.close()
    assert log.read_text() == row % 1 + row % 2 + row % 3
    assert log.with_suffix(".unreadable").read_bytes() == line + b"\n"


# --- trouble ----------------------------------------------------------------------------------------------------------


def folder_in_the_way(path: Path) -> None:
    path.mkdir(parents=True)


def file_in_the_way(path: Path) -> None:
    path.parent.write_text("")


@pytest.mark.parametrize("trouble", [folder_in_the_way, file_in_the_way])
def test_trouble_with_the_log_is_one_warning_and_tensorboard_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Callable[[Path], None]
) -> None:
    log = tmp_path / "logs" / "log.jsonl"
    trouble(log)
    with caplog.at_level(logging.WARNING):
        logger = MetricLogger(log, tmp_path / "tb", 1)
        write(logger, range(2, 10))
        logger.close()
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
    assert [step for step, _ in tensorboard_scalars(tmp_path / "tb")["train/bound"]] == list(range(2, 10))


def test_trouble_with_tensorboard_is_one_warning_and_the_log_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tb").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING):
        logger = MetricLogger(tmp_path / "log.jsonl", tmp_path / "tb", 0)
        write(logger, range(1, 10))
        logger.close()
    assert len(caplog.records) == 1
    assert [step for part, step, _ in lines(tmp_path / "log.jsonl") if part == "train"] == list(range(1, 10))


def test_the_log_goes_on_where_tensorboard_cannot_be_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        logger = MetricLogger(tmp_path / "log.jsonl", tmp_path / "tb", 0)
        write(logger, range(1, 3))
        logger.close()
    assert len(caplog.records) == 1
    assert len(lines(tmp_path / "log.jsonl")) == 2


def test_without_places_nothing_is_written(tmp_path: Path) -> None:
    logger = MetricLogger(None, None, 0)
    write(logger, range(5))
    logger.close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_a_device_stays_one(tmp_path: Path) -> None:
    """Somebody who wants no log names /dev/null, which a run as root must not turn into a file."""
    import os
    import stat

    place = tmp_path / "pipe"
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        logger = MetricLogger(place, None, 0)
        write(logger, range(1, 3))
        logger.close()
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(place.stat().st_mode)
