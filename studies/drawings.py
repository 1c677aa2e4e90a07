"""Two pictures: what models draw after one image of a character they never saw, and where they look for a target.

    python -m studies.drawings --model configs/vma_causal_quick.yaml pretrained/vma_causal_quick.safetensors

`drawings.png` has samples of every model for the same images, `posterior.png` a memory of a hundred characters and the
most probable addresses p(a|x,M) of some targets, by the first model.
"""

import argparse
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from data.episodes import Episodes
from data.images import ClassImages
from reports.pictures import draw, tile
from reports.plots import blank, png
from run import standalone
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.randomness import StepNoise
from runtime.signals import StopRequest
from studies import program

_CHARACTERS, _DRAWINGS, _WIDE = 6, 16, 8
_TARGETS, _ADDRESSES = 8, 5
_MEMORY = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("drawings", __doc__)
    program.add_models(p)
    program.add_number(p, "--samples", "K", "for the posterior, if there is a z", 1000, least=1)
    program.add_number(p, "--seed", "N", "of the characters and the samples", 0, least=0)
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Draw and write.  Raises UserError, DataError, OSError."""
    blocks, first = {}, None
    for name, _, model, images in program.models(args, stop):
        noise = StepNoise(images.images.device, "drawings", args.seed)
        shown = one_of_each(images, _CHARACTERS, args.seed).memory.movedim(1, 0)  # [characters, 1, H, W]
        blocks[f"{name}: {model.pictured}"] = model.sample(shown, noise, _DRAWINGS)[0].transpose(0, 1)
        first = first or (model, images, shown, noise)
    assert first is not None  # one is required
    model, images, shown, noise = first
    write_atomically(args.output / "drawings.png", draw_samples(shown.squeeze(1), blocks))
    episodes = one_of_each(images, min(_MEMORY, images.num_classes), args.seed)
    x, answers = episodes.x[:, :_TARGETS], episodes.x_class[0, :_TARGETS]
    p_a = model.explain(x, episodes.memory, noise, args.samples).p_a
    if p_a is None:
        raise UserError("the first --model has no addresses (model.read: soft), so there is no posterior to draw")
    right = episodes.memory_class[0] == answers.unsqueeze(1)  # [T, M]
    write_atomically(args.output / "posterior.png", draw_posterior(x[0], episodes.memory[0], p_a[0], right))
    print(f"written: {args.output}/drawings.png, {args.output}/posterior.png")


def one_of_each(images: ClassImages, number: int, seed: int) -> Episodes:
    """A memory of one image of each of so many classes, with another image of each as a target."""
    return program.one_of_each(images, number, seed, f"one of each of {number}").at(0)


def draw_samples(shown: Tensor, blocks: dict[str, Tensor]) -> bytes:
    """Images [C, H, W], and of each model the samples [C, n, H, W] -> a PNG."""
    figure = blank(2 + 6.5 * len(blocks), 1.6 * len(shown) + 0.6)
    axes = figure.subplots(len(shown), 1 + len(blocks), width_ratios=[2, *[_WIDE] * len(blocks)], squeeze=False)
    for row, (line, image) in enumerate(zip(axes, shown, strict=True)):
        draw(line[0], image, "the memory" if row == 0 else "", "black")
        for axis, (title, samples) in zip(line[1:], blocks.items(), strict=True):
            draw(axis, tiled(samples[row], _WIDE), title if row == 0 else "", "black")
    return png(figure)


def draw_posterior(x: Tensor, memory: Tensor, p_a: Tensor, right: Tensor) -> bytes:
    """Targets [T, H, W], a memory [M, H, W], p(a|x,M) [T, S] and whether a slot is of the target's class -> a PNG."""
    figure = blank(16, 8)
    left, half = figure.subfigures(1, 2)
    draw(left.subplots(), tiled(memory, 10), f"a memory of {len(memory)} characters that the model never saw", "black")
    half.suptitle(f"a target and its {_ADDRESSES} most probable addresses, p(a|x,M); green: its class")
    axes = half.subplots(len(x), 1 + _ADDRESSES)
    for line, target, of_target, of_class in zip(axes, x, p_a[:, : len(memory)], right, strict=True):
        draw(line[0], target, "target", "black")
        for axis, a in zip(line[1:], of_target.topk(_ADDRESSES).indices.tolist(), strict=True):
            color = "green" if of_class[a] else "black"
            draw(axis, memory[a], f"{float(of_target[a]):.2f}", color)
    return png(figure)


def tiled(images: Tensor, wide: int) -> Tensor:
    """[n, H, W] -> one image with `wide` of them in a row, framed by grey lines."""
    whole = F.pad(images, (0, 0, 0, 0, 0, -len(images) % wide))
    return tile(whole.unflatten(0, (-1, wide)), 0.3)


if __name__ == "__main__":
    standalone(main)
