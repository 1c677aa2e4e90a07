"""Training, test and pictures as a user runs them: the files are there, agree with each other, and say what is true."""

import csv
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, ROOT
from helpers.config import small_config, small_yaml
from helpers.logs import curves, same_end
from helpers.program import main, main_apart, process_restored
from helpers.tensorboard import tensorboard_folder, tensorboard_scalars
from PIL import Image

import commands
import config as configuration
import evaluator
from evaluator import PerTarget
from runtime import checkpoints
from runtime.files import exclusive_lock
from runtime.signals import StopRequest

COLUMNS = "max_batch_cls,timesteps,ELBO,stderr,stderr_new_classes,kl_a,kl_z,address_accuracy,targets,importance_num"
CELLS = [(1, 1), (1, 3), (2, 1), (2, 3)]
PARTS = ("address_accuracy", "bound", "kl_a", "kl_z", "target_class")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained, tested and sampled from.  Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(folder, "--train", "--test", "--sample") == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


def bounds(folder: Path, stem: str = "table") -> dict[str, np.ndarray]:
    """The bounds of every target, by cell."""
    with np.load(folder / f"{stem}.npz", allow_pickle=False) as file:
        return {name.rpartition("/")[0]: file[name] for name in file.files if name.endswith("/bound")}


def refuse(*args: object, **named: object) -> PerTarget:
    raise AssertionError("a cell was computed")


# --- the files --------------------------------------------------------------------------------------------------------


def test_everything_that_was_promised_is_there(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    promised = {
        "vma.pt", "vma.last.pt", "vma.resolved.yaml", "log.jsonl", "log.curves.png",
        "table.csv", "table.md", "table.npz", "table.png", "table.resolved.yaml",
        *(f"samples/C{c}_M{m}.png" for c, m in CELLS),
    }  # fmt: skip
    assert promised <= files
    others = {name for name in files - promised if not name.startswith(("tb/", "config/", "."))}
    assert others <= {"vma.last-but-one.pt"}
    assert not [name for name in files if name.endswith(".part")]


def test_a_second_seed_goes_to_a_folder_of_its_own(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the first run is touched, though the configuration names single paths; nor is it resumed."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    few = ("train_spec.steps=2", "test_spec.test_params.max_batch_cls=[1]", "test_spec.importance_num=2")
    assert main(finished, "--train", "--test", "--sample", "--output", str(tmp_path), "--seed", "1", *few) == 0
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "vma.pt", "vma.last.pt", "vma.resolved.yaml", "train.jsonl", "train.curves.png", "samples/C1_M1.png",
        *(f"results{suffix}" for suffix in (".csv", ".md", ".npz", ".png", ".resolved.yaml")),
    } <= files  # fmt: skip
    assert [name for name in files if name.startswith("tb/vma/events.")]
    assert configuration.load(tmp_path / "vma.resolved.yaml").train_spec.seed == 1
    capsys.readouterr()
    assert main(finished, "--train", "--seed", "1") == 2
    said = capsys.readouterr().err
    assert "choose another --output" in said and "train_spec.seed: 0 in the checkpoint, 1 now" in said


def test_the_table_agrees_with_the_bounds_of_the_targets(finished: Path) -> None:
    assert (finished / "table.csv").read_text().splitlines()[0] == COLUMNS
    rows = table(finished)
    assert [(int(row["max_batch_cls"]), int(row["timesteps"])) for row in rows] == CELLS
    with np.load(finished / "table.npz", allow_pickle=False) as file:
        for row, (c, m) in zip(rows, CELLS, strict=True):
            values = {part: file[f"C={c} M={m}/{part}"] for part in PARTS}
            assert all(value.shape == (12,) and value.dtype == np.float64 for value in values.values())
            bound = values["bound"]
            assert float(row["ELBO"]) == pytest.approx(-bound.mean(), abs=6e-5)
            assert float(row["stderr"]) == pytest.approx(bound.std(ddof=1) / math.sqrt(12), abs=6e-5)
            for part in ("kl_a", "kl_z", "address_accuracy"):
                assert float(row[part]) == pytest.approx(values[part].mean(), abs=6e-5)
            assert (row["targets"], row["importance_num"]) == ("12", "60")
            assert np.isfinite(bound).all() and (bound < 0).all()


def test_a_table_names_its_weights(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Path and digest, in the Markdown and in the configuration beside the csv; another copy has the same digest."""
    own = checkpoints.digest(checkpoints.load(finished / "vma.pt")["model"])
    copy = run / "copy.safetensors"
    assert main(run, "--export", str(copy)) == 0
    assert f"SHA-256 of the values of the weights: {own}\n" in capsys.readouterr().out
    assert main(run, "--test", "--checkpoint", str(copy)) == 0
    for folder, weights in ((finished, finished / "vma.pt"), (run, copy)):
        assert f"Weights: `{weights}`, SHA-256 of their values `{own}`." in (folder / "table.md").read_text()
        resolved = folder / "table.resolved.yaml"
        assert own in resolved.read_text().splitlines()[0]
        assert configuration.load(resolved).test_checkpoint == str(weights)


def test_every_column_of_the_log_is_documented(finished: Path) -> None:
    table = (ROOT / "docs" / "runs.md").read_text().split("| log column |")[1].split("\n\n")[0]
    columns = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    log = (finished / "log.jsonl").read_text().splitlines()
    assert {name for row in log for name in json.loads(row)} == columns


def test_the_markdown_says_how_to_read_it(finished: Path) -> None:
    text = (finished / "table.md").read_text()
    assert "ELBO@60" in text and "lower is better" in text
    for row in table(finished):
        assert f"| {row['max_batch_cls']} | {row['timesteps']} | {float(row['ELBO']):.2f} |" in text


def test_the_pictures_show_something(finished: Path) -> None:
    pictures = [finished / "table.png", *(finished / "samples").iterdir()]
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as image:
            darkest, lightest = image.convert("L").getextrema()
            assert min(image.size) > 100 and darkest < 50 and lightest == 255  # type: ignore[operator]


def test_the_configuration_is_kept_with_the_results(finished: Path) -> None:
    expected = small_config(finished)
    for path in (finished / "vma.resolved.yaml", finished / "table.resolved.yaml"):
        assert configuration.load(path) == expected
    saved = torch.load(finished / "vma.pt", weights_only=True)
    assert configuration.parse(saved["config"], "checkpoint") == expected


def test_log_and_tensorboard_tell_the_same(finished: Path) -> None:
    scalars = tensorboard_scalars(tensorboard_folder(finished))
    seen = {(tag, step): value for tag, curve in scalars.items() for step, value in curve}
    told = {(f"{part}/{name}", step): float.fromhex(value) for (part, step, name), value in curves(finished).items()}
    assert {"train/bound", "train/loss", "train/kl_a", "train/kl_z", "train/reconstruction", "train/address_accuracy",
            "train/lr", "train/gradient_norm", "validation/bound"} <= {tag for tag, _ in seen}  # fmt: skip
    assert told.keys() <= seen.keys()
    assert all(seen[key] == pytest.approx(value, rel=1e-6) for key, value in told.items())


# --- the same again ---------------------------------------------------------------------------------------------------


def test_a_second_test_computes_nothing_and_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("table.csv", "table.md", "table.npz")
    assert main(run, "--test") == 0
    before = {name: (run / name).read_bytes() for name in names}
    monkeypatch.setattr(evaluator, "importance_bounds", refuse)
    assert main(run, "--test") == 0
    assert {name: (run / name).read_bytes() for name in names} == before


def other_weights(folder: Path) -> None:
    state = checkpoints.load(folder / "vma.pt")
    state["model"]["p_z.head.loc_and_scale.bias"][0] += 0.1
    checkpoints.save(folder / "vma.pt", state)


@pytest.mark.parametrize(
    "changes",
    [
        ("test_spec.importance_num=50",),
        ("test_spec.targets=9",),
        ("test_spec.seed=1",),
        ("test_spec.own_class=false",),
        ("test_data.resample=maxpool",),
        (),
    ],
    ids=["K", "targets", "seed", "control", "images", "weights"],
)
def test_finished_cells_are_computed_anew_when_their_origin_changes(run: Path, changes: tuple[str, ...]) -> None:
    small = ("test_spec.test_params.max_batch_cls=[1]", "test_spec.test_params.timesteps=[3]")
    if changes == ("test_data.resample=maxpool",):
        images = tuple(f"{part}.resample=maxpool" for part in ("train_data", "val_data", "test_data"))
        assert main(run, "--train", "--restart", "train_spec.steps=1", *images) == 0
        before = {"C=1 M=3": bounds(run)["C=1 M=3"]}
        assert main(run, "--test", *small, *images) == 0
    else:
        if not changes:
            other_weights(run)
        before = bounds(run)
        assert main(run, "--test", *small, *changes) == 0
    after = bounds(run)
    assert not np.array_equal(after["C=1 M=3"], before["C=1 M=3"])
    assert set(after) == {"C=1 M=3"}  # nothing of the other origin is left
    assert len(table(run)) == 1
    assert np.array_equal(bounds(run, "table.before-1")["C=1 M=3"], before["C=1 M=3"])  # but nothing is lost


def test_every_table_that_is_set_aside_has_a_name_of_its_own(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, targets in enumerate((9, 8, 9), start=1):
        content = [
            (run / f"table{suffix}").read_bytes() for suffix in (".csv", ".md", ".png", ".npz", ".resolved.yaml")
        ]
        assert main(run, "--test", f"test_spec.targets={targets}") == 0
        assert f"is now {run}/table.before-{number}.*" in caplog.text
        aside = [run / f"table.before-{number}{suffix}" for suffix in (".csv", ".md", ".png", ".npz", ".resolved.yaml")]
        assert [path.read_bytes() for path in aside] == content
    assert len(bounds(run)) == len(CELLS)


def test_a_table_without_its_bounds_is_set_aside_too(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = (run / "table.csv").read_bytes()
    (run / "table.npz").unlink()
    (run / "table.before-1.md").write_text("an earlier one, of which only this is left")
    assert main(run, "--test", "test_spec.targets=9") == 0
    assert f"is now {run}/table.before-2.*" in caplog.text
    assert (run / "table.before-2.csv").read_bytes() == kept
    assert "only this is left" in (run / "table.before-1.md").read_text()


def test_only_missing_cells_are_computed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = evaluator.evaluate_cell

    def counted(*args: Any, **options: Any) -> PerTarget:
        computed.append(1)
        return real(*args, **options)

    monkeypatch.setattr(evaluator, "evaluate_cell", counted)
    before = bounds(run)
    assert main(run, "--test", "test_spec.test_params.timesteps=[0, 1, 3]") == 0
    assert len(computed) == 2
    after = bounds(run)
    assert all(np.array_equal(after[cell], before[cell]) for cell in before)
    assert [int(row["timesteps"]) for row in table(run)] == [0, 1, 3, 0, 1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(("test_data.batch_size=1",), marks=pytest.mark.slow),
        ("test_data.batch_size=5", "test_spec.chunk=50"),
        pytest.param(("test_data.batch_size=12", "test_spec.chunk=100"), marks=pytest.mark.slow),
        ("test_spec.test_params.timesteps=[3]",),
        ("test_spec.test_params.max_batch_cls=[2]", "test_spec.test_params.timesteps=[3, 1]"),
    ],
)
def test_the_table_does_not_depend_on_how_it_is_computed(run: Path, changes: tuple[str, ...]) -> None:
    before = bounds(run)
    for path in run.glob("table.*"):
        path.unlink()
    assert main(run, "--test", *changes) == 0
    for cell, values in bounds(run).items():
        np.testing.assert_allclose(values, before[cell], rtol=0, atol=1e-4)


def test_the_table_does_not_depend_on_the_order_of_cells_or_a_second_start(run: Path) -> None:
    before = bounds(run)
    (run / "table.npz").unlink()
    for m in (3, 1):
        assert main(run, "--test", f"test_spec.test_params.timesteps=[{m}]") == 0
    after = bounds(run)
    assert all(np.array_equal(after[cell], before[cell]) for cell in before)


def test_a_test_in_between_does_not_change_the_training(finished: Path, tmp_path: Path) -> None:
    assert main(tmp_path, "--train", "--test", "--sample", "train_spec.steps=6") == 0
    torch.rand(5)
    assert main(tmp_path, "--train") == 0
    assert same_end(tmp_path, finished)
    # the first session ended with a validation and a row of its own, the rest is the same
    assert curves(finished).items() <= curves(tmp_path).items()


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    assert main(tmp_path, "--train", "train_spec.seed=1") == 0
    one, other = curves(finished), curves(tmp_path)
    assert one.keys() == other.keys()
    assert all(one[key] != other[key] for key in one if key[2] in ("loss", "bound"))


# --- interrupted ------------------------------------------------------------------------------------------------------


def signal_in_cell(monkeypatch: pytest.MonkeyPatch, number: int, after: int = 1) -> None:
    """Sends SIGTERM in the middle of the `number`-th cell, when at least `after` of its targets are done."""
    real = evaluator.evaluate_cell
    left, done = [number], [0]

    def interrupted(*args: Any, **options: Any) -> PerTarget:
        left[0] -= 1

        def and_signal(n: int) -> None:
            done[0] += n * (not left[0])
            if done[0] >= after:
                signal.raise_signal(signal.SIGTERM)

        return real(*[*args[:-1], and_signal], **options)

    monkeypatch.setattr(evaluator, "evaluate_cell", interrupted)


def test_a_test_interrupted_in_a_cell_goes_on_with_its_next_targets(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bounds(run)
    for path in run.glob("table.*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "_SYNC_EVERY", 1)
        patch.setattr(evaluator, "_SAVE_EVERY", -1.0)
        signal_in_cell(patch, 3, after=8)
        assert main_apart(run, "--test") == 143
    kept = bounds(run)
    assert [len(values) for values in kept.values()] == [12, 12, 4]  # the 4 after these are not kept yet
    assert np.array_equal(kept["C=2 M=1, partial"], before["C=2 M=1"][:4])
    assert [(int(row["max_batch_cls"]), int(row["timesteps"])) for row in table(run)] == CELLS[:2]

    computed: list[int] = []
    real = evaluator.importance_bounds

    def noted(model: Any, episodes: Any, *args: Any) -> Any:
        computed.append(len(episodes.x))
        return real(model, episodes, *args)

    monkeypatch.setattr(evaluator, "importance_bounds", noted)
    assert main(run, "--test") == 0
    assert sum(computed) == 8 + 12
    after = bounds(run)
    assert after.keys() == before.keys()
    for cell, values in before.items():
        np.testing.assert_allclose(after[cell], values, rtol=0, atol=1e-5)


def test_an_interrupted_test_goes_on_with_the_next_cell(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = bounds(run)
    for path in run.glob("table.*"):
        path.unlink()
    with monkeypatch.context() as patch:
        signal_in_cell(patch, 3)
        assert main_apart(run, "--test") == 143
    assert "resume with" in capfd.readouterr().err
    assert [(int(row["max_batch_cls"]), int(row["timesteps"])) for row in table(run)] == CELLS[:2]

    computed: list[object] = []
    real = evaluator.evaluate_cell

    def noted(*args: Any, **options: Any) -> PerTarget:
        computed.append(args[2])
        return real(*args, **options)

    monkeypatch.setattr(evaluator, "evaluate_cell", noted)
    assert main(run, "--test") == 0
    assert computed == [("test", 0, "C=2 M=1"), ("test", 0, "C=2 M=3")]
    after = bounds(run)
    assert all(np.array_equal(after[cell], before[cell]) for cell in before)
    assert [(int(row["max_batch_cls"]), int(row["timesteps"])) for row in table(run)] == CELLS


# --- other ways -------------------------------------------------------------------------------------------------------


def test_a_named_checkpoint_is_tested(run: Path) -> None:
    before = bounds(run)
    named = run / "elsewhere.pt"
    (run / "vma.pt").rename(named)
    for path in run.glob("table.*"):
        path.unlink()
    assert main(run, "--test", "--checkpoint", str(named)) == 0
    after = bounds(run)
    assert all(np.array_equal(after[cell], before[cell]) for cell in before)


def test_results_beside_the_configuration_leave_it_as_it_is(tmp_path: Path) -> None:
    """A person keeps vma.yaml, vma.pt and vma.csv in one folder; the file with the comments is theirs."""

    import run as program

    own = tmp_path / "vma.yaml"
    written = "# my experiment\n" + small_yaml(tmp_path).replace("table.csv", "vma.csv").replace(
        "steps: 10", "steps: 1"
    )
    own.write_text(written)
    with process_restored():
        program.main(["--config", str(own), "--train", "--test"])
    assert own.read_text() == written


def test_the_log_is_lines_of_json(finished: Path) -> None:
    for line in (finished / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {"subset", "step", "bound"} <= row.keys()


def test_samples_are_not_put_beside_training_images_of_another_choice(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def widths() -> list[int]:
        assert main(run, "--sample", *more) == 0
        return [Image.open(run / "samples" / f"C{c}_M{m}.png").width for c, m in CELLS]

    more: list[str] = []
    beside = widths()
    assert "other classes" not in caplog.text
    more = ["train_spec.seed=1"]  # holds other classes out
    assert all(alone < both for alone, both in zip(widths(), beside, strict=True))
    assert "the model was trained on other classes" in caplog.text


def test_samples_of_other_weights_have_a_folder_of_their_own(run: Path, finished: Path) -> None:
    assert main(run, "--sample", "--checkpoint", str(run / "vma.pt")) == 0
    own = {path: path.read_bytes() for path in (run / "samples").iterdir()}
    assert {path.name for path in own} == {f"C{c}_M{m}.png" for c, m in CELLS}
    other = run / "other.pt"
    other.write_bytes((finished / "vma.pt").read_bytes())
    assert main(run, "--sample", "--checkpoint", str(other), "test_spec.seed=1") == 0
    assert {path.name for path in (run / "samples" / "other").iterdir()} == {path.name for path in own}
    assert all(path.read_bytes() == content for path, content in own.items())


def test_weights_that_the_configuration_names_for_the_test_have_one_too(run: Path, finished: Path) -> None:
    assert main(run, "--sample") == 0
    own = {path: path.read_bytes() for path in (run / "samples").iterdir()}
    other = run / "other.pt"
    other.write_bytes((finished / "vma.pt").read_bytes())
    assert main(run, "--sample", f"test_spec.checkpoint_path={other}", "test_spec.seed=1") == 0
    assert {path.name for path in (run / "samples" / "other").iterdir()} == {path.name for path in own}
    assert all(path.read_bytes() == content for path, content in own.items())


def test_two_tests_do_not_write_to_one_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run / "table.csv"
    before = {path: path.read_bytes() for path in run.glob("table.*")}
    with exclusive_lock(table, "test"):
        assert main(run, "--test", "test_spec.seed=1") == 2
    assert f"{table}: another test writes to it; wait for it, or choose another --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.glob("table.*")} == before
    assert main(run, "--test") == 0


def test_a_test_leaves_the_precision_of_training_as_it_was(run: Path) -> None:
    with process_restored():
        session = commands.Session(small_config(run), StopRequest())
        session.load_model(CPU)
        assert not torch.backends.cudnn.allow_tf32
        commands.train.build_trainer(session)
        assert torch.backends.cudnn.allow_tf32


def test_exported_weights_are_tested_and_sampled_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = bounds(run), run / "weights.safetensors"
    assert main(run, "--export", str(weights)) == 0
    assert f"written: {weights}" in capsys.readouterr().out
    (run / "vma.pt").unlink()
    for path in run.glob("table.*"):
        path.unlink()
    assert main(run, "--test", "--sample", "--checkpoint", str(weights)) == 0
    after = bounds(run)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert main(run, "--test", "--checkpoint", str(weights), "model.latent_dim=5") == 2
    assert "model.latent_dim: 4 in the checkpoint, 5 now" in capsys.readouterr().err
    assert main(run, "--test", "--checkpoint", str(weights), "model.causal.trunk_blocks=1") == 0  # not read here
    other = run / "other.safetensors"
    for seed in (7, 8):  # the same weights, so the file may be replaced
        assert main(run, "--checkpoint", str(weights), "--export", str(other), f"test_spec.seed={seed}") == 0
        assert configuration.parse(checkpoints.load(other)["config"], "").test_spec.seed == seed


@pytest.mark.parametrize("content", [None, b"notes"], ids=["other weights", "no weights"])
def test_an_export_replaces_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "weights.safetensors"
    if content is None:
        checkpoints.export(path, {"a": torch.zeros(1)}, "model: {}\n")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    assert main(run, "--export", str(path)) == 2
    assert f"{path}: exists, and holds something else; choose another name, or remove it" in capsys.readouterr().err
    assert path.read_bytes() == before
