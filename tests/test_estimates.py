"""Every class counts the same; the error for these classes and that for others are what repeated draws give."""

import math

import numpy as np
import pytest

import config as configuration
from evaluator import METRICS
from reports.cells import table_row
from reports.estimates import alphabets_of, estimate


def values(bound: list[float], classes: list[float]) -> dict[str, np.ndarray]:
    numbers = dict(zip(METRICS, np.arange(1.0, 6.0), strict=True))
    return {**{name: np.full(len(bound), n) for name, n in numbers.items()}, "bound": np.array(bound),
            "target_class": np.array(classes)}  # fmt: skip


def test_a_class_that_gives_two_targets_counts_no_more() -> None:
    """Class 0 has -60 and -100, class 1 has -70: (80 + 70) / 2, where the mean over targets is 76.7."""
    row = table_row(
        2,
        5,
        values([-60.0, -100.0, -70.0], [0.0, 0.0, 1.0]),
        configuration.TestSpec.model_construct(importance_num=1000),
    )
    # variance 800 within class 0, of two targets; the same, pooled, in class 1, of one
    assert row == {
        "max_batch_cls": 2,
        "timesteps": 5,
        "ELBO": 75.0,
        "stderr": pytest.approx(math.sqrt(800 / 2 + 800) / 2),
        "stderr_new_classes": pytest.approx(5.0),
        "kl_a": 2.0,
        "kl_z": 3.0,
        "address_accuracy": 4.0,
        "targets": 3,
        "importance_num": 1000,
    }
    assert ",".join(row) == (
        "max_batch_cls,timesteps,ELBO,stderr,stderr_new_classes,kl_a,kl_z,address_accuracy,targets,importance_num"
    )


def test_all_means_of_a_row_are_balanced() -> None:
    cell = values([-1.0, -1.0, -4.0], [0.0, 0.0, 1.0])
    for name in ("kl_a", "kl_z", "address_accuracy"):
        cell[name] = np.array([0.0, 0.2, 0.5])
        assert table_row(1, 1, cell, configuration.TestSpec.model_construct(metric="nll"))[name] == pytest.approx(0.3)


def test_without_a_second_target_of_a_class_the_error_is_that_of_a_plain_mean() -> None:
    numbers = np.random.default_rng(0).normal(size=12)
    found = estimate(numbers, np.random.default_rng(1).permutation(12))
    plain = pytest.approx(numbers.std(ddof=1) / math.sqrt(12))
    assert (found.mean, found.stderr, found.stderr_new_classes) == (pytest.approx(numbers.mean()), plain, plain)


def test_one_target_has_no_standard_error() -> None:
    found = estimate(np.array([3.0]), np.array([7.0]))
    assert found.mean == 3 and math.isnan(found.stderr) and math.isnan(found.stderr_new_classes)


def test_one_class_has_an_error_for_its_targets_only() -> None:
    found = estimate(np.array([1.0, 2.0, 6.0]), np.zeros(3))
    assert found.stderr == pytest.approx(math.sqrt(7 / 3)) and math.isnan(found.stderr_new_classes)


def test_the_squared_errors_are_the_variances_of_what_is_drawn_again() -> None:
    """Some classes give two targets, some one; first targets alone are drawn again, then alphabets and classes too."""
    random, draws = np.random.default_rng(0), 4000
    classes = np.repeat(np.arange(30), [1, 2, 1] * 10)
    alphabets = classes // 5
    fixed, seen = random.normal(size=30), {"stderr": ([], []), "stderr_new_classes": ([], [])}  # type: ignore[var-annotated]
    for _ in range(draws):
        new = random.normal(size=6)[np.arange(30) // 5] + random.normal(size=30)
        for name, of in (("stderr", fixed), ("stderr_new_classes", new)):
            found = estimate(of[classes] + 0.7 * random.normal(size=40), classes, alphabets)
            seen[name][0].append(found.mean)
            seen[name][1].append(getattr(found, name) ** 2)
    for name, (means, squares) in seen.items():
        relative = math.sqrt((2 + np.var(squares) / np.mean(squares) ** 2) / draws)  # error of the ratio
        assert np.mean(squares) == pytest.approx(np.var(means, ddof=1), rel=4 * relative), name


def test_alphabets_stand_before_the_slash() -> None:
    names = ["Tengwar/1531", "ULOG/1598", "ULOG/1599"]
    found = alphabets_of(np.array([2.0, 0.0, 1.0]), names)
    assert found is not None and found.tolist() == ["ULOG", "Tengwar", "ULOG"]
    assert alphabets_of(np.array([0.0, 1.0]), ["test/a", "test/b"]) is None  # a folder of one's own
    assert alphabets_of(np.array([0.0, 1.0]), ["0", "1"]) is None
    assert alphabets_of(np.array([0.0, 3.0]), names) is None
    assert alphabets_of(np.array([0.0]), []) is None
