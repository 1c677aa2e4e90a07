"""Images grouped by class: the one form in which every data set reaches the rest.

`N` images · `C` classes · `H W` image.  Images are uint8, ink = 1 and paper = 0.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassImages:
    """`images` uint8 [N, H, W], sorted by class; class c has `counts[c]` of them, and `names[c]` says which it is."""

    images: Tensor
    counts: Tensor  # [C] int64, on the CPU
    names: tuple[str, ...]
