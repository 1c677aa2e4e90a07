"""Faults of configuration, data and checkpoints, put before the program: its status, the file it names, no traceback.

What the readers make of each file is tested beside them; here it is what a user sees, and what is left on the disk.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.config import small_config, small_yaml
from helpers.faults import MakesFolder
from helpers.program import main
from PIL import Image

import parsers
from data import _torchvision, omniglot
from data.omniglot import DRAWERS, SIDE, Archive
from runtime import checkpoints


def files(folder: Path) -> dict[str, bytes]:
    """All files below `folder` but locks and the configuration that was given."""
    every = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = (path for path in every if not path.name.endswith(".lock") and path.parent.name != "config")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# --- configuration ----------------------------------------------------------------------------------------------------

_EVERY_FILE = """
import json, resource, sys
import run

def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

for name in sys.argv[1:]:
    began = seconds()
    sys.stderr.write(f"<{name}>")
    status = run.main(["--config", name, "--train"])
    print(json.dumps([name, status, seconds() - began, "torch" in sys.modules]))
"""


WHOLE = small_yaml(Path("runs"))
SEVERAL = (
    WHOLE.replace("latent_dim: 4", "latent_dmi: 4")
    .replace("batch_size: 8, timesteps: 4", "batch_size: 8, timesteps: 5", 1)
    .replace("steps: 10", "steps: many")
    .replace("importance_num: 60", "importance_num: 0")
)
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))
WRONG_FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "misspelt": (WHOLE.replace("latent_dim", "latent_dmi"), ["latent_dmi: unknown key; did you mean latent_dim?"]),
    "type": (WHOLE.replace("lr: 1e-2", "lr: fast"), ["train_spec.lr: value 'fast': expected a valid number"]),
    "several": (SEVERAL, ["latent_dmi:", "train_data.timesteps:", "train_spec.steps:", "test_spec.importance_num:"]),
    "double": (WHOLE + "model: {}\n", ["the key model is given twice"]),
    "empty": ("", ["empty"]),
    "list": ("- a\n- b\n", ["expected sections"]),
    "tab": ("model:\n\tkind: vma\n", ["line 2: a tab"]),
    "rubbish": (bytes(range(256)) * 50, ["not UTF-8"]),
    "tag": (WHOLE + "x: !!python/object/apply:os.mkdir ['canary']\n", ["the tag"]),
    "bomb": (BOMB, ["the anchor &a"]),
    "recursive": ("a: &a [*a]\n", ["the anchor &a"]),
    "deep": ("[" * 20_000, ["nested deeper than 20"]),
    "large": (WHOLE + "#" * 50_000_000, ["larger than 1,000,000 bytes"]),
}


def test_files_that_are_no_configuration_are_answered_at_once(tmp_path: Path) -> None:
    """In less than two seconds each, without torch; nothing is written and nothing in them runs."""
    folder = tmp_path / "configs"
    folder.mkdir()
    expected = {str(folder / "none.yaml"): ["no such file"], str(folder): ["this is a folder"]}
    for name, (content, said) in WRONG_FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        expected[str(folder / name)] = said
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_FILE, *expected],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(name, status, late) for name, status, _, late in answers] == [(name, 2, False) for name in expected]
    assert max(seconds for _, _, seconds, _ in answers) < 2
    messages = dict(re.findall(r"<([^>]*)>([^<]*)", done.stderr))
    for name, said in expected.items():
        lines = messages[name].splitlines()
        assert len(lines) == len(said)
        assert all(line.startswith(f"{name}: ") for line in lines)
        assert [part for part in said if part not in messages[name]] == []
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"configs"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("train_data.max_img_per_class=20", "train_data.timesteps=20"), ["max_img_per_class: 20", "targets", "use 1"]),
        (("train_data.timesteps=3",), ["train_data.timesteps: 3", "max_img_per_class 2", "use 2 or 4"]),
        (("model.importance_num=1",), ["model.importance_num: 1", "train_spec.objective vimco", "use 2"]),
        (("train_data.batch_size=9",), ["train_data.batch_size: 9", "targets_per_memory 4", "use 8 or 12"]),
        (("test_spec.test_params.timesteps=[20]",), ["test_spec.test_params.timesteps: 20", "use up to 19"]),
        (("train_spec.gpus=[77]",), ["cuda:77", "shows", "use --device cpu or gpus: []"]),
    ],
)
def test_limits_between_fields_are_named_with_values_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: list[str]
) -> None:
    assert main(tmp_path, "--train", *more) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in said), err
    assert "Traceback" not in err
    assert not files(tmp_path)


# --- data -------------------------------------------------------------------------------------------------------------

BACKGROUND = "images_background"


def of_kind(kind: str) -> list[str]:
    """Overrides that read the images of this kind."""
    parts = ("train_data", "val_data", "test_data")
    return [f"{part}.{key}" for part in parts for key in (f"kind={kind}", "classes=200")]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proxy is port 9 of this machine, which is closed."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # it would remember the proxies of the first request


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["omniglot", "mnist"])
def test_without_data_and_network_it_says_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = tmp_path / "data"
    assert main(tmp_path, "--train", "--root", str(root), *of_kind(kind), "train_data.held_out_classes=0") == 3
    err = capsys.readouterr().err
    official = _torchvision.datasets()
    wanted = {
        "omniglot": [f"{BACKGROUND}.zip", f"{BACKGROUND}.npz", official.Omniglot.zips_md5[BACKGROUND], "https://"],
        "mnist": ["train-images-idx3-ubyte", *(md5 for _, md5 in official.MNIST.resources)],
    }
    assert str(root) in err and all(part in err for part in wanted[kind])
    assert "Traceback" not in err and len(err.splitlines()) == 1
    assert not files(tmp_path)


def png(ink: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(~ink).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def drawings() -> dict[str, bytes]:
    """Two characters in the official layout: name -> PNG."""
    ink = np.random.default_rng(0).random((2, DRAWERS, SIDE, SIDE)) < 0.1
    return {
        f"{BACKGROUND}/Arcadian/character{c + 1:02d}/{c + 1:04d}_{d + 1:02d}.png": png(ink[c, d])
        for c in range(2)
        for d in range(DRAWERS)
    }


def as_folder(root: Path, entries: dict[str, bytes]) -> Path:
    for name, content in entries.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root / BACKGROUND


def as_zip(root: Path, entries: dict[str, bytes]) -> Path:
    path = root / f"{BACKGROUND}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def as_npz(root: Path, entries: dict[str, bytes]) -> Path:
    path = root / f"{BACKGROUND}.npz"
    omniglot.write_npz(path, torch.zeros(2, DRAWERS, SIDE, SIDE, dtype=torch.uint8))
    return path


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def objects(path: Path) -> None:
    malice = np.array([MakesFolder(path.parent.parent / "canary")], dtype=object)
    np.savez(path, images=malice, labels=malice)


def without_one(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in entries.items() if not name.endswith("0002_07.png")}


def with_a_bad_png(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content[:-30] if name.endswith("0001_03.png") else content for name, content in entries.items()}


def climbing(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {**entries, "../../canary/0001_01.png": b""}


def absolute(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {**entries, "/tmp/0001_01.png": b""}


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.mark.parametrize(
    ("form", "change", "damage", "official", "said"),
    [
        (as_zip, None, shortened, True, f"{BACKGROUND}.zip"),
        (as_zip, None, lambda path: path.write_text("<html>404</html>"), True, f"{BACKGROUND}.zip"),
        (as_zip, None, None, False, "its md5 is"),
        (as_zip, climbing, None, True, "points outside"),
        (as_zip, absolute, None, True, "points outside"),
        (as_zip, with_a_bad_png, None, True, "0001_03.png"),
        (as_folder, without_one, None, True, "0002 has 19"),
        (as_folder, with_a_bad_png, None, True, "0001_03.png"),
        (as_npz, None, shortened, True, f"{BACKGROUND}.npz"),
        (as_npz, None, flipped, True, f"{BACKGROUND}.npz"),
        (as_npz, None, objects, True, "Object arrays cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_damaged_data_is_named_and_left_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawings: dict[str, bytes],
    form: Callable[[Path, dict[str, bytes]], Path],
    change: Change | None,
    damage: Callable[[Path], object] | None,
    official: bool,
    said: str,
) -> None:
    """An Omniglot of two characters, in each of the forms in which it may lie on the disk."""
    monkeypatch.setattr(omniglot, "ARCHIVES", {BACKGROUND: Archive(1, 2), "images_evaluation": Archive(965, 2)})
    root = tmp_path / "data"
    root.mkdir()
    path = form(root, change(drawings) if change else drawings)
    if damage:
        damage(path)
    datasets = _torchvision.datasets()
    md5 = datasets.utils.calculate_md5(path) if official and path.is_file() else "0" * 32
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", {BACKGROUND: md5, "images_evaluation": md5})
    before = files(root)
    assert main(tmp_path, "--train", "--root", str(root), *of_kind("omniglot")) == 3
    err = capsys.readouterr().err
    assert str(path) in err and said in err
    assert "Traceback" not in err and len(err.splitlines()) == 1
    assert files(root) == before
    assert {found.name for found in tmp_path.iterdir()} - {".vma.pt.lock", ".log.jsonl.lock"} == {"data", "config"}


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step.  Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(folder, "--train", "train_spec.steps=1") == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("damage", [flipped, shortened])
@pytest.mark.parametrize("what", ["--test", "--sample"])
def test_damaged_weights_of_the_run_are_named(
    copy: Path, capsys: pytest.CaptureFixture[str], what: str, damage: Callable[[Path], None]
) -> None:
    damage(copy / "vma.pt")
    before = files(copy)
    assert main(copy, what) == 3
    assert f"{copy / 'vma.pt'}: damaged" in capsys.readouterr().err
    assert files(copy) == before


def test_weights_alone_are_not_written_over(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in copy.glob("vma.last*.pt"):
        path.unlink()
    before = files(copy)
    assert main(copy, "--train", "train_spec.steps=2") == 2
    err = capsys.readouterr().err
    assert f"{copy / 'vma.pt'}: weights without the state of a run" in err
    assert "--restart" in err and "--output" in err
    assert files(copy) == before
    assert main(copy, "--train", "--restart", "train_spec.steps=2") == 0
    assert checkpoints.load(copy / "vma.pt")["progress"]["step"] == 2


def test_what_would_stop_the_test_is_found_before_the_training(
    tmp_path: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that is not there, a checkpoint that is damaged or of another model, data that is missing."""
    run_folder = tmp_path / "run"
    named = copy / "vma.pt"
    assert main(run_folder, "--train", "--test", "test_spec.gpus=[77]") == 2
    assert main(run_folder, "--train", "--test", "--checkpoint", str(named), "model.latent_dim=5") == 2
    flipped(named)
    assert main(run_folder, "--train", "--sample", "--checkpoint", str(named)) == 3
    assert not files(run_folder)
    assert capsys.readouterr().out == ""


def test_nothing_in_the_files_has_a_prefix(copy: Path) -> None:
    """The names are those of a model as it is built, without one of a wrapper around it."""
    expected = parsers.build_model(small_config(copy), torch.device("cpu")).state_dict().keys()
    for name in ("vma.pt", "vma.last.pt"):
        assert checkpoints.load(copy / name)["model"].keys() == expected


@pytest.mark.parametrize(
    ("path", "said"), [("/dev/zero", "not a file"), ("pipe", "not a file"), ("folder", "this is a folder")]
)
def test_what_is_no_file_is_no_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str], path: str, said: str) -> None:
    """A device that never ends and a pipe that nobody writes to are not waited for."""
    os.mkfifo(copy / "pipe")
    (copy / "folder").mkdir()
    assert main(copy, "--test", "--checkpoint", str(copy / path)) == 3
    assert f"{copy / path}: cannot be read ({said})" in capsys.readouterr().err
