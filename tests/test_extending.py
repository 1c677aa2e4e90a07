"""docs/extending.md: its examples are modules that work, from the configuration to the table."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.config import small_config
from helpers.program import main

import config.schema
import parsers
from data.registry import DATA_SETS
from models.base import Likelihood
from runtime.randomness import StepNoise

_PYTHON = re.compile(r"^```python\n# (.*?)\n(.*?)^```", re.DOTALL | re.MULTILINE)

USED = {
    "A likelihood": ["model.likelihood=continuous_bernoulli"],
    "An architecture": ["model={autoencoder: {kind: dense, width: 9}, latent_dim: 4, importance_num: 2}"],
    "A data set": [f"{section}.kind=bars" for section in ("train_data", "val_data", "test_data")]
    + [f"{section}.classes=200" for section in ("train_data", "val_data", "test_data")],
}


def section(title: str) -> str:
    page = (ROOT / "docs" / "extending.md").read_text()
    return re.split(r"^## ", page, flags=re.MULTILINE)[1 + list(USED).index(title)]


@pytest.fixture(autouse=True)
def registries_restored() -> Iterator[None]:
    registries: list[Any] = [config.schema.AUTOENCODERS, parsers.AUTOENCODERS, parsers.LIKELIHOODS, DATA_SETS]
    before, names = [dict(registry) for registry in registries], list(config.schema.LIKELIHOODS)
    yield
    config.schema.LIKELIHOODS[:] = names
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def run_example(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files become modules, its registration is carried out."""
    assert section(title).startswith(title)
    blocks = _PYTHON.findall(section(title))
    assert [name == "registration" for name, _ in blocks] == [False, True]
    for name, source in blocks:
        module = ModuleType(name.removesuffix(".py").replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, name, "exec"), vars(module))


@pytest.mark.parametrize("title", USED)
def test_the_example_is_trained_and_tested(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tmp_path / "before"
    assert main(refused, "--train", *USED[title]) == 2  # nobody knows the name yet
    run_example(title, monkeypatch)
    assert main(tmp_path, "--train", "--test", "train_spec.steps=3", *USED[title]) == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 5


def test_samples_of_the_likelihood_have_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 x 5 pixels, 20,000 samples: within 4.5 standard errors."""
    run_example("A likelihood", monkeypatch)
    likelihood: Likelihood = parsers.LIKELIHOODS["continuous_bernoulli"](small_config(Path("runs")).model)
    parameters = torch.linspace(-3, 3, 20).view(1, 4, 5).expand(20_000, 1, 1, 1, 4, 5)
    noise = StepNoise("cpu", "extending")
    found = likelihood.sample(parameters, noise).flatten(1)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - likelihood.picture(parameters, noise)[0].flatten()).abs() < 4.5 * error).all()
