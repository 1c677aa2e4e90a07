"""Files that survive: atomic save, checked load.

A checkpoint is what `torch.save` writes (a zip archive), with the SHA-256 of everything before it as the archive's
comment: `torch.load` still reads it, and a changed byte anywhere is found.  Published weights are a safetensors file
with the configuration and a SHA-256 of both in its header.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from runtime.errors import DataError, UserError, reason
from runtime.files import opened, write_atomically

EXPORTED = ".safetensors"

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_LONGEST_HEADER = 1 << 24  # bytes; that of a file that `export` wrote takes 15 kB


def save(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write `state` (tensors, numbers, text, and dicts and lists of these) as `write_atomically`.  Raises OSError."""
    buffer = io.BytesIO()  # a full disk then meets one plain write
    torch.save(dict(state), buffer)
    archive = bytearray(buffer.getbuffer())
    archive[-2:] = _COMMENT.to_bytes(2, "little")  # the last field of a zip archive is the length of its comment
    content = bytes(archive) + _MARK + hashlib.sha256(archive).hexdigest().encode()
    write_atomically(path, content, previous)


def load(path: Path) -> dict[str, Any]:
    """The state in `path`, on the CPU: a checkpoint or, by its ending `.safetensors`, what `export` wrote.

    Raises:
        DataError: the file cannot be read, is damaged, or holds anything but tensors and plain values.
    """
    if path.suffix == EXPORTED:
        return _exported(path)
    content = _unchanged(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):  # nothing of ours is compressed
                raise ValueError("it unpacks to more than it holds")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # an unpickler that is fed rubbish raises anything, with advice that nobody should follow
        raise DataError(f"{path}: not a checkpoint: it holds more than tensors, numbers and text") from None
    if not isinstance(state, dict):
        raise DataError(f"{path}: not a checkpoint: it holds a {type(state).__name__}")
    return state


@contextmanager
def as_expected(path: Path) -> Iterator[None]:
    """Raises DataError where what is done within finds that the state read from `path`, though whole, is another's."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DataError(f"{path}: not a checkpoint of this version of the program ({reason(error)})") from None


def _unchanged(path: Path) -> bytes:
    """The content of a checkpoint that ends in its right SHA-256.  Raises DataError."""
    content = _read(path, lambda start, end: end.startswith(_MARK))
    archive, comment = memoryview(content)[:-_COMMENT], content[-_COMMENT:]
    if comment != _MARK + hashlib.sha256(archive).hexdigest().encode():
        raise DataError(f"{path}: damaged, or not a checkpoint of this program (its SHA-256 differs); use another copy")
    return content


def export(path: Path, weights: Mapping[str, Tensor], config: str, half: bool = False) -> dict[str, Tensor]:
    """Write `weights` with their configuration as a safetensors file, and return what is read from it.

    With `half` they are rounded to float16, and the file is half as large.

    Raises:
        UserError: a weight is too large for float16, or the file is there and holds anything but these weights.
        OSError: the file cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if half:
        plain = {name: value.half() if value.is_floating_point() else value for name, value in plain.items()}
        if large := [name for name, value in plain.items() if not value.isfinite().all()]:
            raise UserError(f"{path}: {large[0]} is too large for half precision; export without --half")
    values = _single(plain)
    header = {"config": config, "sha256": hashlib.sha256(config.encode() + digest(values).encode()).hexdigest()}
    if path.is_file() and not _holds(path, values):
        raise UserError(f"{path}: exists, and holds something else; choose another name, or remove it")
    write_atomically(path, safetensors.torch.save(plain, header))
    return values


def _holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    try:
        return digest(load(path)["model"]) == digest(weights)
    except DataError:
        return False


def _single(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those in float16 as the float32 that they stand for."""
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}


def _exported(path: Path) -> dict[str, Any]:
    """`config` and `model` of what `export` wrote.  Raises DataError."""
    content = _read(path, lambda start, end: 0 < int.from_bytes(start, "little") <= _LONGEST_HEADER)
    try:
        weights = _single(safetensors.torch.load(content))
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        config = header["config"]
        whole = hashlib.sha256(config.encode() + digest(weights).encode()).hexdigest() == header["sha256"]
    except Exception as error:  # a header that was tampered with raises anything
        why = f"not weights of this program, or damaged ({reason(error)})"
        raise DataError(f"{path}: {why}; use another copy") from None
    if not whole:
        raise DataError(f"{path}: damaged (the SHA-256 of its weights and configuration differs); use another copy")
    return {"config": config, "model": weights}


def _read(path: Path, can_be: Callable[[bytes, bytes], bool]) -> bytes:
    """The content, or nothing where the first 8 and the last bytes are of another file, which may have any size."""
    try:
        with opened(path) as file:
            start, size = file.read(8), file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _COMMENT))
            if not can_be(start, file.read()):
                return b""
            file.seek(0)
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal over names, shapes and values of the weights: equal exactly when the model is the same."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()
