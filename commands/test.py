"""--test: the bounds of every target in every cell of the test grid, and the table of them."""

import contextlib
import itertools
import json
import logging
from functools import partial
from pathlib import Path

from tqdm import tqdm

import config as configuration
import evaluator
import parsers
from commands import summary
from commands.session import Outputs, Session
from config import Config
from data.images import ClassImages
from models.base import MemoryModel
from reports import tables
from reports.cells import CellStore
from runtime import checkpoints
from runtime.files import exclusive_lock, write_atomically

_log = logging.getLogger(__name__)

_BESIDE = (".md", ".png", ".resolved.yaml", ".npz")
_SUFFIXES = (".csv", *_BESIDE)


def check(session: Session) -> None:
    """Find now what would stop the test after hours of training.  Raises UserError, DataError."""
    config, device = session.config, session.device_for(session.config.test_spec)
    images = parsers.test_images(config, device)
    parsers.grid_episodes(config, images, *map(max, zip(*config.test_cells, strict=True)))
    if session.checkpoint or config.test_checkpoint != config.train_spec.checkpoint_path:
        session.load_model(device)


def run(session: Session) -> None:
    """Evaluate the cells that are not finished yet, and write the table after each of them."""
    config, device = _naming_the_weights(session), session.device_for(session.config.test_spec)
    on_main, output = session.processes.broadcast_from_main, Path(config.test_spec.output_file)
    model, images = session.load_model(device), parsers.test_images(config, device)
    digest = checkpoints.digest(model.state_dict())
    with contextlib.ExitStack() as stack:
        path, *beside = outputs(session)["test_spec.output_file"]
        on_main(lambda: stack.enter_context(exclusive_lock(path, "test", beside)))
        store = CellStore(output, _origin(config, digest, images), images.names)
        cells = on_main(lambda: _unfinished_cells(store, config, digest))
        session.say(summary.of_test(config, model, images, device, session.processes, session.checkpoint_path))
        with _progress(session, store, images) as bar:
            for c, m in cells:
                values = _evaluate(session, store, model, images, c, m, bar)
                on_main(partial(store.save, configuration.cell_name(c, m), values))
                on_main(lambda: _write_table(store, config, digest))
    if session.processes.main:
        print(tables.markdown(store.rows(config), config, digest))
        print(f"written: {output}, and beside it the table as .md, the plot as .png, every bound as .npz")


def outputs(session: Session) -> Outputs:
    """The table and what lies beside it."""
    output = Path(session.config.test_spec.output_file)
    return {"test_spec.output_file": [output, *map(output.with_suffix, _BESIDE)]}


def _naming_the_weights(session: Session) -> Config:
    """The configuration with the weights that are tested, which `--checkpoint` may have named."""
    spec = session.config.test_spec.model_copy(update={"checkpoint_path": str(session.checkpoint_path)})
    return session.config.model_copy(update={"test_spec": spec})


def _origin(config: Config, digest: str, images: ClassImages) -> str:
    """What a stored cell was computed from: it is reused only where this is the same."""
    spec = config.test_spec
    origin = {
        "weights": digest,
        "images": images.digest(),
        "likelihood": config.model.likelihood,
        "targets": spec.targets or "all",
        "own_class": spec.own_class,
        "importance_num": spec.samples or "exact",
        "seed": spec.seed,
        **({"addresses": spec.addresses} if spec.addresses else {}),
        **({"address_rounds": spec.address_rounds} if spec.address_rounds > 1 else {}),
        **({"sampled_addresses": spec.sampled_addresses} if spec.sampled_addresses else {}),
        **({"orders": config.model.orders} if config.model.orders > 1 else {}),
    }
    return json.dumps(origin, sort_keys=True)


def _unfinished_cells(store: CellStore, config: Config, digest: str) -> list[tuple[int, int]]:
    """Reuse finished cells; return the remaining ones.  Raises OSError.

    A table of other weights or another test is renamed, so that it is not overwritten.
    """
    output = Path(config.test_spec.output_file)
    if store.is_another:
        _rename(output)
    write_atomically(
        output.with_suffix(".resolved.yaml"),
        (f"# The SHA-256 of the weights' values is {digest}.\n{configuration.dump(config)}".encode()),
    )
    _write_table(store, config, digest)
    return [(c, m) for c, m in config.test_cells if store.get(configuration.cell_name(c, m)) is None]


def _rename(output: Path) -> None:
    stem = output.with_suffix("")
    free = next(n for n in itertools.count(1) if not any(Path(f"{stem}.before-{n}{s}").exists() for s in _SUFFIXES))
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{stem}{suffix}").replace(f"{stem}.before-{free}{suffix}")
    _log.warning("%s is no table of these weights and this test; it is now %s.before-%d.*", output, stem, free)


def _progress(session: Session, store: CellStore, images: ClassImages) -> tqdm:
    """One bar for the targets of all cells; what it says of the time left is for the whole grid."""
    config = session.config
    names = [configuration.cell_name(c, m) for c, m in config.test_cells]
    done = sum(len(cell["bound"]) for name in names if (cell := store.get(name) or store.get_partial(name)))
    total = len(names) * (config.test_spec.targets or len(images.images))
    return tqdm(total=total, initial=done, unit="target", smoothing=0, dynamic_ncols=True,
                disable=not session.processes.main)  # fmt: skip


def _evaluate(
    session: Session,
    store: CellStore,
    model: MemoryModel,
    images: ClassImages,
    max_batch_cls: int,
    timesteps: int,
    bar: tqdm,
) -> evaluator.PerTarget:
    """The values of a cell, from where an earlier run was interrupted in it."""
    config, processes, name = session.config, session.processes, configuration.cell_name(max_batch_cls, timesteps)
    spec, device = config.test_spec, images.images.device
    batch, chunk = evaluator.sizes_at_once(device, config.test_data.batch_size, spec.at_once(timesteps))
    episodes = parsers.grid_episodes(config, images, max_batch_cls, timesteps)
    done = processes.broadcast_from_main(partial(store.get_partial, name))
    bar.set_description(name)
    return evaluator.evaluate_cell(
        model,
        episodes,
        ("test", spec.seed, name),
        spec.samples,
        batch,
        chunk,
        bar.update,
        processes=processes,
        partial_cell=done,
        save_partial=partial(store.save_partial, name),
    )


def _write_table(store: CellStore, config: Config, digest: str) -> None:
    if rows := store.rows(config):
        tables.write_table(Path(config.test_spec.output_file), rows, config, digest)
