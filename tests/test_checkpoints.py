"""Checkpoints: what was written comes back, what was changed is found, and nothing in them runs."""

import errno
import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.faults import MakesFolder, files_of_at_most
from helpers.program import finish, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import checkpoints, files
from runtime.errors import DataError, UserError
from runtime.files import exclusive_lock

_COMMENT = len(b"sha256:") + 64  # bytes at the end of a file


def state() -> dict[str, Any]:
    numbers = torch.Generator().manual_seed(0)
    return {
        "config": "a: 1\n",
        "model": {"w": torch.randn(5, 3, generator=numbers), "b": torch.zeros(0), "n": torch.tensor(7)},
        "progress": {"step": 3, "best": -1.5},
        "nothing": None,
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "a.pt"
    checkpoints.save(path, state())
    return path.read_bytes()


def sealed(archive: bytes) -> bytes:
    """`archive` (a zip without comment) with a checksum that is right."""
    changed = archive[:-2] + _COMMENT.to_bytes(2, "little")
    return changed + b"sha256:" + hashlib.sha256(changed).hexdigest().encode()


# --- whole files ------------------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.pt"
    checkpoints.save(path, state())
    assert equal(checkpoints.load(path), state())


def test_torch_reads_the_file_as_it_is(saved: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved)
    assert equal(torch.load(tmp_path / "a.pt", weights_only=True), state())
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None


def test_saving_leaves_one_file_with_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for _ in range(3):
            checkpoints.save(tmp_path / "a.pt", state())
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").stat().st_mode & 0o777 == 0o640


# --- damaged files ----------------------------------------------------------------------------------------------------


def refused(path: Path, content: bytes) -> str:
    path.unlink(missing_ok=True)  # a file that is overwritten is slow to close
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        checkpoints.load(path)
    assert caught.value.status == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_flipped_bit_at_both_ends_is_found(saved: bytes, tmp_path: Path) -> None:
    for position in (*range(200), *range(len(saved) - 200, len(saved))):
        for bit in range(8):
            changed = bytearray(saved)
            changed[position] ^= 1 << bit
            refused(tmp_path / "a.pt", bytes(changed))


def plain_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save(state(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not a checkpoint\n" * 20, pickle.dumps({"model": 1}), plain_torch(), b"\xff" * 5000],
    ids=["empty", "one byte", "text", "pickle", "torch without checksum", "rubbish"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "a.pt", content)


def test_bytes_after_the_end_are_found(saved: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "a.pt", saved + b"\0")
    refused(tmp_path / "a.pt", saved + saved)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            checkpoints.load(path)


def test_a_checkpoint_is_a_dictionary(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    assert "holds a list" in refused(tmp_path / "a.pt", sealed(buffer.getvalue()))


# --- malicious files --------------------------------------------------------------------------------------------------


def test_nothing_in_a_file_runs_even_where_its_checksum_is_right(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    buffer = io.BytesIO()
    torch.save({"model": {}, "config": MakesFolder(canary)}, buffer)
    legacy = io.BytesIO()
    torch.save({"config": MakesFolder(canary)}, legacy, _use_new_zipfile_serialization=False)
    for content in (sealed(buffer.getvalue()), buffer.getvalue(), legacy.getvalue(), pickle.dumps(MakesFolder(canary))):
        assert "weights_only" not in refused(tmp_path / "a.pt", content)  # torch's advice
    assert not canary.exists()
    pickle.loads(pickle.dumps(MakesFolder(canary)))  # the canary does sing
    assert canary.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(
    max_examples=200,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_changed_pickle_with_the_right_checksum_is_read_or_refused(
    saved: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = bytearray(old.read(name))
            if name.endswith("data.pkl"):
                position = data.draw(st.integers(0, len(content) - 1))
                content[position] = data.draw(st.integers(0, 255))
            new.writestr(name, bytes(content))
    path = tmp_path / "a.pt"
    path.unlink(missing_ok=True)
    path.write_bytes(sealed(buffer.getvalue()))
    try:
        checkpoints.load(path)
    except DataError as error:
        assert str(path) in str(error)


# --- interrupted saves ------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_previous_file(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved)
    with files_of_at_most(1000), pytest.raises(OSError, match="large"):
        checkpoints.save(path, state())
    assert path.read_bytes() == saved
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_leaves_the_previous_file(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        path = folder / "a.pt"
        checkpoints.save(path, state())
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(path, {"model": torch.zeros(100_000)})
        assert equal(checkpoints.load(path), state())
        assert [p.name for p in folder.iterdir()] == ["a.pt"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    path, previous = tmp_path / "a.pt", tmp_path / "before.pt"
    for number in range(3):
        checkpoints.save(path, {"number": number}, previous)
    assert checkpoints.load(path) == {"number": 2} and checkpoints.load(previous) == {"number": 1}
    if links:  # as a kill leaves it right after the second name was given
        previous.unlink()
        os.link(path, previous)
        checkpoints.save(path, {"number": 3}, previous)
        assert checkpoints.load(path) == {"number": 3} and checkpoints.load(previous) == {"number": 2}
    assert not list(tmp_path.glob(".*.part"))


_KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
from runtime import checkpoints

path, count = Path(sys.argv[1]), int(sys.argv[2])
values = [torch.full((50_000,), float(i)) for i in range(3)]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(real):
    return lambda *args: (real(*args), die())

STAGES = [(os, "fchmod", die), (os, "fsync", die), (os, "fsync", then_die(os.fsync)),
          (Path, "replace", then_die(Path.replace))]
seen = set()
checkpoints.save(path, {"model": values[0]})
for n in range(count):
    child = os.fork()
    if not child:  # some saves, and one in which it dies
        for i in range(n % 3):
            checkpoints.save(path, {"model": values[(n + i) % 3]})
        setattr(*STAGES[n % 4])
        checkpoints.save(path, {"model": values[(n + n % 3) % 3]})
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    loaded = checkpoints.load(path)["model"]
    assert any(torch.equal(loaded, value) for value in values)
    seen.add(float(loaded[0]))
print(len(seen), len(list(path.parent.glob(".*.part"))))
"""


def test_the_old_file_is_replaced_and_never_written_to(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved)
    with path.open("rb") as old:
        checkpoints.save(path, {"model": torch.zeros(3)})
        assert old.read() == saved
    assert list(checkpoints.load(path)) == ["model"]


def test_a_save_that_is_interrupted_before_the_end_changes_nothing(
    saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved)
    for step in ("fsync", "fdopen"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, step, interrupted)
            checkpoints.save(path, {"model": torch.zeros(3)})
        assert path.read_bytes() == saved
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    status, out, err = finish(start("-c", _KILLED_WHILE_SAVING, str(tmp_path / "a.pt"), "12"))
    assert status == 0, err
    different, partial = map(int, out.split())
    assert different == 3 and partial == 9  # all but those that die when the file has its place leave their own


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_two_cannot_hold_the_same_checkpoint(tmp_path: Path) -> None:
    a, b = tmp_path / "new" / "a.pt", tmp_path / "new" / "b.pt"
    with exclusive_lock(a, "training"), exclusive_lock(b, "training"):
        with pytest.raises(UserError, match=r"another training.*another --output") as caught:
            exclusive_lock(a, "training").__enter__()
        assert caught.value.status == 2
    with exclusive_lock(a, "training"):
        pass


def test_only_what_a_killed_process_left_of_these_files_is_removed(tmp_path: Path) -> None:
    a, beside, other = tmp_path / "a.pt", tmp_path / "a.last.pt", tmp_path / "a.long.pt"
    leftovers = {path: path.with_name(f".{path.name}.x7_y.part") for path in (a, beside, other)}
    for path in leftovers.values():
        path.touch()
    with exclusive_lock(a, "training", [beside]):
        assert [path.exists() for path in leftovers.values()] == [False, False, True]


def test_the_digest_tells_every_change_of_the_weights() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(3), "c": torch.tensor(5)}
    digests = [checkpoints.digest(weights)]
    for name, value in weights.items():
        for place in range(value.numel()):
            changed = {key: other.clone() for key, other in weights.items()}
            flat = changed[name].view(-1)
            flat[place] = torch.nextafter(flat[place], torch.tensor(9.0)) if name != "c" else 6
            digests.append(checkpoints.digest(changed))
    digests += [
        checkpoints.digest(changed)
        for changed in (
            {**weights, "a": weights["a"].t()},
            {**weights, "a": weights["a"].flatten()},
            {**weights, "a": weights["a"].double()},
            {**weights, "d": torch.zeros(0)},
            {key: value for key, value in weights.items() if key != "b"},
            {"a": weights["a"], "b": weights["c"], "c": weights["b"]},
        )
    ]
    assert len(set(digests)) == len(digests)
    strided = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).t()
    assert checkpoints.digest({"c": weights["c"], "b": weights["b"], "a": strided}) == digests[0]


# --- weights for others -----------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small file and the weights in it, one of them not contiguous."""
    weights = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T, "b.c": torch.zeros(0, 2)}
    checkpoints.export(tmp_path / "w.safetensors", weights, "model: {}\n")
    return tmp_path / "w.safetensors", weights


def test_exported_weights_read_back(exported: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = exported
    state = checkpoints.load(path)
    assert state["config"] == "model: {}\n"
    assert state["model"].keys() == weights.keys()
    assert all(torch.equal(state["model"][name], value) for name, value in weights.items())
    from safetensors.torch import load_file

    assert torch.equal(load_file(path)["a"], weights["a"])  # for whoever has only that library


def test_in_half_precision_a_file_is_half_as_large_and_holds_the_nearest_values(tmp_path: Path) -> None:
    weights = {"a": torch.randn(100, 200, generator=torch.Generator().manual_seed(0)), "n": torch.arange(3)}
    plain, half = tmp_path / "plain.safetensors", tmp_path / "half.safetensors"
    checkpoints.export(plain, weights, "model: {}\n")
    written = checkpoints.export(half, weights, "model: {}\n", half=True)
    assert half.stat().st_size < 0.51 * plain.stat().st_size
    read = checkpoints.load(half)["model"]
    assert checkpoints.digest(read) == checkpoints.digest(written)
    assert read["a"].dtype == torch.float32 and torch.equal(read["n"], weights["n"])
    assert (read["a"] - weights["a"]).abs().le(2**-11 * weights["a"].abs() + 2**-25).all()  # of float16, subnormal too
    before = half.read_bytes()
    with pytest.raises(UserError, match="a is too large for half precision; export without --half"):
        checkpoints.export(half, {"a": torch.tensor([1.0, 7e4])}, "model: {}\n", half=True)
    assert half.read_bytes() == before


def test_a_changed_byte_of_exported_weights_is_found(exported: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = exported
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            state = checkpoints.load(path)
        except DataError as error:
            assert str(path) in str(error)
        else:  # a byte without meaning, such as one of the padding
            assert state["config"] == "model: {}\n"
            assert all(torch.equal(state["model"][name], value) for name, value in weights.items())


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_other_files_are_no_exported_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="not weights of this program"):
        checkpoints.load(tmp_path / "w.safetensors")


def test_a_folder_that_another_start_removes_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start together make and remove the same folders to find out whether they can write."""
    made = files._temporary_file
    gone = iter([True, True])

    def removed(path: Path) -> tuple[int, Path]:
        if next(gone, False):
            path.parent.rmdir()
        return made(path)

    monkeypatch.setattr(files, "_temporary_file", removed)
    files.check_writable(tmp_path / "run" / "vma.pt")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files, "_temporary_file", lambda path: (path.parent.rmdir(), made(path))[1])
    with pytest.raises(FileNotFoundError):
        files.check_writable(tmp_path / "run" / "vma.pt")
