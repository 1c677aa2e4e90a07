"""Means over the targets of a cell in which every class counts the same, and their standard errors.

`n` targets · `C` classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean; its standard error for these classes, and for classes that might have been drawn instead."""

    mean: float
    stderr: float
    stderr_new_classes: float


def estimate(values: np.ndarray, classes: np.ndarray, alphabets: np.ndarray | None = None) -> Estimate:
    """The mean over classes of the means of their targets; `values`, `classes` and the targets' `alphabets` [n].

    So a class that gives one target more counts no more.  `stderr` takes the classes as they are, since a test has all
    there are (stratified sampling): sum_c s_c^2 / n_c / C^2 is its square, where s_c^2 is the variance within class c.
    A class with one target gets the variance that the others have within them, pooled.  If no class has two, what
    varies within classes is unknown, and `stderr` is that of a mean of n numbers.  Differences between classes
    count in it too, so it is too large.

    `stderr_new_classes` is for statements about other classes: characters of an alphabet are alike, so alphabets (or
    classes, where no alphabets are known) are what was drawn independently.  Either is NaN where one draw is all.
    """
    _, first, which, sizes = np.unique(classes, return_index=True, return_inverse=True, return_counts=True)
    means = np.bincount(which, values) / sizes  # [C]
    squares, more = np.bincount(which, (values - means[which]) ** 2), sizes - 1
    if not more.any():
        stderr = _of_clusters(means, np.arange(len(means)))
    else:
        within = np.where(more > 0, squares / np.maximum(more, 1), squares.sum() / more.sum())
        stderr = math.sqrt((within / sizes).sum()) / len(means)
    groups = (classes if alphabets is None else alphabets)[first]
    return Estimate(float(means.mean()), stderr, _of_clusters(means, groups))


def _of_clusters(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of `values`, of which those of one group may be alike; NaN for a single group.

    The square root of G/(G-1) sum_g (sum_{i in g} (v_i - mean))^2 / n^2, the usual one for groups of one.
    """
    _, which = np.unique(groups, return_inverse=True)
    totals = np.bincount(which, values - values.mean())  # [G]
    number = len(totals)
    return math.sqrt(number / (number - 1) * (totals**2).sum()) / len(values) if number > 1 else math.nan


def alphabets_of(classes: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """What stands before the slash in the name of each target's class, "Tengwar" in "Tengwar/1531"; [n].

    None where all `names` have the same there, or not all are known.
    """
    if not np.isin(classes, np.arange(len(names))).all():
        return None
    alphabets = np.array([name.rpartition("/")[0] for name in names])
    return alphabets[classes.astype(int)] if len(np.unique(alphabets)) > 1 else None
