"""Pictures of what the model does: memories, samples, reconstructions with the picked address.

A sample (a, z) of p(a|M) p(z|m_a) is shown by the pixel means of p(x|z,m_a), or by an image drawn from it: `pictured`.

`G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies · `H W` image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.episodes import Episodes, GridEpisodes
from models.base import MemoryModel
from reports.plots import blank, png
from runtime.files import write_atomically
from runtime.randomness import StepNoise

_MEMORIES = 6
_SAMPLES = 8
_MOST_SHOWN = 16  # images of a memory
_DPI = 150


def spread(episodes: GridEpisodes) -> Episodes:
    """A few episodes from all over the grid's targets."""
    n = len(episodes)
    return episodes.batch(torch.linspace(0, n - 1, min(n, _MEMORIES)).round().long())


def nearest(samples: Tensor, images: Tensor) -> Tensor:
    """For each sample [n, G, H, W] the image of `images` [N, H, W] at the smallest angle, [n, G, H, W].

    Pixel means are grey; by squared distance an almost empty image would be nearest to many of them.
    """
    flat = images.flatten(1).to(samples.dtype)
    cosine = samples.flatten(2) @ F.normalize(flat, dim=1).t()  # [n, G, N], times the length of the sample
    return images[cosine.argmax(-1)].to(samples.dtype)


def write_samples(
    path: Path, model: MemoryModel, episodes: Episodes, training: Tensor | None, noise: StepNoise
) -> None:
    """One PNG of the episodes, with the images `training` uint8 [N, H, W] that are nearest to the samples, if any."""
    write_atomically(path, png(_sheet(model, episodes, noise, training), _DPI))


def episode_picture(model: MemoryModel, episodes: Episodes, noise: StepNoise) -> np.ndarray:
    """The same of the first memories of a batch, without neighbours -> uint8 [h, w, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _sheet(model, first_targets(episodes), noise, None)
    figure.tight_layout()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def first_targets(episodes: Episodes) -> Episodes:
    """The first memories, each with the first of its targets."""
    first = {name: value[:_MEMORIES] for name, value in vars(episodes).items()}
    return Episodes(**{name: value[:, :1] if name.startswith("x") else value for name, value in first.items()})


def _sheet(model: MemoryModel, episodes: Episodes, noise: StepNoise, training: Tensor | None) -> Any:
    """A row for each memory: its images, the target with the picked image and reconstruction, samples, neighbours."""
    memory = episodes.memory
    reconstruction, a = model.reconstruct(episodes.x, memory, noise)
    inferred = {"target": episodes.x}
    if a is not None:
        slots = model.slot_images(memory)
        inferred["picked"] = slots[torch.arange(len(memory), device=a.device), a[:, 0]].unsqueeze(1)
    samples, _ = model.sample(memory, noise, _SAMPLES)
    shown = _of_every_class(memory, episodes.memory_class)
    columns = {
        "memory": shown,
        f"{', '.join(inferred)},\nreconstruction": torch.cat([*inferred.values(), reconstruction], 1),
        f"samples of p(x|M), {model.pictured}": samples.transpose(0, 1),
    }
    if training is not None:
        columns["training image nearest to each sample"] = nearest(samples, training).transpose(0, 1)
    columns = {title: block for title, block in columns.items() if block.shape[1]}
    widths = [block.shape[1] for block in columns.values()]
    figure = blank(0.45 * sum(widths) + 1, 0.45 * len(memory) + 1.1)
    (axes,) = figure.subplots(1, len(columns), width_ratios=widths, squeeze=False)
    for axis, (title, block) in zip(axes, columns.items(), strict=True):
        draw(axis, tile(block), title, size=8)
    size = memory.shape[1]
    some = f", {_MOST_SHOWN} of each shown" if size > _MOST_SHOWN else ""
    figure.suptitle(f"memories of {size} image{'' if size == 1 else 's'}{some}", fontsize=9)
    return figure


def _of_every_class(memory: Tensor, classes: Tensor) -> Tensor:
    """Of each memory [G, M, H, W] as many images as are shown, in its order, equally many of each of its classes."""
    g, size = classes.shape
    earlier = (classes.unsqueeze(2) == classes.unsqueeze(1)).tril(-1).sum(2)  # [G, M], images before it of its class
    places = earlier * size + torch.arange(size, device=classes.device)
    chosen = places.argsort(1)[:, :_MOST_SHOWN].sort(1).values
    return memory[torch.arange(g, device=classes.device).unsqueeze(1), chosen]


_PER_ROW = 8


@dataclass
class MemorySheet:
    """A picture of one memory, of samples that it gives and maybe of a target: large tiles, each with a caption."""

    title: str
    slots: Tensor  # [S, H, W], first the images of the memory
    names: Sequence[str]  # of these images, M
    samples: Tensor  # [n, H, W]
    picked: Tensor | None  # [n], the slot behind each sample
    samples_title: str
    target: dict[str, Tensor] = field(default_factory=dict)  # by the caption
    p_a: Tensor | None = None  # [S] p(a|x,M) of the target

    def name(self, slot: int) -> str:
        return f"{slot + 1}" if slot < len(self.names) else f"dummy {slot - len(self.names) + 1}"

    def caption(self, slot: int) -> str:
        """Number and name of a slot, short enough to stand over its tile."""
        return f"{self.name(slot)}: {self.names[slot]:.14}" if slot < len(self.names) else self.name(slot)

    def write(self, path: Path) -> None:
        """A PNG file.  Raises OSError."""
        slots = [self.caption(slot) for slot in range(len(self.slots))]
        if self.p_a is not None:
            slots = [f"{name}\np(a|x,M) = {p:.2f}" for name, p in zip(slots, self.p_a.tolist(), strict=True)]
        picked = [] if self.picked is None else self.picked.tolist()
        origins = [f"from {self.name(a)}" for a in picked] or [""] * len(self.samples)
        blocks = [(self.title, self.slots, slots), (self.samples_title, self.samples, origins)]
        blocks += [(caption, image[None], [""]) for caption, image in self.target.items()]
        rows = [-(-len(images) // _PER_ROW) for _, images, _ in blocks]
        figure = blank(1.25 * _PER_ROW, 1.55 * sum(rows) + 0.4 * len(rows), layout="constrained")
        parts = figure.subfigures(len(blocks), 1, height_ratios=[1.55 * row + 0.4 for row in rows], squeeze=False)
        for part, row, (title, images, captions) in zip(parts[:, 0], rows, blocks, strict=True):
            part.suptitle(_plain(title), fontsize=11)
            axes = part.subplots(row, _PER_ROW, squeeze=False).flatten()
            for axis, image, caption in zip(axes, images, captions, strict=False):
                draw(axis, tile(image[None, None]), caption, size=9)
            for axis in axes[len(images) :]:
                axis.axis("off")
        write_atomically(path, png(figure, _DPI))


def draw(axis: Any, ink: Tensor, title: str, frame: str | None = None, size: int = 10) -> None:
    """Ink [H, W], 0 to 1, black on white under its title; with `frame`, a line of that colour around it."""
    grey = (255 * (1 - ink.clamp(0, 1))).round().byte().numpy(force=True)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(_plain(title), fontsize=size, color=frame or "black")
    if frame is None:
        axis.axis("off")
    else:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color(frame)


def _plain(text: str) -> str:
    """Names of files may have signs that matplotlib takes for mathematics."""
    return text.replace("$", r"\$")


def tile(block: Tensor, ink: float = 0.4) -> Tensor:
    """[G, n, H, W] -> one image [G (H + 2), n (W + 2)], framed by lines of so much ink."""
    framed = F.pad(block, (1, 1, 1, 1), value=ink)
    g, n, h, w = framed.shape
    return framed.permute(0, 2, 1, 3).reshape(g * h, n * w)
