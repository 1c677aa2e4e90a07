"""Every source of Omniglot gives the same images, and no damaged one gives any.

Most tests use an Omniglot of five characters in the real formats.  Those on the real one find it through OMNIGLOT_ROOT.
"""

import http.server
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faults import MakesFolder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import _torchvision, omniglot
from data.images import resample
from data.omniglot import ARCHIVES, DRAWERS, SIDE, Archive
from data.registry import DATA_SETS, Counts
from runtime.errors import DataError

# two characters of the background; Oriya's last, Syriac_(Serto)'s first two
SMALL = {"images_background": Archive(1, 2), "images_evaluation": Archive(1479, 3)}
BACKGROUND = "images_background"


@pytest.fixture(autouse=True)
def small_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five characters, and no network but what a test sets up: port 9 of this machine is closed."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # it would remember the proxies of the first request
    if "real" not in request.fixturenames:
        monkeypatch.setattr(omniglot, "ARCHIVES", SMALL)


@pytest.fixture
def real() -> Path:
    """The folder of the real Omniglot."""
    if "OMNIGLOT_ROOT" not in os.environ:
        pytest.skip("OMNIGLOT_ROOT does not name a folder with the real Omniglot")
    return Path(os.environ["OMNIGLOT_ROOT"])


def ink_of(name: str) -> np.ndarray:
    """Random drawings, bool [C, 20, 105, 105], True = ink; a function of the part's name."""
    part = SMALL[name]
    return np.random.default_rng(part.first).random((part.classes, DRAWERS, SIDE, SIDE)) < 0.1


def png_of(ink: np.ndarray) -> bytes:
    """A 1-bit PNG, black on white, as in the official release."""
    buffer = io.BytesIO()
    Image.fromarray(~ink).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def drawings_of(name: str) -> dict[str, bytes]:
    """Entry name -> PNG, in the official layout."""
    first, entries = SMALL[name].first, {}
    for i, character in enumerate(ink_of(name)):
        folder = f"{name}/{omniglot.alphabet_of(first + i)}/character{i + 1:02d}"
        for d, drawing in enumerate(character):
            entries[f"{folder}/{first + i:04d}_{d + 1:02d}.png"] = png_of(drawing)
    return entries


def write_zip(path: Path, entries: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str = BACKGROUND) -> Path:
    """A zip with these entries, declared to be the official file of the part `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    declare_official(path, monkeypatch, name)
    return path


def declare_official(path: Path, monkeypatch: pytest.MonkeyPatch, name: str = BACKGROUND) -> None:
    datasets = _torchvision.datasets()
    md5s = {**datasets.Omniglot.zips_md5, name: datasets.utils.calculate_md5(path)}
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", md5s)


def write_folder(root: Path, entries: dict[str, bytes]) -> Path:
    for entry, content in entries.items():
        (root / entry).parent.mkdir(parents=True, exist_ok=True)
        (root / entry).write_bytes(content)
    return root


def arrays_of(name: str) -> dict[str, np.ndarray]:
    ink = ink_of(name)
    return {"images": ~ink, "labels": np.repeat(np.arange(len(ink))[:, None], DRAWERS, 1)}


def write_packed(root: Path, name: str = BACKGROUND, changed: Mapping[str, np.ndarray] | None = None) -> Path:
    arrays = {**arrays_of(name), **(changed or {})}
    np.savez_compressed(root / f"{name}.npz", images=arrays["images"], labels=arrays["labels"])
    return root / f"{name}.npz"


def listing(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def check_background(root: Path) -> None:
    loaded = omniglot.load(root, "train", "official")
    assert torch.equal(loaded.images, torch.from_numpy(ink_of(BACKGROUND).astype(np.uint8)).flatten(0, 1))
    assert loaded.counts.tolist() == [20, 20]
    assert loaded.names == ("Arcadian/0001", "Arcadian/0002")


# --------------------------------------------------------------------------------------------------------- sources


def source_npz(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(root)


def source_zip(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = dict(sorted(drawings_of(BACKGROUND).items(), key=lambda item: hash(item[1])))
    extra = {f"{BACKGROUND}/": b"", f"__MACOSX/{BACKGROUND}/Arcadian/character01/._0001_01.png": b"resource fork"}
    write_zip(root / f"{BACKGROUND}.zip", {**extra, **shuffled}, monkeypatch)


def source_zip_of_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(root / "omniglot-py" / f"{BACKGROUND}.zip", drawings_of(BACKGROUND), monkeypatch)


def source_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(root, drawings_of(BACKGROUND))


def source_folder_of_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(root / "omniglot-py", drawings_of(BACKGROUND))


Source = Callable[[Path, pytest.MonkeyPatch], None]
PNG_SOURCES = [source_zip, source_zip_of_torchvision, source_folder, source_folder_of_torchvision]


@pytest.mark.parametrize("source", [source_npz, *PNG_SOURCES])
def test_every_source_alone_gives_the_same_classes(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(tmp_path, monkeypatch)
    check_background(tmp_path)


@pytest.mark.parametrize("source", PNG_SOURCES)
def test_png_files_are_packed_once(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path, monkeypatch)
    before = set(listing(tmp_path))
    omniglot.load(tmp_path, "train", "official")
    assert set(listing(tmp_path)) - before == {f"{BACKGROUND}.npz"}
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    for path in tmp_path.rglob("*.zip"):
        path.unlink()
    check_background(tmp_path)
    with np.load(tmp_path / f"{BACKGROUND}.npz") as packed:
        for key, array in arrays_of(BACKGROUND).items():
            assert packed[key].dtype == array.dtype
            assert np.array_equal(packed[key], array)


def test_the_packed_file_is_taken_before_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(tmp_path)
    write_folder(tmp_path, dict.fromkeys(drawings_of(BACKGROUND), b"not looked at"))
    check_background(tmp_path)


def test_the_other_split_puts_five_alphabets_aside(tmp_path: Path) -> None:
    for name in SMALL:
        write_packed(tmp_path, name)
    train = omniglot.load(tmp_path, "train", "45-5")
    assert train.names == ("Arcadian/0001", "Arcadian/0002", "Oriya/1479")
    everything = torch.from_numpy(np.concatenate([ink_of(name) for name in SMALL]).astype(np.uint8))
    assert torch.equal(train.images, everything[:3].flatten(0, 1))
    test = omniglot.load(tmp_path, "test", "45-5")
    assert test.names == ("Syriac_(Serto)/1480", "Syriac_(Serto)/1481")
    assert torch.equal(test.images, everything[3:].flatten(0, 1))


def test_only_the_files_of_the_wanted_classes_are_needed(tmp_path: Path) -> None:
    write_packed(tmp_path, "images_evaluation")
    assert omniglot.load(tmp_path, "test", "official").num_classes == 3
    assert omniglot.load(tmp_path, "test", "45-5").num_classes == 2
    with pytest.raises(DataError, match="images_background"):
        omniglot.load(tmp_path, "train", "45-5")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for subset, split in (("val", "official"), ("train", "40-10")):
        with pytest.raises(ValueError, match=f"{subset}.*{split}"):
            omniglot.load(tmp_path, subset, split)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- damage


def refused(root: Path, said: str) -> None:
    """Loading fails with a DataError that names the file, and leaves the folder as it is."""
    before = listing(root)
    with pytest.raises(DataError, match=said):
        omniglot.load(root, "train", "official")
    assert listing(root) == before


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_a_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_npz(tmp_path, monkeypatch) if kind == "npz" else source_zip(tmp_path, monkeypatch)
    path = tmp_path / f"{BACKGROUND}.{kind}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    refused(tmp_path, f"{BACKGROUND}.{kind} cannot be read")


@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_a_web_page_saved_under_the_name_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"{BACKGROUND}.{kind}").write_text("<!DOCTYPE html><html><body>404: Not Found</body></html>")
    refused(tmp_path, f"{BACKGROUND}.{kind} cannot be read")


def test_a_zip_with_another_md5_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_zip(tmp_path, monkeypatch)
    monkeypatch.setattr(_torchvision.datasets().Omniglot, "zips_md5", {BACKGROUND: "0" * 32})
    refused(tmp_path, f"{BACKGROUND}.zip is not the official file: its md5 is [0-9a-f]{{32}}, not 0{{32}}")


def test_a_zip_with_a_flipped_byte_in_a_drawing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / f"{BACKGROUND}.zip", drawings_of(BACKGROUND), monkeypatch)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    declare_official(path, monkeypatch)
    refused(tmp_path, f"{BACKGROUND}.zip")


@pytest.mark.parametrize(
    "entry", ["../outside/0001_01.png", "/etc/0001_01.png", "a/../../0001_01.png", "C:/0001_01.png", "..\\0001_01.png"]
)
def test_a_zip_entry_that_points_outside_is_refused(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    write_zip(root / f"{BACKGROUND}.zip", {**drawings_of(BACKGROUND), entry: b""}, monkeypatch)
    refused(root, f"{BACKGROUND}.zip: refused, because its entry .* points outside")
    assert set(tmp_path.iterdir()) == {root}


def without_one(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {name: png for name, png in entries.items() if not name.endswith("0002_07.png")}


def with_one_too_many(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {**entries, f"{BACKGROUND}/Arcadian/character02/0002_21.png": next(iter(entries.values()))}


def with_a_double(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {**entries, f"{BACKGROUND}/Armenian/character02/0002_07.png": next(iter(entries.values()))}


def with_a_stranger(entries: dict[str, bytes]) -> dict[str, bytes]:
    return {**entries, f"{BACKGROUND}/Arcadian/character03/0003_01.png": next(iter(entries.values()))}


def replaced(change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def apply(entries: dict[str, bytes]) -> dict[str, bytes]:
        return {name: change(png) if name.endswith("0002_07.png") else png for name, png in entries.items()}

    return apply


def flip(png: bytes) -> bytes:
    """One pixel of an uncompressed copy turned over: nothing but a checksum can tell."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).save(buffer, "PNG", compress_level=0)
    content = bytearray(buffer.getvalue())
    content[content.index(b"IDAT") + 300] ^= 1
    return bytes(content)


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_one, r"1 characters are incomplete \(0002 has 19\)"),
        (with_one_too_many, "0002_21.png does not belong there"),
        (with_a_stranger, "0003_01.png does not belong there"),
        (with_a_double, "0002_07.png is there twice"),
        (replaced(lambda png: png[:-40]), "0002_07.png cannot be read"),
        (replaced(lambda png: b""), "0002_07.png cannot be read"),
        (replaced(lambda png: b"<html></html>"), "0002_07.png cannot be read"),
        (replaced(lambda png: png_of(np.zeros((28, 28), bool))), "0002_07.png cannot be read .*28 x 28"),
        (replaced(lambda png: bytes(2 << 20)), "0002_07.png cannot be read .*(too many|larger than)"),
        (replaced(flip), "0002_07.png cannot be read"),
        (lambda entries: {}, None),
    ],
)
def test_wrong_drawings_are_refused(
    damage: Callable[[dict[str, bytes]], dict[str, bytes]],
    said: str | None,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = damage(drawings_of(BACKGROUND))
    if kind == "zip":
        write_zip(tmp_path / f"{BACKGROUND}.zip", entries, monkeypatch)
    else:
        (tmp_path / BACKGROUND).mkdir()
        write_folder(tmp_path, entries)
    refused(tmp_path, said or "2 characters are incomplete")


def test_an_object_array_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    canary, root = tmp_path / "canary", tmp_path / "root"
    root.mkdir()
    for key in ("images", "labels"):
        path = write_packed(root, changed={key: np.array([MakesFolder(canary)], dtype=object)})
        refused(root, f"{path.name} cannot be read .*Object arrays cannot be loaded")
        assert not canary.exists()
    with np.load(path, allow_pickle=True) as packed:  # the canary would have sung
        packed["labels"]
    assert canary.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": np.zeros((2, 20, 105, 105), np.uint8)}, "images.npy is uint8"),
        ({"images": np.ones((2, 19, 105, 105), bool)}, r"images.npy is bool \(2, 19, 105, 105\) where"),
        ({"images": np.ones((2, 20, 28, 28), bool)}, "images.npy is bool"),
        ({"images": np.asfortranarray(np.ones((2, 20, 105, 105), bool))}, "Fortran"),
        ({"labels": np.zeros((2, 20), np.int64)}, "labels"),
        ({"labels": np.zeros((40,), np.int64)}, "labels.npy is int64"),
        ({"images": ink_of(BACKGROUND)}, "more ink than paper"),
    ],
)
def test_wrong_arrays_are_refused(changed: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    write_packed(tmp_path, changed=changed)
    refused(tmp_path, f"{BACKGROUND}.npz.*{said}")


def test_an_npz_without_an_array_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / f"{BACKGROUND}.npz", images=arrays_of(BACKGROUND)["images"])
    refused(tmp_path, f"{BACKGROUND}.npz cannot be read .*labels.npy")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tampered_npz_gives_the_right_images_or_a_clear_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"{BACKGROUND}.npz"
    if not (tmp_path / "whole").exists():
        (tmp_path / "whole").write_bytes(write_packed(tmp_path).read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    # damage anywhere, and as often in the last bytes, where the directory of the zip is
    place = st.integers(0, len(content) - 1) | st.integers(len(content) - 250, len(content) - 1) | st.integers(0, 250)
    for at, bits in data.draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=3)):
        content[at] ^= bits
    path.write_bytes(content)
    try:
        check_background(tmp_path)
    except DataError as error:
        assert path.name in str(error)


# --------------------------------------------------------------------------------------------------------- packing


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The packed file hits a limit on the size of files, as it would hit a full disk; root may write anywhere else."""
    source_folder(tmp_path, monkeypatch)
    code = """
import logging, resource, sys
from data import omniglot
logging.basicConfig(format="%(levelname)s %(message)s")
omniglot.ARCHIVES["images_background"] = omniglot.Archive(1, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
print(omniglot.load(sys.argv[1], "train", "official").num_classes)
"""
    before = listing(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
    assert re.match(rf"WARNING .*cannot write \(File too large\).*{BACKGROUND}.npz", done.stderr)
    assert listing(tmp_path) == before
    (tmp_path / "occupied").touch()
    with caplog.at_level(logging.WARNING):
        omniglot.write_npz(tmp_path / "occupied" / f"{BACKGROUND}.npz", torch.zeros(2, 20, 105, 105, dtype=torch.uint8))
    assert "cannot write" in caplog.text


def test_processes_that_pack_at_the_same_time_all_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_folder(tmp_path, monkeypatch)
    code = """
import sys, time
from pathlib import Path
from data import omniglot
omniglot.ARCHIVES["images_background"] = omniglot.Archive(1, 2)
write = omniglot.write_npz
def together(path, images):
    Path(sys.argv[1], sys.argv[2]).touch()
    while not all(Path(sys.argv[1], name).exists() for name in "ab"):
        time.sleep(0.001)
    for _ in range(20):
        write(path, images)
        omniglot.read_npz(path, images.shape)
omniglot.write_npz = together
print(omniglot.load(sys.argv[1], "train", "official").digest())
"""
    run = [subprocess.Popen([sys.executable, "-c", code, tmp_path, n], stdout=subprocess.PIPE, text=True) for n in "ab"]
    digests = {process.communicate(timeout=120)[0] for process in run}
    assert [process.returncode for process in run] == [0, 0]
    assert digests == {omniglot.load(tmp_path, "train", "official").digest() + "\n"}
    assert not list(tmp_path.glob(".*")), "temporary files are left"
    check_background(tmp_path)


def test_a_packing_that_was_killed_leaves_nothing_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_folder(tmp_path, monkeypatch)
    code = """
import os, signal, sys
from data import omniglot
omniglot.ARCHIVES["images_background"] = omniglot.Archive(1, 2)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # all is written and nothing is safe yet
omniglot.load(sys.argv[1], "train", "official")
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -9
    assert not (tmp_path / f"{BACKGROUND}.npz").exists()
    check_background(tmp_path)


# -------------------------------------------------------------------------------------------------------- download


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every request with `body`, of which it announces `announced` bytes."""

    body = b""
    announced = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.announced))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, int], None]]:
    """A function that makes a web server on this machine the official source."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(body: bytes, announced: int) -> None:
        monkeypatch.setattr(Answer, "body", body)
        monkeypatch.setattr(Answer, "announced", announced)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delattr(_torchvision.HttpsOnly, "http_open")
        prefix = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(_torchvision.datasets().Omniglot, "download_url_prefix", prefix)

    yield serve
    server.shutdown()
    server.server_close()


def official_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    return write_zip(tmp_path / "elsewhere" / "a.zip", drawings_of(BACKGROUND), monkeypatch).read_bytes()


def test_a_download_is_used_kept_and_packed(
    served: Callable[[bytes, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = official_zip(tmp_path, monkeypatch)
    served(body, len(body))
    check_background(tmp_path / "new" / "root")
    files = listing(tmp_path / "new")
    assert set(files) == {f"root/{BACKGROUND}.npz", f"root/omniglot-py/{BACKGROUND}.zip"}
    assert files[f"root/omniglot-py/{BACKGROUND}.zip"] == body
    assert not list((tmp_path / "new" / "root").glob(".*"))


@pytest.mark.parametrize("fault", ["half", "web page", "flipped"])
def test_a_bad_download_leaves_no_file(
    fault: str, served: Callable[[bytes, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = official_zip(tmp_path, monkeypatch)
    bad = {"half": body[: len(body) // 2], "web page": b"<html></html>", "flipped": body[:-1] + b"!"}[fault]
    served(bad, len(body) if fault == "half" else len(bad))
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"the download failed .*corrupted"):
        omniglot.load(root, "train", "official")
    assert not list(root.rglob("*"))


def test_without_data_and_network_the_message_says_all_that_helps(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        omniglot.load(tmp_path, "train", "official")
    assert time.monotonic() - started < 30
    official = _torchvision.datasets().Omniglot
    said = str(caught.value)
    for name in SMALL:
        assert f"{official.download_url_prefix}/{name}.zip (md5 {official.zips_md5[name]})" in said
    for place in (f"{BACKGROUND}.npz", f"omniglot-py/{BACKGROUND}.zip", f"omniglot-py/{BACKGROUND}/", str(tmp_path)):
        assert place in said
    assert not list(tmp_path.iterdir())


def test_a_network_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts connections and never says a word; patience is 20 seconds outside of tests."""
    assert _torchvision.PATIENCE <= 25
    monkeypatch.setattr(_torchvision, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(DataError, match="nothing came for 1 seconds"):
            omniglot.load(tmp_path, "train", "official")
        assert 1 <= time.monotonic() - started < 20
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        omniglot.load(tmp_path / "file", "train", "official")


# --------------------------------------------------------------------------------------------------- the real thing


def test_real_parts_have_the_published_counts(real: Path) -> None:
    train, test = (omniglot.load(real, subset, "official") for subset in ("train", "test"))
    assert (train.num_classes, test.num_classes) == (964, 659)
    for subset, images in (("train", train), ("test", test)):
        there = Counts(images.num_classes, int(images.counts.min()), len(images.images))
        assert DATA_SETS["omniglot"].count(subset=subset, root="", split="official") == there
    assert train.names[191] == "Braille/0192" and test.names[-1] == "ULOG/1623"
    assert 0.07 < train.images.float().mean() < 0.09
    # the one duplicate of the data set: Braille 01 by drawers 3 and 19
    braille = train.select([191]).images
    same = [(i, j) for i in range(20) for j in range(i) if torch.equal(braille[i], braille[j])]
    assert same == [(18, 2)]


def of_45_5(subset: str) -> int:
    """The classes that the record of the data set says there are."""
    there = DATA_SETS["omniglot"].count(subset=subset, root="", split="45-5")
    assert there is not None
    return there.classes


def test_real_45_5_split_has_the_published_counts(real: Path) -> None:
    test = omniglot.load(real, "test", "45-5")
    assert test.num_classes == of_45_5("test") == 144
    assert {name.split("/")[0] for name in test.names} == omniglot.TEST_ALPHABETS
    trained = [c for c in range(1, 1624) if omniglot.alphabet_of(c) not in omniglot.TEST_ALPHABETS]
    assert len(trained) == of_45_5("train") == 1623 - 144


def test_alphabets_are_those_of_the_data(real: Path) -> None:
    ranges = json.loads((real / "alphabet_ranges.json").read_text())
    for part in ranges.values():
        for entry in part:
            for character in (entry["first_id"], entry["last_id"]):
                assert omniglot.alphabet_of(character) == entry["alphabet"]


def test_an_official_zip_holds_the_images_of_the_packed_file(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real / "official" / "images_background_small1.zip"
    declare_official(path, monkeypatch)
    packed = omniglot.read_npz(real / f"{BACKGROUND}.npz", (ARCHIVES[BACKGROUND].classes, DRAWERS, SIDE, SIDE))
    drawings = list(omniglot.read_zip(path, omniglot._md5(BACKGROUND), omniglot._PNG))
    assert len(drawings) == 2720
    for name, png in drawings:
        alphabet, _, file = name.split("/")[-3:]
        character, drawer = int(file[:4]), int(file[5:7])
        assert omniglot.alphabet_of(character) == alphabet
        assert np.array_equal(omniglot.decode(png, SIDE), packed[character - 1, drawer - 1].numpy())


def test_nearest_exact_is_nearest_of_pil_on_real_drawings(real: Path) -> None:
    whole = omniglot.load(real, "test", "45-5").select(range(0, 144, 12))
    ours = resample(whole, 26, "nearest-exact").images.numpy()
    for image, small in zip(whole.images.numpy(), ours, strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(image).resize((26, 26), Image.Resampling.NEAREST)), small)
