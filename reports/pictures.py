"""Pictures of what the model does: memories, samples, reconstructions with the picked address.

A sample is shown by its pixel means: those of p(x|z,m_a) with (a, z) drawn from p(a|M) p(z|m_a).

`G` memories · `T` targets · `M` images in a memory · `S` slots, M and the dummies · `H W` image.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.episodes import Episodes, GridEpisodes
from models.base import MemoryModel
from runtime.randomness import StepNoise

_MEMORIES = 6
_SAMPLES = 8
_MOST_SHOWN = 8  # images of a memory


def spread(episodes: GridEpisodes) -> Episodes:
    """A few episodes from all over the grid's targets."""
    n = len(episodes)
    return episodes.batch(torch.linspace(0, n - 1, min(n, _MEMORIES)).round().long())


def episode_grid(model: MemoryModel, episodes: Episodes, noise: StepNoise) -> np.ndarray:
    """Rows of [memory | target | reconstruction | samples], one for each of a few memories -> uint8 [h, w]."""
    x, memory = episodes.x[:_MEMORIES, :1], episodes.memory[:_MEMORIES]
    reconstruction, _ = model.reconstruct(x, memory, noise)  # [G, 1, H, W]
    samples, _ = model.sample(memory, noise, _SAMPLES)  # [n, G, H, W]
    blocks = [memory[:, :_MOST_SHOWN], x, reconstruction, samples.transpose(0, 1)]
    return _black_on_white(np.concatenate([_tile(block) for block in blocks], 1))


def nearest(samples: Tensor, images: Tensor) -> Tensor:
    """For each sample [n, G, H, W] the image of `images` [N, H, W] at the smallest angle, [n, G, H, W].

    Samples are means, so grey; by squared distance an almost empty image would be nearest to many of them.
    """
    flat = images.flatten(1).to(samples.dtype)
    cosine = samples.flatten(2) @ F.normalize(flat, dim=1).t()  # [n, G, N], times the length of the sample
    return images[cosine.argmax(-1)].to(samples.dtype)


def write_samples(
    path: Path, model: MemoryModel, episodes: Episodes, training: Tensor | None, noise: StepNoise
) -> None:
    """One PNG: for each memory its images, the target with the picked image and reconstruction, samples and neighbours.

    `training` uint8 [N, H, W] holds the images among which the nearest neighbour of each sample is sought, if any.
    """
    from matplotlib.figure import Figure

    memory = episodes.memory
    reconstruction, a = model.reconstruct(episodes.x, memory, noise)
    inferred = {"target": episodes.x}
    if a is not None:
        slots = model.slot_images(memory)
        inferred["picked"] = slots[torch.arange(len(memory), device=a.device), a[:, 0]].unsqueeze(1)
    samples, _ = model.sample(memory, noise, _SAMPLES)
    columns = {
        "memory": memory[:, :_MOST_SHOWN],
        f"{', '.join(inferred)},\nreconstruction": torch.cat([*inferred.values(), reconstruction], 1),
        "pixel means of samples of p(x|M)": samples.transpose(0, 1),
    }
    if training is not None:
        columns["training image nearest to each sample"] = nearest(samples, training).transpose(0, 1)
    columns = {title: block for title, block in columns.items() if block.shape[1]}
    widths = [block.shape[1] for block in columns.values()]
    figure = Figure((0.45 * sum(widths) + 1, 0.45 * len(memory) + 0.8))
    (axes,) = figure.subplots(1, len(columns), width_ratios=widths, squeeze=False)
    for axis, (title, block) in zip(axes, columns.items(), strict=True):
        axis.imshow(_black_on_white(_tile(block)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    size = memory.shape[1]
    shown = f", the first {_MOST_SHOWN} shown" if size > _MOST_SHOWN else ""
    figure.suptitle(f"memories of {size} image{'' if size == 1 else 's'}{shown}", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _tile(block: Tensor) -> np.ndarray:
    """[G, n, H, W] -> one image [G (H + 2), n (W + 2)], framed by half-tone lines."""
    framed = F.pad(block.clamp(0, 1), (1, 1, 1, 1), value=0.4)
    g, n, h, w = framed.shape
    return framed.permute(0, 2, 1, 3).reshape(g * h, n * w).cpu().numpy()


def _black_on_white(ink: np.ndarray) -> np.ndarray:
    """Ink in [0, 1] -> uint8, black on white."""
    return (255 * (1 - ink)).round().astype(np.uint8)
