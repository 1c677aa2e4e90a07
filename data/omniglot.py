"""Omniglot (Lake, Salakhutdinov & Tenenbaum, 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

Two parts, `images_background` (characters 1 to 964) and `images_evaluation` (965 to 1623).  Each is looked for as

1. `<root>/<part>.npz`: `images` bool [C, 20, 105, 105] with True = paper, `labels` int64 [C, 20] = the class index;
2. the official `<part>.zip` or the folder `<part>/` extracted from it, under `<root>` or `<root>/omniglot-py`;
3. a download of the official zip.

After PNG files were read the npz is written, so that the next start takes a second or two.  Files are checked,
never changed or deleted, and nothing in them is executed: no pickle is read, and archives are not extracted.
"""

import bisect
import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import _torchvision
from data.images import ClassImages
from runtime.errors import DataError, printable, reason
from runtime.files import write_atomically

log = logging.getLogger(__name__)

Subset = Literal["train", "test"]
Split = Literal["official", "45-5"]

SIDE = 105  # pixels
DRAWERS = 20  # images of a character
FOLDER = "omniglot-py"  # where torchvision keeps its copy


@dataclass(frozen=True)
class Part:
    """`classes` characters from id `first` on, published as one file."""

    first: int
    classes: int


PARTS = {"images_background": Part(1, 964), "images_evaluation": Part(965, 659)}

# every alphabet with the id of its first character
ALPHABETS = {
    "Arcadian": 1, "Armenian": 27, "Asomtavruli_(Georgian)": 68, "Balinese": 108, "Bengali": 132,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 178, "Braille": 192, "Cyrillic": 218, "Early_Aramaic": 251,
    "Syriac_(Estrangelo)": 273, "Anglo-Saxon_Futhorc": 296, "Futurama": 325, "Grantha": 351, "Greek": 394,
    "Gujarati": 418, "Hebrew": 466, "Japanese_(hiragana)": 488, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 540,
    "Malay_(Jawi_-_Arabic)": 556, "Japanese_(katakana)": 596, "Korean": 643, "Latin": 683,
    "Alphabet_of_the_Magi": 709, "Mkhedruli_(Georgian)": 729, "Burmese_(Myanmar)": 770, "N_Ko": 804,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 837, "Sanskrit": 851, "Tagalog": 893, "Tifinagh": 910,
    "Angelic": 965, "Atemayar_Qelisayer": 985, "Atlantean": 1011, "Aurek-Besh": 1037, "Avesta": 1063, "Ge_ez": 1089,
    "Glagolitic": 1115, "Gurmukhi": 1160, "Kannada": 1205, "Keble": 1246, "Malayalam": 1272, "Manipuri": 1319,
    "Mongolian": 1359, "Old_Church_Slavonic_(Cyrillic)": 1389, "Oriya": 1434, "Syriac_(Serto)": 1480,
    "Sylheti": 1503, "Tengwar": 1531, "Tibetan": 1556, "ULOG": 1598,
}  # fmt: skip

# the five that are tested on in the 45/5 split of Rezende et al. (2016) and Reed et al. (2018)
TEST_ALPHABETS = {"Tengwar", "Sylheti", "Tibetan", "Syriac_(Serto)", "ULOG"}

_PNG = re.compile(r"(?:^|/)([0-9]{4})_([0-9]{2})\.png\Z")  # <character id>_<drawer>.png
_LARGEST_PNG = 1 << 20  # bytes; a 105 x 105 drawing takes about 300
_CHUNK = 1 << 18  # bytes


def load(root: str | Path, subset: Subset, split: Split) -> ClassImages:
    """Images [N, 105, 105] of the classes of one side of a split, ordered by character id, named "Tengwar/1531".

    official  train = background, 964 classes; test = evaluation, 659.
    45-5      test = the 144 characters of five alphabets, train = the 1,479 others.

    Only the files that hold a wanted class are needed.  Raises DataError that names the file when one is damaged, and
    one that says what was looked for and where to get it when nothing can be had.
    """
    if subset not in get_args(Subset) or split not in get_args(Split):
        raise ValueError(f"no subset {subset!r} of split {split!r}; {get_args(Subset)} of {get_args(Split)}")
    root = Path(root).expanduser()
    pieces = []
    for name, part in PARTS.items():
        wanted = [i for i in range(part.classes) if _belongs(part.first + i, subset, split)]
        if wanted:
            piece = _load_part(root, name)
            pieces.append(piece if len(wanted) == part.classes else piece.select(wanted))
    if len(pieces) == 1:  # spares a copy of 200 MB
        return pieces[0]
    return ClassImages(
        torch.cat([piece.images for piece in pieces]),
        torch.cat([piece.counts for piece in pieces]),
        tuple(name for piece in pieces for name in piece.names),
    )


def alphabet_of(character: int) -> str:
    """The alphabet of a character id, 1 to 1623."""
    return list(ALPHABETS)[bisect.bisect_right(list(ALPHABETS.values()), character) - 1]


def _belongs(character: int, subset: Subset, split: Split) -> bool:
    if split == "official":
        is_test = character >= PARTS["images_evaluation"].first
    else:
        is_test = alphabet_of(character) in TEST_ALPHABETS
    return is_test == (subset == "test")


def _load_part(root: Path, name: str) -> ClassImages:
    part, packed = PARTS[name], root / f"{name}.npz"
    if packed.exists():
        images = read_npz(packed, part)
    else:
        source = _find(root, name) or _download(root, name)
        log.info("reading %s; this is done once", source)
        images = assemble(source, read_folder(source) if source.is_dir() else read_zip(source, name), part)
        write_npz(packed, images)
    characters = range(part.first, part.first + part.classes)
    return ClassImages(
        images.flatten(0, 1),
        torch.full((part.classes,), DRAWERS),
        tuple(f"{alphabet_of(character)}/{character:04d}" for character in characters),
    )


def _find(root: Path, name: str) -> Path | None:
    """The official zip or its extracted folder; the zip first, because an extraction may have been interrupted."""
    for folder in (root, root / FOLDER):
        for path in (folder / f"{name}.zip", folder / name):
            if path.exists():
                return path
    return None


# ---------------------------------------------------------------------------------------------------------- packed


def read_npz(path: Path, part: Part) -> Tensor:
    """uint8 [C, 20, 105, 105], ink = 1.  Raises DataError for anything but the expected arrays.

    The arrays are streamed out of the zip rather than through `numpy.load`, which takes twice the memory and time.
    """
    with _blaming(path), zipfile.ZipFile(path) as archive:
        labels = _read_array(archive, "labels.npy", np.dtype(np.int64), (part.classes, DRAWERS))
        if not np.array_equal(labels, _labels(part)):
            raise DataError(f"{path}: labels[i, d] is not i everywhere, so the order of its classes is unknown")
        paper = _read_array(archive, "images.npy", np.dtype(np.bool_), (part.classes, DRAWERS, SIDE, SIDE))
    ink = np.equal(paper.view(np.uint8), 0, out=paper)  # in place: another 200 MB would cost more than the arithmetic
    if np.count_nonzero(ink) > ink.size // 2:
        raise DataError(f"{path}: more ink than paper; True must stand for paper")
    return torch.from_numpy(ink.view(np.uint8))


def _read_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """One array of exactly this type and shape; the zip's checksum is verified when its last byte is read."""
    with _open(archive, archive.getinfo(name)) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{name} has format version {version} where (1, 0) is expected")
        try:
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(stream)
        except MemoryError:  # of Python's parser, about brackets in brackets
            raise ValueError(f"{name} has a header that is nested too deeply") from None
        if found_dtype != dtype or found_shape != shape or fortran:
            order = " in Fortran order" if fortran else ""
            raise ValueError(f"{name} is {found_dtype} {found_shape}{order} where {dtype} {shape} is expected")
        array = np.empty(shape, dtype)
        target, filled = array.reshape(-1).view(np.uint8), 0
        while chunk := stream.read(_CHUNK):
            if filled + len(chunk) > len(target):
                raise ValueError(f"{name} is longer than its header says")
            target[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
            filled += len(chunk)
        if filled < len(target):
            raise ValueError(f"{name} ends after {filled} of {len(target)} bytes")
    return array


def _open(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """The content of an entry, to be read with a limit: by the two methods whose decoders can be given one."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r} is compressed by method {info.compress_type} where 0 or 8 is expected")
    return archive.open(info)


def write_npz(path: Path, images: Tensor) -> None:
    """Packs uint8 [C, 20, 105, 105], ink = 1.  `path` is either the whole file or absent; where it cannot be written,
    a warning is logged."""
    buffer = io.BytesIO()  # to memory first: a full disk then interrupts one plain write and not a zip in the making
    part = Part(0, len(images))
    np.savez_compressed(buffer, images=images.numpy() == 0, labels=_labels(part))
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        log.warning("%s; the PNG files will be read again at the next start", error)


def _labels(part: Part) -> np.ndarray:
    """int64 [C, 20], the class index."""
    return np.repeat(np.arange(part.classes, dtype=np.int64)[:, None], DRAWERS, axis=1)


# ------------------------------------------------------------------------------------------------------- PNG files


def read_zip(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """(entry, content) of every PNG in the official zip of the part `name`, read in memory.

    Raises DataError for an entry that would leave the folder on extraction, and for a file other than the official one.
    """
    with _blaming(path), zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.startswith(("/", "\\")) or ":" in entry or ".." in re.split(r"[/\\]", entry):
                raise DataError(f"{path}: refused, because its entry {entry!r} points outside the archive")
        _check_md5(path, name)
        for info in archive.infolist():
            if _PNG.search(info.filename):
                with _blaming(f"{path}: {printable(info.filename)}"), _open(archive, info) as stream:
                    if info.file_size > _LARGEST_PNG:
                        raise ValueError(f"{info.file_size} bytes are too many for a drawing")
                    content = stream.read(info.file_size + 1)  # the checksum is verified when the end is met
                yield info.filename, content


def read_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name relative to `path`, content) of every PNG in the extracted folder."""
    for file in sorted(path.glob("*/*/*.png")):
        with _blaming(file):
            if file.stat().st_size > _LARGEST_PNG:
                raise ValueError(f"{file.stat().st_size} bytes are too many for a drawing")
            content = file.read_bytes()
        yield file.relative_to(path).as_posix(), content


def assemble(source: Path, drawings: Iterable[tuple[str, bytes]], part: Part) -> Tensor:
    """uint8 [C, 20, 105, 105], ink = 1, from (name, PNG) pairs in any order, each drawing exactly once.

    Raises DataError that names `source` and the drawing when one is corrupt, unexpected, doubled or missing.
    """
    images = np.zeros((part.classes, DRAWERS, SIDE, SIDE), np.uint8)
    seen = np.zeros((part.classes, DRAWERS), bool)
    for name, png in drawings:
        match = _PNG.search(name)
        if match is None:
            continue
        character, drawer = int(match[1]) - part.first, int(match[2]) - 1
        if not (0 <= character < part.classes and 0 <= drawer < DRAWERS):
            raise DataError(f"{source}: {printable(name)} does not belong there; {_expectation(part)}")
        if seen[character, drawer]:
            raise DataError(f"{source}: drawing {match[0].lstrip('/')} is there twice")
        with _blaming(f"{source}: {printable(name)}"):
            images[character, drawer] = decode(png)
        seen[character, drawer] = True
    _check_complete(source, seen, part)
    return torch.from_numpy(images)


def decode(png: bytes) -> np.ndarray:
    """uint8 [105, 105], ink (black) = 1.  Raises ValueError, or what PIL raises when a checksum of the PNG is wrong."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.verify()  # all checksums, of which decoding leaves out those after the last pixel
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if image.size != (SIDE, SIDE):
            raise ValueError(f"it is {image.width} x {image.height} pixels, not {SIDE} x {SIDE}")
        return (np.asarray(image.convert("L")) < 128).view(np.uint8)


def _check_complete(source: Path, seen: np.ndarray, part: Part) -> None:
    found = seen.sum(1)
    short = np.flatnonzero(found < DRAWERS)
    if len(short):
        some = ", ".join(f"{part.first + c:04d} has {found[c]}" for c in short[:3])
        raise DataError(f"{source}: {len(short)} characters are incomplete ({some}); {_expectation(part)}")


def _expectation(part: Part) -> str:
    last = part.first + part.classes - 1
    return f"expected are the characters {part.first:04d} to {last:04d} with {DRAWERS} drawings each"


def _check_md5(path: Path, name: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    wanted = _torchvision.datasets().Omniglot.zips_md5[name]
    if found != wanted:
        raise DataError(
            f"{path} is not the official file: its md5 is {found}, not {wanted}. Fetch it again; "
            f"or extract it to {path.with_suffix('')}, where only the drawings are checked, and move the zip away"
        )


@contextmanager
def _blaming(path: Path | str) -> Iterator[None]:
    """Readers of damaged files raise almost anything; whatever it was, the user gets a sentence that names the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); replace it or move it away") from error


# -------------------------------------------------------------------------------------------------------- download


def _download(root: Path, name: str) -> Path:
    """The official zip in `<root>/omniglot-py`.  Raises DataError within 30 seconds where there is no network."""
    datasets = _torchvision.datasets()
    url, md5 = _url(name), datasets.Omniglot.zips_md5[name]
    log.info("downloading %s", url)

    def fetch(folder: Path) -> None:
        datasets.utils.download_url(url, folder, f"{name}.zip", md5)

    try:
        with _torchvision.downloaded(fetch, root) as scratch:
            target = root / FOLDER / f"{name}.zip"
            target.parent.mkdir(exist_ok=True)
            return (scratch / f"{name}.zip").replace(target)
    except Exception as error:  # name look-up, connection, HTTP status, md5, permissions, a full disk
        raise DataError(_help(root, name, error)) from error


def _url(name: str) -> str:
    return f"{_torchvision.datasets().Omniglot.download_url_prefix}/{name}.zip"


def _help(root: Path, name: str, error: Exception) -> str:
    places = [f"{name}.npz"] + [f"{folder}{name}{kind}" for folder in ("", f"{FOLDER}/") for kind in (".zip", "/")]
    md5s = _torchvision.datasets().Omniglot.zips_md5
    files = " and ".join(f"{_url(part)} (md5 {md5s[part]})" for part in PARTS)
    return (
        f"no Omniglot in {root.absolute()}: looked there for {', '.join(places)}; the download failed "
        f"({reason(error)}). Put {files} into that folder"
    )
