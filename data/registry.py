"""The data sets, by the name that `kind` gives them.  A new one is one module with a `load`, and one line here.

No torch here: a configuration is checked against these facts before anything is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import DataError

if TYPE_CHECKING:
    from data.images import ClassImages


class Counts(NamedTuple):
    """How much there is to draw from."""

    classes: int
    smallest: int  # images of the smallest class
    images: int


@dataclass(frozen=True)
class DataSet:
    """`load(subset=..., **keys)` of `module` gives the images of the subset train or test as `ClassImages`."""

    module: str  # imported when the images are loaded
    reads: tuple[str, ...]  # the keys of a data section that `load` and `count` take; no other kind's keys may be set
    count: Callable[..., Counts | None] = lambda **_: None  # of a subset; None where only reading the files tells
    same_classes: bool = False  # whether the classes of the test are those of the training

    def keys_of(self, section: object) -> dict[str, Any]:
        return {key: getattr(section, key) for key in self.reads}

    def counts(self, section: object, subset: str) -> Counts | None:
        """Those of a subset, as far as they are known before reading it."""
        return self.count(subset=subset, **self.keys_of(section))

    def load(self, section: object, subset: str) -> "ClassImages":
        """The images of a subset at full size.  Raises DataError."""
        keys = self.keys_of(section)
        if Path(keys.get("root", ".")).is_file():
            raise DataError(f"{keys['root']}: a file, where the folder of the data is needed")
        return import_module(self.module).load(subset=subset, **keys)


def _of_20_images(classes: int) -> Counts:
    return Counts(classes, 20, 20 * classes)


_OMNIGLOT = {("official", "train"): 964, ("official", "test"): 659, ("45-5", "train"): 1479, ("45-5", "test"): 144}
_MNIST = {"train": Counts(10, 5421, 60_000), "test": Counts(10, 892, 10_000)}

DATA_SETS: dict[str, DataSet] = {
    "omniglot": DataSet(
        "data.omniglot", ("root", "split"), lambda subset, root, split: _of_20_images(_OMNIGLOT[split, subset])
    ),
    "mnist": DataSet("data.mnist", ("root",), lambda subset, root: _MNIST[subset], same_classes=True),
    "glyphs": DataSet(
        "data.glyphs", ("classes",), lambda subset, classes: _of_20_images(classes if subset == "train" else 60)
    ),
    "folder": DataSet("data.folder", ("root",)),
}


def kinds_that_read(key: str) -> str:
    """The kinds that have a key of their own, as a sentence names them."""
    return " or ".join(kind for kind, data_set in DATA_SETS.items() if key in data_set.reads)
