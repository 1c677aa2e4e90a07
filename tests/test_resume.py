"""A run that was stopped and resumed is the run that was not: same losses, digit for digit, and same weights."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.logs import curves, logged, rows, same_end, same_weights
from helpers.program import main, main_apart
from helpers.tensorboard import tensorboard_clock, tensorboard_folder, tensorboard_scalars

import commands
import config as configuration
import parsers
from data.episodes import EpisodeLoader, Episodes
from runtime import checkpoints
from runtime.errors import UserError
from runtime.signals import StopRequest

PLAIN: tuple[str, ...] = ()
EVERYTHING = (
    "train_spec.ema_decay=0.9",
    "train_spec.warmup=3",
    "train_spec.scheduler={kind: StepLR, step_size: 2, gamma: 0.7}",
    "train_spec.grad_clip=50",
    "train_spec.optimizer=AdamW",
    "train_spec.weight_decay=0.1",
    "train_spec.objective=marginal",
    "train_spec.save_every=3",
)
NO_VALIDATION = (
    "train_data.held_out_classes=0",
    "train_spec.scheduler={kind: OneCycleLR, max_lr: 1e-2, total_steps: 10}",
)
VARIANTS = {"plain": PLAIN, "everything": EVERYTHING, "no validation": NO_VALIDATION}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a variant."""
    folders: dict[str, Path] = {}

    def run(variant: str) -> Path:
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("whole")
            assert main(folders[variant], "--train", *VARIANTS[variant]) == 0
        return folders[variant]

    return run


def test_a_training_may_begin_with_the_weights_of_another(
    whole: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that moves nothing leaves them, in the moving average too; a resumed run does not begin again."""
    weights = whole("plain") / "vma.pt"
    given = f"train_spec.init_from={weights}"
    still = ("train_spec.steps=1", "train_spec.lr=1e-30", "train_spec.ema_decay=0.9")
    assert main(tmp_path / "still", "--train", given, *still) == 0
    assert same_weights(tmp_path / "still" / "vma.pt", weights)
    assert not caplog.text

    once, twice = tmp_path / "once", tmp_path / "twice"
    other = ("train_spec.seed=1", "train_data.held_out_classes=0", "train_data.resample=nearest",
             "val_data.resample=nearest", "test_data.resample=nearest")  # fmt: skip
    assert main(once, "--train", given, *other) == 0
    assert main(twice, "--train", given, *other, "train_spec.steps=4") == 0
    assert main(twice, "--train", given, *other) == 0
    assert same_end(once, twice)


def test_a_restart_may_begin_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=1") == 0
    given = ("train_spec.steps=1", f"train_spec.init_from={tmp_path / 'vma.pt'}")
    before = (tmp_path / "vma.last.pt").read_bytes()
    assert main(tmp_path, "--train", "--restart", *given, "model.latent_dim=5") == 2
    assert (tmp_path / "vma.pt").exists() and (tmp_path / "vma.last.pt").read_bytes() == before
    with monkeypatch.context() as patch:  # as if killed when the files of the earlier run are gone
        patch.setattr(commands.train, "build_logger", lambda *args: (_ for _ in ()).throw(OSError("killed")))
        assert main(tmp_path, "--train", "--restart", *given) == 1
    assert (tmp_path / "vma.pt").exists() and not (tmp_path / "vma.last.pt").exists()
    assert main(tmp_path, "--train", "--restart", *given) == 0
    assert (tmp_path / "vma.last.pt").read_bytes() != before


def test_rows_are_not_added_to_the_log_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=2") == 0
    other = tmp_path / "other.jsonl"
    other.write_text(content := '{"subset": "train", "step": 9}\n')
    assert main(tmp_path, "--train", f"train_spec.log_file={other}") == 2
    assert "holds the log of another run" in capsys.readouterr().err
    assert other.read_text() == content
    other.unlink()
    assert main(tmp_path, "--train", f"train_spec.log_file={other}", "train_spec.steps=3") == 0
    assert [json.loads(row)["step"] for row in other.read_text().splitlines()] == [3, 3]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ("model.latent_dim=5", 2, "model.latent_dim: 4 in the checkpoint, 5 now"),
        ("model.latent_dim=5", 2, "vma.pt: its model is not the one of this configuration"),
        ("train_spec.init_from=absent.pt", 3, "absent.pt: there is no such checkpoint; train it first, or"),
        ("train_spec.init_from=config/small.yaml", 3, "config/small.yaml: damaged, or not a checkpoint"),
        ("train_spec.seed=1", 2, "trained on other classes, so that those held out now may be among them"),
        ("train_data.held_out_classes=2", 2, "train_data.held_out_classes: 3 in the checkpoint, 2 now"),
    ],
)
def test_weights_to_begin_with_that_do_not_fit_are_refused(
    whole: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    status: int,
    said: str,
) -> None:
    given = f"train_spec.init_from={whole('plain') / 'vma.pt'}"
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parsers, "training_images", None)  # it is found before images are read
    assert main(tmp_path, "--train", given, change) == status
    err = capsys.readouterr().err
    assert err.startswith("train_spec.init_from: ") and said in err
    assert "seed" in change or "classes" in change or "train_spec.init_from=null" in err, "the way out"
    assert not (tmp_path / "vma.pt").exists()


def test_weights_that_have_seen_the_classes_of_the_test_are_refused(tmp_path: Path) -> None:
    """45-5 trains on most of what the official split tests on; the other way round nothing is wrong."""

    def begun(then: str, now: str, *overrides: str) -> dict[str, torch.Tensor]:
        """What a training of the one configuration begins with, given weights of the other."""
        weights, networks = tmp_path / "weights.pt", ["model.channels=[4, 4]", "model.hidden=[8, 8]"]
        trained = configuration.load(ROOT / "configs" / then, networks)
        model = parsers.build_model(trained, torch.device("cpu")).state_dict()
        checkpoints.save(weights, {"config": configuration.dump(trained), "model": model})
        given = [*networks, f"train_spec.init_from={weights}", "model.address_prior=learned", *overrides]
        going_on = configuration.load(ROOT / "configs" / now, given)
        return commands.train.initial_weights(going_on)

    assert begun("vma_tuned.yaml", "vma_45-5.yaml").keys() == begun("vma_tuned.yaml", "vma_tuned.yaml").keys()
    with pytest.raises(UserError, match=r"weights\.pt: trained on classes that the official split tests on"):
        begun("vma_45-5.yaml", "vma_tuned.yaml", "train_data.held_out_classes=0")
    with pytest.raises(UserError, match=r"train_data\.split: official in the checkpoint, 45-5 now"):
        begun("vma_tuned.yaml", "vma_45-5.yaml", "train_data.held_out_classes=48")


def test_weights_are_refused_for_what_weights_before_them_have_seen(tmp_path: Path) -> None:
    """Trained on the 45-5 split, then on drawings of one's own, then used for the official split."""
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"

    def configured(*overrides: str) -> configuration.Config:
        small = ("model.channels=[4, 4]", "model.hidden=[8, 8]", "train_data.held_out_classes=0")
        return configuration.load(ROOT / "configs" / "vma_tuned.yaml", [*small, *overrides])

    for path, config in (
        (first, configured("train_data.split=45-5")),
        (second, configured("train_data.kind=folder", f"train_spec.init_from={first}")),
    ):
        model = parsers.build_model(config, torch.device("cpu")).state_dict()
        checkpoints.save(path, {"config": configuration.dump(config), "model": model})
    session = commands.Session(configured(), StopRequest(), "cpu", checkpoint=second)
    going_on = configured(f"train_spec.init_from={second}")
    said = f"{second}: trained, by way of {first}, on classes that the official split tests on"
    with pytest.raises(UserError, match=re.escape(said)):
        session.load_checkpoint()
    with pytest.raises(UserError, match=re.escape(f"train_spec.init_from: {said}")):
        commands.train.initial_weights(going_on)
    first.write_bytes(b"damaged")  # then nobody can tell
    assert session.load_checkpoint()[0]["model"].keys() == commands.train.initial_weights(going_on).keys()


def test_the_state_of_a_run_is_tested_by_its_moving_average(tmp_path: Path) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=3", "train_spec.ema_decay=0.9") == 0
    last, exported = tmp_path / "vma.last.pt", tmp_path / "e.safetensors"
    assert main(tmp_path, "--checkpoint", str(last), "--export", str(exported)) == 0
    state, found = checkpoints.load(last), checkpoints.load(exported)["model"]
    assert all(torch.equal(found[name], value) for name, value in state["averaged"].items())
    assert not all(torch.equal(found[name], value) for name, value in state["model"].items())


class SignalAt:
    """Sends this process a signal when the `nth` batch with this address is drawn, and then no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, split: str, step: int, nth: int, number: int) -> None:
        self.left, self.original = nth + 1, EpisodeLoader.at

        def at(loader: EpisodeLoader, asked: int) -> Episodes:
            if (loader.subset, asked) == (split, step):
                self.left -= 1
                if not self.left:
                    signal.raise_signal(number)
            return self.original(loader, asked)

        monkeypatch.setattr(EpisodeLoader, "at", at)


def stopped(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    variant: str,
    at: tuple[str, int, int],
    number: int = signal.SIGTERM,
) -> None:
    """A session that a signal ends."""
    with monkeypatch.context() as patch:
        sent = SignalAt(patch, *at, number)
        assert main(folder, "--train", *VARIANTS[variant]) == 128 + number
        assert sent.left <= 0


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


# Batches by split, step and how many of this address came before.  The pictures draw batch 0 of both splits, too.
POINTS = {
    "in the first validation": ("validation", 0, 0),
    "at the end of the first validation": ("validation", 1, 0),
    "in the first step": ("train", 0, 1),
    "in the middle of an epoch": ("train", 5, 0),
    "in the last step before a validation": ("train", 7, 0),
    "in a later validation": ("validation", 0, 2),
    "at the end of a later validation": ("validation", 1, 1),
    "in the last step": ("train", 9, 0),
}


QUICK = ("at the end of the first validation", "in the middle of an epoch", "in a later validation", "in the last step")


@pytest.mark.parametrize("point", [point if point in QUICK else slow(point) for point in POINTS])
def test_a_run_stopped_and_resumed_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], point: str
) -> None:
    stopped(monkeypatch, tmp_path, "plain", POINTS[point])
    assert main(tmp_path, "--train") == 0
    assert curves(tmp_path) == curves(whole("plain"))
    assert same_end(tmp_path, whole("plain"))


@pytest.mark.parametrize("variant", ["everything", "no validation"])
@pytest.mark.parametrize("step", [slow(1), 5, slow(8)])
def test_all_that_a_run_consists_of_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], variant: str, step: int
) -> None:
    stopped(monkeypatch, tmp_path, variant, ("train", step, 0), signal.SIGINT)
    assert main(tmp_path, "--train", *VARIANTS[variant]) == 0
    assert curves(tmp_path) == curves(whole(variant))
    assert same_end(tmp_path, whole(variant))


def test_a_run_may_be_stopped_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    tensorboard_clock(monkeypatch)
    for step in (1, 2, 5, 8):
        stopped(monkeypatch, tmp_path, "plain", ("train", step, 0))
    assert main(tmp_path, "--train") == 0
    assert curves(tmp_path) == curves(whole("plain"))
    assert same_end(tmp_path, whole("plain"))
    seen, expected = (
        tensorboard_scalars(tensorboard_folder(tmp_path)),
        tensorboard_scalars(tensorboard_folder(whole("plain"))),
    )
    assert seen.keys() == expected.keys()
    for tag in expected:
        assert [step for step, _ in seen[tag]] == [step for step, _ in expected[tag]], tag
        if not tag.endswith(("seconds", "targets_per_s")):
            assert seen[tag] == expected[tag]


def test_a_second_signal_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    tensorboard_clock(monkeypatch)
    with monkeypatch.context() as patch:
        SignalAt(patch, "train", 6, 0, signal.SIGINT)
        SignalAt(patch, "train", 6, 0, signal.SIGINT)
        assert main_apart(tmp_path, "--train") == 130
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 4
    assert logged(tmp_path, 6)()
    assert main(tmp_path, "--train") == 0
    assert curves(tmp_path) == curves(whole("plain"))
    assert same_end(tmp_path, whole("plain"))
    assert [step for step, _ in tensorboard_scalars(tensorboard_folder(tmp_path))["train/loss"]] == list(range(1, 11))


def test_a_validation_is_there_once_after_two_sessions_that_ended_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    stopped(monkeypatch, tmp_path, "plain", ("validation", 0, 1))  # saved at step 4, which was not yet validated
    with monkeypatch.context() as patch:
        SignalAt(patch, "train", 5, 0, signal.SIGINT)
        SignalAt(patch, "train", 5, 0, signal.SIGINT)  # at once: step 4 was validated, that is not saved
        assert main_apart(tmp_path, "--train", "train_spec.save_every=100") == 130
    assert main(tmp_path, "--train") == 0
    assert curves(tmp_path) == curves(whole("plain"))


def test_rows_of_several_steps_are_the_same_after_a_stop_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(tmp_path / "whole", "--train", "train_spec.log_every=4") == 0
    with monkeypatch.context() as patch:
        SignalAt(patch, "train", 5, 0, signal.SIGTERM)
        assert main(tmp_path / "part", "--train", "train_spec.log_every=4") == 143
    assert main(tmp_path / "part", "--train", "train_spec.log_every=4") == 0
    assert curves(tmp_path / "part") == curves(tmp_path / "whole")


def test_a_stop_between_training_and_test_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while the last state is written, when no step follows that could notice it."""
    real = checkpoints.save

    def save(path: Path, state: dict[str, object], previous: Path | None = None) -> None:
        real(path, state, previous)
        if checkpoints.load(path)["progress"]["step"] == 10 and path.name == "vma.last.pt":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(checkpoints, "save", save)
    assert main(tmp_path, "--train", "--test") == 143
    assert not (tmp_path / "table.csv").exists()


# --- what may change --------------------------------------------------------------------------------------------------


def test_what_does_not_define_the_run_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    stopped(monkeypatch, tmp_path, "plain", ("train", 5, 0))
    other = tmp_path / "other.jsonl"
    changes = (
        "train_spec.val_every=5", "train_spec.save_every=2", "train_spec.log_every=2", "train_data.iter=3",
        f'train_spec.log_file="{other}"', "train_spec.gpus=auto", "test_spec.importance_num=70",
        "test_spec.targets=5", "test_data.batch_size=3", "test_spec.seed=8", "train_spec.rendezvous=7",
        "train_spec.deterministic=true", "train_data.root=elsewhere", "val_data.root=elsewhere",
    )  # fmt: skip
    assert main(tmp_path, "--train", "--device", "cpu", "--logdir", str(tmp_path / "elsewhere"), *changes) == 0
    assert same_weights(tmp_path / "vma.last.pt", whole("plain") / "vma.last.pt")
    assert other.exists() and (tmp_path / "elsewhere").exists()


def test_a_finished_run_may_be_prolonged(tmp_path: Path, whole: Callable[[str], Path]) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=6") == 0
    assert main(tmp_path, "--train", "train_spec.steps=10") == 0
    assert same_end(tmp_path, whole("plain"))
    assert curves(whole("plain")).items() <= curves(tmp_path).items()


@pytest.mark.slow
def test_a_moved_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]) -> None:
    stopped(monkeypatch, tmp_path / "here", "plain", ("train", 5, 0))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert main(tmp_path / "there", "--train") == 0
    assert curves(tmp_path / "there") == curves(whole("plain"))


@pytest.mark.parametrize(
    "changes",
    [
        ("train_spec.lr=2e-2",),
        ("train_spec.seed=1", "model.latent_dim=5", "train_data.batch_size=16"),
        ("train_spec.objective=marginal", "train_spec.ema_decay=0.5"),
        ("train_spec.scheduler={kind: StepLR, step_size: 2}",),
        ("train_spec.val_targets=8", "val_data.timesteps=2"),
    ],
)
def test_what_defines_the_run_must_not_change(
    tmp_path: Path,
    whole: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    changes: tuple[str, ...],
) -> None:
    for name in ("vma.pt", "vma.last.pt", "log.jsonl"):
        shutil.copy(whole("plain") / name, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main(tmp_path, "--train", *changes) == 2
    said = capsys.readouterr().err
    for change in changes:
        assert f"\n  {change.partition('=')[0]}" in said
    listed = [line.strip().partition(":")[0] for line in said.splitlines()[1:]]
    assert all(any(key.startswith(change.partition("=")[0]) for change in changes) for key in listed)
    assert "--restart" in said and str(tmp_path / "vma.last.pt") in said
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content


def test_another_scheduler_argument_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "train_spec.scheduler={kind: StepLR, step_size: %d}"
    assert main(tmp_path, "--train", "train_spec.steps=1", given % 2) == 0
    assert main(tmp_path, "--train", "train_spec.steps=1", given % 3) == 2
    assert "train_spec.scheduler.step_size: 2 in the checkpoint, 3 now" in capsys.readouterr().err


# --- anew -------------------------------------------------------------------------------------------------------------


def test_restart_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tensorboard_clock(monkeypatch)
    assert main(tmp_path, "--train", "train_spec.lr=1e-4") == 0
    assert main(tmp_path, "--train", "--restart") == 0
    assert "resuming" not in capsys.readouterr().out
    assert curves(tmp_path) == curves(whole("plain"))
    assert same_end(tmp_path, whole("plain"))
    assert [step for step, _ in tensorboard_scalars(tensorboard_folder(tmp_path))["train/loss"]] == list(range(1, 11))


@pytest.mark.parametrize("begun", [False, True])
def test_a_restart_is_asked_for_again_until_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], begun: bool
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=2") == 0
    before = (tmp_path / "vma.last.pt").read_bytes()
    capfd.readouterr()
    with monkeypatch.context() as patch:
        if begun:
            SignalAt(patch, "train", 1, 0, signal.SIGINT)
        else:
            patch.setattr(parsers, "build_model", lambda *args: signal.raise_signal(signal.SIGINT))
        assert main_apart(tmp_path, "--train", "--restart", "train_spec.steps=2") == 130
    assert ("--restart" in capfd.readouterr().err) != begun
    assert ((tmp_path / "vma.last.pt").read_bytes() == before) != begun


def test_a_restarted_run_that_died_does_not_become_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    assert main(tmp_path, "--train", "train_spec.steps=8") == 0
    with monkeypatch.context() as patch:
        SignalAt(patch, "train", 2, 0, signal.SIGINT)
        SignalAt(patch, "train", 2, 0, signal.SIGINT)  # at once, so nothing is saved
        assert main_apart(tmp_path, "--train", "--restart") == 130
    assert main(tmp_path, "--train") == 0
    assert sorted(row["step"] for row in rows(tmp_path, "train")) == list(range(1, 11))
    assert curves(tmp_path) == curves(whole("plain"))


def test_training_a_finished_run_changes_nothing(tmp_path: Path, whole: Callable[[str], Path]) -> None:
    shutil.copytree(whole("plain"), tmp_path, dirs_exist_ok=True)
    before, resolved = curves(tmp_path), (tmp_path / "vma.resolved.yaml").read_text()
    for more in ((), ("train_spec.steps=2",)):
        assert main(tmp_path, "--train", *more) == 0
        assert curves(tmp_path) == before and (tmp_path / "vma.resolved.yaml").read_text() == resolved
    assert same_end(tmp_path, whole("plain"))
