"""Drawings of one's own become ink as Omniglot has it, whatever file they come in, and a model is asked about them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.config import arguments
from helpers.program import main, process_restored
from PIL import Image, ImageDraw
from torch.distributions import Categorical

import run
from data import drawings
from models.vma.model import VMA
from runtime.errors import DataError
from runtime.randomness import StepNoise

Build = Callable[..., VMA]


def drawn(side: int = 105, width: float = 4, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Image.Image:
    """A square with a diagonal, dark on light, in a box given in parts of the side."""
    image = Image.new("L", (4 * side, 4 * side), 255)
    left, top, right, bottom = (4 * side * part for part in box)
    points = [(0.25, 0.3), (0.75, 0.3), (0.75, 0.8), (0.25, 0.8), (0.25, 0.3), (0.75, 0.8)]
    places = [(left + x * (right - left), top + y * (bottom - top)) for x, y in points]
    ImageDraw.Draw(image).line(places, fill=0, width=round(4 * width), joint="curve")
    return image.resize((side, side), Image.Resampling.BOX)


def ink_of(folder: Path, image: Image.Image, name: str = "drawing.png") -> np.ndarray:
    image.save(folder / name)
    return drawings.read(folder / name).ink


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels from any ink of one to the nearest ink of the other, at most."""
    one, other = np.argwhere(a), np.argwhere(b)
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    return float(max(distances.min(0).max(), distances.min(1).max()))


def transparent(image: Image.Image, level: int) -> Image.Image:
    picture = Image.new("RGBA", image.size, (level, level, level, 0))
    picture.putalpha(image.point(lambda level: 255 - level))
    return picture


def coloured(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, float)[..., None]
    return Image.fromarray((levels + (255 - levels) / 255 * (20, 60, 180)).astype(np.uint8))


def photographed(image: Image.Image) -> Image.Image:
    """With a shadow from side to side and the noise of a sensor."""
    light = np.linspace(0.5, 1, image.width) * np.asarray(image, float)
    noise = np.random.default_rng(0).normal(0, 5, light.shape)
    return Image.fromarray((0.9 * light + noise).clip(0, 255).astype(np.uint8))


VARIANTS = {
    "as_it_is.png": drawn(),
    "large_and_thin.png": drawn(1000, 5),
    "large_and_thick.png": drawn(600, 45),
    "small.png": drawn(40, 2),
    "light_on_dark.png": drawn(300, 12).point(lambda level: 255 - level),
    "transparent.png": transparent(drawn(300, 12), 0),
    "white_on_transparent.png": transparent(drawn(300, 12), 255),
    "coloured.png": coloured(drawn(300, 12)),
    "pencil.png": drawn(300, 12).point(lambda level: 170 + level // 4),
    "photo.jpg": photographed(drawn(800, 20)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_drawing_is_the_same_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    """Within three of 105 pixels of what was drawn, with strokes as thick as those of Omniglot."""
    ink = ink_of(tmp_path, VARIANTS[name], name)
    assert ink.shape == (105, 105) and ink.dtype == np.uint8
    assert farthest(ink, np.asarray(drawn()) < 128) <= 3
    assert 3.4 <= drawings._stroke(ink) <= 5.3
    assert drawings.read(tmp_path / name).inverted == (name == "light_on_dark.png")


def test_a_drawing_that_looks_like_omniglot_is_left_as_it_is(tmp_path: Path) -> None:
    """Also where it was enlarged."""
    image = drawn().point(lambda level: 255 * (level > 127))
    for size in (105, 210, 315, 420):
        ink = ink_of(tmp_path, image.resize((size, size), Image.Resampling.NEAREST))
        assert np.array_equal(ink, np.asarray(image) == 0)


@pytest.mark.parametrize("box", [(0.75, 0.1, 0.95, 0.3), (0, 0, 0.15, 0.15), (-0.45, -0.55, 1.45, 1.25)], ids=str)
def test_a_small_or_shifted_drawing_is_cut_out_and_centred(tmp_path: Path, box: tuple[float, ...]) -> None:
    ink = ink_of(tmp_path, drawn(900, 6, box))  # type: ignore[arg-type]
    for axis in (0, 1):
        places = np.flatnonzero(ink.any(axis))
        assert abs((places[0] + places[-1]) / 2 - 52) <= 2
    assert abs(max(np.ptp(np.flatnonzero(ink.any(axis))) + 1 for axis in (0, 1)) - 65) <= 3


def test_a_picture_that_is_no_square_is_padded(tmp_path: Path) -> None:
    wide = Image.new("L", (140, 105), 255)
    wide.paste(drawn(), (17, 0))
    assert farthest(ink_of(tmp_path, wide), np.asarray(drawn(105, 4, (0.125, 0.125, 0.875, 0.875))) < 128) <= 3


def refused(read: Callable[[], object], *said: str) -> None:
    with pytest.raises(DataError) as caught:
        read()
    assert all(part in str(caught.value) for part in said), caught.value


def test_what_is_no_drawing_is_refused_by_name(tmp_path: Path) -> None:
    refused(lambda: drawings.read_folder(tmp_path / "none"), "none", "no such folder")
    refused(lambda: drawings.read_folder(tmp_path), str(tmp_path), "no images")
    for mode, colour in (("L", 255), ("L", 0), ("RGBA", (0, 0, 0, 0)), ("RGBA", (255, 255, 255, 255))):
        Image.new(mode, (90, 90), colour).save(tmp_path / "blank.png")
        refused(lambda: drawings.read_folder(tmp_path), "blank.png", "blank")
    (tmp_path / "blank.png").write_text("no image")
    refused(lambda: drawings.read_folder(tmp_path), "blank.png", "it is no PNG or JPEG file")
    (tmp_path / "blank.png").rename(tmp_path / "notes.txt")
    refused(lambda: drawings.read_folder(tmp_path), "notes.txt")
    refused(lambda: drawings.read(tmp_path / "gone.png"), "gone.png")


def test_a_memory_may_not_be_endless(tmp_path: Path) -> None:
    for number in range(101):
        drawn(40, 2).save(tmp_path / f"{number}.png")
    refused(lambda: drawings.read_folder(tmp_path), "101 images", "at most 100")
    (tmp_path / "100.png").unlink()
    assert len(drawings.read_folder(tmp_path)) == 100


def test_the_drawings_of_the_readme_are_read() -> None:
    found = drawings.read_folder(ROOT / "docs" / "drawings")
    assert len(found) == 6 and [one.path.stem for one in found if one.inverted] == ["light_on_dark"]


# --- the command ------------------------------------------------------------------------------------------------------


def asked(*words: str) -> int:
    with process_restored():
        return run.main(list(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and drawings in `mine`."""
    folder = tmp_path_factory.mktemp("own")
    assert main(folder, "--train", "train_spec.steps=1") == 0
    (folder / "mine").mkdir()
    for name in ("as_it_is.png", "light_on_dark.png", "transparent.png"):
        VARIANTS[name].save(folder / "mine" / name)
    drawn(200, 7).save(folder / "other.png")
    return folder


def test_weights_are_asked_about_drawings_without_a_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ["--checkpoint", str(folder / "vma.pt"), "--sample", "--memory", str(folder / "mine")]
    assert asked(*mine, "--output", str(folder / "out"), "--score", str(folder / "other.png")) == 0
    out = capsys.readouterr().out
    assert "light_on_dark.png: light on dark, inverted" in out
    assert "other.png: ELBO@60" in out and "upper bound" in out and "p(a|x,M) by importance weights: " in out
    with Image.open(folder / "out" / "mine.png") as sheet:
        assert min(sheet.size) > 600
        assert sheet.convert("L").getextrema() == (0, 255)
    assert asked(*mine, "--output", str(folder / "out"), "--score", str(folder / "mine" / "as_it_is.png")) == 0
    assert "left out of the memory" in capsys.readouterr().out


def test_one_drawing_is_a_memory_but_not_of_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder / "one"
    one.mkdir()
    drawn().save(one / "it.png")
    mine = ["--checkpoint", str(folder / "vma.pt"), "--sample", "--memory", str(one), "--output", str(folder / "out")]
    assert asked(*mine) == 0 and (folder / "out" / "one.png").exists()
    assert asked(*mine, "--score", str(one / "it.png")) == 3
    assert "nothing is left" in capsys.readouterr().err


def test_the_picture_replaces_no_drawing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither one of the memory, nor the one that is scored."""
    inner = folder / "beside" / "1"
    inner.mkdir(parents=True)
    for path in (inner / "1.png", inner / "2.png", folder / "beside" / "1.png"):
        drawn().save(path)
    before = {path: path.read_bytes() for path in (folder / "beside").rglob("*.png")}
    mine = ["--checkpoint", str(folder / "vma.pt"), "--sample", "--memory", str(inner)]
    assert asked(*mine, "--output", str(inner)) == 2
    assert asked(*mine, "--score", str(folder / "beside" / "1.png"), "--output", str(folder / "beside")) == 2
    assert capsys.readouterr().err.count("would be among the drawings; choose another folder by --output") == 2
    assert before == {path: path.read_bytes() for path in (folder / "beside").rglob("*.png")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample", "--memory", "mine"], "--config is missing"),
        (["--checkpoint", "vma.pt", "--train"], "--config is missing"),
        (["--checkpoint", "", "--test"], "argument --checkpoint: the name of a file or folder is empty"),
        (["--checkpoint", "vma.pt", "--test", "--memory", "mine"], "--memory is for --sample"),
        (["--checkpoint", "vma.pt", "--sample", "--score", "x.png"], "--score needs --memory"),
    ],
)
def test_arguments_that_do_not_fit(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(words)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("--checkpoint", str(tmp_path / "gone.pt"), "--sample", "--memory", str(tmp_path)) == 3
    assert "gone.pt: there is no such checkpoint" in capsys.readouterr().err


def test_the_configuration_of_weights_can_be_overridden(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(folder / "vma.pt"), "--print-config"]
    assert asked(*given, "--set", "test_spec.seed=7") == 0
    assert "seed: 7" in capsys.readouterr().out
    assert asked(*arguments(folder, "--print-config")) == 0


# --- what it answers --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_exact_score_is_the_sum_over_addresses(tiny_model: Build) -> None:
    model = tiny_model(latent=0)
    source = torch.Generator().manual_seed(0)
    x, memory = ((torch.rand(1, n, 20, 20, generator=source) < 0.3).double() for n in (1, 3))
    found = model.explain(x, memory, StepNoise("cpu", "score"), 7)
    m = model.encode_memory(memory)
    targets = model.encode_targets(x, m)
    s = model.samples_at(model.every_address(m, targets, 1), targets, StepNoise("cpu", "z"))
    joint = (s.log_p_x + s.log_p_a)[:, 0, 0]  # [S]
    assert found.k is None and found.p_a is not None
    assert found.log_p.item() == pytest.approx(joint.logsumexp(0).item(), abs=1e-10)
    torch.testing.assert_close(found.p_a[0, 0], Categorical(logits=joint).probs)


@torch.no_grad()
def test_importance_weights_estimate_the_posterior_over_addresses(tiny_model: Build) -> None:
    """The sum over addresses, with as many z for each, gives it within 4.5 standard errors (delta method)."""
    model, k = tiny_model(gain=0.5).float(), 4000
    source = torch.Generator().manual_seed(1)
    x, memory = ((torch.rand(1, n, 20, 20, generator=source) < 0.3).float() for n in (1, 3))
    found = model.explain(x, memory, StepNoise("cpu", "score"), k)
    m = model.encode_memory(memory, precompute_features=True)
    targets = model.encode_targets(x, m)
    drawn = model.importance_samples(x, m, targets, StepNoise("cpu", "score"), k)
    weights, a = drawn.log_w[:, 0, 0].softmax(0), drawn.a[:, 0, 0]
    own = torch.stack([weights[a == slot].sum() for slot in range(5)])
    assert found.k == k and found.p_a is not None
    torch.testing.assert_close(found.p_a[0, 0], own)
    s = model.samples_at(model.every_address(m, targets, k), targets, StepNoise("cpu", "z"))
    w = s.log_w.view(k, -1).double().softmax(0) * s.log_w.view(k, -1).double().logsumexp(0).softmax(0)  # [K, S]
    exact = w.sum(0)
    picked = torch.nn.functional.one_hot(a, 5).double()
    error = ((weights[:, None] * (picked - own)) ** 2).sum(0) + (w**2).sum(0) + exact**2 * (w**2).sum()
    assert ((own - exact).abs() < 4.5 * error.sqrt()).all()
    assert found.log_p.item() == pytest.approx(drawn.log_w.logsumexp(0).item() - math.log(k), abs=1e-4)
