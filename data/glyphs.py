"""Invented handwriting: characters of one to three pen strokes, drawn here, so that nothing need be downloaded.

A character is a few strokes with control points; an image of it jitters the points, distorts the whole a little and
takes a pen of its own.  Same form as Omniglot: 105 x 105, 20 images a class, about a twelfth of the pixels are ink.
Everything is a function of the seed.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.images import ClassImages, Subset
from runtime.randomness import seed_of

Stroke = np.ndarray  # control points [P, 2], x to the right and y down, in units of the image's side

SIDE = 105  # pixels
DRAWERS = 20  # images of a character
TEST_CLASSES = 60

_STEPS = 8  # segments drawn between two control points of a curve
_COARSE = 21  # side of the raster on which characters are compared
_LEAST_OVERLOOKED = 0.15  # share of ink that must have no counterpart in any other character


@dataclass(frozen=True)
class Glyph:
    """One character: the control points of all strokes and how they become lines."""

    points: np.ndarray  # [P, 2]
    slack: np.ndarray  # [P, 1] standard deviation of a point about its place: short strokes are drawn more precisely
    basis: np.ndarray  # [L, P] the points of the lines as weights of the control points; each row adds up to one
    ends: np.ndarray  # one after the last row of each stroke but the last, for `np.split`


def load(subset: Subset, classes: int = 200, seed: int = 0) -> ClassImages:
    """Images [20 C, 105, 105] of C characters; `classes` counts those for training, the test has 60.

    No character of the test is one of the training, and class c is the same however many there are.
    """
    if subset not in get_args(Subset):
        raise ValueError(f"no subset {subset!r}; {get_args(Subset)}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes}")
    test = _alphabet("test", TEST_CLASSES, seed, [])
    glyphs = test if subset == "test" else _alphabet("train", classes, seed, test)
    images = np.stack([image for index, glyph in enumerate(glyphs) for image in _draw(glyph, subset, seed, index)])
    return ClassImages(
        torch.from_numpy(images),
        torch.full((len(glyphs),), DRAWERS),
        tuple(f"{subset}/{index:04d}" for index in range(len(glyphs))),
    )


def _rng(*key: int | str) -> np.random.Generator:
    return np.random.default_rng(seed_of("glyphs", *key))


# ------------------------------------------------------------------------------------------------------ characters


def _alphabet(subset: Subset, number: int, seed: int, others: list[Glyph]) -> list[Glyph]:
    """`number` characters, each unlike the ones before it and unlike `others`."""
    rng = _rng("alphabet", subset, seed)
    rasters = np.zeros((len(others) + number, 2, _COARSE * _COARSE), np.float32)
    for index, other in enumerate(others):
        rasters[index] = _raster(other)
    glyphs: list[Glyph] = []
    while len(glyphs) < number:
        glyph = _invent(rng)
        known = len(others) + len(glyphs)
        rasters[known] = _raster(glyph)
        if _unlike(rasters[known], rasters[:known]):
            glyphs.append(glyph)
    return glyphs


def _raster(glyph: Glyph) -> np.ndarray:
    """[2, R]: the plain drawing on a coarse raster, and the same thickened by one pixel of it."""
    image = np.zeros((_COARSE + 2, _COARSE + 2), np.float32)
    for line in np.split(glyph.basis @ glyph.points * _COARSE, glyph.ends):
        between = np.linspace(line[:-1], line[1:], _COARSE).reshape(-1, 2)  # no gap however long a segment is
        x, y = np.clip(between, 0, _COARSE - 1).astype(int).T + 1
        image[y, x] = 1
    thick = np.max([image[i : i + _COARSE, j : j + _COARSE] for i in range(3) for j in range(3)], axis=0)
    return np.stack([image[1:-1, 1:-1].ravel(), thick.ravel()])


def _unlike(raster: np.ndarray, others: np.ndarray) -> bool:
    """Whether, for each of `others` [n, 2, R], enough ink of one drawing has none of the other in its neighbourhood."""
    thin, thick = raster
    here = 1 - others[:, 1] @ thin / thin.sum()
    there = 1 - others[:, 0] @ thick / others[:, 0].sum(-1)
    return bool((np.maximum(here, there) >= _LEAST_OVERLOOKED).all())


def _invent(rng: np.random.Generator) -> Glyph:
    """A random character of one to three strokes that touch more often than not, centred in the image."""
    strokes: list[Stroke] = []
    bases: list[np.ndarray] = []
    number = rng.choice([1, 2, 3], p=[0.15, 0.4, 0.45])
    # one stroke alone should be more than a line
    chances = [0.0, 0.15, 0.6, 0.25] if number == 1 else [0.25, 0.2, 0.35, 0.2]
    for _ in range(number):
        kind = rng.choice(["line", "corner", "curve", "arc"], p=chances)
        lengths = {"line": 2, "corner": 3, "curve": int(rng.integers(3, 6))}
        stroke = _arc(rng) if kind == "arc" else _waypoints(rng, lengths[kind])
        if strokes and rng.random() < 0.6:  # begin on an earlier stroke
            earlier = np.concatenate(strokes)
            stroke = stroke + earlier[rng.integers(len(earlier))] - stroke[0]
        strokes.append(stroke)
        bases.append(_curve(len(stroke)) if kind in ("curve", "arc") else np.eye(len(stroke)))
    return _assemble(strokes, bases, size=rng.uniform(0.5, 0.8))


def _waypoints(rng: np.random.Generator, number: int) -> Stroke:
    """Points of a coarse grid, neither too close to the last one nor turning straight back."""
    points = [rng.integers(0, 5, 2)]
    while len(points) < number:
        point = rng.integers(0, 5, 2)
        if rng.random() < 0.4:  # scripts favour the upright and the level
            axis = rng.integers(2)
            point[axis] = points[-1][axis]
        step, last = point - points[-1], points[-1] - points[-2] if len(points) > 1 else np.zeros(2)
        # at -0.75 there is always a way on, even out of a corner of the grid that was entered diagonally
        turns_back = step @ last < -0.75 * np.linalg.norm(step) * np.linalg.norm(last)
        if np.abs(step).sum() >= 2 and np.abs(step).max() <= (4 if number < 4 else 3) and not turns_back:
            points.append(point)
    return np.stack(points) / 4


def _arc(rng: np.random.Generator) -> Stroke:
    """Part of an ellipse, from a third of it to a closed loop."""
    turn = rng.choice([2.1, 3.2, 4.7, 2 * np.pi])
    angle = rng.integers(8) * np.pi / 4 + np.linspace(0, turn, 4 + int(turn)) * rng.choice([-1, 1])
    radius = rng.choice([0.15, 0.3, 0.45]) * rng.uniform(0.75, 1.25, 2)
    return rng.uniform(0.3, 0.7, 2) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _curve(number: int) -> np.ndarray:
    """[L, P]: points on the Catmull-Rom spline through P control points, as weights of these."""
    p = np.eye(number)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])  # the ends go on as they came
    t = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    spans = [
        p[i] + t / 2 * (p[i + 1] - p[i - 1]
        + t * (2 * p[i - 1] - 5 * p[i] + 4 * p[i + 1] - p[i + 2]
        + t * (3 * (p[i] - p[i + 1]) + p[i + 2] - p[i - 1])))
        for i in range(1, number)
    ]  # fmt: skip
    return np.concatenate([*spans, p[-2:-1]])


def _assemble(strokes: list[Stroke], bases: list[np.ndarray], size: float) -> Glyph:
    """A glyph from strokes and, for each, its points [L, P] as weights of the control points.

    Scales the strokes together so that the longer side of the drawing is `size`, and centres it.
    """
    basis = np.zeros((sum(len(b) for b in bases), sum(b.shape[1] for b in bases)))
    row = column = 0
    for b in bases:
        basis[row : row + len(b), column : column + b.shape[1]] = b
        row, column = row + len(b), column + b.shape[1]
    points = np.concatenate(strokes)
    low, high = (basis @ points).min(0), (basis @ points).max(0)
    scale = size / (high - low).max()
    slack = np.concatenate([np.full((len(stroke), 1), _slack(stroke * scale)) for stroke in strokes])
    centred = 0.5 + (points - (low + high) / 2) * scale
    return Glyph(centred, slack, basis, np.cumsum([len(b) for b in bases])[:-1])


def _slack(stroke: Stroke) -> float:
    """A fifteenth of the mean distance of its control points, within limits."""
    return float(np.clip(np.linalg.norm(np.diff(stroke, axis=0), axis=1).mean() / 15, 0.008, 0.025))


# ---------------------------------------------------------------------------------------------------------- images


def _draw(glyph: Glyph, subset: Subset, seed: int, index: int) -> list[np.ndarray]:
    """20 images [105, 105] of one character."""
    rng = _rng("images", subset, seed, index)
    points = glyph.basis @ rng.normal(glyph.points, glyph.slack, (DRAWERS, *glyph.points.shape))
    pens = rng.choice([2, 3, 4], DRAWERS, p=[0.05, 0.25, 0.7])
    return [
        _ink(np.split(drawing * SIDE, glyph.ends), int(pen))
        for drawing, pen in zip(_distort(rng, points), pens, strict=True)
    ]


def _distort(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """[n, L, 2] -> the same: for each image a rotation, a shear and two scales about the centre, and a shift."""
    n = len(points)
    angle, shear = rng.normal(0, 0.07, n), rng.normal(0, 0.07, n)
    scale = np.exp(rng.normal(0, 0.1, (n, 1, 1)) + rng.normal(0, 0.06, (n, 1, 2)))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, sin], 1), np.stack([shear * cos - sin, shear * sin + cos], 1)], 1)  # [n, 2, 2]
    return _onto_paper((points - 0.5) * scale @ turn + 0.5 + rng.normal(0, 0.025, (n, 1, 2)))


def _onto_paper(points: np.ndarray) -> np.ndarray:
    """[n, L, 2] -> the same, shrunk and moved where a drawing would leave the image less a margin."""
    margin = 0.04
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    points = low + (points - low) * np.minimum(1, (1 - 2 * margin) / (high - low).max(2, keepdims=True))
    return points + np.maximum(margin - low, 0) - np.maximum(points.max(1, keepdims=True) - (1 - margin), 0)


def _ink(lines: list[np.ndarray], pen: int) -> np.ndarray:
    """uint8 [105, 105]: polylines [L, 2] in pixels, drawn with a round pen."""
    image = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.line(line.ravel().tolist(), fill=1, width=pen, joint="curve")
        for x, y in (line[0].tolist(), line[-1].tolist()):  # joints are round already, ends are not
            draw.ellipse((x - pen / 2 + 0.5, y - pen / 2 + 0.5, x + pen / 2 - 0.5, y + pen / 2 - 0.5), fill=1)
    return np.asarray(image)
