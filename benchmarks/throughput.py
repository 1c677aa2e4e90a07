"""How many targets a second a configuration trains on and tests, and the memory that takes.

    python -m benchmarks.throughput --config configs/quickstart.yaml --device cpu

times whole training steps and, with random weights, whole batches of the test with the smallest and the largest
memories of its grid; a first stretch of each is not counted.  Only `--output` is written.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributions import Distribution
from tqdm import trange

import config as configuration
import evaluator
import parsers
from commands import Session, summary, train
from config import Config
from reports.tables import markdown_table
from run import Parser, device, pathname, standalone
from runtime.files import write_atomically
from runtime.signals import StopRequest
from studies import program

STRETCHES = 5
SECONDS = 2.0  # of a stretch, at least


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    p = Parser(prog="python -m benchmarks.throughput", allow_abbrev=False, description=__doc__.splitlines()[0])
    p.add_argument("--config", type=pathname, default=Path("configs/vma.yaml"), metavar="YAML", help="what is measured")
    p.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda|cuda:N", help="where")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="override a key, such as train_data.batch_size=32; may be repeated")  # fmt: skip
    p.add_argument("--root", metavar="DIR", help="where the data is")
    p.add_argument("--output", type=pathname, metavar="JSON", help="a file for the numbers (none)")
    return program.status(execute, p.parse_args(arguments))


def execute(args: argparse.Namespace, stop: StopRequest) -> None:
    """Measure and print.  Raises UserError, DataError, OSError, NonFiniteError."""
    more = [*args.overrides, "train_spec.scheduler=null"]  # some refuse more steps than the training has
    config = configuration.load(args.config, [*configuration.overrides(args.root), *more])
    session = Session(config, stop, args.device)
    where = session.device_for(config.train_spec)
    cells = sorted(config.test_cells, key=lambda cell: cell[::-1])  # by the size of the memory
    rows = [measured(*testing(config, where, *cell), where) for cell in dict.fromkeys([cells[0], cells[-1]])]
    rows.append(measured(*training(session), where))  # last: a resident set that has grown does not shrink
    found = {"config": str(args.config), "overrides": args.overrides, "machine": machine(where), "rows": rows}
    what = " ".join([str(args.config), *args.overrides])
    title = f"{what}: {config.train_spec.precision}, training with {summary.memories(config)}"
    header = f" | targets/s, median of {STRETCHES} | slowest | fastest | targets a core-second | peak memory, MiB"
    lines = [" | ".join(f"{one:,.2f}" if isinstance(one, float) else one or "" for one in row.values()) for row in rows]
    print(markdown_table(f"{found['machine']}\n{title}", header, lines), end="")
    if args.output:
        write_atomically(args.output, (json.dumps(found, indent=2) + "\n").encode())


def training(session: Session) -> tuple[str, Callable[[], int]]:
    """Name and function of what `run.py --train` does in a step; the function returns how many targets it did."""
    trainer = train.build_trainer(session)
    return f"training, {trainer.train.batch_size} targets a step", lambda: trainer.step()["bound"].numel()


def testing(config: Config, where: torch.device, classes: int, memory: int) -> tuple[str, Callable[[], int]]:
    """The same of as many targets of a cell as `run.py --test` has at once."""
    Distribution.set_default_validate_args(False)  # both as for every test
    torch.backends.cudnn.allow_tf32 = False
    spec, name = config.test_spec, configuration.cell_name(classes, memory)
    model, images = parsers.build_model(config, where).eval(), parsers.test_images(config, where)
    batch, chunk = evaluator.sizes_at_once(where, config.test_data.batch_size, spec.at_once(memory))
    few = spec.model_copy(update={"targets": min(batch, spec.targets or len(images.images))})
    episodes = parsers.grid_episodes(config.model_copy(update={"test_spec": few}), images, classes, memory)
    given = (model, episodes, ("test", spec.seed, name), spec.samples, batch, chunk, lambda done: None)
    return f"{spec.title}, {name}", lambda: len(evaluator.evaluate_cell(*given)["bound"])


def measured(name: str, work: Callable[[], int], where: torch.device) -> dict[str, str | float | None]:
    """Targets a second of wall time, and on a CPU of processor time; MiB at the peak."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    _, *found = [stretch(work, where) for _ in trange(1 + STRETCHES, desc=name, leave=False, dynamic_ncols=True)]
    rates = [targets / wall for targets, wall, _ in found]
    per_core = statistics.median(targets / processor for targets, _, processor in found)
    return {
        "name": name,
        "targets_per_s": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "targets_per_core_second": per_core if where.type == "cpu" else None,
        "peak_mib": peak(where),
    }


def stretch(work: Callable[[], int], where: torch.device) -> tuple[int, float, float]:
    """Targets, seconds and processor seconds, of all threads, of as many calls as take SECONDS."""
    targets, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        targets += work()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return targets, time.perf_counter() - wall, time.process_time() - processor


def peak(where: torch.device) -> float:
    """MiB: the most that was allocated on a GPU, or else the largest resident set of this process so far."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine(where: torch.device) -> str:
    """The hardware and the versions, on a line."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""  # Linux
    cpu = next(iter(re.findall(r"^model name\s*: (.+)$", info, re.MULTILINE)), platform.machine())
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{cpu}, threads: {torch.get_num_threads()}"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    standalone(main)
