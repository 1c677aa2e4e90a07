"""The only place that imports torchvision, and the only one that waits for a network."""

import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import NoReturn

import torch

from runtime.errors import UserError
from runtime.files import unfinished

PATIENCE = 20.0  # seconds without a new byte after which a download is given up

_shim: torch.library.Library | None = None  # the schemas live as long as this object


def datasets() -> ModuleType:
    """`torchvision.datasets`.  Raises UserError where torchvision cannot be imported.

    torchvision's wheel may have been built for another torch than the one at hand.  Its compiled operators are then
    missing, and importing it fails on the first one that it describes; with the names declared, all that is needed
    here works, because no operator is ever called.
    """
    try:
        try:
            from torchvision import datasets
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_operators()
            from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(f"torchvision cannot be imported ({error}); install requirements.txt") from error
    return datasets


def _declare_operators() -> None:
    global _shim
    if _shim is None:
        _shim = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _shim.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class HttpsOnly(urllib.request.BaseHandler):
    """Refuses http, which torchvision turns to where https fails, and to which a server may redirect."""

    handler_order = 0  # before the proxies

    def http_open(self, request: urllib.request.Request) -> NoReturn:
        raise urllib.error.URLError(f"{request.full_url} is not https")


@contextmanager
def downloaded(fetch: Callable[[Path], object], root: Path) -> Iterator[Path]:
    """A scratch folder under `root` that `fetch(folder)` has filled; it is removed on leaving, whatever happens.

    What is wanted must be moved out of it (same file system, so atomically): a file outside is a whole one.
    Raises what `fetch` raised, OSError where `root` cannot be written, and TimeoutError after `PATIENCE` seconds
    without a new byte.  No timeout of a socket covers the look-up of a name, hence the thread.
    """
    urllib.request.install_opener(urllib.request.build_opener(HttpsOnly))
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    with unfinished(folder):
        failures: list[Exception] = []
        thread = threading.Thread(target=_run, args=(fetch, folder, failures), daemon=True)
        thread.start()
        _wait(thread, folder)
        if failures:
            raise failures[0]
        yield folder


def _run(fetch: Callable[[Path], object], folder: Path, failures: list[Exception]) -> None:
    try:
        fetch(folder)
    except Exception as error:  # handed to the thread that waits
        failures.append(error)


def _wait(thread: threading.Thread, folder: Path) -> None:
    size, since = 0, monotonic()
    while thread.is_alive():
        thread.join(0.1)
        now = _bytes_in(folder)
        if now != size:
            size, since = now, monotonic()
        elif thread.is_alive() and monotonic() - since > PATIENCE:
            raise TimeoutError(f"nothing came for {PATIENCE:g} seconds")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed or removed since it was listed
            continue
    return total
