"""Reading files that may be damaged or hostile: no pickle is read, no archive extracted, sizes are checked first."""

import hashlib
import io
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from runtime.arrays import npz
from runtime.errors import DataError, printable, reason
from runtime.files import opened, write_atomically

log = logging.getLogger(__name__)

_LARGEST_PNG = 1 << 20  # bytes; a 105 x 105 drawing takes about 300
_LONGEST_HEADER = 1 << 14  # bytes; that of an array takes 128


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Readers of damaged files raise almost anything; whatever it was, the user gets a sentence that names the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); replace it or move it away") from error


def _open(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> IO[bytes]:
    """The content of an entry, of at most `most` bytes, by the two methods whose decoders can be given a limit."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r} is compressed by method {info.compress_type} where 0 or 8 is expected")
    if info.file_size > most:
        raise ValueError(f"{info.file_size} bytes are too many where {most} are expected at most")
    return archive.open(info)


# --- packed images ----------------------------------------------------------------------------------------------------


def read_npz(path: Path, shape: tuple[int, int, int, int]) -> Tensor:
    """uint8 `shape` [C, D, H, W], ink = 1.  Raises DataError for anything but the expected arrays."""
    with naming(path), opened(path) as file, zipfile.ZipFile(file) as archive:
        labels = _read_array(archive, "labels.npy", np.dtype(np.int64), shape[:2])
        if not np.array_equal(labels, _labels(shape)):
            raise DataError(f"{path}: labels[i, d] is not i everywhere, so the order of its classes is unknown")
        paper = _read_array(archive, "images.npy", np.dtype(np.bool_), shape)
    ink = np.equal(paper.view(np.uint8), 0, out=paper)  # in place: another 200 MB would cost more than the arithmetic
    if np.count_nonzero(ink) > ink.size // 2:
        raise DataError(f"{path}: more ink than paper; True must stand for paper")
    return torch.from_numpy(ink.view(np.uint8))


def _read_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """One array of exactly this type and shape; the zip's checksum is verified when its last byte is read."""
    most = math.prod(shape) * dtype.itemsize + _LONGEST_HEADER
    with _open(archive, archive.getinfo(name), most) as stream:
        try:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        except MemoryError:  # its size was checked, so this is about what the header says
            raise ValueError(f"{name} has a header that asks for too much") from None
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            order = "" if array.flags.c_contiguous else " in Fortran order"
            raise ValueError(f"{name} is {array.dtype} {array.shape}{order} where {dtype} {shape} is expected")
        if stream.read(1):
            raise ValueError(f"{name} is longer than its header says")
    return array


def write_npz(path: Path, images: Tensor) -> None:
    """Packs uint8 [C, D, H, W], ink = 1.  `path` is either the whole file or absent; where it cannot be written, a
    warning is logged."""
    try:
        write_atomically(path, npz({"images": images.numpy() == 0, "labels": _labels(images.shape)}))
    except OSError as error:
        log.warning("%s; the PNG files will be read again at the next start", error)


def _labels(shape: tuple[int, ...]) -> np.ndarray:
    """int64 [C, D], the class index."""
    return np.repeat(np.arange(shape[0], dtype=np.int64)[:, None], shape[1], axis=1)


# --- PNG files --------------------------------------------------------------------------------------------------------


def read_zip(path: Path, md5: str, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(entry, content) of every PNG with a wanted name in the zip, read in memory.

    Raises DataError for an entry that would leave the folder on extraction, and for a file with another md5.
    """
    with naming(path), opened(path) as file, zipfile.ZipFile(file) as archive:
        for entry in archive.namelist():
            if entry.startswith(("/", "\\")) or ":" in entry or ".." in re.split(r"[/\\]", entry):
                raise DataError(f"{path}: refused, because its entry {entry!r} points outside the archive")
        file.seek(0)
        if (found := hashlib.file_digest(file, "md5").hexdigest()) != md5:
            raise DataError(
                f"{path} is not the official file: its md5 is {found}, not {md5}. Fetch it again; or extract it to "
                f"{path.with_suffix('')}, where only the drawings are checked, and move the zip away"
            )
        for info in archive.infolist():
            if wanted.search(info.filename):
                with naming(f"{path}: {printable(info.filename)}"), _open(archive, info, _LARGEST_PNG) as stream:
                    content = stream.read(info.file_size + 1)  # the checksum is verified when the end is met
                yield info.filename, content


def read_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name relative to `path`, content) of every PNG in the extracted folder."""
    for file in sorted(path.glob("*/*/*.png")):
        with naming(file), opened(file, most=_LARGEST_PNG) as drawing:
            content = drawing.read()
        yield file.relative_to(path).as_posix(), content


def decode(png: bytes, side: int) -> np.ndarray:
    """uint8 [side, side], ink (black) = 1.  Raises ValueError, or what PIL raises for a checksum that is wrong."""
    image = open_image(png, ["PNG"])
    if image.size != (side, side):
        raise ValueError(f"it is {image.width} x {image.height} pixels, not {side} x {side}")
    return (np.asarray(image.convert("L")) < 128).view(np.uint8)


def open_image(content: bytes, formats: list[str]) -> Image.Image:
    """An image that is not decoded yet and whose checksums are right.  Raises ValueError, or what PIL raises."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            image.verify()  # all checksums, of which decoding leaves out some
    except UnidentifiedImageError:  # its message has the address of an object
        raise ValueError(f"it is no {' or '.join(formats)} file") from None
    return Image.open(io.BytesIO(content), formats=formats)
