"""Signals while a training validates, waits for a download, or reads its data: an end within ten seconds, all clean."""

import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.config import arguments
from helpers.logs import logged
from helpers.program import Process, finish, fork_program, start, wait_for
from PIL import Image

from data.omniglot import ARCHIVES, DRAWERS, alphabet_of
from runtime import checkpoints

SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


def ended(process: Process, number: signal.Signals) -> str:
    """What a process that is sent this signal says on stderr, on its way out."""
    began = time.monotonic()
    process.send_signal(number)
    status, _, err = finish(process, 10)
    assert time.monotonic() - began < 10
    assert status == 128 + number
    assert f"stopped by {number.name}; resume with: python run.py" in err and "Traceback" not in err
    return err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_validation_saves_the_training(tmp_path: Path, number: signal.Signals) -> None:
    """A validation of minutes after the first step."""
    process = fork_program(tmp_path, "--train", "train_spec.val_every=1", "train_spec.val_targets=80000")
    wait_for(logged(tmp_path, 1), process)
    time.sleep(0.2)
    ended(process, number)
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 1
    assert not list(tmp_path.glob(".*.part"))


def omniglot(folder: Path, root: Path) -> list[str]:
    parts, keys = ("train_data", "val_data", "test_data"), ("kind=omniglot", "classes=200")
    kinds = [f"{part}.{key}" for part in parts for key in keys]
    return arguments(folder, "--train", "--root", str(root), *kinds)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_download_is_waited_for_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The proxy accepts the connection and never says a word."""
    root = tmp_path / "data"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        process = start("run.py", *omniglot(tmp_path, root))
        connection, _ = silent.accept()
        with connection:
            ended(process, number)
    assert not list(root.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_drawings_are_read_leaves_no_packed_file(tmp_path: Path, number: signal.Signals) -> None:
    """An extracted Omniglot of 19,280 drawings, all of them one file."""
    root = tmp_path / "data"
    drawing = tmp_path / "one.png"
    Image.fromarray(np.arange(105 * 105).reshape(105, 105) % 3 > 0).save(drawing)
    part = ARCHIVES["images_background"]
    for character in range(part.first, part.first + part.classes):
        folder = root / "images_background" / alphabet_of(character) / f"character{character:04d}"
        folder.mkdir(parents=True)
        for drawer in range(DRAWERS):
            os.link(drawing, folder / f"{character:04d}_{drawer + 1:02d}.png")
    process = start("run.py", *omniglot(tmp_path, root))
    wait_for((tmp_path / ".vma.pt.lock").exists, process)
    time.sleep(0.3)
    ended(process, number)
    assert [path.name for path in root.iterdir()] == ["images_background"]
