"""Memories of many unseen classes: is the right image still found, and what is it worth?

    python -m studies.many_classes --model configs/vma_causal_quick.yaml pretrained/vma_causal_quick.safetensors

tests memories of 1, 2, 4, ..., 256 evaluation classes, the target's own among them, with one and with four images of
each class.  KL(a) beside log M says how much of what an address can tell is used.  Paper: Figure 4 of arXiv 1709.07116.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from config import Config
from data.composition import EpisodeSpec
from data.episodes import GridEpisodes, spread_targets
from data.images import ClassImages
from evaluator import PerTarget, evaluate_cell, sizes_at_once
from models.base import MemoryModel
from reports.cells import images_described
from reports.estimates import estimate
from reports.plots import blank, png
from reports.tables import markdown_table, shown
from run import standalone
from runtime.errors import UserError
from runtime.signals import StopRequest
from studies import program

_AT_ONCE = 128  # images of all memories of a batch, at most, but for a memory that has more


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("many_classes", __doc__)
    program.add_models(p)
    p.add_argument("--targets", type=int, default=100, metavar="N", help="spread over the classes (100)")
    program.add_number(p, "--most", "C", "classes in the largest memory", 256, least=1)
    p.add_argument(
        "--images", type=program.at_least(1), nargs="+", default=[1, 4], metavar="N", help="of each class (1 4)"
    )
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    rows: list[program.Row] = []
    powers = [2**power for power in range(args.most.bit_length())]  # 1, 2, 4, ... up to the most
    memories = {f"{classes} x {each}": (classes, each) for each in args.images for classes in powers}
    for name, config, model, images in program.models(args, stop):
        for cell in memories:  # mistakes show before hours
            episodes_of(config, images, args.targets, memories, cell)
        found = program.resumed(
            args.output / f"{name}.npz",
            model,
            config,
            {"targets": args.targets, "images": images.digest()},
            memories,
            partial(evaluate, model, config, images, args.targets, memories),
        )
        rows += [summarised(name, config, *memories[cell], values) for cell, values in found.items()]
    program.write(args.output, "many_classes", rows, markdown(rows, config), draw(rows))


# --- values of every target -------------------------------------------------------------------------------------------


def episodes_of(
    config: Config, images: ClassImages, targets: int, memories: Mapping[str, tuple[int, int]], name: str
) -> GridEpisodes:
    """Targets with the memories of this name.  Raises UserError."""
    classes, each = memories[name]
    spec = EpisodeSpec(timesteps=classes * each, exact=True, max_img_per_class=each)
    try:
        return GridEpisodes(images, spec, spread_targets(images.counts, targets), config.test_spec.seed, name)
    except UserError as error:
        text = f"memories of {classes} classes with {each} images of each, of {len(images.counts)} test classes"
        raise UserError(f"--most, --images or --targets: {text}: {error}") from None


def evaluate(
    model: MemoryModel,
    config: Config,
    images: ClassImages,
    targets: int,
    memories: Mapping[str, tuple[int, int]],
    name: str,
) -> PerTarget:
    """What a test computes with the memories of this name: so many classes, so many images of each."""
    episodes = episodes_of(config, images, targets, memories, name)
    batch = max(1, _AT_ONCE // math.prod(memories[name]))
    batch, chunk = sizes_at_once(images.images.device, batch, config.test_spec.chunk)
    key = ("many classes", config.test_spec.seed, name)
    return evaluate_cell(model, episodes, key, config.test_spec.samples, batch, chunk, lambda done: None)


# --- the report -------------------------------------------------------------------------------------------------------


def summarised(name: str, config: Config, classes: int, each: int, values: PerTarget) -> program.Row:
    """Means in which every class counts the same."""
    bound = estimate(-values["bound"], values["target_class"])
    means = {of: estimate(values[of], values["target_class"]).mean for of in ("kl_a", "address_accuracy")}
    metric = config.test_spec.title
    row = {"model": name, "classes": classes, "each": each, "metric": metric, "nats": bound.mean}
    return {**row, "stderr": bound.stderr, **means, "log_m": math.log(classes * each), "targets": len(values["bound"])}


def _line(row: Any) -> str:
    nats = f"{row['nats']:.2f} ± {row['stderr']:.2f}"
    first = f"{row['model']} | {row['classes']} | {row['each']} | {row['metric']} | {nats}"
    return f"{first} | {shown(row['kl_a'], 2)} | {row['log_m']:.2f} | {shown(row['address_accuracy'], 3)}"


def markdown(rows: Sequence[program.Row], config: Config) -> str:
    """The rows for people."""
    return markdown_table(
        "Memories of many classes that the model has never seen, one of them the target's: "
        f"{images_described(config.test_data)}, {rows[0]['targets']} targets, never in their memory. Nats per image, "
        "lower is better, ± standard error; address accuracy: the posterior mass on images of the target's class.",
        "model | classes | images of each | metric | nats | KL(a) | log M | address accuracy",
        map(_line, rows),
    )


def draw(rows: Sequence[Any]) -> bytes:
    """Nats, KL(a) and address accuracy against the number of classes, a line for each model and memory -> a PNG."""
    figure = blank(16, 4.2)
    *axes, beside = figure.subplots(1, 4, width_ratios=(1, 1, 1, 0.6))
    models, every = (list(dict.fromkeys(row[of] for row in rows)) for of in ("model", "each"))
    for name, each in dict.fromkeys((row["model"], row["each"]) for row in rows):
        line = [row for row in rows if (row["model"], row["each"]) == (name, each)]
        style: dict[str, Any] = {"color": f"C{models.index(name)}", "marker": "o", "markersize": 4}
        style["linestyle"] = ("-", "--", ":")[every.index(each) % 3]
        for axis, of in zip(axes, ("nats", "kl_a", "address_accuracy"), strict=True):
            axis.plot([row["classes"] for row in line], [row[of] for row in line], **style)
        axes[0].lines[-1].set_label(f"{name}, {each} of each ({line[0]['metric']})")
    for each in every:
        line = [row for row in rows if row["each"] == each and row["model"] == models[0]]
        axes[1].plot([row["classes"] for row in line], [row["log_m"] for row in line], color="0.7", zorder=0)
    axes[1].lines[-1].set_label("log M, for each number of images")
    titles = ("nats per image (lower is better)", "KL(a), nats", "posterior mass on images of the target's class")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="classes in the memory", ylabel=title)
        axis.grid(alpha=0.3)
    beside.axis("off")
    beside.legend(handles=[*axes[0].lines, axes[1].lines[-1]], loc="center left", fontsize=8)
    return png(figure)


if __name__ == "__main__":
    standalone(main)
