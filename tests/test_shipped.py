"""What the repository ships: configurations, those that results were made with, and weights."""

from pathlib import Path

import pytest
from helpers import CPU, ROOT

import config as configuration
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
