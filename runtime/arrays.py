"""Files of named arrays (npz), read without trust."""

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime.errors import reason
from runtime.files import opened

_log = logging.getLogger(__name__)

_LARGEST = 1 << 30  # bytes when unpacked: 2,000 cells of a test with 13,180 targets


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an npz file; nothing is unpickled.

    Raises:
        Exception: of any kind, for a file that is damaged, larger, or none.
    """
    with opened(path, most=_LARGEST) as file:
        entries = zipfile.ZipFile(file).infolist()
        if (size := sum(entry.file_size for entry in entries)) > _LARGEST:
            raise ValueError(f"it unpacks to {size} bytes")
        if not {entry.compress_type for entry in entries} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("compressed by a method that cannot be read in chunks")  # they unpack as a whole
        file.seek(0)
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
    if others := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{others[0]} is no array")  # numpy gives the bytes of such an entry
    return arrays


def read_stored(path: Path) -> dict[str, np.ndarray]:
    """All that is in an npz file; nothing where it cannot be read, with a warning where it is there."""
    try:
        return load_npz(path)
    except FileNotFoundError:
        return {}
    except Exception as error:  # readers of damaged files raise almost anything
        _log.warning("%s cannot be read (%s)", path, reason(error))
        return {}
