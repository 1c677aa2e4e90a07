"""The configuration: what is read, what is refused and in which words, and that it survives being written."""

import itertools
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import config
from config import Config, ConfigError, schema, strict_yaml

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
VMA = (ROOT / "configs" / "vma.yaml").read_text()

# As a user of the published code has it: only published keys, two of them without use any more.
PUBLISHED = """\
model:
  kind: vma
  autoencoder: omniglot
  likelihood: bernoulli
  latent_dim: 64
  matching_dim: 200
  importance_num: 4
train_data:
  kind: omniglot
  root: datasets/omniglot
  batch_size: 256
  timesteps: 32
  exact: true
  max_img_per_class: 4
  iter: 72
  resize: [26, 26]
val_data:
  kind: omniglot
  root: datasets/omniglot
  batch_size: 256
  timesteps: 10
  exact: false
  max_batch_cls: 2
  resize: [26, 26]
test_data:
  kind: omniglot
  root: datasets/omniglot
  batch_size: 64
  timesteps: 10
  exact: false
  max_batch_cls: 2
  resize: [26, 26]
train_spec:
  checkpoint_path: runs/a.pt
  log_file: runs/a.log
  gpus: [0]
  n_jobs: 8
  steps: 1e5
  optimizer: adam
  full_loss: true
  lr: 1e-4
  weight_decay: 0
  scheduler: {kind: MultiStepLR, milestones: [6e4, 8e4], gamma: 0.1, times: 3}
test_spec:
  metric: ELBO
  checkpoint_path: runs/a.pt
  output_file: runs/a.csv
  n_jobs: 8
  gpus: []
  test_params:
    max_batch_cls: [1, 2]
    timesteps: [1..5, 10, 19]
  importance_num: 1000
"""


def vma(*overrides: str) -> Config:
    return config.parse(VMA, "vma.yaml", overrides)


def complete(name: str) -> str:
    """A shipped configuration with all that it inherits."""
    return config.dump(config.load(ROOT / "configs" / name))


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "a.yaml", overrides)
    assert caught.value.status == 2
    return str(caught.value)


def refused(*overrides: str) -> str:
    """The message about vma.yaml with these changes."""
    return refusal(VMA, *overrides)


def leaves(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Every dotted key of the schema; a scheduler counts as one."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            found |= leaves(below, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_load_without_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = config.load(path)
    assert config.parse(config.dump(resolved), "dump") == resolved
    assert not caplog.records


def test_the_published_config_shows_every_key() -> None:
    written: Any = strict_yaml.parse(VMA)
    assert written["model"]["autoencoder"].keys() == schema.PublishedAutoencoder.model_fields.keys()
    written["model"]["autoencoder"] = None
    for key in leaves(Config):
        section, _, name = key.partition(".")
        if section not in ("val_data", "test_data"):  # which take from train_data what they leave out
            node: Any = written[section]
            for part in name.removesuffix(".kind").split("."):
                assert part in node, key
                node = node[part]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_other_shipped_configs_say_only_what_differs(path: Path) -> None:
    """Every value that they give is another one than that of the file they are based on."""
    written: Any = strict_yaml.parse(path.read_text())
    if (base := written.pop("base", None)) is None:
        return
    before = config.load(path.parent / base).model_dump()
    assert written.pop("output") == f"runs/{path.stem}"
    assert [f"{s}.{key}" for s in written for key in written[s] if written[s][key] == before[s][key]] == []


def test_the_published_experiment() -> None:
    c = vma()
    assert (c.train_data.resize, c.train_data.resample, c.train_data.split) == (26, "nearest-exact", "official")
    assert (c.train_data.timesteps, c.train_data.max_img_per_class, c.train_data.exact) == (32, 4, True)
    assert (c.train_data.batch_size, c.model.importance_num, c.train_data.targets_per_memory) == (256, 4, 16)
    assert (c.train_spec.optimizer, c.train_spec.lr, c.train_spec.steps) == ("Adam", 1e-4, 100_000)
    assert type(c.train_spec.steps) is int
    assert c.test_spec.test_params.max_batch_cls == (1, 2)
    assert c.test_spec.test_params.timesteps == (1, 2, 3, 4, 5, 10, 19)
    assert c.test_spec.importance_num == 1000


def test_a_file_of_the_published_kind_runs_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        c = config.parse(PUBLISHED, "old.yaml")
    assert [record.getMessage() for record in caplog.records] == [
        f"old.yaml: {key} has no use here and is ignored"
        for key in ("train_spec.full_loss", "train_spec.scheduler.times", "train_spec.n_jobs", "test_spec.n_jobs")
    ]
    assert (c.train_data.resize, c.train_spec.optimizer, c.test_spec.metric) == (26, "Adam", "elbo")
    assert (c.train_spec.gpus, c.test_spec.gpus) == ((0,), ())
    assert c.train_spec.scheduler is not None
    assert c.train_spec.scheduler.kind == "MultiStepLR"
    assert dict(c.train_spec.scheduler.arguments) == {"milestones": (60_000, 80_000), "gamma": 0.1}
    assert "times" not in config.dump(c).replace("timesteps", "")


# What the published repository ships as configs/vma.yaml.
SHIPPED_WITH_THE_PUBLISHED_CODE = {
    "model": {"kind": "VMA", "autoencoder": "VMA", "likelihood": "bernoulli", "latent_dim": 64, "matching_dim": 200,
              "importance_num": 4},
    "train_data": {"kind": "omniglot", "root": "./data", "batch_size": 256, "timesteps": 32, "exact": True,
                   "max_img_per_class": 4, "iter": 1000, "resize": 26},
    "val_data": {"kind": "omniglot", "root": "./data", "batch_size": 32, "timesteps": 19, "exact": True,
                 "max_img_per_class": 19, "resize": 26},
    "test_data": {"kind": "omniglot", "root": "./data", "batch_size": 16, "timesteps": 1, "exact": False,
                  "max_batch_cls": 1, "resize": 26},
    "train_spec": {"checkpoint_path": "saved_models/vma_omniglot.pt", "log_file": "logs/vma_omniglot.log",
                   "gpus": [0, 1], "n_jobs": 30, "steps": "1e5", "optimizer": "Adam", "full_loss": False, "lr": "1e-4",
                   "scheduler": {"kind": "StepLR", "step_size": 100000, "gamma": 0.1, "times": 1}},
    "test_spec": {"metric": "ELBO", "checkpoint_path": "saved_models/vma_omniglot.pt", "output_file": "results.csv",
                  "n_jobs": 20, "gpus": [0, 1], "importance_num": 1000,
                  "test_params": {"max_batch_cls": [1, 2], "timesteps": ["1..5", 10, 19]}},
}  # fmt: skip


def test_the_published_configuration_runs_as_it_is() -> None:
    text = yaml.safe_dump(SHIPPED_WITH_THE_PUBLISHED_CODE).replace("'", "")
    c = config.parse(text, "vma.yaml")
    assert (c.model.kind, c.model.autoencoder) == ("vma", schema.PublishedAutoencoder())
    assert (c.train_spec.steps, c.train_spec.lr, c.train_spec.gpus) == (100_000, 1e-4, (0, 1))
    assert c.train_spec.scheduler is not None
    assert dict(c.train_spec.scheduler.arguments) == {"step_size": 100_000, "gamma": 0.1}
    assert (c.val_data.timesteps, c.val_data.max_img_per_class, c.val_data.max_batch_cls) == (19, 19, None)
    assert c.test_spec.test_params.timesteps == (1, 2, 3, 4, 5, 10, 19)


@pytest.mark.parametrize(
    "spelling",
    [
        ["model.autoencoder=VMA"],
        ["model.autoencoder=published", "model.channels=[48, 64]"],
        ["model.autoencoder=omniglot", "model.hidden=[100, 256]"],
        ["model.autoencoder={kind: Published, channels: [48, 64]}"],
        ["model.kind=Vma", "train_data.kind=OMNIGLOT"],
    ],
)
def test_names_and_places_of_other_versions_mean_the_same(spelling: list[str]) -> None:
    assert vma(*spelling) == vma()


def test_flat_sizes_of_a_file_are_those_of_its_autoencoder() -> None:
    flat = VMA.replace("  latent_dim", "  channels: [3, 4]\n  latent_dim")
    assert config.parse(flat, "flat").model.autoencoder == schema.PublishedAutoencoder(channels=(3, 4))
    assert vma("model.channels=[3, 4]") == config.parse(flat, "flat")


def test_another_autoencoder_is_refused_with_those_that_there_are() -> None:
    for value in ("omniglott", "{kind: omniglott}", "{kind: [published]}"):
        assert "model.autoencoder.kind: value" in refused(f"model.autoencoder={value}")
        assert "expected one of published, residual" in refused(f"model.autoencoder={value}")
    assert "model.autoencoder.chanels: unknown key; did you mean channels?" in refused("model.autoencoder.chanels=3")


def test_defaults_keep_the_published_behaviour() -> None:
    c = config.parse(PUBLISHED, "old.yaml")
    assert (c.model.num_dummies, c.model.address_prior) == (2, "uniform")
    assert c.model.autoencoder == schema.PublishedAutoencoder(channels=(48, 64), hidden=(100, 256))
    assert (c.train_data.targets_per_memory, c.train_data.held_out_classes, c.train_data.augment) == (1, 48, None)
    assert (c.train_data.split, c.train_data.resample) == ("official", "nearest-exact")
    spec = c.train_spec
    assert (spec.seed, spec.objective, spec.precision, spec.grad_clip) == (0, "vimco", "fp32", None)
    assert (spec.ema_decay, spec.warmup, spec.val_targets, spec.log_every) == (0, 0, 2000, 100)
    assert (c.test_spec.targets, c.test_spec.seed, c.test_spec.chunk) == (None, 0, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"# only a comment\n", "empty"),
        (b"- 1\n- 2\n", "expected sections"),
        (b"just text\n", "expected sections"),
        (b"model:\n\tkind: vma\n", "line 2: a tab"),
        (b"model: \xff\xfe\n", "line 1: not UTF-8"),
        (bytes(range(256)) * 4, "not UTF-8"),
        (b"model: \x00\x01\n", "not valid YAML"),
        (b"model: [1, 2\n", "not valid YAML"),
        (b"model:\n  kind: vma\n kind: b\n", "line 3: not valid YAML"),
        (b"a: 1\n" * 250_000, "larger than 1,000,000 bytes"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_devices(tmp_path: Path) -> None:
    for path, expected in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "this is a folder"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / ("n" * 5000), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=expected):
            config.load(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse; reading it whole would fail
    start = time.process_time()
    with pytest.raises(ConfigError, match="larger than"):
        config.load(path)
    assert time.process_time() - start < 1


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + VMA.encode())
    assert config.load(path) == vma()


# --- base files and what is inherited ---------------------------------------------------------------------------------


def files(folder: Path, **contents: str) -> Path:
    """Files NAME.yaml; the path of the first."""
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder / f"{next(iter(contents))}.yaml"


def test_a_file_changes_the_one_it_is_based_on(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "vma.yaml").write_text(VMA)
    files(tmp_path, middle="base: vma.yaml\ntrain_spec: {lr: 1e-3, scheduler: {kind: StepLR, step_size: 7}}\n")
    top = files(
        tmp_path / "below",
        top="base: ../middle.yaml\ntrain_spec: {steps: 5}\ntest_spec: {test_params: {timesteps: [2]}}\n",
    )
    expected = vma(
        "train_spec.lr=1e-3", "train_spec.scheduler={kind: StepLR, step_size: 7}", "train_spec.steps=5",
        "test_spec.test_params.timesteps=[2]",
    )  # fmt: skip
    assert config.load(top) == expected
    assert config.load(top, ["train_spec.lr=1"]).train_spec.lr == 1
    assert "base" not in config.dump(expected)


def test_arguments_of_another_kind_are_not_inherited(tmp_path: Path) -> None:
    base = VMA.replace("scheduler: null  ", "scheduler: {kind: CosineAnnealingWarmRestarts, T_0: 7, eta_min: 1}  ")
    other = files(tmp_path, a="base: b.yaml\ntrain_spec: {scheduler: {kind: StepLR, step_size: 7}}\n", b=base)
    assert config.load(other) == vma("train_spec.scheduler={kind: StepLR, step_size: 7}")
    same = files(tmp_path, c="base: b.yaml\ntrain_spec: {scheduler: {T_0: 9}}\n")
    assert config.load(same) == vma("train_spec.scheduler={kind: CosineAnnealingWarmRestarts, T_0: 9, eta_min: 1}")


def test_a_mistake_names_the_file_in_which_it_stands(tmp_path: Path) -> None:
    base = VMA.replace("  lr: 1e-4", "  lr: -1").replace("precision: fp32", "precision: fp23")
    path = files(tmp_path, a="base: b.yaml\ntrain_spec: {stepz: 3}\ntrain_data: {resize: 8}\n", b=base)
    with pytest.raises(ConfigError) as caught:
        config.load(path, ["train_spec.precision=fp64"])
    beginnings = {" ".join(line.split(" ")[:2]) for line in str(caught.value).splitlines()}
    assert beginnings == {
        f"{path}: train_spec.stepz:",
        f"{path}: train_data.resize:",
        f"{tmp_path}/b.yaml: train_spec.lr:",
        "--set: train_spec.precision:",
    }


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, "b.yaml: base: {folder}/a.yaml is based on this file in turn"),
        ({"a": "base: a.yaml"}, "a.yaml: base: {folder}/a.yaml is based on this file in turn"),
        ({"a": "base: b.yaml"}, "a.yaml: base: {folder}/b.yaml: no such file"),
        ({"a": "base: b.yaml", "b": "- 1"}, "a.yaml: base: {folder}/b.yaml: expected sections"),
        ({"a": "base: b.yaml", "b": "a: &a 1"}, "a.yaml: base: {folder}/b.yaml: line 1: the anchor"),
        ({"a": "base: [b.yaml]"}, "a.yaml: base: value [b.yaml]: expected the name of a file, such as vma.yaml"),
        ({"a": "base: ."}, "a.yaml: base: {folder}: cannot be read: this is a folder"),
    ],
)
def test_a_base_that_is_refused(tmp_path: Path, contents: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(files(tmp_path, **contents))
    assert str(caught.value).startswith(f"{tmp_path}/{expected.format(folder=tmp_path)}")
    assert "\n" not in str(caught.value)


def test_a_base_that_is_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").symlink_to(tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match=r"base: .*b\.yaml: (no such file|cannot be read)"):
        config.load(files(tmp_path, a="base: b.yaml"))


def test_a_text_without_a_folder_has_no_base() -> None:
    assert "base: unknown key" in refusal("base: vma.yaml\n" + VMA)
    assert "base: unknown key" in refused("base=vma.yaml")


def test_validation_and_test_inherit_what_they_leave_out() -> None:
    text = VMA.replace("val_data: ", "unread: ")[: VMA.index("val_data: ")] + VMA[VMA.index("train_spec:") :]
    c = config.parse(text, "a.yaml", ["train_data.resize=28", "train_data.timesteps=16", "train_data.batch_size=64"])
    images = ("kind", "root", "batch_size", "resize", "split", "resample", "classes")
    memories = ("timesteps", "exact", "max_img_per_class", "max_batch_cls")
    for key in images:
        assert getattr(c.val_data, key) == getattr(c.test_data, key) == getattr(c.train_data, key)
    for key in memories:
        assert getattr(c.val_data, key) == getattr(c.train_data, key)
    assert (c.test_data.timesteps, c.test_data.max_img_per_class, c.val_data.iter) == (0, None, None)
    one_class = config.parse(text, "a.yaml", ["val_data.max_batch_cls=1", "val_data.timesteps=5"])
    assert (one_class.val_data.max_batch_cls, one_class.val_data.max_img_per_class) == (1, None)


def test_a_mistake_that_is_inherited_is_told_once() -> None:
    text = VMA.replace("resize: 26 ", "resize: 8 ").replace("kind: omniglot ", "kind: omniglott ")
    assert len(refusal(text).splitlines()) == 2
    assert len(refusal(text, "val_data=null", "test_data.resize=9").splitlines()) == 4
    inherited = refusal(
        VMA, "train_data.timesteps=49", "train_data.max_img_per_class=1", "train_data.targets_per_memory=1"
    )
    assert inherited.count("\n") == 0 and inherited.startswith(
        "a.yaml: train_data.held_out_classes: 48 classes are too"
    )


def test_the_resolved_configuration_is_printed_without_torch() -> None:
    code = "import sys, run; status = run.main(sys.argv[1:]); sys.exit(status or 9 * ('torch' in sys.modules))"
    arguments = ["--config", "configs/mnist.yaml", "--print-config", "--set", "train_spec.lr=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert config.parse(done.stdout, "printed") == config.load(ROOT / "configs" / "mnist.yaml", ["train_spec.lr=1"])


# --- the strict part of YAML ------------------------------------------------------------------------------------------

PARSERS = [loader for loader in (getattr(yaml, "CSafeLoader", None), yaml.SafeLoader) if loader]


@pytest.fixture(params=PARSERS, ids=lambda loader: loader.__name__)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "_LOADER", request.param)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise(LETTERS))


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "line 1: the anchor &a"),
        ("a: &a [*a]\n", "the anchor &a"),
        ("a: *b\n", "the alias *b"),
        ("<<: *b\n", "the alias *b"),
        ("a: !!int '3'\n", "the tag"),
        ("a: !mine 3\n", "the tag !mine"),
        ("a: ! 3\n", "the tag"),
        ("!!map {a: 1}\n", "the tag"),
        ("[" * 20_000, "nested deeper than 20"),
        ("{a: " * 20_000, "nested deeper than 20"),
        ("- " * 20_000, "nested deeper than 20"),
        ("[" * 21 + "]" * 21, "nested deeper than 20"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key a is given twice"),
        ("s:\n  k: 1\n  k: 1\n", "line 3: the key k is given twice"),
        ("s: {k: 1, 'k': 2}\n", "the key k is given twice"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("? [a, b]\n: 1\n", "a key that is a list"),
        ("{{a: 1}: 2}\n", "a key that is a list"),
        ("a: 010\n", "010: is this decimal or octal? Write 10"),
        ("a: -007\n", "Write 7"),
        ("a: " + "9" * 5000, "more than 18 digits"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "not valid YAML"),
        ("a: \udcff\n", "not valid YAML"),
        ("- x\n" * 20_000, "more than 10,000 values"),
        (" " * 1_000_001, "longer than"),
    ],
)
def test_yaml_that_is_refused(text: str, expected: str) -> None:
    start = time.process_time()
    with pytest.raises(strict_yaml.StrictYamlError) as caught:
        strict_yaml.parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 2


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e5", 100_000), ("1.5E3", 1500.0), ("+.5", 0.5), ("3.", 3.0), ("-2", -2), ("0", 0),
        ("12:30", "12:30"), ("1_000", "1_000"), ("0x10", "0x10"), ("2001-01-01", "2001-01-01"), ("45-5", "45-5"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("tRUE", "tRUE"), ("1..5", "1..5"),
        ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("Null", None),
        ("'1'", "1"), ('"true"', "true"), ("''", ""), ("'010'", "010"), ("=", "="), ("<<", "<<"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    read = strict_yaml.parse(f"a: {text}\nb: [{text or '~'}]\n")
    assert read == {"a": value, "b": [value]}
    assert isinstance(read, dict)
    assert type(read["a"]) is type(value)


@pytest.mark.usefixtures("parser")
def test_twenty_levels_are_read() -> None:
    assert strict_yaml.parse("[" * 20 + "]" * 20)


@pytest.mark.parametrize("key", ["model: ", "train_spec:\n  lr: ", ""])
def test_python_tags_never_run(tmp_path: Path, key: str) -> None:
    canary = tmp_path / "canary"
    text = f"{key}!!python/object/apply:os.mkdir ['{canary}']\n"
    yaml.unsafe_load(text)
    assert canary.exists(), "the attack has to be a real one"
    canary.rmdir()
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="tag"):
        config.load(path)
    assert not canary.exists()


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(), st.text(alphabet="abk:-[]{},&*!#|>'\"%@?~ \n\t01.e"), st.text(st.characters(max_codepoint=255))
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    for source in (text, VMA + text, VMA.replace("bernoulli", text)):
        try:
            config.parse(source, "a.yaml")
        except ConfigError as error:
            assert str(error).startswith("a.yaml: ")
            assert all(c.isprintable() or c == "\n" for c in str(error))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train_spec.lr=fast", "train_spec.lr: value 'fast': expected a valid number"),
        ("train_spec.lr=0", "train_spec.lr: value 0: expected greater than 0"),
        ("train_spec.lr=.inf", "train_spec.lr: value '.inf': expected a valid number"),
        ("train_spec.lr=.nan", "train_spec.lr: value '.nan': expected"),
        ("train_spec.lr=1e999", "train_spec.lr: value inf: expected a finite number"),
        ("train_spec.lr=true", "train_spec.lr: value true: expected a valid number"),
        ("train_spec.lr='1e-3'", "train_spec.lr: value '1e-3': expected a valid number"),
        ("train_spec.steps=1.5", "train_spec.steps: value 1.5: expected a whole number"),
        ("train_spec.steps=true", "train_spec.steps: value true: expected a whole number"),
        ("model.orders=true", "model.orders: value true: expected 1, 2, 4 or 8"),
        ("model.orders=3", "model.orders: value 3: expected 1, 2, 4 or 8"),
        ("model.scales=1", "model.scales: value 1: expected a list of numbers, such as [0.8, 1, 1.25]"),
        ("train_spec.gradient_samples=true", "train_spec.gradient_samples: value true: expected all or 1"),
        ("train_spec.steps=0", "train_spec.steps: value 0: expected greater than or equal to 1"),
        ("train_spec.steps=1e17", "train_spec.steps: value"),
        ("train_spec.steps=null", "train_spec.steps: value null: expected a whole number"),
        ("train_spec.gpus=[0, 0]", "train_spec.gpus: value [0, 0]: expected every number once"),
        ("train_spec.gpus=[-1]", "train_spec.gpus: value [-1]: expected auto"),
        ("train_spec.gpus=all", "train_spec.gpus: value 'all': expected auto"),
        ("train_spec.optimizer=adan", "train_spec.optimizer: value 'adan': expected one of Adam, AdamW"),
        ("train_spec.objective=iwae", "train_spec.objective: value 'iwae': expected 'vimco' or 'marginal'"),
        ("train_spec.ema_decay=1", "train_spec.ema_decay: value 1: expected less than 1"),
        ("train_spec.grad_clip=0", "train_spec.grad_clip: value 0: expected greater than 0"),
        ("train_spec.checkpoint_path=3", "train_spec.checkpoint_path: value 3: expected text"),
        ('train_spec.checkpoint_path="a\\0b"', "train_spec.checkpoint_path: value"),
        ("train_spec.log_file=''", "train_spec.log_file: value '': expected text that is not empty"),
        ("train_spec.scheduler={gamma: 1}", "train_spec.scheduler.kind: missing"),
        ("train_spec.scheduler={kind: StepLR, step_size: {b: 1}}", "train_spec.scheduler.step_size: value"),
        ("train_spec.scheduler={kind: MultStepLR}", "expected one of ConstantLR, "),
        ("train_spec.scheduler={kind: MultStepLR}", "; did you mean MultiStepLR?"),
        ("train_spec.optimizer=AdanW", "; did you mean AdamW?"),
        (
            "train_spec.scheduler={kind: ReduceLROnPlateau}",
            "kind: value 'ReduceLROnPlateau': expected one of",
        ),
        ("train_spec.scheduler={kind: StepLR, step_size: 3, 'a b': 1}", "train_spec.scheduler.a b: unknown key"),
        ("train_spec.scheduler=StepLR", "train_spec.scheduler: expected a section with keys, found 'StepLR'"),
        (
            "train_data.kind=omniglott",
            "train_data.kind: value 'omniglott': expected one of omniglot, mnist, gly",
        ),
        ("train_data.resize=19", "train_data.resize: value 19: expected greater than or equal to 20"),
        ("train_data.resize=65", "train_data.resize: value 65: expected less than or equal to 64"),
        ("train_data.resize=[26, 28]", "train_data.resize: value [26, 28]: expected one number or two equal ones"),
        ("train_data.augment=flip", "train_data.augment: expected a section with keys, found 'flip'"),
        ("train_data.augment.flip=true", "train_data.augment.flip: unknown key; did you mean flips?"),
        ("train_data.augment.keep=2", "train_data.augment.keep: value 2: expected less than or equal to 1"),
        (
            "train_data.mixture=[{timesteps: 4, max_img_per_class: 4, wieght: 1}]",
            "train_data.mixture[0].wieght: unknown key; did you mean weight?",
        ),
        (
            "train_data.mixture=[{timesteps: 30, max_img_per_class: 4}]",
            "train_data.mixture[0].timesteps: 30 is not a multiple of max_img_per_class 4",
        ),
        (
            "train_data.mixture=[{timesteps: 4, max_img_per_class: 4, targets_per_memory: 3}]",
            "train_data.mixture[0].targets_per_memory: 3 does not divide batch_size 256; use 2 or 4",
        ),
        (
            "train_data.mixture=[{timesteps: 20, max_img_per_class: 20}]",
            "train_data.mixture[0].max_img_per_class: 20 puts 20 images of a class into a memory",
        ),
        ("train_data.exact=yes", "train_data.exact: value 'yes': expected true or false"),
        ("train_data.mixture=5", "train_data.mixture: value 5: expected a list, such as [{timesteps: 5, max_img_per_"),
        ("model.autoencoder.channels=5", "channels: value 5: expected two whole numbers, such as [48, 64]"),
        ("model.autoencoder.channels=[5]", "channels: value [5]: expected two whole numbers, such as [48, 64]"),
        ("train_data.root=null", "train_data.root: missing; kind omniglot needs the folder"),
        ("train_data.classes=100", "train_data.classes: 100 is for kind glyphs"),
        ("val_data.classes=100", "val_data.classes: 100 is for kind glyphs"),
        ("test_spec.metric=fid", "test_spec.metric: value 'fid': expected elbo"),
        (
            "test_spec.test_params.timesteps=[]",
            "test_spec.test_params.timesteps: value []: expected at least one whole number, such as [1..5, 10]",
        ),
        ("test_spec.test_params.timesteps=5", "test_spec.test_params.timesteps: value 5: expected a list"),
        ("test_spec.test_params.timesteps=[1..5, 3]", "expected every number once, 3 is there twice"),
        ("test_spec.test_params.timesteps=[5..1]", "expected a range 5..1 that rises"),
        ("test_spec.test_params.timesteps=[1..999999999]", "expected a range 1..999999999 that rises, by less"),
        ("test_spec.test_params.timesteps=[1, x]", "test_spec.test_params.timesteps[1]: value 'x': expected a whole"),
        ("test_spec.test_params.max_batch_cls=[0]", "test_spec.test_params.max_batch_cls[0]: value 0: expected"),
        ("model.channels=[1, 2, 3]", "model.autoencoder.channels: value [1, 2, 3]"),
        ("model.channels=[1, 0]", "model.autoencoder.channels[1]: value 0: expected greater than or equal to 1"),
        ("model.lr=1", "model.lr: unknown key; expected one of kind, read"),
        ("model.latent_dmi=3", "model.latent_dmi: unknown key; did you mean latent_dim?"),
        ("train_dat.kind=mnist", "train_dat: unknown key; did you mean train_data?"),
        ("model=null", "model: expected a section with keys, found null"),
        ("model=[1]", "model: expected a section with keys, found a list"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override: str, expected: str) -> None:
    lines = refused(override).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("--set: ")
    assert expected in lines[0]


def test_the_way_out_of_several_problems_is_one_that_solves_all() -> None:
    said = refused("train_data.mixture=[{timesteps: 5, max_img_per_class: 5, targets_per_memory: 48}]")
    lines = said.replace("--set: train_data.mixture[0].", "").splitlines()
    assert lines[0] == "targets_per_memory: 48 does not divide batch_size 256; use 8"
    assert lines[1].startswith("targets_per_memory: 48 puts 5 images") and lines[1].endswith("; use 8")
    vma("train_data.mixture=[{timesteps: 5, max_img_per_class: 5, targets_per_memory: 8}]")


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = VMA.replace("latent_dim: 64", "latent_dmi: many").replace("  lr: 1e-4", "  lr: -1")
    text = text.replace("  steps: 1e5", "  stepz: 1e5").replace("importance_num: 4", "importance_num: 1")
    text = text.replace("output: runs/vma ", "# ").replace("  checkpoint_path: null ", "  checkpoint_path: a.pt  ", 1)
    text = text.replace("timesteps: 32             #", "timesteps: 30  #")
    path = tmp_path / "a.yaml"
    path.write_text(text + "extra: 1\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert {line.removeprefix(f"{path}: ").split(":")[0] for line in lines} == {
        "extra",
        "model.latent_dmi",
        "model.latent_dim",  # what was meant is checked, too
        "train_spec.stepz",
        "train_spec.lr",
        "test_spec.output_file",
        "train_data.timesteps",
    }
    # Only what needs a section that is wrong by itself has to wait.
    text = text.replace("latent_dmi: many", "latent_dim: 4").replace("lr: -1", "lr: 1")
    assert "model.importance_num" in refusal(text)


def test_missing_sections_and_keys() -> None:
    message = refusal("model: {}\ntrain_data: {kind: mnist}\n")
    for key in ("train_spec", "test_spec"):
        assert f"a.yaml: {key}: missing section; its keys are" in message
    for key in ("batch_size", "timesteps", "exact"):
        assert f"a.yaml: train_data.{key}: missing" in message
    assert "val_data" not in message and "test_data" not in message, "they take from train_data what they leave out"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.importance_num=1"],
         ["model.importance_num: 1 is too few for train_spec.objective vimco", "use 2 or more, or objective marginal"]),
        (["train_data.timesteps=30", "train_data.targets_per_memory=1"],
         ["train_data.timesteps: 30 is not a multiple of max_img_per_class 4", "use 28 or 32"]),
        (["train_data.timesteps=30"], ["not a multiple of max_img_per_class 4", "use 16 or 32"]),  # 16 targets stay
        (["val_data.max_img_per_class=null", "val_data.max_batch_cls=5"],
         ["val_data.timesteps: 32 is not a multiple of max_batch_cls 5", "use 30 or 35"]),
        (["val_data.max_img_per_class=null", "val_data.max_batch_cls=2", "val_data.exact=false"],
         ["val_data.timesteps: 32 puts 32 images of a class into a memory", "a class has 20", "use 19"]),
        (["val_data.max_img_per_class=null", "val_data.max_batch_cls=1"], ["val_data.timesteps: 32 puts 32", "use 19"]),
        (["train_data.max_img_per_class=32", "train_data.targets_per_memory=1"],
         ["train_data.max_img_per_class: 32 puts 32 images", "use 16"]),
        (["val_data.max_img_per_class=20", "val_data.exact=false"],
         ["val_data.max_img_per_class: 20 puts 20 images", "use 19"]),
        (["train_data.max_img_per_class=16"], ["train_data.max_img_per_class: 16 puts 16 images", "8 targets"]),
        (["train_data.targets_per_memory=12", "train_data.batch_size=240"],
         ["train_data.targets_per_memory: 12 is not a multiple of 8", "timesteps 32", "use 8 or 16"]),
        (["train_data.exact=false"], ["train_data.targets_per_memory: 16", "exact: true", "use 1"]),
        (["train_data.timesteps=0"], ["train_data.targets_per_memory: 16", "use 1"]),
        (["train_data.batch_size=250"],
         ["train_data.batch_size: 250 is not a multiple of targets_per_memory 16", "use 240 or 256"]),
        (["train_data.max_batch_cls=2"], ["train_data.max_img_per_class: 4 is given beside max_batch_cls 2", "null"]),
        (["val_data.max_img_per_class=null"], ["val_data.timesteps: 32 needs max_img_per_class or max_batch_cls"]),
        (["train_data.held_out_classes=7"],
         ["train_data.held_out_classes: 7", "val_data", "timesteps 32", "use 0 (no validation), 8 or more"]),
        (["train_data.held_out_classes=964"],
         ["train_data.held_out_classes: 964 leaves nothing to train on", "use fewer"]),
        (["train_data.held_out_classes=960"], ["train_data.timesteps: 32 may need 8 classes", "4 are there", "use 16"]),
        (["model.num_dummies=0", "test_spec.test_params.timesteps=[0, 1]"],
         ["test_spec.test_params.timesteps: 0", "model.num_dummies is 0", "use 1 or more"]),
        (["model.num_dummies=0", "val_data.timesteps=0"], ["val_data.timesteps: 0", "model.num_dummies is 0"]),
        (["test_spec.test_params.timesteps=[1, 20]"], ["test_spec.test_params.timesteps: 20 is more than 19"]),
        (["test_spec.test_params.max_batch_cls=[660]"], ["test_spec.test_params.max_batch_cls: 660 is more than 659"]),
        (["test_spec.metric=nll"], ["test_spec.metric: nll is an exact sum over addresses; with model.latent_dim 64"]),
        (["test_spec.metric=elbo@10"], ["test_spec.metric: elbo@10 differs from test_spec.importance_num 1000"]),
        (["test_spec.addresses=64"], ["test_spec.addresses: 64 of the addresses", "use null, or metric nll"]),
        (["test_spec.sampled_addresses=4"], ["test_spec.sampled_addresses: 4", "use 0, or a number of addresses"]),
        (["test_spec.address_rounds=2"], ["test_spec.address_rounds: 2", "is null; use 1, or at least 2"]),
        (["test_data.resize=28"], ["test_data.resize: 28 differs from train_data.resize 26"]),
        (["val_data.resample=maxpool"], ["val_data.resample: maxpool differs from train_data.resample nearest-exact"]),
        (["test_data.split=45-5"], ["test_data.split: 45-5 differs from train_data.split official"]),
        (["test_data.kind=glyphs"], ["test_data.kind: glyphs differs from train_data.kind omniglot"]),
        (["train_spec.checkpoint_path=a.safetensors"],
         ["train_spec.checkpoint_path: a.safetensors does not end in .pt"]),
        (["train_spec.checkpoint_path=runs/lr0.001"], ["train_spec.checkpoint_path: runs/lr0.001 does not end in .pt"]),
        (["train_data.mixture=[{timesteps: 4, max_img_per_class: 2, weight: 1e39}]"],
         ["train_data.mixture[0].weight: value 1e+39", "1000000"]),
        (["train_spec.warmup=9", "train_spec.steps=8"], ["train_spec.warmup: 9 is more than train_spec.steps 8"]),
    ],
)  # fmt: skip
def test_contradictions_name_both_fields_and_values_that_work(overrides: list[str], expected: list[str]) -> None:
    lines = refused(*overrides).splitlines()
    assert len(lines) == 1, lines
    for part in expected:
        assert part in lines[0]


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({
        "timesteps": st.integers(1, 64), "number": st.integers(1, 24), "exact": st.booleans(),
        "by_class": st.booleans(), "targets_per_memory": st.integers(1, 24), "batch_size": st.integers(1, 64),
    })
)  # fmt: skip
def test_the_values_that_are_suggested_work(data: dict[str, Any]) -> None:
    """Wherever one line is listed, following any of its suggestions gives a configuration that loads."""
    keys = ("max_batch_cls", "max_img_per_class") if data["by_class"] else ("max_img_per_class", "max_batch_cls")
    given_keys = [f"train_data.{key}={data[key]}" for key in ("timesteps", "targets_per_memory", "batch_size")]
    given_keys += [f"train_data.{keys[0]}={data['number']}", f"train_data.{keys[1]}=null"]
    given_keys += [f"train_data.exact={data['exact']}"]
    given_keys += ["val_data.timesteps=32", "val_data.max_img_per_class=4", "val_data.exact=true"]
    try:
        vma(*given_keys)
    except ConfigError as error:
        lines = str(error).splitlines()
        if len(lines) > 1:
            return
        found = re.fullmatch(r"--set: ([a-z_.]+): .*; use (\d+)(?: or (\d+))?", lines[0])
        if not found:
            assert "no value of it works" in lines[0]
            return
        for value in filter(None, found.groups()[1:]):
            vma(*given_keys, f"{found[1]}={value}")


def test_mnist_has_no_classes_to_hold_out() -> None:
    text = complete("mnist.yaml")
    message = refusal(text, "train_data.held_out_classes=48")
    assert "train_data.held_out_classes: 48" in message
    assert "mnist" in message
    assert "use 0" in message
    assert "max_batch_cls: 11 is more than 10" in refusal(text, "test_spec.test_params.max_batch_cls=[11]")
    assert "may need 32 classes" in refusal(text, "train_data.exact=false", "train_data.targets_per_memory=1")
    config.parse(text, "mnist.yaml", ["test_spec.test_params.timesteps=[1..50]"])  # its classes are large


def test_glyphs_need_no_folder_and_agree_on_the_classes() -> None:
    text = complete("quickstart.yaml")
    assert config.parse(text, "q").train_data.root is None
    assert "val_data.classes: 200 differs from train_data.classes 100" in refusal(text, "train_data.classes=100")
    assert "max_batch_cls: 61 is more than 60" in refusal(text, "test_spec.test_params.max_batch_cls=[61]")
    assert "train_data.split: 45-5 is for kind omniglot" in refusal(text, "train_data.split=45-5")


def test_an_empty_memory_is_fine_with_dummies() -> None:
    c = vma("train_data.timesteps=0", "train_data.targets_per_memory=1", "test_spec.test_params.timesteps=[0]")
    assert c.train_data.timesteps == 0


def test_a_contradictory_object_cannot_be_made() -> None:
    c = vma()
    with pytest.raises(ValidationError, match="importance_num: 1 is too few"):
        Config(**{**dict(c), "model": config.ModelConfig(importance_num=1)})


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            "MultiStepLR, milestones: 60000",
            "milestones: value 60000: expected a list of numbers of steps, such as [",
        ),
        ("MultiStepLR, milestones: []", "milestones: value []: expected a list"),
        ("MultiStepLR", "milestones: missing; this key has no default"),
        ("StepLR", "step_size: missing"),
        ("StepLR, step_size: 3, gama: 0.1", "gama: unknown key; did you mean gamma?"),
        ("StepLR, step_size: 3, optimizer: 1", "optimizer: unknown key; expected one of kind, step_size, gamma"),
        ("StepLR, step_size: 3, last_epoch: 5", "last_epoch: unknown key"),
        ("StepLR, step_size: 0", "step_size: value 0: expected greater than or equal to 1"),
        ("StepLR, step_size: three", "step_size: value 'three': expected a whole number"),
        ("StepLR, step_size: 1.5", "step_size: value 1.5: expected a whole number"),
        ("StepLR, step_size: 3, gamma: half", "gamma: value 'half': expected a valid number"),
        ("StepLR, step_size: 3, gamma: true", "gamma: value true: expected a valid number"),
        ("ExponentialLR, gamma: null", "gamma: value null: expected a valid number"),
        (
            "CosineAnnealingLR, T_max: 99999",
            "T_max: 99999 is less than the 100000 steps of the schedule; use 100000",
        ),
        ("CosineAnnealingWarmRestarts, T_0: 0", "T_0: value 0: expected greater than or equal to 1"),
        ("OneCycleLR, max_lr: 0.1", "total_steps: missing"),
        ("OneCycleLR, max_lr: 0.1, total_steps: 9", "total_steps: 9 is less than the 100000 steps"),
        ("OneCycleLR, max_lr: 1, total_steps: 1e5, anneal_strategy: up", "value 'up': expected 'cos' or 'linear'"),
        ("OneCycleLR, max_lr: 1, total_steps: 1e5, three_phase: 1", "three_phase: value 1: expected true or false"),
        ("OneCycleLR, max_lr: 1, total_steps: 1e5, pct_start: 2", "value 2: expected less than or equal to 1"),
        ("CyclicLR, base_lr: 0.1", "max_lr: missing"),
        ("LinearLR, start_factor: 7", "start_factor: value 7: expected less than or equal to 1"),
    ],
)
def test_arguments_of_a_scheduler_are_checked_with_the_configuration(scheduler: str, expected: str) -> None:
    said = refused(f"train_spec.scheduler={{kind: {scheduler}}}")
    assert said.startswith("--set: train_spec.scheduler.") and expected in said and len(said.splitlines()) == 1


def test_a_scheduler_may_be_written_in_any_case_and_its_steps_as_a_power() -> None:
    c = vma("train_spec.scheduler={kind: MultiStepLr, milestones: [6e4, 8.5e4]}")
    assert c.train_spec.scheduler is not None
    assert c.train_spec.scheduler.kind == "MultiStepLR"
    assert c.train_spec.scheduler.arguments["milestones"] == (60_000, 85_000)
    vma("train_spec.warmup=9e4", "train_spec.scheduler={kind: CosineAnnealingLR, T_max: 1e4}")


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_set_and_create_keys() -> None:
    c = vma("train_spec.steps=2e2", "train_spec.scheduler.kind=StepLR", "train_spec.scheduler.step_size=30")
    assert c.train_spec.steps == 200
    assert c.train_spec.scheduler is not None
    assert c.train_spec.scheduler.arguments == {"step_size": 30, "gamma": 0.1}
    either_first = ("train_spec.scheduler.gamma=0.5", "train_spec.scheduler.kind=ExponentialLR")
    other = "train_spec.scheduler={kind: StepLR, gamma: 0.1}"
    assert vma(*either_first) == vma(*reversed(either_first)) == vma(other, *either_first)
    assert vma("train_data.root=a=b").train_data.root == "a=b"
    assert vma("test_spec.test_params.timesteps=[1..3, 7]").test_spec.test_params.timesteps == (1, 2, 3, 7)
    assert config.parse(PUBLISHED, "a", ["train_data.split=official", "model.num_dummies=3"]).model.num_dummies == 3


def test_alternative_keys_are_exchanged_by_two_overrides() -> None:
    c = vma("train_data.max_img_per_class=null", "train_data.max_batch_cls=2", "train_data.targets_per_memory=1")
    assert (c.train_data.max_img_per_class, c.train_data.max_batch_cls) == (None, 2)


# --- where the files of a run go --------------------------------------------------------------------------------------


def places(c: Config) -> tuple[str, str | None, str]:
    """Weights, log and table."""
    return c.train_spec.checkpoint_path, c.train_spec.log_file, c.test_spec.output_file


def in_folder(name: str) -> tuple[str, str, str]:
    return f"{name}/vma.pt", f"{name}/train.jsonl", f"{name}/results.csv"


SINGLE = ("train_spec.checkpoint_path=a/w.pt", "train_spec.log_file=a/l.jsonl", "test_spec.output_file=a/t.csv")


def test_one_folder_holds_a_run() -> None:
    assert places(vma()) == in_folder("runs/vma")
    assert places(vma("output=o")) == places(vma(*SINGLE, "output=o")) == in_folder("o")
    assert places(vma("output=o", *SINGLE)) == ("a/w.pt", "a/l.jsonl", "a/t.csv")
    assert places(vma("output=o/", "test_spec.output_file=a/t.csv")) == ("o/vma.pt", "o/train.jsonl", "a/t.csv")
    assert places(vma("train_spec.checkpoint_path=null")) == in_folder("runs/vma")


def test_a_folder_given_later_takes_all_files_of_a_run(tmp_path: Path) -> None:
    """Whether an earlier file gave a folder or single paths; a path of the same file stays."""
    (tmp_path / "single.yaml").write_text(PUBLISHED)
    (tmp_path / "mine.yaml").write_text("base: single.yaml\noutput: o\ntrain_spec: {log_file: l.jsonl}\n")
    assert places(config.load(tmp_path / "single.yaml")) == ("runs/a.pt", "runs/a.log", "runs/a.csv")
    assert places(config.load(tmp_path / "mine.yaml")) == ("o/vma.pt", "l.jsonl", "o/results.csv")
    given = config.overrides(output="p", seed=3)
    for name in ("single", "mine"):
        c = config.load(tmp_path / f"{name}.yaml", given)
        assert (places(c), c.train_spec.seed, c.test_checkpoint) == (in_folder("p"), 3, "p/vma.pt")
    assert config.parse(config.dump(c), "resolved") == c


def test_the_weights_of_the_test_are_those_of_the_training_wherever_they_go() -> None:
    """The published file names them twice."""
    text = yaml.safe_dump(SHIPPED_WITH_THE_PUBLISHED_CODE).replace("'", "")
    assert config.parse(text, "vma.yaml", ["output=o"]).test_checkpoint == "o/vma.pt"
    assert vma("test_spec.checkpoint_path=b.pt", "output=o").test_checkpoint == "b.pt"


PATHS = ("train_data.root", "train_spec.checkpoint_path", "train_spec.log_file", "train_spec.init_from",
         "test_spec.checkpoint_path", "test_spec.output_file")  # fmt: skip


def test_home_and_variables_are_replaced_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HERE", "there")
    ends = {"train_spec.checkpoint_path": ".pt", "test_spec.output_file": ".csv"}
    for written, meant in (("~/$HERE", "/home/me/there"), ("a/${HERE}x", "a/therex")):
        c = vma(*(f"{path}={written}{ends.get(path, '')}" for path in PATHS))
        for path in PATHS:
            section, _, key = path.partition(".")
            assert getattr(getattr(c, section), key) == meant + ends.get(path, ""), path
        assert c.val_data.root == c.test_data.root == meant
        assert places(vma(*config.overrides(output=written))) == in_folder(meant)
    (tmp_path / "b.yaml").write_text(VMA)
    (tmp_path / "a.yaml").write_text("base: $FOLDER/b.yaml\n")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    assert config.load(tmp_path / "a.yaml") == vma()
    monkeypatch.delenv("FOLDER")
    with pytest.raises(ConfigError, match=r"base: value .*: the environment variable FOLDER is not set"):
        config.load(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", [*PATHS, "output"])
def test_a_path_that_stands_for_nothing_is_said(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    for written in ("a/$NOPE/x", "${NOPE}"):
        said = refused(f"{path}={written}")
        assert said.startswith(f"--set: {path}: value '{written}") and len(said.splitlines()) == 1
        assert "the environment variable NOPE is not set" in refused(f"{path}={written}")
    assert "the home folder ~nobody-at-all is not known" in refused(f"{path}=~nobody-at-all/x")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("output=3", "output: value 3: expected text that is not empty"),
        ("output=''", "output: value '': expected text that is not empty"),
        ("output=[a]", "output: value [a]: expected text"),
        ("outputs=a", "outputs: unknown key; did you mean output?"),
    ],
)
def test_a_folder_that_is_none(override: str, expected: str) -> None:
    assert refused(override).startswith(f"--set: {expected}")
    assert len(refused(override).splitlines()) == 1


def test_without_a_folder_the_paths_are_needed_but_for_the_log() -> None:
    text = VMA.replace("output: runs/vma ", "# ")
    said = refusal(text).splitlines()
    way_out = "missing; give the folder of the run, such as output: runs/mine, or this path"
    assert said == [f"a.yaml: train_spec.checkpoint_path: {way_out}", f"a.yaml: test_spec.output_file: {way_out}"]
    assert places(config.parse(text, "a", [SINGLE[0], SINGLE[2]])) == ("a/w.pt", None, "a/t.csv")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train_spec.steps", "expected dotted.key=value"),
        ("=3", "expected dotted.key=value"),
        ("train_spec.=3", "expected dotted.key=value"),
        ("train_spec.steps=", "empty; write null for nothing"),
        ("train_spec.steps=[1", "not valid YAML"),
        ("train_spec.steps=010", "decimal or octal"),
        ("train_spec.steps=!!python/name:os.system x", "the tag"),
        ("train_spec.steps.x=1", "train_spec.steps: value {x: 1}: expected a whole number"),
        ("train_data.mixture[0].timesteps=3", "train_data.mixture[0]: unknown key; did you mean mixture?"),
    ],
)
def test_overrides_that_are_refused(override: str, expected: str) -> None:
    message = refused(override)
    assert message.startswith(("--set ", "--set: "))
    assert expected in message


# --- the resolved object ----------------------------------------------------------------------------------------------


def test_frozen_and_hashable() -> None:
    c = vma("train_spec.scheduler={kind: MultiStepLR, milestones: [1, 2]}")
    assert hash(c) == hash(config.parse(config.dump(c), "dump"))
    with pytest.raises(ValidationError):
        c.model.latent_dim = 3
    assert c.train_spec.scheduler is not None
    with pytest.raises(ValidationError):
        c.train_spec.scheduler.gamma = 1  # type: ignore[attr-defined]


def test_resolved_intervals_and_checkpoint() -> None:
    c = vma()
    assert (c.val_every, c.save_every, c.test_checkpoint) == (72, 72, "runs/vma/vma.pt")
    c = vma("train_data.iter=null", "train_spec.save_every=7", "test_spec.checkpoint_path=b.pt")
    assert (c.val_every, c.save_every, c.test_checkpoint) == (1000, 7, "b.pt")


texts = st.one_of(
    st.sampled_from(
        ["1e5", "yes", "null", "010", "~", "12:30", "- a", "a: b", "#a", "a #b", " a ", "'", '"', "\\", "&a"]
    ),
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1),
)
paths = texts.filter(lambda text: "$" not in text and not text.startswith("~"))
finite = st.floats(allow_nan=False, allow_infinity=False)
naturals = st.integers(0, 10**15)
positives = st.integers(1, 10**15)
rates = st.floats(0, 1, exclude_min=True, exclude_max=True)


def of_its_kind(raw: dict[str, Any]) -> Any:
    return schema.of_kind(config.SchedulerSpec, raw["kind"]).model_validate(raw)


schedulers = st.one_of(
    st.fixed_dictionaries({"kind": st.just("StepLR"), "step_size": positives}, optional={"gamma": finite}),
    st.fixed_dictionaries({"kind": st.just("MultiStepLR"), "milestones": st.lists(positives, min_size=1).map(tuple)}),
    st.fixed_dictionaries(
        {"kind": st.just("CyclicLR"), "base_lr": finite, "max_lr": finite},
        optional={
            "step_size_down": st.none() | positives,
            "cycle_momentum": st.booleans(),
            "mode": st.just("exp_range"),
        },
    ),
).map(of_its_kind)
gpus: st.SearchStrategy[Any] = st.one_of(st.just("auto"), st.lists(st.integers(0, 99), unique=True).map(tuple))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any configuration that does not contradict itself, with memories of one to five classes of equal size."""
    kind = draw(st.sampled_from(["omniglot", "mnist", "glyphs", "folder"]))
    own, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    targets = draw(st.integers(1, 3)) * classes
    by_class = draw(st.booleans())
    shared: dict[str, Any] = {
        "kind": kind,
        "root": draw(paths),
        "exact": True,
        "timesteps": own * classes,
        "max_img_per_class": None if by_class else own,
        "max_batch_cls": classes if by_class else None,
        "resize": draw(st.integers(20, 64)),
        "resample": draw(st.sampled_from(["nearest-exact", "nearest", "maxpool"])),
        "split": draw(st.sampled_from(["official", "45-5"])) if kind == "omniglot" else "official",
        "iter": draw(st.none() | positives),
    }
    steps = draw(positives)
    return Config(
        model=config.ModelConfig(
            likelihood=draw(st.sampled_from(["bernoulli", "normal"])),
            latent_dim=draw(positives),
            importance_num=draw(st.integers(2, 10**9)),
            num_dummies=draw(positives),
            autoencoder=schema.PublishedAutoencoder(channels=draw(st.tuples(positives, positives))),
        ),
        train_data=config.TrainDataConfig(
            **shared,
            batch_size=draw(st.integers(1, 999)) * targets,
            targets_per_memory=1 if by_class else targets,
            held_out_classes=0 if kind == "mnist" else draw(st.sampled_from([0, 5, 48])),
        ),
        val_data=config.DataConfig(**shared, batch_size=draw(positives)),
        test_data=schema.TestDataConfig(**shared, batch_size=draw(positives)),
        train_spec=config.TrainSpec(
            checkpoint_path=draw(paths) + ".pt",
            log_file=draw(st.none() | paths.map(lambda text: text + ".jsonl")),
            gpus=draw(gpus),
            steps=steps,
            optimizer=draw(st.sampled_from(schema.OPTIMIZERS)),
            lr=draw(rates),
            weight_decay=draw(st.floats(0, 1e300)),
            scheduler=draw(st.none() | schedulers),
            seed=draw(naturals),
            grad_clip=draw(st.none() | rates),
            ema_decay=draw(rates),
            warmup=draw(st.integers(0, steps)),
            val_every=draw(st.none() | positives),
        ),
        test_spec=schema.TestSpec(
            output_file=draw(paths) + ".csv",
            gpus=draw(gpus),
            test_params=schema.TestParams(
                max_batch_cls=tuple(draw(st.lists(st.integers(1, 10), min_size=1, unique=True))),
                timesteps=tuple(draw(st.lists(st.integers(0, 19), min_size=1, unique=True))),
            ),
            targets=draw(st.none() | st.integers(1, 1200)),
            chunk=draw(st.none() | st.integers(1, 5000)),
        ),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_a_config_reads_back_to_the_same_object(c: Config) -> None:
    text = config.dump(c)
    assert config.parse(text, "dump") == c
    assert config.dump(config.parse(text, "dump")) == text
    assert yaml.safe_load(text), "any YAML reader takes it"


# --- what the test needs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("test_spec.targets=13181", "targets: 13181 is more than 13180, the images of test_data; use up to 13180"),
        ("test_spec.output_file=runs/table.md", "test_spec.output_file: runs/table.md does not end in .csv"),
        ("train_spec.log_file=runs/vma/vma.pt", "train_spec.log_file: runs/vma/vma.pt is the name of another file"),
    ],
)
def test_what_would_stop_the_test_is_found_before_the_training(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        vma(override)


def test_the_largest_test_is_accepted() -> None:
    assert vma("test_spec.targets=13180", "test_spec.chunk=100").test_spec.chunk == 100


def test_all_classes_of_mnist_are_trained_on_unless_asked_otherwise() -> None:
    text = complete("mnist.yaml")
    without = "\n".join(line for line in text.splitlines() if "held_out_classes" not in line)
    assert without != text
    assert config.parse(without, "mnist.yaml").train_data.held_out_classes == 0


def test_a_checkpoint_of_one_split_is_not_tested_on_the_other() -> None:
    parts = ("train_data", "val_data", "test_data")
    other = vma(*(f"{part}.split=45-5" for part in parts))
    assert any("test_data.split" in line for line in config.differences(vma(), other, only=config.MODEL_KEYS))


# --- differences ------------------------------------------------------------------------------------------------------


def test_differences_say_then_and_now() -> None:
    a = vma()
    grid = "test_spec.test_params.timesteps"
    b = vma(
        "train_spec.lr=1e-3",
        "train_spec.scheduler={kind: ExponentialLR, gamma: 1}",
        f"{grid}=[1]",
        "train_spec.steps=5",
    )
    assert config.differences(a, a) == []
    assert config.differences(a, b, ignore=config.MAY_CHANGE_ON_RESUME) == [
        "train_spec.lr: 0.0001 in the checkpoint, 0.001 now",
        "train_spec.scheduler: null in the checkpoint, not set now",
        "train_spec.scheduler.kind: not set in the checkpoint, ExponentialLR now",
        "train_spec.scheduler.gamma: not set in the checkpoint, 1.0 now",
    ]
    assert f"{grid}: [1, 2, 3, 4, 5, 10, 19] in the checkpoint, [1] now" in config.differences(a, b)
    assert config.differences(a, b, ignore=("train_spec.l",)) == config.differences(a, b), "a prefix ends at a dot"


def test_differences_that_matter_to_a_test() -> None:
    a = vma()
    harmless = vma("model.importance_num=9", "train_spec.lr=1", "test_spec.targets=3", "train_data.batch_size=16")
    assert config.differences(a, harmless, only=config.MODEL_KEYS) == []
    sizes = [f"{name}.resize=28" for name in ("train_data", "val_data", "test_data")]
    assert config.differences(a, vma("model.latent_dim=9", *sizes), only=config.MODEL_KEYS) == [
        "model.latent_dim: 64 in the checkpoint, 9 now",
        "test_data.resize: 26 in the checkpoint, 28 now",
    ]


@pytest.mark.parametrize("keys", [config.MAY_CHANGE_ON_RESUME, config.MODEL_KEYS])
def test_listed_keys_exist(keys: tuple[str, ...]) -> None:
    known = leaves(Config)
    assert [key for key in keys if key not in known and not any(k.startswith(f"{key}.") for k in known)] == []


def test_every_model_key_is_either_compared_or_free() -> None:
    assert {key for key in leaves(Config) if key.startswith("model.")} == {
        *(key.replace("autoencoder", "autoencoder.kind") for key in config.MODEL_KEYS if key.startswith("model.")),
        *(f"model.causal.{key}" for key in schema.CausalConfig.model_fields),
        "model.importance_num",
        "model.orders",
    } - {"model.causal"}


def test_the_page_of_all_keys_is_fresh() -> None:
    from config import reference

    assert reference.PAGE.read_text() == reference.page(), "run python -m config.reference"
    assert all(
        f"`{key.partition('.')[2]}`" in reference.PAGE.read_text() for key in leaves(Config) if ".kind" not in key
    )


# --- speed ------------------------------------------------------------------------------------------------------------


def test_no_torch_is_imported() -> None:
    code = "import sys, pathlib, config; config.load(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code, "configs/vma.yaml"], cwd=ROOT, check=False).returncode == 0
    assert time.monotonic() - start < 10
