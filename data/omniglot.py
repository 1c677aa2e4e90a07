"""Omniglot (Lake, Salakhutdinov & Tenenbaum, 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

Two archives, `images_background` (characters 1 to 964) and `images_evaluation` (965 to 1623).  Each is looked for as

1. `<root>/<archive>.npz`: `images` bool [C, 20, 105, 105] with True = paper, `labels` int64 [C, 20] = the class index;
2. the official `<archive>.zip` or the folder `<archive>/` extracted from it, under `<root>` or `<root>/omniglot-py`;
3. a download of the official zip.

After PNG files were read the npz is written, so that the next start takes a second or two.  Files are checked,
never changed or deleted, and nothing in them is executed: no pickle is read, and archives are not extracted.
"""

import bisect
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from data import _torchvision
from data._readers import decode, naming, read_folder, read_npz, read_zip, write_npz
from data.images import ClassImages, Subset
from runtime.errors import DataError, printable, reason

log = logging.getLogger(__name__)

Split = Literal["official", "45-5"]

SIDE = 105  # pixels
DRAWERS = 20  # images of a character
FOLDER = "omniglot-py"  # where torchvision keeps its copy


@dataclass(frozen=True)
class Archive:
    """`classes` characters from id `first` on, published as one file."""

    first: int
    classes: int


ARCHIVES = {"images_background": Archive(1, 964), "images_evaluation": Archive(965, 659)}

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


def load(root: str | Path, subset: Subset, split: Split) -> ClassImages:
    """Images [N, 105, 105] of the classes of one side of a split, ordered by character id, named "Tengwar/1531".

    official  train = background, 964 classes; test = evaluation, 659.
    45-5      test = the 144 characters of five alphabets, train = the 1,479 others.

    Only the files that hold a wanted class are needed.  Raises DataError that names the file when one is damaged, and
    one that says what was looked for and where to get it when nothing can be had.
    """
    if subset not in get_args(Subset) or split not in get_args(Split):
        raise ValueError(f"no subset {subset!r} of split {split!r}; {get_args(Subset)} of {get_args(Split)}")
    root = Path(root)
    pieces = []
    for name, archive in ARCHIVES.items():
        wanted = [i for i in range(archive.classes) if _belongs(archive.first + i, subset, split)]
        if wanted:
            piece = _load_archive(root, name)
            pieces.append(piece if len(wanted) == archive.classes else piece.select(wanted))
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
        is_test = character >= ARCHIVES["images_evaluation"].first
    else:
        is_test = alphabet_of(character) in TEST_ALPHABETS
    return is_test == (subset == "test")


def _load_archive(root: Path, name: str) -> ClassImages:
    archive, packed = ARCHIVES[name], root / f"{name}.npz"
    if packed.exists():
        images = read_npz(packed, (archive.classes, DRAWERS, SIDE, SIDE))
    else:
        source = _find(root, name) or _download(root, name)
        log.info("reading %s; this is done once", source)
        drawings = read_folder(source) if source.is_dir() else read_zip(source, _md5(name), _PNG)
        images = assemble(source, drawings, archive)
        write_npz(packed, images)
    characters = range(archive.first, archive.first + archive.classes)
    return ClassImages(
        images.flatten(0, 1),
        torch.full((archive.classes,), DRAWERS),
        tuple(f"{alphabet_of(character)}/{character:04d}" for character in characters),
    )


def _find(root: Path, name: str) -> Path | None:
    """The official zip or its extracted folder; the zip first, because an extraction may have been interrupted."""
    for folder in (root, root / FOLDER):
        for path in (folder / f"{name}.zip", folder / name):
            if path.exists():
                return path
    return None


def assemble(source: Path, drawings: Iterable[tuple[str, bytes]], archive: Archive) -> Tensor:
    """uint8 [C, 20, 105, 105], ink = 1, from (name, PNG) pairs in any order, each drawing exactly once.

    Raises DataError that names `source` and the drawing when one is corrupt, unexpected, doubled or missing.
    """
    images = np.zeros((archive.classes, DRAWERS, SIDE, SIDE), np.uint8)
    seen = np.zeros((archive.classes, DRAWERS), bool)
    for name, png in drawings:
        match = _PNG.search(name)
        if match is None:
            continue
        character, drawer = int(match[1]) - archive.first, int(match[2]) - 1
        if not (0 <= character < archive.classes and 0 <= drawer < DRAWERS):
            raise DataError(f"{source}: {printable(name)} does not belong there; {_expectation(archive)}")
        if seen[character, drawer]:
            raise DataError(f"{source}: drawing {match[0].lstrip('/')} is there twice")
        with naming(f"{source}: {printable(name)}"):
            images[character, drawer] = decode(png, SIDE)
        seen[character, drawer] = True
    _check_complete(source, seen, archive)
    return torch.from_numpy(images)


def _check_complete(source: Path, seen: np.ndarray, archive: Archive) -> None:
    found = seen.sum(1)
    short = np.flatnonzero(found < DRAWERS)
    if len(short):
        some = ", ".join(f"{archive.first + c:04d} has {found[c]}" for c in short[:3])
        raise DataError(f"{source}: {len(short)} characters are incomplete ({some}); {_expectation(archive)}")


def _expectation(archive: Archive) -> str:
    last = archive.first + archive.classes - 1
    return f"expected are the characters {archive.first:04d} to {last:04d} with {DRAWERS} drawings each"


def _download(root: Path, name: str) -> Path:
    """The official zip in `<root>/omniglot-py`.  Raises DataError within 30 seconds where there is no network."""
    log.info("downloading %s", _url(name))

    def fetch(folder: Path) -> None:
        _torchvision.datasets().utils.download_url(_url(name), folder, f"{name}.zip", _md5(name))

    try:
        with _torchvision.downloaded(fetch, root) as scratch:
            target = root / FOLDER / f"{name}.zip"
            target.parent.mkdir(exist_ok=True)
            return (scratch / f"{name}.zip").replace(target)
    except Exception as error:  # name look-up, connection, HTTP status, md5, permissions, a full disk
        raise DataError(_help(root, name, error)) from error


def _url(name: str) -> str:
    return f"{_torchvision.datasets().Omniglot.download_url_prefix}/{name}.zip"


def _md5(name: str) -> str:
    return _torchvision.datasets().Omniglot.zips_md5[name]


def _help(root: Path, name: str, error: Exception) -> str:
    places = [f"{name}.npz"] + [f"{folder}{name}{kind}" for folder in ("", f"{FOLDER}/") for kind in (".zip", "/")]
    files = " and ".join(f"{_url(archive)} (md5 {_md5(archive)})" for archive in ARCHIVES)
    return (
        f"no Omniglot in {root.absolute()}: looked there for {', '.join(places)}; the download failed "
        f"({reason(error)}). Put {files} into that folder"
    )
