"""--sample: pictures of memories, samples and reconstructions."""

import logging
from pathlib import Path

import parsers
from commands.session import Outputs, Session, different_classes
from reports import pictures
from runtime.files import exclusive_lock
from runtime.randomness import StepNoise

_log = logging.getLogger(__name__)


def run(session: Session) -> None:
    """Write a picture for every cell of the test grid."""
    config, device = session.config, session.device_for(session.config.test_spec)
    model = session.load_model(device)  # in all processes: the first reads the weights and sends them
    if not session.processes.main:
        return
    images, training = parsers.test_images(config, device), None
    if different_classes(session.load_checkpoint()[1], config):
        _log.warning("the model was trained on other classes, so no nearest training images are shown")
    else:
        training = parsers.training_images(config, device).train.images
    folder, (paths,) = _folder(session), outputs(session).values()
    with exclusive_lock(folder, "sampling", paths):
        for path, (classes, timesteps) in zip(paths, config.test_cells, strict=True):
            episodes = parsers.grid_episodes(config, images, classes, timesteps)
            noise = StepNoise(device, "sample", config.test_spec.seed, classes, timesteps)
            pictures.write_samples(path, model, pictures.spread(episodes), training, noise)
    print(f"written: {folder}/*.png")


def outputs(session: Session) -> Outputs:
    """A picture for every cell."""
    folder = _folder(session)
    return {"samples": [folder / f"C{classes}_M{timesteps}.png" for classes, timesteps in session.config.test_cells]}


def _folder(session: Session) -> Path:
    """`samples` in the folder of the run; there, a folder of their own for those of other weights."""
    own, shown = Path(session.config.train_spec.checkpoint_path), session.checkpoint_path
    folder = own.parent / "samples"
    return folder if shown.resolve() == own.resolve() else folder / shown.stem
