"""Reports: the numbers are right, and published ones stand only beside what they can be compared with."""

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.config import arguments, small_config
from helpers.program import main, process_restored

import commands
import config as configuration
import run
from config import Config
from reports import plots, tables
from runtime.signals import StopRequest

PUBLISHED = {  # (C, M) -> published code, paper
    (1, 1): (85.2, 86.5), (1, 2): (79.8, 83.0), (1, 3): (77.5, 79.6), (1, 4): (76.2, 79.0), (1, 5): (75.3, 76.5),
    (1, 10): (73.2, 76.2), (1, 19): (71.8, 73.9),
    (2, 1): (85.2, 87.5), (2, 2): (82.7, 83.3), (2, 3): (80.1, 80.9), (2, 4): (78.5, 79.3), (2, 5): (77.5, 79.1),
    (2, 10): (75.2, 77.0), (2, 19): (73.5, 75.0),
}  # fmt: skip


def row(c: int, m: int, k: int = 1000) -> dict[str, float | int]:
    return {
        "max_batch_cls": c, "timesteps": m, "ELBO": 80 + c - m / 7, "stderr": 0.123456,
        "stderr_new_classes": 1.5, "kl_a": 0.5, "kl_z": 12.34567,
        "address_accuracy": 0.98765, "targets": 300, "importance_num": k,
    }  # fmt: skip


def published(*overrides: str) -> Config:
    return configuration.load(ROOT / "configs" / "vma.yaml", overrides)


def table(markdown: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by the names in its header."""
    lines = [line.strip().strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    header, ruler, *body = [[cell.strip() for cell in line] for line in lines]
    assert set(ruler) == {"---"}
    return [dict(zip(header, cells, strict=True)) for cells in body]


def test_the_csv_has_these_columns_and_numbers(tmp_path: Path) -> None:
    rows = [row(1, 1), row(2, 19)]
    tables.write_table(tmp_path / "new" / "table.csv", rows, published())
    text = (tmp_path / "new" / "table.csv").read_text()
    assert text.splitlines()[0] == (
        "max_batch_cls,timesteps,ELBO,stderr,stderr_new_classes,kl_a,kl_z,address_accuracy,targets,importance_num"
    )
    for read, given in zip(csv.DictReader(text.splitlines()), rows, strict=True):
        assert {name: float(value) for name, value in read.items()} == pytest.approx(given, abs=5e-5)
    assert (tmp_path / "new" / "table.md").read_text() == tables.markdown(rows, published())
    assert (tmp_path / "new" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_an_exact_table_says_so_and_what_the_published_numbers_are() -> None:
    config = published("model.latent_dim=0", "model.likelihood=causal", "test_spec.metric=nll")
    exact: dict[str, float | int] = {**row(1, 5), "NLL": 61.25}
    del exact["ELBO"], exact["importance_num"]
    text = tables.markdown([exact], config)
    assert text.startswith("NLL: minus the log-likelihood, an exact sum over addresses, nats per image")
    (found,) = table(text)
    assert (found["NLL"], found["published code"], found["paper"]) == ("61.25", "75.3", "76.5")
    assert "Published code: ELBO@1000" in text and "Paper: ELBO@1000" in text
    assert plots.result_plot([exact], config).startswith(b"\x89PNG")


def test_published_numbers_stand_beside_their_cells() -> None:
    cells = [*PUBLISHED, (1, 6), (3, 1), (1, 0)]
    found = table(tables.markdown([row(c, m) for c, m in cells], published()))
    for (c, m), line in zip(cells, found, strict=True):
        code, paper = PUBLISHED.get((c, m), ("", ""))
        assert (line["C"], line["M"]) == (str(c), str(m))
        assert line["ELBO@1000"] == f"{80 + c - m / 7:.2f}"
        assert (line["published code"], line["paper"]) == (str(code), str(paper))


OTHER_PROTOCOLS = [
    ["test_spec.importance_num=500"],
    ["model.likelihood=normal"],
    [f"{part}.resize=28" for part in ("train_data", "val_data", "test_data")],
    [f"{part}.resample=maxpool" for part in ("train_data", "val_data", "test_data")],
    [f"{part}.split=45-5" for part in ("train_data", "val_data", "test_data")],
]


@pytest.mark.parametrize("overrides", OTHER_PROTOCOLS, ids=lambda overrides: overrides[-1])
def test_published_numbers_do_not_stand_beside_another_protocol(overrides: list[str]) -> None:
    other = published(*overrides)
    text = tables.markdown([row(1, 1, other.test_spec.importance_num)], other)
    assert "85.2" not in text and "86.5" not in text and "paper" not in text.lower()


def test_the_papers_numbers_stand_beside_its_likely_setting() -> None:
    likely = configuration.load(ROOT / "configs" / "vma_45-5.yaml")
    text = tables.markdown([row(c, m) for c, m in PUBLISHED], likely)
    assert [line["paper"] for line in table(text)] == [str(paper) for _, paper in PUBLISHED.values()]
    assert "published code" not in text.lower() and "not settled" in text


def test_numbers_of_the_attention_pixelcnn_stand_beside_a_causal_likelihood() -> None:
    exact = [{**row(1, m), "NLL": 50.0} for m in (1, 2, 5, 8)]
    text = tables.markdown(exact, configuration.load(ROOT / "configs" / "vma_causal_45-5.yaml"))
    shown = {int(line["M"]): line["Reed et al."] for line in table(text)}
    assert shown == {1: "48.0", 2: "46.0", 5: "", 8: "43.3"} and "filter not known" in text
    assert shown[1] == f"{0.071 * 26 * 26:.1f}"


@pytest.mark.parametrize(("split", "filter_"), [("official", "nearest-exact"), ("45-5", "maxpool")])
def test_the_context_table_beside_a_table_is_that_of_the_results(split: str, filter_: str) -> None:
    parts = ("train_data", "val_data", "test_data")
    config = published(*(f"{part}.{of}" for part in parts for of in (f"split={split}", f"resample={filter_}")))
    (folder,) = (ROOT / "results").glob("context_table" if split == "official" else f"context_table_{split}")
    with (folder / "results.csv").open(newline="") as file:
        computed = {(int(r["max_batch_cls"]), int(r["timesteps"])): float(r["NLL"]) for r in csv.DictReader(file)}
    shown = table(tables.markdown([row(c, m) for c, m in computed], config))
    assert [line["context table"] for line in shown] == [f"{nll:.1f}" for nll in computed.values()]


def test_published_numbers_do_not_stand_beside_glyphs(tmp_path: Path) -> None:
    text = tables.markdown([row(1, 1)], small_config(tmp_path, "test_spec.importance_num=1000"))
    assert "paper" not in text.lower()
    assert "glyphs" in text


def test_the_table_says_what_it_shows(tmp_path: Path) -> None:
    text = tables.markdown([row(1, 1, 60)], small_config(tmp_path))
    assert "ELBO@60" in text and "lower is better" in text and "nats per image" in text
    for said in ("glyphs", "20 x 20", "nearest-exact"):
        assert said in text
    assert "split" not in text and "omniglot, official split, 26 x 26" in tables.markdown([row(1, 1)], published())
    line = table(text)[0]
    assert line == {
        "C": "1", "M": "1", "ELBO@60": "80.86", "± s.e.": "0.12", "± new classes": "1.50", "KL(a)": "0.50",
        "KL(z)": "12.35",        "address accuracy": "0.988", "targets": "300",
    }  # fmt: skip


def drawn(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float | int]], of: Config) -> Any:
    """The axis of the plot."""
    figures = caught(monkeypatch)
    assert plots.result_plot(rows, of).startswith(b"\x89PNG")
    (axis,) = figures[0].axes
    return axis


def caught(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gets the figures that become files."""
    figures: list[Any] = []
    real = plots.png
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or real(figure))  # type: ignore[func-returns-value]
    return figures


def test_the_plot_has_one_line_for_each_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(c, m) for c in (2, 1) for m in (5, 1, 3)]
    axis = drawn(monkeypatch, rows, small_config(tmp_path))
    labels = [container.get_label() for container in axis.containers]
    assert labels == ["C = 2, this model", "C = 1, this model"]
    for c, container in zip((2, 1), axis.containers, strict=True):
        line = container.lines[0]
        beside = 1.04 if c == 1 else 1  # so that bars do not hide each other
        assert list(line.get_xdata()) == pytest.approx([beside * m for m in (1, 3, 5)])  # in order of size
        assert list(line.get_ydata()) == pytest.approx([80 + c - m / 7 for m in (1, 3, 5)])
    assert "lower is better" in axis.get_ylabel()


def test_the_plot_shows_published_lines_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(c, m) for c in (1, 2, 3) for m in (1, 19)]
    axis = drawn(monkeypatch, rows, published())
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines if "published" in str(line.get_label())}
    assert lines == {
        f"C = {c}, published code": [code for (cell, _), (code, _) in PUBLISHED.items() if cell == c] for c in (1, 2)
    }


def test_a_single_target_and_an_empty_memory_can_be_reported(tmp_path: Path) -> None:
    rows = [{**row(1, 0), "stderr": float("nan"), "targets": 1}]
    tables.write_table(tmp_path / "table.csv", rows, small_config(tmp_path))
    assert (tmp_path / "table.png").stat().st_size > 1000


def log_row(part: str, step: int) -> dict[str, Any]:
    return {
        "subset": part,
        "step": step,
        "bound": -90.0 - step,
        "kl_a": step / 7,
        "kl_z": step / 3,
        "address_accuracy": 0.5,
    }


def test_the_curves_are_those_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = caught(monkeypatch)
    rows = [log_row("train", 0), *(log_row("train", step) for step in range(2, 101)), log_row("validation", 50)]
    plots.curve_plot(rows, small_config(tmp_path, "train_data.batch_size=8"))
    bound, terms, accuracy = figures[0].axes
    train, validation = bound.lines
    assert list(train.get_xdata()) == [8 * step for step in range(3, 101)]  # without the very beginning
    assert list(train.get_ydata()) == [90 + step for step in range(3, 101)]
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([400], [140])
    drawn = {line.get_label(): line.get_ydata()[-1] for line in terms.lines}
    assert drawn == {
        "KL(a), train": 100 / 7, "KL(z), train": 100 / 3, "KL(a), validation": 50 / 7, "KL(z), validation": 50 / 3,
    }  # fmt: skip
    assert len(accuracy.lines) == 2


def test_a_training_without_validation_is_drawn_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = caught(monkeypatch)
    plots.curve_plot([log_row("train", step) for step in range(1, 9)], small_config(tmp_path))
    (figure,) = figures
    said = [text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()]
    assert said == ["train", "KL(a), train", "KL(z), train", "train"]
    assert "training" in figure.get_suptitle() and "validation" not in figure.get_suptitle()


@pytest.mark.parametrize("content", ["", "no JSON", "{}", '{"subset": "train", "step": 3, "bound": null}', "[1]"])
def test_a_log_that_cannot_be_drawn_does_not_end_a_training(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    (tmp_path / "log.jsonl").write_text(content)
    commands.train.draw_curves(commands.Session(small_config(tmp_path), StopRequest()))
    assert bool(caplog.records) == bool(content)


def test_a_metric_that_does_not_exist_is_a_dash(tmp_path: Path) -> None:
    text = tables.markdown([{**row(1, 1), "kl_z": float("nan"), "stderr": float("nan")}], small_config(tmp_path))
    (line,) = table(text)
    assert (line["KL(z)"], line["± s.e."], line["KL(a)"]) == ("–", "–", "0.50") and "nan" not in text


def test_no_zero_has_a_sign(tmp_path: Path) -> None:
    rows = [{**row(1, 1), "kl_a": -0.00001}]
    assert table(tables.markdown(rows, small_config(tmp_path)))[0]["KL(a)"] == "0.00"
    assert b"-0.0" not in tables.comma_separated(rows)


def test_a_table_is_written_again_from_the_stored_bounds(tmp_path: Path) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    with process_restored():  # with a plot of its own, where `main` gives the first of all
        assert run.main(arguments(tmp_path, "--test")) == 0
    files = [tmp_path / f"table{suffix}" for suffix in (".csv", ".md", ".png")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    assert tables.main([str(tmp_path / "table.npz")]) == 0
    assert [path.read_bytes() for path in files] == before
    assert tables.main([str(tmp_path / "other.npz")]) == 2
