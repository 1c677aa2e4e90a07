"""Glyphs are a function of the seed, look like writing by their numbers, and their classes can be told apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data import glyphs
from data.images import ClassImages, resample


@pytest.fixture(scope="module")
def train() -> ClassImages:
    return glyphs.load("train", 60)


@pytest.fixture(scope="module")
def unseen() -> ClassImages:
    return glyphs.load("test")


def blurred(images: ClassImages) -> Tensor:
    """[C, 20, D]: small and soft, so that distances are about shape and not about single pixels; unit length."""
    small = resample(images, 35, "maxpool").images.float()[:, None]
    soft = F.avg_pool2d(F.avg_pool2d(small, 5, 1, 2), 3, 1, 1).flatten(1)
    return F.normalize(soft, dim=1).unflatten(0, (-1, glyphs.DRAWERS))


def test_the_form_is_omniglots(train: ClassImages, unseen: ClassImages) -> None:
    for images, classes in ((train, 60), (unseen, glyphs.TEST_CLASSES)):
        assert images.images.shape == (20 * classes, 105, 105)
        assert images.counts.tolist() == [20] * classes
        assert images.images.unique().tolist() == [0, 1]


def test_ink_is_comparable_to_omniglots_eight_per_cent(train: ClassImages, unseen: ClassImages) -> None:
    for images in (train, unseen):
        ink = images.images.float().mean((1, 2))
        assert 0.04 < ink.mean() < 0.09
        assert ink.min() > 0.003 and ink.max() < 0.25


def test_no_drawing_is_cut_by_the_edge(train: ClassImages) -> None:
    border = train.images.clone()
    border[:, 1:-1, 1:-1] = 0
    assert border.sum() == 0


def test_the_seed_and_nothing_else_decides(train: ClassImages) -> None:
    torch.manual_seed(1)
    assert glyphs.load("train", 60).digest() == train.digest()
    assert glyphs.load("train", 60, seed=1).digest() != train.digest()


def test_the_first_classes_do_not_depend_on_their_number(train: ClassImages) -> None:
    few = glyphs.load("train", 7)
    assert torch.equal(few.images, train.images[: 7 * 20])
    assert few.names == train.names[:7]


def test_images_of_a_class_resemble_each_other_and_no_other_class(train: ClassImages, unseen: ClassImages) -> None:
    """Nearest other image among 120 classes x 20: of the same class in nearly all cases; chance is 1 in 126."""
    x = torch.cat([blurred(train), blurred(unseen)])  # [120, 20, D]
    flat = x.flatten(0, 1)
    near = flat @ flat.T  # cosine
    near.fill_diagonal_(-1)
    label = torch.arange(len(x)).repeat_interleave(20)
    hits = (label[near.argmax(1)] == label).float().mean()
    same = label[:, None] == label
    within, between = (1 - near[same & (near > -1)]).mean(), (1 - near[~same]).mean()
    assert hits > 0.93  # standard error at 0.95 over 2,400 images: 0.005
    assert within < between / 2


def test_images_of_a_class_differ(train: ClassImages) -> None:
    drawn = train.images.unflatten(0, (-1, 20)).flatten(2).float()
    equal = (torch.cdist(drawn, drawn) == 0).sum((1, 2)) - 20
    assert (equal == 0).all()


def test_no_character_of_the_test_is_one_of_the_training(train: ClassImages, unseen: ClassImages) -> None:
    """A training class is nowhere closer to a test class than two halves of one class are to each other."""
    a, b = blurred(train), blurred(unseen)
    across = F.normalize(a.mean(1), dim=1) @ F.normalize(b.mean(1), dim=1).T
    halves = (F.normalize(b[:, :10].mean(1), dim=1) * F.normalize(b[:, 10:].mean(1), dim=1)).sum(1)
    assert across.max() < halves.quantile(0.02)


def test_a_character_that_exists_is_not_invented_again() -> None:
    """The same random stream proposes the same ten characters first; all of them must be passed over."""
    known = glyphs._alphabet("test", 10, 0, [])
    fresh = glyphs._alphabet("test", 10, 0, known)
    assert not {glyph.points.tobytes() for glyph in known} & {glyph.points.tobytes() for glyph in fresh}


def test_other_seeds_draw_other_characters() -> None:
    a, b = (blurred(glyphs.load("train", 30, seed)) for seed in (0, 1))
    closest = (a.mean(1) @ b.mean(1).T).diagonal()
    itself = (a[:, :10].mean(1) * a[:, 10:].mean(1)).sum(1)
    assert closest.mean() < itself.mean() - 0.3


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="validation"):
        glyphs.load("validation")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        glyphs.load("train", 0)
