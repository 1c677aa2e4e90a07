"""Two real processes over gloo: they compute what one does, and when one cannot go on, none is left hanging."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.config import arguments, small_config
from helpers.logs import curves, logged, rows, same_end
from helpers.program import (
    Process,
    finish,
    main,
    start,
    start_together,
    until_the_end_of_the_test,
    wait_for,
    waiting_program,
)
from helpers.tensorboard import tensorboard_folder, tensorboard_scalars

import commands
from runtime import checkpoints, devices, launcher
from runtime.errors import PeerFailedError
from runtime.processes import Processes, from_environment
from runtime.signals import StopRequest

# Plain gradient descent: Adam divides by the size of gradients, also of those that are nothing but rounding.
RUN = (
    "--train",
    *("train_spec.steps=12", "train_data.iter=6", "train_spec.save_every=3"),
    *("train_spec.optimizer=SGD", "train_spec.lr=1e-4", "train_spec.ema_decay=0.9"),
)


def run(folder: Path, world: int, *more: str) -> tuple[int, str, str]:
    folder.mkdir(exist_ok=True)
    return finish(start_together(world, "run.py", *arguments(folder, *more)))


def script(folder: Path, source: str, *more: str) -> list[str]:
    """A program that does something to this process first, and then what run.py does."""
    path = folder / "broken.py"
    path.write_text(f"{_BROKEN}\n{source}\nrun.standalone(run.main)\n")
    return [str(path), *arguments(folder, *more)]


_BROKEN = """
import os, sys, time
from pathlib import Path
import run
rank = int(os.environ["RANK"])

def fault():
    Path(__file__).with_name("fault").write_text(str(time.monotonic()))
"""


def since_the_fault(folder: Path) -> float:
    """Seconds since a script called `fault`, by the clock that all processes share."""
    return time.monotonic() - float((folder / "fault").read_text())


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process computes."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder, 1, *RUN, "--test")[0] == 0
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes compute."""
    folder = tmp_path_factory.mktemp("two")
    assert run(folder, 2, *RUN, "--test")[0] == 0
    return folder


def test_two_processes_draw_the_same_sample_for_the_gradient(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, world in ((one, 1), (two, 2)):
        assert run(folder, world, *RUN, "train_spec.gradient_samples=1")[0] == 0
    for a, b in zip(rows(one, "train"), rows(two, "train"), strict=True):
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=2e-5), a["step"]


def test_two_processes_train_as_one(alone: Path, two: Path) -> None:
    one, both = rows(alone), rows(two)
    assert [(row["subset"], row["step"]) for row in one] == [(row["subset"], row["step"]) for row in both]
    for a, b in zip(one, both, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"subset", "step"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (name, a["step"])
    assert len({row["loss"] for row in one if row["subset"] == "train"}) == 12
    for name in ("vma.pt", "vma.last.pt"):
        x, y = checkpoints.load(alone / name), checkpoints.load(two / name)
        assert x["model"].keys() == y["model"].keys()
        for key, value in x["model"].items():
            torch.testing.assert_close(y["model"][key], value, rtol=1e-4, atol=1e-5)


def test_the_table_does_not_depend_on_the_number_of_processes(alone: Path, two: Path, tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, 2, "--test", "--checkpoint", str(alone / "vma.pt"), "test_data.batch_size=5")
    assert code == 0 and out.count("and beside it the table") == 1
    with np.load(alone / "table.npz") as one, np.load(tmp_path / "table.npz") as both:
        bounds = [name for name in one.files if "/" in name and not name.endswith("key")]
        assert len(bounds) == 20
        for name in bounds:
            np.testing.assert_allclose(both[name], one[name], rtol=0, atol=1e-4)


KILLED_IN_A_CELL = """
import signal
import evaluator
from reports.cells import CellStore
evaluator._SYNC_EVERY, evaluator._SAVE_EVERY = 1, -1.0
save = CellStore.save_partial
def killed(store, cell, values):
    save(store, cell, values)
    if cell == "C=2 M=3" and len(values["bound"]) == 8:
        fault()
        os.kill(os.getpid(), signal.SIGKILL)
CellStore.save_partial = killed
"""


@pytest.mark.slow
def test_a_cell_that_two_processes_began_goes_on(alone: Path, tmp_path: Path) -> None:
    given = ("--test", "--checkpoint", str(alone / "vma.pt"), "test_data.batch_size=2")
    code, _, _ = finish(start_together(2, *script(tmp_path, KILLED_IN_A_CELL, *given)))
    assert code == 137 and since_the_fault(tmp_path) < 30
    with np.load(tmp_path / "table.npz") as kept, np.load(alone / "table.npz") as one:
        np.testing.assert_allclose(kept["C=2 M=3, partial/bound"], one["C=2 M=3/bound"][:8], rtol=0, atol=1e-4)
    assert run(tmp_path, 2, *given)[0] == 0
    with np.load(tmp_path / "table.npz") as both, np.load(alone / "table.npz") as one:
        assert set(both.files) == set(one.files)
        for name in (name for name in one.files if "/" in name and not name.endswith("key")):
            np.testing.assert_allclose(both[name], one[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(alone: Path, tmp_path: Path) -> None:
    assert run(tmp_path, 2, *RUN, "train_spec.steps=7")[0] == 0
    assert run(tmp_path, 1, *RUN)[0] == 0
    for a, b in zip(
        rows(alone), [row for row in rows(tmp_path) if row["subset"] != "validation" or row["step"] != 7], strict=True
    ):
        assert b["bound"] == pytest.approx(a["bound"], rel=1e-4)


@pytest.mark.slow
def test_the_run_goes_on_where_only_the_first_sees_its_files(tmp_path: Path) -> None:
    """As on two machines: every process has a folder of its own, in which the paths of the configuration lie."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    names = {"train_spec.checkpoint_path": "vma.pt", "train_spec.log_file": "log.jsonl"}
    relative = [f"{key}={name}" for key, name in names.items()]
    for steps in (2, 4):
        line = [str(ROOT / "run.py"), *arguments(tmp_path, "--train", *relative, f"train_spec.steps={steps}")]
        with launcher._port() as port:
            processes = [
                subprocess.Popen([sys.executable, *line], cwd=place, env=launcher._environment(rank, 2, port))
                for rank, place in enumerate(places)
            ]
            try:
                assert [process.wait(120) for process in processes] == [0, 0]
            finally:
                for process in processes:
                    process.kill()
    assert checkpoints.load(places[0] / "vma.last.pt")["progress"]["step"] == 4
    assert not list(places[1].glob("*.pt"))


def test_a_single_process_that_torchrun_placed_starts_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "devices_of", lambda gpus, device: [torch.device("cuda", i) for i in range(4)])
    one = commands.Session(small_config(tmp_path), StopRequest(), "auto")
    assert one.processes_to_start(one.config.test_spec) == 4
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # by which a process expects the store to be there
    assert "TORCHELASTIC_USE_AGENT_STORE" not in launcher._environment(0, 2, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert one.processes_to_start(one.config.test_spec) == 1


def test_gpus_that_are_left_out_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "devices_of", lambda gpus, device: [torch.device("cuda", i) for i in range(3)])
    one = commands.Session(small_config(tmp_path), StopRequest(), "auto")
    assert one.processes_to_start(one.config.train_spec) == 2  # two memories in a batch
    assert "2 of 3 GPUs are used" in caplog.text


def test_one_process_writes(two: Path) -> None:
    assert len(list(tensorboard_folder(two).iterdir())) == 1
    assert [step for step, _ in tensorboard_scalars(tensorboard_folder(two))["train/bound"]] == list(range(1, 13))
    assert not list(two.glob("*.part")) and not list(two.glob("*rank*"))


def test_weights_carry_no_prefix(two: Path, alone: Path) -> None:
    for name in ("vma.pt", "vma.last.pt"):
        state = checkpoints.load(two / name)
        assert state["model"].keys() == checkpoints.load(alone / name)["model"].keys()


def test_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, 2, "--train", "train_data.batch_size=12")
    assert code == 2
    assert "batch_size: 12 is not a positive multiple of 8 (targets_per_memory 4, processes 2); use 8 or 16" in err
    assert "Traceback" not in err


# --- what processes tell each other -----------------------------------------------------------------------------------

TALK = """
import json, sys, torch
from runtime.processes import from_environment
from runtime.errors import PeerFailedError, DataError
me = from_environment()
told = {"rank": me.rank}
with me.process_group(torch.device("cpu")):
    told["broadcast_from_main"] = me.broadcast_from_main(lambda: f"from {me.rank}")
    told["gathered"] = me.all_gather({"rank": me.rank})
    told["largest"] = [me.all_reduce_max(me.rank), me.all_reduce_max(5 - me.rank)]
    told["total"] = me.all_reduce_sum(torch.tensor([1.0, 10.0 * me.rank])).tolist()
    def fail():
        raise DataError("no")
    try:
        me.broadcast_from_main(fail)
    except PeerFailedError as error:
        told["failed"] = error.status
    except DataError as error:
        told["failed"] = str(error)
    told["after"] = me.broadcast_from_main(lambda: 7)
open(f"{sys.argv[1]}/{me.rank}.json", "w").write(json.dumps(told))
"""


def test_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    code, _, err = finish(start_together(2, str(tmp_path / "talk.py"), str(tmp_path)))
    assert code == 0, err
    for rank, failed in ((0, "no"), (1, 3)):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "rank": rank,
            "broadcast_from_main": "from 0",
            "gathered": [{"rank": 0}, {"rank": 1}],
            "largest": [1, 5],
            "total": [2.0, 10.0],
            "failed": failed,
            "after": 7,
        }


def test_one_process_replays(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, 2, "--replay", str(tmp_path / "vma.nonfinite.pt"))
    assert code == 2 and "--replay computes in one process: start it without torchrun" in err
    assert "Traceback" not in err


def test_one_process_talks_to_itself() -> None:
    me = Processes()
    assert me == from_environment()
    with me.process_group(torch.device("cpu")):
        assert (me.broadcast_from_main(lambda: 3), me.all_gather(4), me.all_reduce_max(5)) == (3, [4], 5)
        assert me.all_reduce_sum(torch.tensor(6)) == 6
    with pytest.raises(RuntimeError, match="gloo"), me.translate_peer_errors():
        raise RuntimeError("gloo")  # nobody to blame
    assert PeerFailedError(3).status == 3


# --- one cannot go on -------------------------------------------------------------------------------------------------

NAN_ON_ONE = """
from models.vma.model import VMA
loss, calls = VMA.loss, []
def broken(model, *args):
    calls.append(1)
    if rank == 1 and len(calls) == 5:
        fault()
    value, metrics = loss(model, *args)
    return (value * float("nan") if rank == 1 and len(calls) == 5 else value), metrics
VMA.loss = broken
"""


def test_a_loss_that_is_not_finite_on_one_stops_all(tmp_path: Path) -> None:
    code, _, err = finish(start_together(2, *script(tmp_path, NAN_ON_ONE, *RUN)))
    assert code == 1 and since_the_fault(tmp_path) < 30
    assert "process 1: NonFiniteError: step 4 is not finite in process 1 of 2: loss nan" in err
    assert err.count("replay that step alone with: python run.py") == 1
    assert "Traceback" not in err
    evidence = checkpoints.load(tmp_path / "vma.nonfinite.pt")
    assert evidence["progress"]["step"] == 4
    assert all(value.isfinite().all() for value in evidence["model"].values())
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 3


REFUSED_BY_ONE = """
from models.vma.model import VMA
loss = VMA.loss
def broken(model, *args):
    if rank == {rank}:
        fault()
        raise ValueError("Expected parameter logits to satisfy the constraint")  # as distributions say it
    return loss(model, *args)
VMA.loss = broken
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_distributions_refuse_in_one_stops_all(tmp_path: Path, rank: int) -> None:
    code, _, err = finish(start_together(2, *script(tmp_path, REFUSED_BY_ONE.format(rank=rank), *RUN)))
    assert code == 1 and since_the_fault(tmp_path) < 30
    assert "NonFiniteError: step 0: Expected parameter logits" in err
    assert "NonFiniteError: step 0: another process met" in err and "Traceback" not in err


FULL_DISK = """
import resource
from pathlib import Path
if rank == 0:
    import commands, trainer
    save = trainer.Trainer.save_state
    def limited(self, *args):
        if self.progress.step >= 6:
            fault()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        save(self, *args)
    trainer.Trainer.save_state = limited
"""


@pytest.mark.slow
def test_a_full_disk_in_the_process_that_writes_stops_all(tmp_path: Path) -> None:
    code, _, err = finish(start_together(2, *script(tmp_path, FULL_DISK, *RUN)))
    assert code == 1 and since_the_fault(tmp_path) < 30
    assert "cannot write" in err and "vma.last.pt" in err
    assert "Traceback" not in err
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] <= 6


UNREADABLE = """
import errno
from data.episodes import EpisodeLoader
original = EpisodeLoader.at
def at(loader, step):
    if rank == {rank} and (loader.subset, step) == {when}:
        fault()
        raise OSError(errno.EIO, "Input/output error", "drawings.npz")
    return original(loader, step)
EpisodeLoader.at = at
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "when", "saved"), [(0, ("train", 7), 7), (1, ("train", 7), 7), (1, ("validation", 1), 6)]
)
def test_what_else_fails_in_one_saves_the_training_first(
    tmp_path: Path, two: Path, rank: int, when: tuple[str, int], saved: int
) -> None:
    source = UNREADABLE.format(rank=rank, when=when)
    code, _, err = finish(start_together(2, *script(tmp_path, source, *RUN, "train_spec.save_every=100")))
    assert code == 1 and since_the_fault(tmp_path) < 30
    assert "drawings.npz: Input/output error" in err and "Traceback" not in err
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == saved
    assert run(tmp_path, 2, *RUN, "train_spec.save_every=100")[0] == 0
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_a_signal_stops_all_and_the_run_goes_on_exactly(tmp_path: Path, two: Path, number: signal.Signals) -> None:
    process = start_together(2, *waiting_program(tmp_path, 4, *RUN))
    wait_for((tmp_path / "waits").exists, process)
    began = time.monotonic()
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number and time.monotonic() - began < 10
    assert err.count("resume with: python run.py") == 1 and "Traceback" not in err
    assert run(tmp_path, 2, *RUN)[0] == 0
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)


ONE_WAITS_FOR_THE_OTHER = """
from models.vma.model import VMA
loss, calls = VMA.loss, []
def slow(model, *args):
    calls.append(1)
    if rank == 1 and len(calls) == 5:
        time.sleep(1)  # the other comes to the gradient that it needs of this one
        fault()
        time.sleep(60)
    return loss(model, *args)
VMA.loss = slow
"""


@pytest.mark.parametrize("poll", [0.05, 5], ids=["one is seen to end first", "both are seen to have ended"])
def test_a_second_signal_ends_all_at_once(tmp_path: Path, poll: float) -> None:
    process = start_together(2, *script(tmp_path, ONE_WAITS_FOR_THE_OTHER, *RUN), poll=poll)
    wait_for((tmp_path / "fault").exists, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    code, _, err = finish(process, seconds=60)
    assert code == 130 and since_the_fault(tmp_path) < 30
    assert "Traceback" not in err


SIGNAL_TO_ONE = """
import signal
from data.episodes import EpisodeLoader
at = EpisodeLoader.at
def asked(loader, step):
    if rank == 1 and step == 5 and loader.subset == "train":
        fault()
        os.kill(os.getpid(), signal.SIGTERM)
    return at(loader, step)
EpisodeLoader.at = asked
"""


@pytest.mark.slow
def test_a_signal_to_one_stops_all(tmp_path: Path) -> None:
    code, _, err = finish(start_together(2, *script(tmp_path, SIGNAL_TO_ONE, *RUN)))
    assert code == 143 and since_the_fault(tmp_path) < 30
    assert err.count("stopped by SIGTERM; resume with") == 1 and "Traceback" not in err
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] == 5  # whose batch it was reading


KILLED = """
import signal
from data.episodes import EpisodeLoader
at = EpisodeLoader.at
def asked(loader, step):
    if rank == {rank} and step == 5 and loader.subset == "train":
        fault()
        os.kill(os.getpid(), signal.SIGKILL)
    return at(loader, step)
if not os.environ.get("SPARE"):
    EpisodeLoader.at = asked
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_one_stops_all_and_the_run_goes_on_exactly(tmp_path: Path, two: Path, rank: int) -> None:
    code, _, err = finish(start_together(2, *script(tmp_path, KILLED.format(rank=rank), *RUN)))
    assert code == 137 and since_the_fault(tmp_path) < 30
    assert "another process of this run has ended" in err and "Traceback" not in err
    assert run(tmp_path, 2, *RUN)[0] == 0
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)


def children(process: Process) -> list[int]:
    """The processes that `process` started, as long as it runs."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_killed_at_many_moments_go_on_exactly(tmp_path: Path) -> None:
    """One or the other, half of the time while a file is written: as soon as its temporary name is seen."""
    always = (*RUN, "train_data.iter=20", "train_spec.save_every=2")
    numbers, killed = random.Random(1), 0
    for attempt in range(4):
        process = start_together(2, "run.py", *arguments(tmp_path, *always, "train_spec.steps=100000"))
        wait_for(lambda: (tmp_path / "vma.last.pt").exists(), process)
        wait_for(lambda process=process: len(children(process)) == 2, process)  # type: ignore[misc]
        seen = set(tmp_path.glob(".vma.last.pt.*.part"))
        if attempt % 2:
            time.sleep(numbers.uniform(0.5, 3))
        else:
            wait_for(lambda seen=seen: bool(set(tmp_path.glob(".vma.last.pt.*.part")) - seen), process)  # type: ignore[misc]
        if found := children(process):
            os.kill(found[attempt // 2 % 2], signal.SIGKILL)
            killed += 1
        code, _, err = finish(process)
        assert code == 137 and "Traceback" not in err
        checkpoints.load(tmp_path / "vma.last.pt")
    assert killed == 4
    steps = f"train_spec.steps={checkpoints.load(tmp_path / 'vma.last.pt')['progress']['step'] + 10}"
    assert run(tmp_path, 2, *always, steps)[0] == 0
    assert run(tmp_path / "whole", 2, *always, steps)[0] == 0
    assert curves(tmp_path) == curves(tmp_path / "whole")
    assert same_end(tmp_path, tmp_path / "whole")


def lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # of one that has ended it is empty
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("by", ["launcher", "torchrun"])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, by: str) -> None:
    more = (*RUN, "train_spec.steps=100000")
    process: Process = (
        start_together(2, "run.py", *arguments(tmp_path, *more))
        if by == "launcher"
        else start(*torchrun(tmp_path, *more))
    )
    wait_for(logged(tmp_path, 4), process)
    orphans = children(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(lives(pid) for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(orphans) == 2
    assert checkpoints.load(tmp_path / "vma.last.pt")["progress"]["step"] >= 4  # saved on the way out


# --- one does not appear ----------------------------------------------------------------------------------------------


def at_a_free_port(rank: int) -> dict[str, str]:
    """The environment of one of two processes that nobody else meets."""
    with launcher._port() as port:
        return launcher._environment(rank, 2, port)


def start_one(folder: Path, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "run.py", *arguments(folder, *RUN, *more)]
    return until_the_end_of_the_test(
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=PIPE, stderr=PIPE, text=True)
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_appear_is_named(tmp_path: Path, rank: int) -> None:
    place = at_a_free_port(rank)
    code, out, err = finish(start_one(tmp_path, place, "train_spec.rendezvous=1"), 60)
    met = f"127.0.0.1:{place['MASTER_PORT']}"
    said = [f"of 2 processes that meet at {met}, these are missing: process 1",
            f"process 1: {met} does not answer: process 0 is missing"][rank]  # fmt: skip
    assert (code, out, err) == (1, "", f"{said}; start them all, or raise train_spec.rendezvous\n")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_waiting_for_a_process(tmp_path: Path, rank: int) -> None:
    process = start_one(tmp_path, at_a_free_port(rank))
    time.sleep(6)  # it imports torch, then waits
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process, 10)
    assert code == 143 and err.count("\n") == 1 - rank


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "abc"}, "RANK=abc in the environment: expected a whole number"),
        ({"WORLD_SIZE": "0"}, "RANK=unset, WORLD_SIZE=0 in the environment: RANK must be below WORLD_SIZE"),
        ({"RANK": "5"}, "RANK=5, WORLD_SIZE=unset in the environment: RANK must be below WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR=, MASTER_PORT=0 in the environment: expected host and port"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "-1"}, "MASTER_PORT=-1 in the env"),
    ],
)
def test_an_environment_that_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str],
    said: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(tmp_path, "--train") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "vma.pt").exists()


# --- torchrun ---------------------------------------------------------------------------------------------------------


def torchrun(folder: Path, *more: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py", *arguments(folder, *more)]


@pytest.mark.slow
def test_torchrun_trains_and_tests(tmp_path: Path, two: Path) -> None:
    code, out, err = finish(start(*torchrun(tmp_path, *RUN, "--test", "--sample")))
    assert code == 0, err
    assert out.count("\nwritten:") == 3  # the curves, the table and the pictures, once each
    assert (tmp_path / "samples" / "C1_M1.png").exists()
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)
    assert (tmp_path / "table.csv").read_text() == (two / "table.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_torchrun_passes_signals_on(tmp_path: Path, two: Path, number: signal.Signals) -> None:
    command = torchrun(tmp_path, *RUN)
    command[command.index("run.py") :] = waiting_program(tmp_path, 4, *RUN)
    process = start(*command)
    wait_for((tmp_path / "waits").exists, process)
    began = time.monotonic()
    process.send_signal(number)
    code, _, err = finish(process)
    assert code != 0 and time.monotonic() - began < 15
    assert err.count("resume with: python run.py") == 1
    assert run(tmp_path, 2, *RUN)[0] == 0
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)


@pytest.mark.slow
def test_torchrun_ends_all_when_one_is_killed(tmp_path: Path, two: Path) -> None:
    command = torchrun(tmp_path, *RUN)
    command[command.index("run.py") :] = script(tmp_path, KILLED.format(rank=1), *RUN)
    code, _, _ = finish(start(*command))
    assert code == 1 and since_the_fault(tmp_path) < 30
    assert run(tmp_path, 2, *RUN)[0] == 0
    assert curves(tmp_path) == curves(two)
    assert same_end(tmp_path, two)
