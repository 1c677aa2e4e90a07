"""A folder of one's own: `<root>/train/CLASS/*.png` and `<root>/test/CLASS/*.png`, or .jpg or .jpeg.

Drawings are dark ink on light paper, of any size and of any number in a class.  Each is padded with paper to a square
and brought to 105 x 105 by averaging over areas; ink is what is then darker than the mean of the darkest and the
lightest pixel, so that thin lines of a large image and grey pencil are kept.  What is transparent is paper.  Hidden
files are passed over; anything else that is not an image of a class is an error, and no file is changed.
"""

import logging
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageOps

from data._readers import naming, open_image
from data.images import ClassImages, Subset
from runtime.errors import DataError, printable
from runtime.files import opened

log = logging.getLogger(__name__)


SIDE = 105  # pixels
_LEAST_SIDE = 16  # pixels; of the longer side
_MOST_PIXELS = 50_000_000
_MOST_BYTES = 1 << 28
LEAST_CONTRAST = 32  # grey levels; less is blank paper with the noise of a scanner
_ENDINGS = (".png", ".jpg", ".jpeg")
_LAYOUT = "train/CLASS/*.png and test/CLASS/*.png (or .jpg, .jpeg)"


def load(root: str | Path, subset: Subset) -> ClassImages:
    """Images [N, 105, 105], classes and images in the order of their names; a class is named "train/CLASS".

    Raises DataError that names the first file or folder which is missing, empty, unreadable or does not belong there.
    """
    if subset not in get_args(Subset):
        raise ValueError(f"no subset {subset!r}; {get_args(Subset)}")
    folder = Path(root) / subset
    classes = {path.name: images_in(path) for path in _classes_in(folder)}
    log.info("reading %s", folder)
    counts = torch.tensor([len(paths) for paths in classes.values()])
    images = np.empty((int(counts.sum()), SIDE, SIDE), np.uint8)
    every = [path for paths in classes.values() for path in paths]
    for image, path in zip(images, every, strict=True):
        image[:] = _read(path)
    if np.count_nonzero(images) > images.size // 2:
        raise DataError(f"{_shown(folder)}: more ink than paper; invert the images, ink must be darker than paper")
    if (dark := np.flatnonzero(images.mean((1, 2)) > 0.5)).size:
        said = "images with more ink than paper (invert those that are light on dark):"
        log.warning(
            "%s: %d of %d %s %s is the first", _shown(folder), dark.size, len(every), said, _shown(every[dark[0]])
        )
    return ClassImages(torch.from_numpy(images), counts, tuple(f"{subset}/{name}" for name in classes))


def _classes_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        missing = folder.parent if not folder.parent.is_dir() else folder
        raise DataError(f"{_shown(missing)}: no such folder; kind folder reads {_LAYOUT} under root")
    classes = _listed(folder)
    if not classes:
        raise DataError(f"{_shown(folder)} has no classes; kind folder reads {_LAYOUT} under root")
    for path in classes:
        if not path.is_dir():
            raise DataError(f"{_shown(path)} lies beside the folders of the classes; move it into one of them or away")
    return classes


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, ordered by name.  Raises DataError where there are none, or something else."""
    images = _listed(folder)
    if not images:
        raise DataError(f"{_shown(folder)} has no images; put {', '.join(_ENDINGS)} files there or remove the folder")
    for path in images:
        if path.suffix.lower() not in _ENDINGS or not path.is_file():
            raise DataError(f"{_shown(path)} is not a {', '.join(_ENDINGS)} file; move it away")
    return images


def _listed(folder: Path) -> list[Path]:
    with naming(_shown(folder)):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read(path: Path) -> np.ndarray:
    """uint8 [105, 105], ink = 1."""
    grey = read_grey(path)
    with naming(_shown(path)):
        square = ImageOps.pad(grey, (max(grey.size),) * 2, color=255)
        small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(int)
        if small.max() - small.min() < LEAST_CONTRAST:
            raise ValueError("there is no drawing on it, all of its pixels are about as dark")
    return 2 * small < small.max() + small.min()


def read_grey(path: Path) -> Image.Image:
    """A PNG or JPEG file in 8 bits of grey, upright, on white paper.  Raises DataError."""
    with naming(_shown(path)), opened(path, most=_MOST_BYTES) as file:
        image = open_image(file.read(), ["PNG", "JPEG"])
        if max(image.size) < _LEAST_SIDE or image.width * image.height > _MOST_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{size}, where {_LEAST_SIDE} on the longer side and {_MOST_PIXELS} in all are the limits")
        return _grey(ImageOps.exif_transpose(image))


def _grey(image: Image.Image) -> Image.Image:
    """8 bits for a pixel, transparent ones white; if then nothing is seen, what is not transparent is black."""
    if image.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("L")
        if int((levels := np.asarray(image)).max()) - int(levels.min()) < LEAST_CONTRAST:  # white ink
            return ImageOps.invert(coloured.getchannel("A"))
    return image.convert("L")


def _shown(path: Path) -> str:
    return printable(str(path))
