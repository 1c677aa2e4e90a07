"""What the repository ships: configurations, those that results were made with, and weights that give their tables."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, ROOT
from torch.distributions import Distribution

import config as configuration
import evaluator
import parsers
from runtime import checkpoints

CONFIGS = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("results/**/*.resolved.yaml")]
WEIGHTS = sorted(ROOT.glob("pretrained/*.safetensors"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_is_read(path: Path) -> None:
    configuration.load(path)


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_the_model_that_their_configuration_builds(path: Path) -> None:
    shipped = checkpoints.load(path)
    config = configuration.parse(shipped["config"], path.name)
    parsers.build_model(config, CPU).load_state_dict(shipped["model"])
    assert not configuration.differences(
        config, configuration.load(ROOT / "configs" / f"{path.stem}.yaml"), only=configuration.MODEL_KEYS
    )


@pytest.mark.slow
@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="the environment variable OMNIGLOT_ROOT is not set")
@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_shipped_weights_give_the_bounds_of_their_table(path: Path) -> None:
    """The first, the middle and the last target of two cells, to 1e-4 nats: rounding differs between processors."""
    root, folder = os.environ["OMNIGLOT_ROOT"], ROOT / "results" / path.stem
    roots = [f"train_data.root={root}", f"test_data.root={root}"]
    config = configuration.load(folder / "results.resolved.yaml", roots)
    model = parsers.build_model(config, CPU).eval()
    model.load_state_dict(checkpoints.load(path)["model"])
    images, table = parsers.test_images(config, CPU), np.load(folder / "results.npz")
    k = config.test_spec.samples
    Distribution.set_default_validate_args(False)
    for c, m in (config.test_cells[0], config.test_cells[-1]):
        cell = parsers.cell_name(c, m)
        episodes = parsers.grid_episodes(config, images, c, m)
        some = torch.tensor([0, len(episodes) // 2, len(episodes) - 1])
        key = ("test", config.test_spec.seed, cell)
        batch = episodes.batch(some)
        found = evaluator.importance_bounds(model, batch, key, k, 50) if k else evaluator.log_likelihoods(model, batch)
        np.testing.assert_allclose(found["bound"], table[f"{cell}/bound"][some], rtol=0, atol=1e-4)
