"""MNIST: ten digits, 28 x 28, binarised at one half; classes of unequal size.

The files are those that torchvision keeps in `<root>/MNIST/raw`; they are downloaded there when absent.
"""

import logging
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from data import _torchvision
from data.images import ClassImages
from errors import DataError

log = logging.getLogger(__name__)

Subset = Literal["train", "test"]

SIDE = 28  # pixels
DIGITS = 10


def load(root: str | Path, subset: Subset) -> ClassImages:
    """Images [N, 28, 28] sorted by digit, within a digit in the order of the file; ink where the value is over 127.

    Raises DataError when a file is damaged, or when none is there and none can be downloaded within 30 seconds.
    """
    if subset not in get_args(Subset):
        raise ValueError(f"no subset {subset!r}; {get_args(Subset)}")
    raw = Path(root).expanduser() / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in _raw_names()):
        _download(raw)
    images, labels = _read(raw, subset)
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=DIGITS)
    return ClassImages((images[order] > 127).to(torch.uint8), counts, tuple(str(digit) for digit in range(DIGITS)))


def _raw_names() -> list[str]:
    return [Path(name).stem for name, _ in _torchvision.datasets().MNIST.resources]


def _read(raw: Path, subset: Subset) -> tuple[Tensor, Tensor]:
    """uint8 [N, 28, 28] and int64 [N], checked."""
    try:
        mnist = _torchvision.datasets().MNIST(raw.parents[1], train=subset == "train")
        images, labels = mnist.data, mnist.targets.to(torch.int64)
        if images.dtype != torch.uint8 or images.shape != (len(labels), SIDE, SIDE):
            raise ValueError(f"{len(labels)} labels for images {images.dtype} {list(images.shape)}")
        if sorted(labels.unique().tolist()) != list(range(DIGITS)):
            raise ValueError("the labels are not the ten digits")
    except Exception as error:  # readers of damaged files raise almost anything
        prefix = "train" if subset == "train" else "t10k"
        files = f"{raw / prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte"
        raise DataError(f"{files} is damaged ({type(error).__name__}: {error}); move both away") from error
    return images, labels


def _download(raw: Path) -> None:
    """All four files into `raw`; each appears there whole or not at all."""
    mnist, root = _torchvision.datasets().MNIST, raw.parents[1]
    log.info("downloading MNIST into %s", raw)
    try:
        with _torchvision.downloaded(lambda to: mnist(to, download=True), root) as scratch:
            raw.mkdir(parents=True, exist_ok=True)
            for name in _raw_names():
                (scratch / "MNIST" / "raw" / name).replace(raw / name)
    except Exception as error:  # name look-up, connection, HTTP status, md5, permissions, a full disk
        files = ", ".join(f"{name} (md5 {md5})" for name, md5 in mnist.resources)
        reason = " ".join(str(error).split())
        raise DataError(
            f"no MNIST in {root.absolute()}: looked for {', '.join(_raw_names())} in MNIST/raw; the download failed "
            f"({type(error).__name__}: {reason}). Fetch {files} from {' or '.join(mnist.mirrors)} and unpack them there"
        ) from error
