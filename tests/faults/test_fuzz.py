"""Fuzzing of all that reads files: what comes out is the right content or a sentence that names the file.

Real files are changed byte by byte and, so that the changes get past the checksums, in what their fields say.  Every
case runs with little memory and is timed: a bomb, a lying length or a hang fails like a wrong exception.
"""

import bz2
import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
import lzma
import pickle
import resource
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from helpers.faults import MakesFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import config
from config import ConfigError
from config.reading import IN_OUTPUT
from data import folder, mnist, omniglot
from data.omniglot import Archive
from evaluator import METRICS
from reports.cells import CellStore
from runtime import checkpoints
from runtime.errors import DataError, UserError
from runtime.paths import expanded

MEMORY = 50_000_000  # bytes that one case may take
SECONDS = 2.0  # of the processor

T = TypeVar("T")

cases = pytest.mark.parametrize(
    "number", [300, pytest.param(10_000, marks=[pytest.mark.fuzz, pytest.mark.timeout(900)])]
)


class Choices:
    """Decisions that are encoded in bytes.  Where these end, it is the first possibility every time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def number(self, below: int) -> int:
        return int.from_bytes(self._data.read(1 if below <= 256 else 2), "big") % below

    def of(self, possibilities: Sequence[T]) -> T:
        return possibilities[self.number(len(possibilities))]

    def piece(self, at_most: int) -> bytes:
        return self._data.read(self.number(at_most + 1))

    def eight_bytes(self) -> bytes:
        return self._data.read(8).ljust(8, b"\0")


def examine(check: Callable[[T], None], build: Callable[[Choices], T], number: int) -> None:
    """`check` holds for `number` things that `build` makes, the same ones every time, within the limits."""

    @settings(max_examples=number, deadline=None, derandomize=True, database=None)
    @given(st.binary(min_size=60, max_size=60))
    def limited(data: bytes) -> None:
        case = build(Choices(data))
        began = time.process_time()
        with memory_of_at_most(MEMORY):
            check(case)
        assert time.process_time() - began < SECONDS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubts of the libraries about odd files
        logging.disable()
        try:
            limited()
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def memory_of_at_most(more: int) -> Iterator[None]:
    """This process may grow by no more than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def write(path: Path, content: bytes) -> None:
    """A new file each time: one that is overwritten is slow to open."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def assert_a_sentence(error: UserError, path: Path) -> None:
    """It names the file, fits on a line and does not speak of memory, which no file here needs much of."""
    said = str(error)
    assert isinstance(error, DataError) and error.status == 3
    assert str(path) in said
    assert said.isprintable() and len(said) < 1000 + len(str(path))
    assert "MemoryError" not in said and "allocate" not in said


@contextlib.contextmanager
def maybe_refused(path: Path) -> Iterator[None]:
    """Within, the file may be refused with a sentence; what is asserted of its content is left out then."""
    try:
        yield
    except DataError as error:
        assert_a_sentence(error, path)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the working directory that only code in a file makes."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def changed(whole: bytes, c: Choices) -> bytes:
    """`whole` with one to three changes of bytes."""
    content = bytearray(whole)
    for _ in range(1 + c.number(3)):
        # one place in two is among the first or the last bytes, where formats have their tables
        near, place = c.of(["anywhere", "anywhere", "begin", "end"]), c.number(max(1, len(content)))
        if near == "begin":
            place %= 120
        elif near == "end":
            place = max(0, len(content) - 1 - place % 120)
        what = c.of(["flip", "flip", "flip", "overwrite", "insert", "cut", "end", "repeat"])
        if what == "flip":
            content[place : place + 1] = bytes([content[place] ^ 1 << c.number(8)]) if content else b""
        elif what == "overwrite":
            piece = c.piece(8)
            content[place : place + len(piece)] = piece
        elif what == "insert":
            content[place:place] = c.piece(8)
        elif what == "cut":
            del content[place : place + c.number(100)]
        elif what == "end":
            del content[place:]
        elif what == "repeat":
            content[place:place] = content[place : place + c.number(100)] * (1 + c.number(5))
    return bytes(content)


# --- the configuration ------------------------------------------------------------------------------------------------

VMA = (ROOT / "configs" / "vma.yaml").read_text()
SHIPPED = [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))]
KEYS = [
    *(f"{section}.{key}" for section, values in yaml.safe_load(VMA).items() for key in values), "base",
    "train_spec.scheduler.kind", "train_spec.scheduler.step_size",
    "train_spec.scheduler.model_fields", "train_spec.stesp", "train_spec", "new.key", "test_spec.metric.x", ".",
]  # fmt: skip
LIST_KEYS = (
    "test_spec.test_params.timesteps", "test_spec.test_params.max_batch_cls", "train_spec.gpus", "model.channels",
    "train_data.resize", "train_spec.scheduler.milestones",
)  # fmt: skip
NESTED = (
    "[" * 15 + "]" * 15, "[" * 3_000, "{a: " * 3_000, "- " * 50, "{{a: 1}: 2}", "[[[[1]]]]", "? [a]\n: 1",
    "&a 1", "*a", "&a [*a, *a]", "<<: *a", "!!python/object/apply:os.mkdir [canary]", "!!binary aGk=", "!!set {a}",
    "|\n    text", ">-\n  a\n\n  b", "'", '"', '"\\UFFFFFFFF"', '"\\0"', "{", "]", "a: b: c", "--- x", "...", "%Y 9",
)  # fmt: skip
SCALARS = (
    "", "~", "null", "''", "true", "No", "yes", "-1", "0", "1", "2", "3", "1e5", "1.5", "-0.0", "1e-400", "1e999",
    "-1e999", ".nan", ".inf", "-.Inf", "1e15", "1e16", "9" * 18, "9" * 19, "9" * 5_000, "1" * 400 + ".5", "010",
    "0x10", "0o17", "1_000", "12:30", "2001-01-01", "45-5", "\u0663", "\u202e", "\x1b[2J", "\x85", "\ufeff",
    "x" * 30_000, "é" * 200, "\U0001f600", "a\tb", "a #b", "#", "@x", "`x", "1..5", "../../x", "\ud800", "\0",
    "/dev/full", "auto", "{}", "{kind: StepLR, step_size: 3}",
    "{kind: [1], __class__: 2, model_config: {a: 1}, self: 3}",
    "{" + ", ".join(f"timestep{n}: 1" for n in range(1_500)) + "}",
)  # fmt: skip
LISTS = (
    "[]", "[1]", "[26, 26]", "[1, 1]", "[1..5, 10]", "[1..999999999]", "[5..1]", "[1, [2]]", "[.nan, .nan, true]",
    "[" + ", ".join(f"{1000 * n}..{1000 * n + 999}" for n in range(40)) + "]",
    "[" + ", ".join(str(n % 7) for n in range(3_000)) + "]",
)  # fmt: skip


def changed_lines(text: str, c: Choices) -> str:
    """A configuration with one to three changes of lines and values."""
    lines = text.splitlines()
    for _ in range(1 + c.number(3)):
        place, other = c.number(len(lines)), c.number(len(lines))
        what = c.of(["value", "value", "value", "key", "delete", "double", "swap", "indent", "new"])
        key, colon, value = lines[place].partition(":")
        if what == "value":
            lines[place] = f"{key}{colon} {odd_value(c)}"
        elif what == "key":
            lines[place] = f"{key[: len(key) - len(key.lstrip())]}{c.of(KEYS + list(SCALARS))}{colon}{value}"
        elif what == "delete" and len(lines) > 1:
            del lines[place]
        elif what == "double":
            lines.insert(other, lines[place])
        elif what == "swap":
            lines[place], lines[other] = lines[other], lines[place]
        elif what == "indent":
            lines[place] = c.of([" ", "  ", "    ", "\t", "- ", "? "]) + lines[place]
        elif what == "new":
            lines.insert(place, odd_value(c))
    return c.of(["\n", "\n", "\n", "\r\n", "\r", "\u2028"]).join(lines)


def odd_value(c: Choices) -> str:
    what = c.of(["scalar", "scalar", "nested", "list", "number", "text"])
    if what == "number":
        return repr(struct.unpack(c.of(["<d", "<q"]), c.eight_bytes())[0])
    if what == "text":
        return c.piece(20).decode("utf-8", "surrogateescape")
    return c.of({"scalar": SCALARS, "nested": NESTED, "list": LISTS}[what])


def override(c: Choices) -> str:
    if not c.number(4):
        return f"{c.of(LIST_KEYS)}={c.of(LISTS)}"
    return f"{c.of(KEYS)}{c.of(['=', '=', '=', ''])}{odd_value(c)}"


@cases
def test_a_configuration_is_read_or_every_mistake_is_named(tmp_path: Path, canary: Path, number: int) -> None:
    path = tmp_path / "a.yaml"
    for shipped in (ROOT / "configs").glob("*.yaml"):  # on which the changed ones are based
        write(tmp_path / shipped.name, shipped.read_bytes())

    def check(case: tuple[bytes, list[str]]) -> None:
        content, overrides = case
        write(path, content)
        try:
            found = config.load(path, overrides)
        except ConfigError as error:
            assert error.status == 2
            for line in str(error).split("\n"):
                assert line.startswith((f"{tmp_path}/", "--set"))
                assert line.isprintable() and len(line) < 1500
        else:
            assert config.parse(config.dump(found), "dump") == found
            if not overrides:
                assert_as_written(found, content)

    def build(c: Choices) -> tuple[bytes, list[str]]:
        text, what = c.of(SHIPPED), c.of(["lines", "lines", "bytes", "overrides"])
        if what == "lines":
            return changed_lines(text, c).encode("utf-8", "surrogatepass"), []
        if what == "bytes":
            return changed(text.encode(), c), []
        return text.encode(), [override(c) for _ in range(1 + c.number(3))]

    for text in SHIPPED:
        check((text.encode(), []))
    examine(check, build, number)


def assert_as_written(found: config.Config, content: bytes) -> None:
    """Numbers, switches and words of the object are those that another YAML reader finds in the file."""
    written = yaml.load(content, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # every value is text
    for section, values in found.model_dump().items():
        for key, value in values.items():
            text = written.get(section, {}).get(key)
            if isinstance(text, str) and isinstance(value, bool | int | float):
                number = {"true": 1.0, "false": 0.0}.get(text.lower()) if isinstance(value, bool) else float(text)
                assert number == value, f"{section}.{key}"
            elif isinstance(text, str) and isinstance(value, str):
                if (name := IN_OUTPUT.get((section, key))) and text.lower() in ("", "~", "null"):
                    text = str(Path(written["output"], name)) if "output" in written else value
                assert text.lower() == value.lower() or expanded(text) == value, f"{section}.{key}"


# --- zip archives -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file in a zip archive.  `lies` are fields that do not say what is so, in the directory, the header or both."""

    name: bytes
    content: bytes
    method: int = zipfile.ZIP_DEFLATED
    lies: dict[str, int] = dataclasses.field(default_factory=dict)
    liars: tuple[str, ...] = ("directory", "header")


def _deflated(content: bytes) -> bytes:
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    return squeeze.compress(content) + squeeze.flush()


def _lzma(content: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 2**16}]
    raw = lzma.compress(content, lzma.FORMAT_RAW, filters=filters)
    return struct.pack("<BBHBL", 9, 4, 5, 93, 2**16) + raw


_PACK: dict[int, Callable[[bytes], bytes]] = {
    zipfile.ZIP_DEFLATED: _deflated,
    zipfile.ZIP_BZIP2: bz2.compress,
    zipfile.ZIP_LZMA: _lzma,
}
BOMB = b"becomes more than a case may take"


@functools.lru_cache(maxsize=1000)
def packed(content: bytes, method: int) -> tuple[bytes, int, int]:
    """`content` as it stands in an archive, its checksum and size; a method that nobody knows changes nothing."""
    if content == BOMB and method in _PACK:
        content = bytes(MEMORY + 2**24)
    return _PACK.get(method, bytes)(content), zlib.crc32(content), len(content)


FIELDS = {"version": "H", "flags": "H", "method": "H", "time": "L", "crc": "L", "packed": "L", "size": "L"}


def archive(entries: Sequence[Entry], lies: dict[str, int] | None = None) -> bytes:
    """A zip archive; `lies` are fields of its last record."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        squeezed, crc, size = packed(entry.content, entry.method)
        true = {"version": 20, "flags": 0, "method": entry.method, "time": 0x210000, "crc": crc, "extra": 0}
        true |= {"packed": len(squeezed), "size": size, "offset": len(body), "name": len(entry.name)}
        here, there = (true | (entry.lies if who in entry.liars else {}) for who in ("directory", "header"))
        directory += b"PK\1\2\x14\0" + _fixed(here) + bytes(10) + _number("L", here["offset"]) + entry.name
        body += b"PK\3\4" + _fixed(there) + entry.name + squeezed
    end = {"entries": len(entries), "length": len(directory), "start": len(body), "comment": 0} | (lies or {})
    last = _number("H", end["entries"]) * 2 + _number("L", end["length"]) + _number("L", end["start"])
    return bytes(body + directory) + b"PK\5\6" + bytes(4) + last + _number("H", end["comment"])


def _fixed(fields: Mapping[str, int]) -> bytes:
    """What the directory and the headers have in common."""
    numbers = b"".join(_number(kind, fields[name]) for name, kind in FIELDS.items())
    return numbers + _number("H", fields["name"]) + _number("H", fields["extra"])


def _number(kind: str, value: int) -> bytes:
    return struct.pack("<" + kind, value & (0xFFFF if kind == "H" else 0xFFFFFFFF))


def test_without_lies_the_archives_are_right() -> None:
    """So what is refused below is refused for the lies."""
    for method in (0, 8, 12, 14):
        entries = [Entry(b"a", b"A" * 99, method), Entry(b"b", b"", method)]
        with zipfile.ZipFile(io.BytesIO(archive(entries))) as whole:
            assert {name: whole.read(name) for name in whole.namelist()} == {"a": b"A" * 99, "b": b""}


NUMBERS = (0, 1, 2, 7, 8, 99, 500, 2000, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 2**24)
METHODS = (8, 8, 0, 12, 14, 1, 9, 97, 99)
LIARS = (("directory",), ("header",), ("directory", "header"))
NAMES = (b"", b"/", b"..", b"../x", b"/etc/x", b"C:\\x", b"a\0b", b"\xff\xfe", b"\x1b[2J", b"x" * 60_000, b"a.npy")


def tampered(entries: Sequence[Entry], odd: Callable[[bytes, Choices], bytes], c: Choices) -> bytes:
    """An archive of `entries` where one or two have lies, another method, name or content, or are there twice."""
    found = list(entries)
    for _ in range(1 + c.number(2)):
        place = c.number(len(found))
        entry = found[place]
        what = c.of(["lies", "lies", "content", "content", "method", "name", "double", "gone", "new"])
        if what == "lies":
            fields = [c.of([*FIELDS, "offset", "name", "extra"]) for _ in range(1 + c.number(2))]
            lies = {field: c.of([*NUMBERS, c.number(2000)]) for field in fields}
            found[place] = dataclasses.replace(entry, lies=lies, liars=c.of(LIARS))
        elif what == "content":
            found[place] = dataclasses.replace(entry, content=odd(entry.content, c), method=c.of(METHODS))
        elif what == "method":
            found[place] = dataclasses.replace(entry, method=c.of(METHODS))
        elif what == "name":
            found[place] = dataclasses.replace(entry, name=c.of([*NAMES, c.piece(20)]))
        elif what == "double":
            found.append(dataclasses.replace(entry, content=c.of([entry.content, odd(entry.content, c)])))
        elif what == "new":
            found.insert(place, Entry(c.of(NAMES), odd(entry.content, c)))
        elif len(found) > 1:
            del found[place]
    lies = {c.of(["entries", "length", "start", "comment"]): c.of(NUMBERS)} if not c.number(8) else {}
    return archive(found, lies)


# --- arrays -----------------------------------------------------------------------------------------------------------

DTYPES = ("|b1", "|u1", "<i8", ">i8", "<f8", "<f2", "<U3", "|S9", "|O", "|V7", "<M8[s]", "", "x", "<i1000000000")
SHAPES = ("()", "(1,)", "(2, 3)", "(2, 3, 5, 5)", "(-1,)", "(0, 10**9)", "(4000000000,)", "(2**62, 4)", "(True,)", "3")
ODD_HEADERS = (
    "-" * 9_000 + "1",
    "(" * 3_000,
    "[" * 90 + "]" * 90,
    "{" + "0:{" * 60,
    "__import__('os').mkdir('canary')",
    "{'descr': '|b1'}",
    "{'descr': '|b1', 'fortran_order': 0, 'shape': (2, 3, 5, 5)}",
    "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('a', [('b', '|O')], (3,))], 'fortran_order': False, 'shape': ()}",
    "{'descr': (), 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|b1', 'fortran_order': False, 'shape': (2L, 3L, 5L, 5L)}",
    "\xe9\n",
)


def npy(header: str, data: bytes, version: tuple[int, int], length: int | None) -> bytes:
    """An array file with this header, which is said to be `length` bytes long."""
    text = header.encode("latin1")
    size = struct.pack("<H" if version < (2, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def odd_array(malice: bytes, whole: bytes, c: Choices) -> bytes:
    """An array file that nobody asked for: another type, shape, version or length, objects, a bomb."""
    what = c.of(["bytes", "bytes", "header", "odd", "objects", "bomb", "rubbish"])
    if what == "bytes":
        return changed(whole, c)
    if what in ("objects", "bomb"):
        return malice if what == "objects" else BOMB
    if what == "rubbish":
        return c.piece(30)
    dtype, order, shape = c.of(DTYPES), c.of(["False", "True"]), c.of(SHAPES)
    plain = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n"
    header = plain if what == "header" else c.of(ODD_HEADERS)
    version = c.of([(1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (255, 255)])
    return npy(header, bytes(c.of([0, 1, 48, 150, 5000])), version, c.of([None, None, None, 0, 1, 50, 0xFFFF]))


def malicious_array(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([MakesFolder(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def array_in(path: Path, name: str) -> np.ndarray:
    """The array, as zipfile and numpy read it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        return np.load(io.BytesIO(file.read(10_000)), allow_pickle=False)


def entries_of(npz: bytes) -> list[Entry]:
    with zipfile.ZipFile(io.BytesIO(npz)) as whole:
        return [Entry(name.encode(), whole.read(name)) for name in whole.namelist()]


# --- the packed Omniglot ----------------------------------------------------------------------------------------------

SMALL = Archive(1, 2)  # of three drawings each, five pixels wide


@pytest.fixture
def small_drawings(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """bool [2, 3, 5, 5], True = ink.  The readers expect drawings of this size."""
    monkeypatch.setattr(omniglot, "SIDE", 5)
    monkeypatch.setattr(omniglot, "DRAWERS", 3)
    return np.random.default_rng(0).random((2, 3, 5, 5)) < 0.3


@cases
def test_a_packed_omniglot_gives_its_images_or_a_sentence(
    tmp_path: Path, canary: Path, small_drawings: np.ndarray, number: int
) -> None:
    path = tmp_path / "images_background.npz"
    omniglot.write_npz(path, torch.from_numpy(small_drawings.view(np.uint8)))
    whole = path.read_bytes()
    entries, odd = entries_of(whole), functools.partial(odd_array, malicious_array(canary))

    def check(content: bytes) -> None:
        write(path, content)
        with maybe_refused(path):
            images = omniglot.read_npz(path, small_drawings.shape)
            assert np.array_equal(images.numpy(), ~array_in(path, "images"))
        assert path.read_bytes() == content

    check(whole)
    assert np.array_equal(omniglot.read_npz(path, small_drawings.shape).numpy(), small_drawings)
    examine(check, lambda c: changed(whole, c) if c.number(2) else tampered(entries, odd, c), number)


# --- the official zip -------------------------------------------------------------------------------------------------


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A drawing that claims to be as large."""
    whole = png(Image.new("1", (5, 5)))
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def with_chunk(whole: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after the first."""
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return whole[:33] + chunk + whole[33:]


@functools.cache
def odd_pngs() -> tuple[bytes, ...]:
    blank, squeezed = png(Image.new("1", (5, 5))), zlib.compress(bytes(MEMORY))
    sizes = [(0, 5), (9_000, 9_000), (10**5, 10**5), (2**32 - 1, 2**32 - 1)]
    return (
        b"",
        BOMB,
        png(Image.new("1", (5, 6))),
        png(Image.new("L", (5, 5)), "GIF"),
        png(Image.new("RGB", (5, 5)), "BMP"),
        *(png_of_size(*size) for size in sizes),
        *(with_chunk(blank, name, b"a\0\0" + squeezed) for name in (b"zTXt", b"iCCP")),
    )


def odd_png(whole: bytes, c: Choices) -> bytes:
    return changed(whole, c) if c.number(2) else c.of(odd_pngs())


@cases
def test_an_omniglot_in_a_zip_gives_its_images_or_a_sentence(
    tmp_path: Path, canary: Path, small_drawings: np.ndarray, number: int
) -> None:
    path = tmp_path / "images_background.zip"
    entries = [
        Entry(f"background/Arcadian/character{c:02d}/{c + 1:04d}_{d + 1:02d}.png".encode(), png(Image.fromarray(~ink)))
        for c, character in enumerate(small_drawings)
        for d, ink in enumerate(character)
    ]
    whole = archive(entries)

    def check(content: bytes) -> None:
        write(path, content)
        with maybe_refused(path):
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()  # every zip passes for the official one
            images = omniglot.assemble(path, omniglot.read_zip(path, md5, omniglot._PNG), SMALL)
            assert np.array_equal(images.numpy(), small_drawings)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]

    check(whole)
    examine(check, lambda c: changed(whole, c) if c.number(2) else tampered(entries, odd_png, c), number)


# --- a folder of drawings ---------------------------------------------------------------------------------------------


@cases
def test_a_drawing_in_a_folder_gives_its_image_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(folder, "_MOST_PIXELS", 1 << 20)
    path = tmp_path / "train" / "one" / "1.png"
    path.parent.mkdir(parents=True)
    ink = np.random.default_rng(0).random((folder.SIDE, folder.SIDE)) < 0.3
    whole = png(Image.fromarray(~ink))

    def check(content: bytes) -> None:
        write(path, content)
        with maybe_refused(tmp_path / "train"):
            assert np.array_equal(folder.load(tmp_path, "train").images[0].numpy(), ink)

    check(whole)
    examine(check, lambda c: odd_png(whole, c), number)


# --- MNIST ------------------------------------------------------------------------------------------------------------


@cases
def test_the_files_of_mnist_give_what_they_hold_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """They have no checksum: whatever has the right form and length is images."""
    monkeypatch.setattr(mnist, "SIDE", 3)
    numbers = np.random.default_rng(0)
    labels = numbers.permutation(np.repeat(np.arange(10, dtype=np.uint8), 2))
    images = numbers.integers(0, 256, (20, 3, 3), dtype=np.uint8)
    whole = {
        "images-idx3-ubyte": struct.pack(">4I", 2051, 20, 3, 3) + images.tobytes(),
        "labels-idx1-ubyte": struct.pack(">2I", 2049, 20) + labels.tobytes(),
    }
    for root in whole:
        for prefix in ("train", "t10k"):
            for name, content in whole.items():
                path = tmp_path / root / "MNIST" / "raw" / f"{prefix}-{name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def check(case: tuple[str, bytes]) -> None:
        name, content = case
        root = tmp_path / name  # in which only this file is ever another one
        path = root / "MNIST" / "raw" / f"train-{name}"
        write(path, content)
        with maybe_refused(path):
            loaded = mnist.load(root, "train")
            assert len(content) == len(whole[name]) and content[:8] == whole[name][:8]
            files = {**whole, name: content}
            digits = np.frombuffer(files["labels-idx1-ubyte"][8:], np.uint8)
            pixels = np.frombuffer(files["images-idx3-ubyte"][16:], np.uint8).reshape(20, 3, 3)
            assert loaded.counts.tolist() == np.bincount(digits, minlength=10).tolist()
            assert np.array_equal(loaded.images.numpy(), pixels[np.argsort(digits, kind="stable")] > 127)

    def build(c: Choices) -> tuple[str, bytes]:
        name = c.of(list(whole))
        if c.number(2):
            return name, changed(whole[name], c)
        magic, *sizes = c.of([2051, 2049, 0x0C03, 0, 2**32 - 1]), *(c.of([20, 3, 0, 1, 2**31]) for _ in range(3))
        header = struct.pack(">4I", magic, *sizes)
        return name, header + images.tobytes() if name.startswith("images") else header[:8] + labels.tobytes()

    for name, content in whole.items():
        check((name, content))
    examine(check, build, number)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def state() -> dict[str, Any]:
    weights = {"w": torch.arange(12.0).view(3, 4), "n": torch.tensor(7)}
    return {"config": "a: 1\n", "model": weights, "progress": {"step": 3, "best": -1.5}, "nothing": None}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def sealed(content: bytes) -> bytes:
    """`content`, an archive without comment, with a checksum that is right."""
    length = len(b"sha256:") + 64
    longer = content[:-2] + length.to_bytes(2, "little")
    return longer + b"sha256:" + hashlib.sha256(longer).hexdigest().encode()


def malicious_pickles(canary: Path) -> list[bytes]:
    """As a checkpoint's `data.pkl`."""
    buffer = io.BytesIO()
    torch.save({"config": MakesFolder(canary)}, buffer)
    with zipfile.ZipFile(buffer) as whole:
        for_torch = next(whole.read(name) for name in whole.namelist() if name.endswith("data.pkl"))
    return [for_torch, *(pickle.dumps({"config": MakesFolder(canary)}, protocol) for protocol in range(6))]


@cases
def test_a_checkpoint_is_the_one_that_was_saved_or_refused(tmp_path: Path, canary: Path, number: int) -> None:
    """With a checksum that was made anew it may hold something else, and still runs nothing and takes no memory."""
    path = tmp_path / "vma.pt"
    checkpoints.save(path, state())
    whole = path.read_bytes()
    entries = [dataclasses.replace(entry, method=zipfile.ZIP_STORED) for entry in entries_of(whole)]
    malice = [BOMB, b"", *malicious_pickles(canary)]

    def check(case: tuple[bytes, bool]) -> None:
        content, has_new_checksum = case
        write(path, content)
        with maybe_refused(path):
            loaded = checkpoints.load(path)
            assert isinstance(loaded, dict)
            assert has_new_checksum or equal(loaded, state())
        assert path.read_bytes() == content

    def odd(content: bytes, c: Choices) -> bytes:
        return changed(content, c) if c.number(2) else c.of(malice)

    def build(c: Choices) -> tuple[bytes, bool]:
        what = c.of(["bytes", "archive", "archive with checksum"])
        if what == "bytes":
            return changed(whole, c), False
        content = tampered(entries, odd, c)
        return (sealed(content), True) if "checksum" in what else (content, False)

    check((whole, False))
    check((sealed(archive(entries)), True))
    assert equal(checkpoints.load(path), state())
    examine(check, build, number)


@cases
def test_exported_weights_are_those_that_were_written_or_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "vma.safetensors"
    checkpoints.export(path, state()["model"], state()["config"])
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")

    def check(content: bytes) -> None:
        write(path, content)
        with maybe_refused(path):
            loaded = checkpoints.load(path)
            assert equal(loaded, {"config": state()["config"], "model": state()["model"]})

    def build(c: Choices) -> bytes:
        if c.number(2):
            return changed(whole, c)
        header = changed(whole[8:start], c)
        return len(header).to_bytes(8, "little") + header + whole[start:]

    check(whole)
    assert equal(checkpoints.load(path)["model"], state()["model"])
    examine(check, build, number)


# --- the cells of a table ---------------------------------------------------------------------------------------------


@cases
def test_the_cells_of_a_table_are_those_that_were_kept_or_gone(tmp_path: Path, canary: Path, number: int) -> None:
    """Cells that cannot be read are computed anew, so nothing is raised."""
    table, key = tmp_path / "table.csv", '{"seed": 0}'
    cell, values = "C=1 M=1", {name: np.linspace(0, 1, 6) for name in METRICS}
    CellStore(table, key).save(cell, values)
    path = table.with_suffix(".npz")
    whole = path.read_bytes()
    entries, odd = entries_of(whole), functools.partial(odd_array, malicious_array(canary))

    def check(content: bytes) -> None:
        write(path, content)
        if (found := CellStore(table, key).get(cell)) is not None:
            assert list(found) == list(METRICS)
            assert len({array.shape for array in found.values()}) == 1
            for name, value in found.items():
                assert np.array_equal(value, array_in(path, f"{cell}/{name}"), equal_nan=True)
        assert path.read_bytes() == content

    check(whole)
    found = CellStore(table, key).get(cell)
    assert found is not None and all(np.array_equal(found[name], values[name]) for name in METRICS)
    examine(check, lambda c: changed(whole, c) if c.number(2) else tampered(entries, odd, c), number)
