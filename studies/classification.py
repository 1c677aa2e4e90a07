"""One-shot classification by the posterior over addresses p(a|x,M), for which nothing was trained.

    python -m studies.classification --config configs/vma_causal_quick.yaml \
        --checkpoint pretrained/vma_causal_quick.safetensors --runs all_runs.zip

A memory holds one image of each of N classes; the class of the address with the highest posterior is the answer.
`--runs` are the 20 official runs of Omniglot: 20-way, all classes of one alphabet.  Drawings of a class stand at
different places, so a memory may also hold every image moved by up to `--shift` pixels; a class then has the sum of the
posterior of all its images.

`G` memories · `T` targets that share one memory · `M` images in a memory, `S` slots · `N` classes · `H W` image.
"""

import argparse
import hashlib
import itertools
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from config import Config
from data._readers import decode, naming
from data.images import ClassImages, resample
from data.omniglot import SIDE
from models.base import MemoryModel
from models.objectives import log_mean_exp
from models.vma.model import VMA
from reports.cells import images_described
from reports.tables import markdown_table
from run import pathname, standalone
from runtime.errors import DataError
from runtime.files import opened
from runtime.randomness import StepNoise
from runtime.signals import StopRequest
from studies import program

WAYS = (5, 20)
OFFICIAL = "official runs, 20-way within an alphabet"

Trial = tuple[Tensor, Tensor, Tensor]  # targets [N, H, W], memory [N, H, W], the number in the memory of each target

# Accuracy, per cent, with its source.
PUBLISHED = {
    "5-way": "Matching Networks 98.1 (Vinyals et al. 2016), Prototypical Networks 98.8 (Snell et al. 2017)",
    "20-way": "Matching Networks 93.8 (Vinyals et al. 2016), Prototypical Networks 96.0 (Snell et al. 2017)",
    OFFICIAL: "people 95.5, program induction 96.7 (Lake et al. 2015), Siamese networks 92.0 (Koch et al. 2015)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as that of run.py."""
    p = program.parser("classification", __doc__)
    program.add_model(p)
    program.add_number(p, "--memories", "G", "memories of evaluation classes", 100, least=2)
    program.add_number(p, "--samples", "K", "of z for every address, if there is a z", 20, least=1)
    p.add_argument(
        "--shift", type=int, choices=range(9), default=0, metavar="PIXELS", help="images in a memory are also moved (0)"
    )
    p.add_argument("--runs", type=pathname, metavar="ZIP", help="all_runs.zip of Omniglot")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Compute, write and print.  Raises UserError, DataError, OSError."""
    config, model, images = program.load_addressed(args, stop)
    trials = {f"{way}-way": list(drawn(images, way, args.memories, config.test_spec.seed)) for way in WAYS}
    if args.runs:
        trials[OFFICIAL] = list(official(args.runs, config))
    origin = {"images": images.digest(), "memories": args.memories, "samples": args.samples, "shift": args.shift}
    origin |= {"runs": hashlib.sha256(args.runs.read_bytes()).hexdigest()} if args.runs else {}
    found = program.resumed(
        args.output / "classification.npz",
        model,
        config,
        origin,
        trials,
        lambda name: {"accuracy": accuracies(model, trials[name], name, args.samples, args.shift).numpy()},
    )
    rows = [summarised(name, torch.from_numpy(parts["accuracy"])) for name, parts in found.items()]
    program.write(args.output, "classification", rows, markdown(rows, config, args.shift))


# --- trials -----------------------------------------------------------------------------------------------------------


def drawn(images: ClassImages, ways: int, memories: int, seed: int) -> Iterator[Trial]:
    """Memories of one image of each of `ways` random classes, with another image of each as a target."""
    loader = program.one_of_each(images, ways, seed, "classification")
    for step in range(memories):
        episodes = loader.at(step)
        same = episodes.x_class[0].unsqueeze(1) == episodes.memory_class[0]  # [T, M]
        yield episodes.x[0], episodes.memory[0], same.int().argmax(1)


def official(path: Path, config: Config) -> Iterator[Trial]:
    """The official runs: 20 training images, the memory, and 20 test images each.  Raises DataError."""
    with naming(path), opened(path) as file, zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("class_labels.txt"))
        if not names:
            raise DataError(f"{path}: there is no class_labels.txt in it; give the official all_runs.zip")
        for name in names:
            lines = [line.split() for line in archive.read(name).decode().splitlines()]
            shown = sorted({of for _, of in lines})
            drawings = [decode(archive.read(one), SIDE) for one in (*(item for item, _ in lines), *shown)]
            stacked = torch.stack([torch.from_numpy(drawing) for drawing in drawings])
            unnamed = ClassImages(stacked, torch.tensor([len(stacked)]), ("",))
            images = resample(unnamed, config.test_data.resize, config.test_data.resample).images.float()
            yield images[: len(lines)], images[len(lines) :], torch.tensor([shown.index(of) for _, of in lines])


# --- answers ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def accuracies(model: MemoryModel, trials: Sequence[Trial], name: str, k: int, shift: int) -> Tensor:
    """The share of right answers for every memory, float64 [G] on the CPU."""
    right = []
    device = next(model.parameters()).device
    for number, trial in enumerate(tqdm(trials, name, dynamic_ncols=True, leave=False)):
        x, memory, answer = (part.to(device) for part in trial)
        noise = StepNoise(device, "classification", name, number)
        shown = shifted(memory, shift).flatten(0, 1)  # [shifts N, H, W]
        posterior = address_posterior(model, x[None], shown[None], noise, k)[0]  # [T, S]
        of_class = posterior[:, : len(shown)].unflatten(1, (-1, len(memory))).sum(1)  # [T, N]
        right.append((of_class.argmax(1) == answer).double().mean().cpu())
    return torch.stack(right)


def shifted(images: Tensor, most: int) -> Tensor:
    """Images [N, H, W] moved by up to `most` pixels each way: [(2 most + 1)^2, N, H, W]."""
    height, width = images.shape[1:]
    padded = F.pad(images, 4 * (most,))
    places = itertools.product(range(2 * most + 1), repeat=2)
    return torch.stack([padded[:, row : row + height, column : column + width] for row, column in places])


def address_posterior(model: MemoryModel, x: Tensor, memory: Tensor, noise: StepNoise, k: int) -> Tensor:
    """p(a|x,M) [G, T, S] of targets x [G, T, H, W] given memories [G, M, H, W].

    Without a z exact, but where `test_spec.addresses` sums over likely ones only.  With one, p(x|m_a) is estimated by k
    samples of z for every address, one target at a time.
    """
    m = model.encode_memory(memory, precompute_features=True)
    if not (isinstance(model, VMA) and model.latent):
        _, targets = model.log_likelihood(m, model.encode_targets(x, m), noise)
        posterior = model.slot_posterior(m, targets)
        assert posterior is not None
        return posterior
    log_joint = []
    for one in x.split(1, dim=1):
        targets = model.encode_targets(one, m)
        samples = model.samples_at(model.every_address(m, targets, k), targets, noise)
        log_joint.append(log_mean_exp(samples.log_w.unflatten(0, (k, -1))))  # [A, G, 1]
    return model.placements.of_slots(torch.cat(log_joint, 2).movedim(0, -1).softmax(-1), m.size)


def summarised(name: str, accuracy: Tensor) -> program.Row:
    """Mean and standard error over memories, whose targets are not independent."""
    stderr = float(accuracy.std() / math.sqrt(len(accuracy)))
    return {"task": name, "accuracy": float(accuracy.mean()), "stderr": stderr, "memories": len(accuracy)}


def markdown(rows: Sequence[program.Row], config: Config, shift: int) -> str:
    """The rows for people, beside published numbers of Omniglot."""
    published = PUBLISHED if config.test_data.kind == "omniglot" else {}
    moved = f", each also moved by up to {shift} pixels" if shift else ""
    return markdown_table(
        f"One-shot classification by p(a|x,M): {images_described(config.test_data)}; a memory holds one image of each "
        f"class{moved}. Per cent, ± standard error over memories.",
        "task | accuracy | memories | published, trained to classify unless said",
        (
            f"{row['task']} | {100 * float(row['accuracy']):.1f} ± {100 * float(row['stderr']):.1f} | "
            f"{row['memories']} | {published.get(str(row['task']), '–')}"
            for row in rows
        ),
    )


if __name__ == "__main__":
    standalone(main)
