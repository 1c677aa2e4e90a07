"""Drawings of one's own, as a memory or to be scored: PNG or JPEG files of any size, made to look like Omniglot.

Grey levels, relative to the paper around, become ink and paper at the threshold of Otsu (1979); what is transparent is
paper.  Where more is dark than light, the drawing is light on dark and is inverted.  It is padded to a square, as it
lies there if it is about as large as characters of Omniglot are, else cut out and brought to their mean size.  Then it
has 105 x 105 pixels, and strokes that are thinner or thicker than nearly all of Omniglot's are thickened or thinned:
thin ones would be lost at 26 x 26.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from data.folder import LEAST_CONTRAST, SIDE, images_in, read_grey
from data.images import ClassImages
from runtime.errors import DataError, printable

MOST = 100  # in a memory; the models are trained with at most a few dozen

_FINE = 4 * SIDE  # pixels of the longer side at which ink is told from paper
# Of the evaluation images of Omniglot, in pixels of 105: the longer side of what is drawn is 34 to 95 in 98 % of them
# (one of 100 is left as it is) and 65 in the mean, its centre at most 30 from that of the image, and `_stroke` 3.4 to
# 5.3 in 99 %.
_EXTENT, _MEAN_EXTENT, _SHIFT, _STROKE = (34, 100), 65, 30, (3.4, 5.3)


@dataclass(frozen=True)
class Drawing:
    """`ink` uint8 [105, 105], ink = 1, and whether the file was light on dark."""

    path: Path
    ink: np.ndarray
    inverted: bool


def read_folder(folder: Path) -> list[Drawing]:
    """All drawings in a folder, in the order of their names.

    Raises DataError that names the folder or file which is missing, no image, blank, or one too many.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(str(folder))}: no such folder; put PNG or JPEG drawings, dark on light, there")
    paths = images_in(folder)
    if len(paths) > MOST:
        raise DataError(f"{printable(str(folder))} has {len(paths)} images; a memory takes at most {MOST}, use fewer")
    return [read(path) for path in paths]


def read(path: Path) -> Drawing:
    """One drawing.  Raises DataError that names the file."""
    grey = read_grey(path)
    grey.thumbnail((_FINE, _FINE), Image.Resampling.BOX)
    darkest, middle, lightest = np.quantile(np.asarray(grey), [0, 0.5, 1])
    if lightest - darkest < LEAST_CONTRAST:
        raise DataError(f"{printable(str(path))}: blank, all of its pixels are about as dark; draw on it or remove it")
    inverted = bool(middle < (darkest + lightest) / 2)
    levels = _evenly_lit(ImageOps.invert(grey) if inverted else grey)
    ink = _framed(levels <= _otsu(levels))
    if ink.mean() > 0.5:
        raise DataError(f"{printable(str(path))}: more ink than paper; draw lines, dark on light")
    return Drawing(path, ink, inverted)


def as_images(drawings: list[Drawing]) -> ClassImages:
    """The drawings as one class, uint8 [N, 105, 105]."""
    ink = np.stack([drawing.ink for drawing in drawings])
    return ClassImages(torch.from_numpy(ink), torch.tensor([len(ink)]), ("drawings",))


def _evenly_lit(grey: Image.Image) -> np.ndarray:
    """Levels relative to that of the paper around, uint8 [h, w], so that the shadow on a photo is no ink."""
    tenth = grey.resize([max(1, length // 10) for length in grey.size], Image.Resampling.BOX)
    paper = tenth.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.GaussianBlur(4)).resize(grey.size)
    return (255 * np.minimum(np.asarray(grey, float) / np.maximum(np.asarray(paper), 1), 1)).round().astype(np.uint8)


def _otsu(levels: np.ndarray) -> int:
    """The grey level t for which {<= t} and {> t} have the largest variance between them (Otsu 1979)."""
    counts = np.bincount(levels.ravel(), minlength=256).astype(float)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (sums[-1] * below / below[-1] - sums) ** 2 / (below * above)
    return int(np.nanargmax(between))


def _framed(mask: np.ndarray) -> np.ndarray:
    """Ink of any shape -> uint8 [105, 105]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(mask.shape)
    scale = SIDE / side
    extent = max(bottom - top, right - left)
    shift = max(abs(top + bottom - mask.shape[0]), abs(left + right - mask.shape[1])) / 2
    if not (_EXTENT[0] <= extent * scale <= _EXTENT[1] and shift * scale <= _SHIFT):
        mask = mask[top:bottom, left:right]
        side = round(extent * SIDE / _MEAN_EXTENT)
    square = np.zeros((side, side), np.float32)
    y, x = ((side - length) // 2 for length in mask.shape)
    square[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    # A quarter of a pixel, so that thin lines stay where they are thinner than a pixel of the small image.
    covered = 0.5 if _stroke(square > 0) * SIDE / side >= _STROKE[0] else 0.25
    small = np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX))
    return _with_usual_strokes(small >= covered).astype(np.uint8)


def _with_usual_strokes(ink: np.ndarray) -> np.ndarray:
    """Thickened or thinned by a pixel at a time, in turn at either side, until strokes are as thick as usual."""
    least, most = _STROKE
    for step in range(SIDE):
        thickness, by = _stroke(ink), 1 - 2 * (step % 2)
        if least <= thickness <= most:
            break
        moved = [_moved(ink, *shift) for shift in ((by, 0), (0, by), (by, by))]
        if thickness < least:
            ink = np.logical_or.reduce([ink, *moved])
        elif (thinner := np.logical_and.reduce([ink, *moved])).any():
            ink = thinner
        else:
            break
    return ink


def _moved(ink: np.ndarray, down: int, right: int) -> np.ndarray:
    """By at most a pixel; paper comes in at the edges."""
    height, width = ink.shape
    return np.pad(ink, 1)[1 - down :, 1 - right :][:height, :width]


def _stroke(ink: np.ndarray) -> float:
    """The mean thickness of what is drawn, twice its area over its perimeter, in pixels."""
    padded = np.pad(ink, 1).astype(np.int8)
    perimeter = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
    return 2 * int(ink.sum()) / max(perimeter, 1)
