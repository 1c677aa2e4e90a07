"""Studies of what a memory is good for: classification, many classes, the context table, contamination."""

import csv
import io
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.config import arguments, small_config
from helpers.program import main, process_restored
from PIL import Image
from torch import Tensor

import config as configuration
import evaluator
import parsers
from data.episodes import GridEpisodes
from data.images import ClassImages
from models.context_table import ContextTable
from models.vma.model import VMA
from reports import compare
from reports.cells import Stored, load_cells
from runtime.errors import DataError
from runtime.randomness import StepNoise
from studies import classification, contamination, context_table, drawings, many_classes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_changes() -> Iterator[None]:
    with process_restored():
        yield


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(*shape: int, seed: int = 1, side: int = 20) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, side, side, generator=source, dtype=torch.float64) < 0.3).double()


# --- classification ---------------------------------------------------------------------------------------------------


def test_shifted_images_are_all_moves() -> None:
    images = pictures(3, side=5)
    found = classification.shifted(images, 1)
    moves = list(itertools.product((-1, 0, 1), repeat=2))
    assert len(found) == len(moves)
    wanted = []
    for down, right in moves:
        moved = torch.zeros_like(images)
        for n, row, column in itertools.product(range(3), range(5), range(5)):
            if 0 <= row - down < 5 and 0 <= column - right < 5:
                moved[n, row, column] = images[n, row - down, column - right]
        wanted.append(moved)
    assert {tuple(one.flatten().tolist()) for one in found} == {tuple(one.flatten().tolist()) for one in wanted}
    assert torch.equal(classification.shifted(images, 0)[0], images)


class Means(StepNoise):
    """z is the mean of q(z|x,m_a)."""

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.zeros(*shape)


@pytest.mark.parametrize("latent", [0, 2])
def test_the_posterior_is_bayes(latent: int, tiny_model: Callable[..., VMA]) -> None:
    model = tiny_model(latent=latent, learned_prior=True, gain=0.7)
    x, memory = pictures(2, 3), pictures(2, 4, seed=2)
    found = classification.address_posterior(model, x, memory, Means(CPU, 0), 1)
    joint = torch.zeros(2, 3, 4 + len(model.dummies), dtype=torch.float64)
    with torch.no_grad():
        slots = model.slot_images(memory)
        for g, t, a in itertools.product(range(2), range(3), range(joint.shape[2])):
            target, image = x[g : g + 1, t : t + 1], slots[g, a].unsqueeze(0)
            vector, maps = model.encoder(image)
            features, _ = model.encoder(target[0])
            code = model.p_x.memory_code(vector.relu())
            joint[g, t, a] = model.p_a(1, 4).logits.flatten()[a]
            if latent:
                q_z, p_z = model.q_z(features[None], vector[None, None]), model.p_z(vector[None, None])
                joint[g, t, a] += (p_z.log_prob(q_z.mean) - q_z.log_prob(q_z.mean)).squeeze()
                code = torch.cat([q_z.mean.flatten(0, -2), code], 1)
            parameters = model.p_x.decoder(code, model.p_x.decoder.precompute_skips(maps))
            joint[g, t, a] += model.p_x.likelihood.log_prob(parameters[None, None], target, None).squeeze()
    torch.testing.assert_close(found, joint.softmax(-1), rtol=1e-7, atol=1e-9)


def test_an_answer_is_the_class_with_most_mass_in_all_its_copies(
    tiny_model: Callable[..., VMA], monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = torch.zeros(1, 3, 9, 3)  # target, copy, class
    posterior[0, 0, :, 1] = 0.1  # in all copies, though none has most
    posterior[0, 0, 4, 0] = 0.3
    posterior[0, 1, 3, 2] = posterior[0, 2, 8, 0] = 0.4
    dummies = torch.tensor([0.0, 0.6, 0.6]).view(1, 3, 1)  # no answer
    given = torch.cat([posterior.flatten(2), dummies], 2)
    monkeypatch.setattr(classification, "address_posterior", lambda *args: given)
    trial = pictures(3), pictures(3, seed=2), torch.tensor([1, 2, 2])
    assert classification.accuracies(tiny_model(), [trial], "", 1, shift=1).tolist() == [pytest.approx(2 / 3)]


def png(image: Tensor) -> bytes:
    content = io.BytesIO()
    Image.fromarray((255 * (1 - image)).byte().numpy()).save(content, "PNG")
    return content.getvalue()


def write_runs(path: Path, runs: int = 2, ways: int = 3) -> list[tuple[Tensor, Tensor, list[int]]]:
    """A zip as the official one, and what is in it; the names of the training images are no order of the targets."""
    written = []
    with zipfile.ZipFile(path, "w") as archive:
        for run in range(1, runs + 1):
            x, memory = (pictures(ways, seed=seed, side=105).float() for seed in (run, 10 + run))
            answers = [(2 * t + run) % ways for t in range(ways)]
            lines = []
            for t, a in enumerate(answers):
                item, of = f"run{run:02d}/test/item{t + 1:02d}.png", f"run{run:02d}/training/class{a + 1:02d}.png"
                lines.append(f"{item} {of}")
                archive.writestr(item, png(x[t]))
                archive.writestr(of, png(memory[a]))
            archive.writestr(f"run{run:02d}/class_labels.txt", "\n".join(lines) + "\n")
            written.append((x, memory, answers))
    return written


def test_official_runs_are_read(tmp_path: Path) -> None:
    written = write_runs(tmp_path / "runs.zip")
    config = small_config(tmp_path, *(f"{part}.resize=35" for part in ("train_data", "val_data", "test_data")))
    found = list(classification.official(tmp_path / "runs.zip", config))
    assert len(found) == 2
    for (x, memory, answer), (of_x, of_memory, answers) in zip(found, written, strict=True):
        assert torch.equal(x, of_x[:, 1::3, 1::3]) and torch.equal(memory, of_memory[:, 1::3, 1::3])
        assert answer.tolist() == answers


def test_classification_is_the_share_of_right_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    write_runs(tmp_path / "runs.zip")
    monkeypatch.setattr(classification, "WAYS", (5,))
    monkeypatch.setitem(classification.PUBLISHED, "5-way", "")
    seen = []

    def first_is_right(model: VMA, x: Tensor, memory: Tensor, noise: StepNoise, k: int) -> Tensor:
        """Certain of the class at number 0, in whichever of the moved copies."""
        seen.append(memory.shape[1] / x.shape[1])
        posterior = torch.zeros(1, x.shape[1], memory.shape[1] + 2)
        posterior[..., -1] = 0.3  # a dummy is no answer
        posterior[..., : memory.shape[1] : x.shape[1]] = 0.7 / 9
        return posterior

    monkeypatch.setattr(classification, "address_posterior", first_is_right)
    more = ["--memories", "4", "--shift", "1", "--runs", str(tmp_path / "runs.zip"), "--output", str(tmp_path / "c")]
    assert classification.main([*arguments(tmp_path), *more]) == 0
    assert set(seen) == {9}  # copies of every image
    drawn, official = rows(tmp_path / "c" / "classification.csv")
    assert float(drawn["accuracy"]) == pytest.approx(1 / 5, abs=1e-4) and drawn["memories"] == "4"
    assert float(official["accuracy"]) == pytest.approx(1 / 3, abs=1e-4) and float(official["stderr"]) == 0
    assert "33.3 ± 0.0" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "runs.zip", "a") as other_runs:
        other_runs.writestr("more", "")
    assert classification.main([*arguments(tmp_path), *more]) == 2
    assert "classification.npz is of another model, or of other settings" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as archive:
        archive.writestr("else.txt", "")
    assert classification.main([*arguments(tmp_path), *more]) == 3
    assert "give the official all_runs.zip" in capsys.readouterr().err


def test_classification_is_that_of_one_order_of_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a sum that draws addresses."""
    causal = ("model.likelihood=causal", "model.latent_dim=0", "model.max_shift=1", "test_spec.metric=nll",
              "test_spec.addresses=4", "test_spec.sampled_addresses=3")  # fmt: skip
    monkeypatch.setattr(classification, "WAYS", (5,))
    monkeypatch.setitem(classification.PUBLISHED, "5-way", "")
    assert main(tmp_path, "--train", "train_spec.steps=1", "model.orders=2", *causal) == 0
    tables = []
    for orders in (1, 2):
        resolved = tmp_path / f"{orders}.yaml"
        resolved.write_text((tmp_path / "vma.resolved.yaml").read_text().replace("orders: 2", f"orders: {orders}"))
        output = ["--output", str(tmp_path / f"c{orders}"), "--checkpoint", str(tmp_path / "vma.pt"), "--device", "cpu"]
        assert classification.main(["--config", str(resolved), *output, "--memories", "3"]) == 0
        tables.append(rows(tmp_path / f"c{orders}" / "classification.csv"))
    assert tables[0] == tables[1]


# --- many classes -----------------------------------------------------------------------------------------------------


def test_many_classes_are_cells_with_so_many_of_each(tmp_path: Path) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=2") == 0
    given = ["--model", str(tmp_path / "config" / "small.yaml"), str(tmp_path / "vma.pt")]
    more = ["--most", "4", "--images", "2", "--targets", "9", "--device", "cpu", "--output", str(tmp_path / "m")]
    assert many_classes.main([*given, *more]) == 0
    found = rows(tmp_path / "m" / "many_classes.csv")
    assert [(row["classes"], row["each"], row["metric"]) for row in found] == [(c, "2", "ELBO@60") for c in "124"]
    config = small_config(tmp_path)
    model = parsers.build_model(config, CPU).eval()
    model.load_state_dict(torch.load(tmp_path / "vma.pt")["model"])
    images = parsers.test_images(config, CPU)
    for row in found:
        classes = int(row["classes"])
        spec = many_classes.EpisodeSpec(timesteps=2 * classes, exact=True, max_img_per_class=2)
        targets = many_classes.spread_targets(images.counts, 9)
        episodes = GridEpisodes(images, spec, targets, config.test_spec.seed, f"{classes} x 2").batch(slice(None))
        key = ("many classes", config.test_spec.seed, f"{classes} x 2")
        values = evaluator.importance_bounds(model, episodes, key, 60, 60)
        for which in range(9):  # never the target, its own class, and as many of each
            memory = episodes.memory_class[which].unique(return_counts=True)
            assert len(memory[0]) == classes and (memory[1] == 2).all()
            assert episodes.x_class[which, 0] in memory[0]
            assert episodes.x_index[which, 0] not in episodes.memory_index[which]
        of_class = [values["bound"][values["target_class"] == c].mean() for c in values["target_class"].unique()]
        assert float(row["nats"]) == pytest.approx(-float(torch.stack(of_class).mean()), abs=2e-4)
        assert float(row["log_m"]) == pytest.approx(math.log(2 * classes), abs=1e-4)


def test_memories_that_cannot_be_are_refused_before_any_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    given = ["--model", str(tmp_path / "config" / "small.yaml"), str(tmp_path / "vma.pt")]
    monkeypatch.setattr(many_classes, "evaluate", lambda *_: pytest.fail("computed"))
    other = tmp_path / "small24.yaml"
    sides = (f"{part}_data.resize=24" for part in ("train", "val", "test"))
    other.write_text(configuration.dump(small_config(tmp_path, *sides)))
    for more, said in (
        (
            ["--targets", "9"],
            "memories of 64 classes with 1 images of each, of 60 test classes: timesteps: 64 may need",
        ),
        (["--targets", "0", "--most", "2"], "targets: 0 is not between 1 and 1200"),
        (["--images", "20", "--most", "2"], "--most, --images or --targets: memories of 1 classes with 20 images"),
        (given, "two configurations have the same name"),
        (
            ["--model", str(other), str(tmp_path / "vma.pt")],
            "small24.yaml: other test images than those of the first; test_data.kind",
        ),
    ):
        assert many_classes.main([*given, *more, "--device", "cpu", "--output", str(tmp_path / "m")]) == 2
        assert said in capsys.readouterr().err


def test_many_classes_of_a_model_without_addresses_have_no_divergence(tmp_path: Path) -> None:
    none = np.full(2, math.nan)
    values = {"bound": np.array([-3.0, -5.0]), "target_class": np.arange(2), "kl_a": none, "address_accuracy": none}
    row = many_classes.summarised("soft", small_config(tmp_path), 4, 2, values)
    assert row["nats"] == 4 and math.isnan(float(row["kl_a"]))
    assert "| soft | 4 | 2 | ELBO@60 | 4.00 ± 1.00 | – | 2.08 | – |" in many_classes.markdown(
        [row], small_config(tmp_path)
    )


# --- context table ----------------------------------------------------------------------------------------------------


def test_the_context_table_of_a_grid_is_the_exact_sum_over_addresses(tmp_path: Path) -> None:
    arguments(tmp_path)
    given = ["--config", str(tmp_path / "config" / "small.yaml"), "--targets", "10", "--output", str(tmp_path / "t")]
    assert context_table.main(given) == 0
    config = configuration.load(tmp_path / "t" / "results.resolved.yaml")
    training, images = parsers.training_images(config, CPU).train, parsers.test_images(config, CPU)
    table = ContextTable.fit(context_table.pairs(training, config.train_spec.seed))
    cells = load_cells(tmp_path / "t" / "results.npz").cells
    assert len(cells) == 4 == len(rows(tmp_path / "t" / "results.csv"))
    episodes = parsers.grid_episodes(config, images, 2, 3).batch(slice(None))
    for n in range(10):
        log_p = [float(table.log_prob(episodes.x[n], memory[None])) for memory in episodes.memory[n]]
        found = {name: float(value[n]) for name, value in cells["C=2 M=3"].items()}
        assert found["bound"] == pytest.approx(np.logaddexp.reduce(log_p) - math.log(3))
        posterior = np.exp(log_p - np.logaddexp.reduce(log_p))
        assert found["kl_a"] == pytest.approx(float((posterior * np.log(3 * posterior)).sum()))
        own = (episodes.memory_class[n] == episodes.x_class[n]).numpy()
        assert found["address_accuracy"] == pytest.approx(float(posterior[own].sum()))
        assert math.isnan(found["kl_z"])


def test_a_context_table_has_the_targets_and_memories_of_a_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path, "--train", "--test", "train_spec.steps=1", "test_spec.targets=10") == 0
    path, output = tmp_path / "config" / "small.yaml", ["--output", str(tmp_path / "t")]
    assert context_table.main(["--config", str(path), "--targets", "10", *output]) == 0
    assert compare.differences(compare.read(tmp_path / "table.csv"), compare.read(tmp_path / "t" / "results.csv"))
    table = (tmp_path / "t" / "results.csv").read_text()
    control, fewer = tmp_path / "control.yaml", tmp_path / "fewer.yaml"
    control.write_text(configuration.dump(small_config(tmp_path, "test_spec.own_class=false")))
    fewer.write_text(configuration.dump(small_config(tmp_path, "train_data.held_out_classes=4")))
    for other, targets in ((path, "20"), (control, "10"), (fewer, "10")):
        assert context_table.main(["--config", str(other), "--targets", targets, *output]) == 2
        assert "results.csv is the table of another test" in capsys.readouterr().err
    assert (tmp_path / "t" / "results.csv").read_text() == table
    path.write_text(path.read_text().replace("timesteps: [1, 3]", "timesteps: [0, 3]"))
    assert context_table.main(["--config", str(path), "--targets", "10", *output]) == 2
    assert "test_spec.test_params.timesteps: 0 leaves nothing to look at" in capsys.readouterr().err


def test_what_needs_addresses_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soft = ("model.read=soft", "train_spec.gradient_samples=all", "train_spec.objective=vimco")
    assert main(tmp_path, "--train", "train_spec.steps=1", *soft) == 0
    given = ["--checkpoint", str(tmp_path / "vma.pt"), "--output", str(tmp_path / "o"), "--device", "cpu"]
    resolved = str(tmp_path / "vma.resolved.yaml")
    assert classification.main(["--config", resolved, *given]) == 2
    assert "model.read: soft has no addresses" in capsys.readouterr().err
    assert drawings.main(["--model", resolved, str(tmp_path / "vma.pt"), *given[2:]]) == 2
    assert "the first --model has no addresses" in capsys.readouterr().err


def test_no_image_is_counted_beside_itself() -> None:
    images = ClassImages(torch.arange(9, dtype=torch.uint8).view(9, 1, 1), torch.tensor([4, 1, 4]), ("a", "b", "c"))
    for targets, partners in context_table.pairs(images, 0):
        assert sorted(targets.flatten().tolist()) == [0, 1, 2, 3, 5, 6, 7, 8]
        assert (targets != partners).all() and ((targets < 4) == (partners < 4)).all()


# --- contamination ----------------------------------------------------------------------------------------------------


def test_similarity_is_the_largest_share_of_common_ink() -> None:
    x, training = pictures(6, side=7), pictures(50, seed=3, side=7)
    training[17] = x[2]
    found = contamination.similarity(x.byte(), training.byte())
    for n in range(6):
        shares = [float(((x[n] > 0) & (t > 0)).sum() / ((x[n] > 0) | (t > 0)).sum()) for t in training]
        assert float(found[n]) == pytest.approx(max(shares))
    assert float(found[2]) == 1


def test_targets_most_alike_are_compared_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten nats a pixel of ink, 5 nats less for the most alike: the line through the rest says so."""
    assert main(tmp_path, "--train", "--test", "train_spec.steps=1", "test_spec.targets=40") == 0
    config = configuration.load(tmp_path / "table.resolved.yaml")
    images = parsers.test_images(config, CPU)
    targets = contamination.spread_targets(images.counts, 40)
    ink = images.images[targets].sum((1, 2)).double().numpy()
    alike = torch.linspace(0, 0.9, 40)
    alike[7], alike[23] = 1.0, 0.99  # the two of forty
    nats = 10 * ink - 5 * (alike.numpy() > 0.95)

    def similarity(x: Tensor, training: Tensor) -> Tensor:
        assert torch.equal(x, images.images[targets])
        assert torch.equal(training, parsers.training_images(config, CPU).train.images)
        return alike

    def stored(of: str) -> Callable[[Path], Stored]:
        return lambda path: Stored(json.dumps({"images": of}), {"C=1 M=1": {"bound": -nats}}, ())

    monkeypatch.setattr(contamination, "similarity", similarity)
    monkeypatch.setattr(contamination, "load_cells", stored("others"))
    with pytest.raises(DataError, match="of other images than"):
        list(contamination.compared(tmp_path / "table.npz", None))
    monkeypatch.setattr(contamination, "load_cells", stored(images.digest()))
    (row,) = contamination.compared(tmp_path / "table.npz", None)
    assert row["identical"] == 1 and row["targets"] == 40
    assert row["nearest"] == pytest.approx(nats[[7, 23]].mean())
    assert row["rest_with_their_ink"] == pytest.approx(nats[[7, 23]].mean() + 5)
    assert row["rest"] == pytest.approx(10 * np.delete(ink, [7, 23]).mean())


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_drawings_are_samples_and_the_posterior_of_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    drawn: dict[str, Any] = {}
    real_samples, real_posterior = drawings.draw_samples, drawings.draw_posterior

    def draw_samples(shown: Tensor, blocks: dict[str, Tensor]) -> bytes:
        drawn["samples"] = shown, blocks
        return real_samples(shown, blocks)

    def draw_posterior(*parts: Tensor) -> bytes:
        drawn["posterior"] = parts
        return real_posterior(*parts)

    monkeypatch.setattr(drawings, "draw_samples", draw_samples)
    monkeypatch.setattr(drawings, "draw_posterior", draw_posterior)
    given = ["--model", str(tmp_path / "config" / "small.yaml"), str(tmp_path / "vma.pt")]
    assert drawings.main([*given, "--samples", "40", "--output", str(tmp_path / "d"), "--device", "cpu"]) == 0
    shown, blocks = drawn["samples"]
    (samples,) = blocks.values()
    assert list(blocks) == ["small: pixel means"] and samples.shape[:2] == (len(shown), 16) == (6, 16)
    x, memory, p_a, right = drawn["posterior"]
    assert (right.sum(1) == 1).all()  # one image of every class
    torch.testing.assert_close(p_a.sum(1), torch.ones(len(x)))
    model = parsers.build_model(small_config(tmp_path), CPU).eval()
    model.load_state_dict(torch.load(tmp_path / "vma.pt")["model"])
    noise = StepNoise(CPU, "drawings", 0)
    with torch.no_grad():
        assert torch.equal(samples, model.sample(shown.unsqueeze(1), noise, 16)[0].transpose(0, 1))
        again = model.explain(x[None], memory[None], noise, 40).p_a
    assert again is not None and torch.equal(p_a, again[0])
    for name in ("drawings", "posterior"):
        assert (tmp_path / "d" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tiles_stand_in_rows() -> None:
    images = pictures(3, side=4)
    tiled = drawings.tiled(images, 2)
    assert tiled.shape == (12, 12)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        assert (tiled[6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5] == images[number]).all()


def test_a_file_without_bounds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.resolved.yaml").write_text(configuration.dump(small_config(tmp_path)))
    (tmp_path / "table.csv").write_text("C,M\n")
    assert contamination.main([str(tmp_path / "table.csv")]) == 3
    assert capsys.readouterr().err == f"{tmp_path / 'table.csv'}: no bounds of a test\n"


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (classification.main, ["--memories", "1"], "argument --memories: 1 is less than 2"),
        (classification.main, ["--shift", "9"], "argument --shift: invalid choice: 9"),
        (many_classes.main, ["--most", "0"], "argument --most: 0 is less than 1"),
        (drawings.main, ["--seed", "-1"], "argument --seed: -1 is less than 0"),
    ],
)
def test_numbers_that_no_study_can_use(
    main: Callable[[list[str]], int], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err
