"""Drawings in folders become classes of unequal size; what lies wrong is said with its path and a way out."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from helpers.logs import rows
from helpers.program import main
from PIL import Image, ImageDraw

from data import folder, glyphs
from data.images import ClassImages
from runtime.errors import DataError

SECTIONS = ("train_data", "val_data", "test_data")


def write_classes(images: ClassImages, root: Path, counts: list[int]) -> None:
    """The first of the images of each class, black on white, as `<root>/<name>/<number>.png`."""
    for name, offset, count in zip(images.names, images.offsets.tolist(), counts, strict=True):
        (root / name).mkdir(parents=True)
        for i in range(count):
            ink = images.images[offset + i].bool().numpy()
            Image.fromarray(~ink).save(root / name / f"{i:02d}.png")


TRAIN, TEST = [9, 6, 7, 12, 20, 6], [5, 9, 6]  # images of the classes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine drawn characters.  Not to be changed."""
    path = tmp_path_factory.mktemp("drawings")
    write_classes(glyphs.load("train", len(TRAIN)), path, TRAIN)
    write_classes(glyphs.load("test").select(range(len(TEST))), path, TEST)
    return path


def drawing(side: tuple[int, int], paper: int = 255, ink: int = 0, width: int = 3) -> Image.Image:
    """An upright line in the middle, from a quarter of the height to three quarters."""
    image = Image.new("L", side, paper)
    middle = side[0] // 2
    ImageDraw.Draw(image).line((middle, side[1] // 4, middle, 3 * side[1] // 4), fill=ink, width=width)
    return image


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def load_one(image: Image.Image, root: Path, name: str = "a.png") -> np.ndarray:
    save(image, root / "train" / "one" / name)
    return folder.load(root, "train").images[0].numpy()


# --- what is read -----------------------------------------------------------------------------------------------------


def test_drawings_of_omniglots_size_are_read_as_they_are(root: Path) -> None:
    found, drawn = folder.load(root, "train"), glyphs.load("train", len(TRAIN))
    assert found.names == drawn.names and found.counts.tolist() == TRAIN
    for c, count in enumerate(TRAIN):
        assert torch.equal(found.select([c]).images, drawn.select([c]).images[:count])
    assert folder.load(root, "test").counts.tolist() == TEST


@pytest.mark.parametrize("side", [(30, 30), (105, 60), (60, 105), (400, 400), (2000, 900), (500, 1600)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_any_size_is_centred_on_a_square_of_paper(tmp_path: Path, side: tuple[int, int], name: str) -> None:
    """The line keeps its place and length in the square, and however thin it is, it is not lost."""
    ink = load_one(drawing(side), tmp_path, name)
    assert ink.shape == (105, 105) and ink.dtype == np.uint8
    places, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    length = 105 * side[1] / max(side) / 2
    assert abs(len(places) - length) <= 5 and np.ptp(places) < len(places)
    assert abs(places.mean() - 52) <= 3 and abs(columns.mean() - 52) <= 3
    assert len(columns) <= 12


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (230, 150), (120, 20), (255, 200)])
def test_pencil_on_grey_paper_is_ink_on_paper(tmp_path: Path, paper: int, ink: int) -> None:
    assert np.array_equal(load_one(drawing((105, 105), paper, ink), tmp_path), np.asarray(drawing((105, 105), 0, 1)))


def transparent() -> Image.Image:
    line = drawing((105, 105), 0, 255)
    image = Image.new("RGBA", line.size, (0, 0, 0, 0))
    image.putalpha(line)
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(drawing((105, 105))).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "image",
    [
        drawing((105, 105)).convert("1"),
        drawing((105, 105)).convert("RGB"),
        drawing((105, 105)).convert("P"),
        drawing((105, 105)).convert("LA"),
        transparent(),
        sixteen_bits(),
    ],
    ids=lambda image: image.mode,
)
def test_every_kind_of_pixel_gives_the_same_drawing(tmp_path: Path, image: Image.Image) -> None:
    assert np.array_equal(load_one(image, tmp_path), np.asarray(drawing((105, 105), 0, 1)))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    lying = drawing((105, 105)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = tmp_path / "train" / "one" / "a.jpg"
    path.parent.mkdir(parents=True)
    lying.save(path, exif=exif, quality=100)
    ink = folder.load(tmp_path, "train").images[0]
    assert len(ink.any(1).nonzero()) > 50 and len(ink.any(0).nonzero()) < 6


def test_classes_and_images_are_in_the_order_of_their_names_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a b/1.jpg", "ä/1.png"):
        save(drawing((40 + len(name), 40)), tmp_path / "train" / name)
    for name in (".DS_Store", "b/._1.png", "b/.gitkeep"):
        (tmp_path / "train" / name).write_bytes(b"junk")
    (tmp_path / "train" / ".git").mkdir()
    found = folder.load(str(tmp_path), "train")
    assert found.names == ("train/a b", "train/b", "train/ä") and found.counts.tolist() == [1, 2, 1]


# --- what is refused --------------------------------------------------------------------------------------------------


def bytes_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(levels: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(255 - levels, 256, (50, 50), dtype=np.uint8))


A, B = "train/a/1.png", "train/b/1.png"
GOOD = bytes_of(drawing((50, 50)))


@pytest.mark.parametrize(
    ("files", "named", "said"),
    [
        (None, "", "no such folder; kind folder reads train/CLASS/*.png and test/CLASS/*.png"),
        ({}, "train", "no such folder; kind folder reads train/CLASS/*.png and test/CLASS/*.png"),
        ({"test/a/1.png": GOOD}, "train", "no such folder; kind folder reads"),
        ({"train": GOOD}, "train", "no such folder; kind folder reads"),
        ({"train/": b""}, "train", "has no classes; kind folder reads train/CLASS"),
        ({A: GOOD, "train/b/": b""}, "train/b", "has no images; put .png, .jpg, .jpeg files there or remove"),
        ({A: GOOD, "train/2.png": GOOD}, "train/2.png", "lies beside the folders of the classes; move it into one of"),
        ({A: GOOD, "train/notes.txt": b""}, "train/notes.txt", "lies beside the folders of the classes"),
        ({A: GOOD, "train/a/notes.txt": b""}, "train/a/notes.txt", "is not a .png, .jpg, .jpeg file"),
        ({A: GOOD, "train/a/deep/1.png": GOOD}, "train/a/deep", "is not a .png, .jpg, .jpeg file"),
        ({A: GOOD, "train/a/deep.png/1.png": GOOD}, "train/a/deep.png", "is not a .png, .jpg, .jpeg file"),
        ({A: GOOD, B: GOOD[:-40]}, B, "cannot be read"),
        ({A: GOOD, B: b""}, B, "cannot be read"),
        ({A: GOOD, B: b"<html></html>"}, B, "cannot be read"),
        ({A: GOOD, B: bytes_of(drawing((50, 50)), "GIF")}, B, "cannot be read"),
        ({A: GOOD, "train/b/1.jpg": bytes_of(noise(255), "JPEG")[:-400]}, "train/b/1.jpg", "cannot be read"),
        ({A: GOOD, B: bytes_of(drawing((15, 9)))}, B, "15 x 9 pixels, where 16 on the longer side"),
        ({A: GOOD, B: bytes_of(Image.new("1", (9000, 9000)))}, B, "9000 x 9000 pixels, where"),
        ({A: GOOD, B: bytes_of(Image.new("L", (50, 50), 255))}, B, "there is no drawing on it"),
        ({A: GOOD, B: bytes_of(noise(20))}, B, "there is no drawing on it"),
        ({A: bytes_of(drawing((50, 50), 0, 255))}, "train", "more ink than paper; invert the images"),
    ],
)  # fmt: skip
def test_what_lies_wrong_is_named_with_a_way_out(
    tmp_path: Path, files: dict[str, bytes] | None, named: str, said: str
) -> None:
    root = tmp_path / "root"
    if files is not None:
        root.mkdir()
    for name, content in (files or {}).items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        folder.load(root, "train")
    assert str(caught.value).startswith(str(root / named)) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_light_drawing_among_dark_ones_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(drawing((50, 50)), tmp_path / "train" / name)
    folder.load(tmp_path, "train")
    assert not caplog.records
    save(drawing((50, 50), 0, 255), light := tmp_path / "train" / "a" / "3.png")
    folder.load(tmp_path, "train")
    assert "1 of 4 images with more ink than paper" in caplog.text and f"{light} is the first" in caplog.text


def test_a_name_that_cannot_be_shown_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "train" / "a\nb").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a\\nb.* has no images") as caught:
        folder.load(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(drawing((50, 50)), tmp_path / A).parent

    def refuse(found: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(found))

    monkeypatch.setattr(Path, "iterdir", lambda found: refuse(found) if found == path else iter([path]))
    with pytest.raises(DataError, match=r"train/a cannot be read \(PermissionError"):
        folder.load(tmp_path, "train")


def test_a_wrong_subset_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="val"):
        folder.load(root, "val")  # type: ignore[arg-type]


def test_no_file_is_changed(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    folder.load(root, "train")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


# --- from the configuration to the table ------------------------------------------------------------------------------


def of_folder(root: Path, *more: str) -> list[str]:
    keys = ("kind=folder", f"root={root}", "classes=200")
    return [*(f"{section}.{key}" for section in SECTIONS for key in keys), *more]


FITTING = ("test_spec.test_params={max_batch_cls: [1, 3], timesteps: [1, 4]}", "test_spec.targets=null")


def test_classes_of_unequal_size_are_trained_validated_tested_and_sampled(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = of_folder(root, *FITTING, "train_data.augment={}", "train_data.held_out_classes=2")
    assert main(tmp_path, "--train", "--test", "--sample", *overrides) == 0
    assert f"reading {root}/train" in caplog.messages, "what takes a while is said"
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 11))
    assert rows(tmp_path, "validation")
    with np.load(tmp_path / "table.npz") as table:
        bounds = [table[name] for name in table.files if name.endswith("bound")]
    assert len(bounds) == 4 and all(len(bound) == sum(TEST) for bound in bounds)
    assert list(tmp_path.glob("*.png"))


def test_a_run_goes_on_only_with_the_images_it_began_with(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another class others would be held out, on which the run has trained."""
    copy = shutil.copytree(root, tmp_path / "drawings")
    overrides = of_folder(copy, *FITTING, "train_data.held_out_classes=2")
    assert main(tmp_path, "--train", *overrides, "train_spec.steps=5") == 0
    before = {path: path.read_bytes() for path in (*tmp_path.glob("*.pt"), *tmp_path.glob("*.yaml"))}
    shutil.copytree(copy / "train" / "0000", copy / "train" / "a new class")
    capsys.readouterr()
    assert main(tmp_path, "--train", *overrides) == 2
    assert f"this run was begun with other images than {copy} has now; put those back" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    shutil.rmtree(copy / "train" / "a new class")
    assert main(tmp_path, "--train", *overrides) == 0


SHARED = ("train_data.max_img_per_class=4", "train_data.targets_per_memory=8", "train_data.held_out_classes=0")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (SHARED, "train_data.max_img_per_class: 4 puts 4 images of a class into a memory beside 8 targets of it"),
        (SHARED, "train/0001 has 6 images, the fewest of 6 classes"),
        (["train_data.held_out_classes=6"], "train_data.held_out_classes: 6 leaves nothing to train on"),
        (["train_data.held_out_classes=5"], "train_data.timesteps: 4 may need 2 classes in a memory and 1 are there"),
        (["train_data.held_out_classes=1"], "train_data.held_out_classes: 1 classes are too few for a memory of val"),
        (["val_data.timesteps=20", "val_data.max_img_per_class=20"], "val_data.max_img_per_class: 20 puts 20 images"),
        (["train_data.mixture=[{timesteps: 20, max_img_per_class: 20}]"], "train_data.mixture[0].max_img_per_class: "),
        (["test_spec.test_params.timesteps=[5]"], "test_spec.test_params.timesteps: 5 puts 5 images of a class"),
        (["test_spec.test_params.max_batch_cls=[4]"], "test_spec.test_params.max_batch_cls: 4 may need 4 classes"),
        (["test_spec.targets=21"], "test_spec.targets: 21 is not between 1 and 20, the number of images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_training(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: Sequence[str], said: str
) -> None:
    assert main(tmp_path, "--train", "--test", *of_folder(root, *FITTING, *overrides)) in (2, 3)
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.jsonl"))
