"""MNIST: ten digits, 28 x 28, binarised at one half; classes of unequal size.

The files are those that torchvision keeps in `<root>/MNIST/raw`; they are downloaded there when absent.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from data import _torchvision
from data._readers import naming
from data.images import ClassImages, Subset
from runtime.errors import DataError, reason
from runtime.files import opened

log = logging.getLogger(__name__)


SIDE = 28  # pixels
DIGITS = 10
_MOST_BYTES = 1 << 30  # the images of MNIST have 47 million


def load(root: str | Path, subset: Subset) -> ClassImages:
    """Images [N, 28, 28] sorted by digit, within a digit in the order of the file; ink where the value is over 127.

    Raises DataError when a file is damaged, or when none is there and none can be downloaded.
    """
    if subset not in get_args(Subset):
        raise ValueError(f"no subset {subset!r}; {get_args(Subset)}")
    raw = Path(root) / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in _raw_names()):
        _download(raw)
    images, labels = _read(raw, subset)
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=DIGITS)
    return ClassImages((images[order] > 127).to(torch.uint8), counts, tuple(str(digit) for digit in range(DIGITS)))


def _raw_names() -> list[str]:
    return [Path(name).stem for name, _ in _torchvision.datasets().MNIST.resources]


def _read(raw: Path, subset: Subset) -> tuple[Tensor, Tensor]:
    """uint8 [N, 28, 28] and int64 [N], checked.  Raises DataError."""
    prefix, reader = "train" if subset == "train" else "t10k", _torchvision.datasets().mnist
    images_file, labels_file = raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"
    images = _read_idx(images_file, reader.read_image_file)
    labels = _read_idx(labels_file, reader.read_label_file)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{images_file} is damaged (images of {list(images.shape[1:])} pixels); move it away")
    if len(images) != len(labels):
        raise DataError(f"{labels_file} has {len(labels)} labels for {len(images)} images in {images_file}")
    if sorted(labels.unique().tolist()) != list(range(DIGITS)):
        raise DataError(f"{labels_file} is damaged (its labels are not the ten digits); move it away")
    return images, labels


def _read_idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    with naming(path), opened(path, most=_MOST_BYTES):
        return read(str(path))


def _download(raw: Path) -> None:
    """All four files into `raw`; each appears there whole or not at all."""
    mnist, root = _torchvision.datasets().MNIST, raw.parents[1]
    mirrors = [mirror for mirror in mnist.mirrors if mirror.startswith("https:")]
    log.info("downloading MNIST into %s", raw)
    try:
        with _torchvision.downloaded(
            lambda to: type("MNIST", (mnist,), {"mirrors": mirrors})(to, download=True), root
        ) as scratch:
            raw.mkdir(parents=True, exist_ok=True)
            for name in _raw_names():
                (scratch / "MNIST" / "raw" / name).replace(raw / name)
    except Exception as error:  # name look-up, connection, HTTP status, md5, permissions, a full disk
        files = ", ".join(f"{name} (md5 {md5})" for name, md5 in mnist.resources)
        raise DataError(
            f"no MNIST in {root.absolute()}: looked for {', '.join(_raw_names())} in MNIST/raw; the download failed "
            f"({reason(error)}). Fetch {files} from {' or '.join(mirrors)} and unpack them there"
        ) from error
