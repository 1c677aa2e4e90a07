"""MNIST's own file format, read, binarised and sorted; what is damaged or absent is said."""

import http.server
import struct
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from data import _torchvision, mnist
from runtime.errors import DataError

COUNTS = [3, 7, 2, 5, 4, 6, 1, 8, 2, 3]


def digits(subset: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [41, 28, 28] of all grey values and uint8 [41] in mixed order."""
    rng = np.random.default_rng(len(subset))
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), COUNTS))
    return rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8), labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for subset, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = digits(subset)
        header = struct.pack(">IIII", 2051, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + labels.tobytes())
    return tmp_path


@pytest.mark.parametrize("subset", ["train", "test"])
def test_digits_are_sorted_and_binarised_at_one_half(root: Path, subset: mnist.Subset) -> None:
    loaded = mnist.load(root, subset)
    images, labels = digits(subset)
    expected = np.concatenate([images[labels == digit] >= 128 for digit in range(10)])
    assert loaded.images.dtype == torch.uint8
    assert np.array_equal(loaded.images.numpy(), expected)
    assert loaded.counts.tolist() == COUNTS
    assert loaded.names == tuple("0123456789")


def test_127_is_paper_and_128_is_ink(root: Path) -> None:
    images, _ = digits("test")
    images[:, 0, :2] = (127, 128)
    path = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
    assert mnist.load(root, "test").images[:, 0, :2].unique(dim=0).tolist() == [[0, 1]]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("kept", [0, 7, 30])
def test_a_truncated_file_is_refused_and_kept(root: Path, file: str, kept: int) -> None:
    path = root / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=file):
        mnist.load(root, "train")
    assert path.stat().st_size == kept


@pytest.mark.parametrize(
    "labels", [np.zeros(41, np.uint8), np.full(41, 10, np.uint8), np.arange(40, dtype=np.uint8) % 10]
)
def test_labels_that_do_not_fit_are_refused(root: Path, labels: np.ndarray) -> None:
    path = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">II", 2049, len(labels)) + labels.tobytes())
    with pytest.raises(DataError, match=path.name):
        mnist.load(root, "train")


def test_without_data_and_network_the_message_says_all_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # it would remember the proxies of the first request
    with pytest.raises(DataError) as caught:
        mnist.load(tmp_path, "train")
    for helpful in (str(tmp_path), "train-images-idx3-ubyte.gz (md5 f68b3c2dcbeaaa9fbdd348bbdeb94873)", "https://"):
        assert helpful in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_is_asked_for_without_encryption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Neither of a mirror that has only http, nor where https fails and torchvision would go on with http."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    official = _torchvision.datasets()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(official.MNIST, "mirrors", [f"{scheme}://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(official.utils, "_get_redirect_url", lambda url, max_hops: url)  # would fail before
        with pytest.raises(DataError, match="no MNIST"):
            mnist.load(tmp_path, "train")
        server.shutdown()
    assert asked == []


def test_a_wrong_subset_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="val"):
        mnist.load(root, "val")  # type: ignore[arg-type]
