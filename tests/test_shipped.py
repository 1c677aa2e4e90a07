"""What the repository ships: configurations, those that results were made with, and weights that give their tables."""

import csv
import hashlib
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
from data.registry import DATA_SETS
from reports import tables
from reports.cells import load_cells, table_rows
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


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/results.npz")), ids=lambda path: path.parent.name)
def test_shipped_tables_are_those_of_their_bounds(path: Path) -> None:
    config, stored = configuration.load(path.with_suffix(".resolved.yaml")), load_cells(path)
    rows = table_rows(stored.cells, config, stored.class_names)
    assert path.with_suffix(".csv").read_bytes() == tables.comma_separated(rows)
    text = tables.markdown(rows, config, digest := stored.weights_digest)
    assert path.with_suffix(".md").read_text() == text
    lines = {line for line in text.splitlines() if line.startswith("|")}
    assert lines <= set((path.parent / "README.md").read_text().splitlines())
    if (weights := ROOT / config.test_checkpoint).suffix == ".safetensors":
        assert checkpoints.digest(checkpoints.load(weights)["model"]) == digest


def card(section: str) -> dict[str, list[str]]:
    """The table of a section of the model card: name of the weights -> the other columns."""
    text = (ROOT / "pretrained" / "README.md").read_text().split(f"# {section}\n")[1].split("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`").removesuffix(".safetensors"): row[1:] for row in rows}


def test_the_model_card_has_size_and_digest_of_every_file() -> None:
    listed = {name: [row[-2], row[-1].strip("`")] for name, row in card("Shipped weights").items()}
    assert listed == {
        path.stem: [str(path.stat().st_size), hashlib.sha256(path.read_bytes()).hexdigest()] for path in WEIGHTS
    }


def test_the_model_card_has_the_bounds_of_the_tables() -> None:
    listed = card("How good they are")
    assert listed.keys() == {path.stem for path in WEIGHTS}
    for name, (classes, targets, metric, *bounds, link) in listed.items():
        with (ROOT / "results" / name / "results.csv").open(newline="") as file:
            found = {row["timesteps"]: row for row in csv.DictReader(file) if row["max_batch_cls"] == "1"}
        column, _, samples = metric.partition("@")
        assert column in found["1"]
        assert {targets} == {f"{int(row['targets']):,}" for row in found.values()}
        lines = [line.split(" | ") for line in (ROOT / "results" / name / "results.md").read_text().splitlines()]
        shown = {line[1]: line[2] for line in lines if line[0] == "| 1"}
        assert bounds == [shown[m] for m in ("1", "5", "19")]
        assert samples == found["1"].get("importance_num", "") and f"results/{name}/" in link
        config = configuration.load(ROOT / "configs" / f"{name}.yaml")
        counts = DATA_SETS["omniglot"].counts(config.test_data, "test")
        assert counts and classes == f"{counts.classes}, {config.test_data.split} split"


def test_the_model_card_says_what_the_weights_have_seen() -> None:
    listed = card("How they were trained")
    assert listed.keys() == {path.stem for path in WEIGHTS}
    for name, (configurations, classes, resampling, *_) in listed.items():
        shipped = checkpoints.load(ROOT / "pretrained" / f"{name}.safetensors")
        data = configuration.parse(shipped["config"], name).train_data
        counts = DATA_SETS["omniglot"].counts(data, "train")
        assert counts and f"{counts.classes - data.held_out_classes:,} " in classes and resampling == data.resample
        assert f"configs/{name}.yaml" in configurations


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
        cell = configuration.cell_name(c, m)
        episodes = parsers.grid_episodes(config, images, c, m)
        some = torch.tensor([0, len(episodes) // 2, len(episodes) - 1])
        key = ("test", config.test_spec.seed, cell)
        batch = episodes.batch(some)
        found = (
            evaluator.importance_bounds(model, batch, key, k, 50) if k else evaluator.log_likelihoods(model, batch, key)
        )
        np.testing.assert_allclose(found["bound"], table[f"{cell}/bound"][some], rtol=0, atol=1e-4)
