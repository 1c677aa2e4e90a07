"""A small, strict part of YAML: mappings, lists and scalars, nothing else.

The text is read as a stream of events, so whatever could grow, recurse or run code (aliases, tags, deep nesting) is
refused before anything is built.  Scalars follow YAML 1.2 (`1e-4` is a number, `12:30` and `no` are
text), except that `1e5` is a whole number and `010`, which readers disagree about, is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypeAlias

import yaml

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_DIGITS = 18  # fits 63 bits
MAX_EXACT = 2**53  # up to here every whole number is a float

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its parser is used; C is 20 times as fast
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_AMBIGUOUS = re.compile(r"[-+]?0[0-9]+")
_WHOLE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE]\+?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INDENTED_BY_TAB = re.compile(r"^ *\t", re.MULTILINE)


class StrictYamlError(ValueError):
    """The text is not acceptable; the message says why and, where it is known, in which line."""


def read(path: Path) -> str:
    """The text of a UTF-8 file of at most `MAX_BYTES`.

    Raises StrictYamlError where there is no such file, or one that is too large, unreadable or not text.
    """
    try:
        if not path.exists():
            raise StrictYamlError("no such file")
        if not path.is_file():
            raise StrictYamlError(f"expected a file, this is {'a folder' if path.is_dir() else 'something else'}")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StrictYamlError(f"cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise StrictYamlError(f"larger than {MAX_BYTES:,} bytes, so it cannot be a configuration")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StrictYamlError(f"line {line}: not UTF-8 text (byte {raw[error.start]:#04x})") from None


def parse(text: str) -> Value:
    """The value written in `text`.  Raises StrictYamlError."""
    if len(text) > MAX_BYTES:
        raise StrictYamlError(f"longer than {MAX_BYTES:,} characters, so it cannot be a configuration")
    if tab := _INDENTED_BY_TAB.search(text):
        line = text.count("\n", 0, tab.start()) + 1
        raise StrictYamlError(f"line {line}: a tab in the indentation; YAML wants spaces")
    if not text.strip():
        raise StrictYamlError("empty")
    builder = _Builder()
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise StrictYamlError(f"{where}not valid YAML: {error.problem}") from None
    except StrictYamlError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the parsers let bad escapes and directives through
        raise StrictYamlError(f"not valid YAML: {str(error).splitlines()[0]}") from None
    return builder.result()


def shown(text: str) -> str:
    """`text` fit for a one-line message, whatever it holds."""
    if len(text) > 60:
        text = text[:57] + "..."
    return text if text.isprintable() else ascii(text)


def _events(text: str) -> Iterator[yaml.Event]:
    return yaml.parse(text, Loader=_LOADER)


class _Builder:
    """Puts a value together from events, without recursion."""

    def __init__(self) -> None:
        self._roots: list[Value] = []
        self._open: list[list[Value] | dict[str, Value]] = []
        self._keys: list[str | None] = []  # for every open collection the key that waits for its value
        self._nodes = 0

    def result(self) -> Value:
        if not self._roots:
            raise StrictYamlError("empty")
        return self._roots[0]

    def take(self, event: yaml.Event) -> None:
        """Adds one event.  Raises StrictYamlError for anything outside the strict part of YAML."""
        if isinstance(event, yaml.NodeEvent):
            self._refuse_extras(event)
        if isinstance(event, yaml.DocumentStartEvent) and self._roots:
            self._fail(event, "a second document; a configuration is one document")
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin(event, {})
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin(event, [])
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)

    def _refuse_extras(self, event: yaml.NodeEvent) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._fail(event, f"more than {MAX_NODES:,} values, so it cannot be a configuration")
        if isinstance(event, yaml.AliasEvent):
            self._fail(event, f"the alias *{event.anchor}; write the value out")
        if event.anchor is not None:
            self._fail(event, f"the anchor &{event.anchor}; write the value out where it is needed")
        if (tag := getattr(event, "tag", None)) is not None:
            self._fail(event, f"the tag {shown(tag)}; tags are not read")

    def _begin(self, event: yaml.Event, collection: list[Value] | dict[str, Value]) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._fail(event, f"nested deeper than {MAX_DEPTH} levels")
        if self._waits_for_key():
            self._fail(event, "a key that is a list or a mapping; keys are names")
        self._put(collection)
        self._open.append(collection)
        self._keys.append(None)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if not self._waits_for_key():
            self._put(self._resolve(event))
            return
        mapping = self._open[-1]
        if event.value in mapping:
            self._fail(event, f"the key {shown(event.value)} is given twice")
        self._keys[-1] = event.value

    def _waits_for_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1], dict) and self._keys[-1] is None

    def _put(self, value: Value) -> None:
        if not self._open:
            self._roots.append(value)
            return
        parent, key = self._open[-1], self._keys[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif key is not None:
            parent[key] = value
            self._keys[-1] = None

    def _resolve(self, event: yaml.ScalarEvent) -> Value:
        text: str = event.value
        if event.style:  # quoted, or a block of text
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _AMBIGUOUS.fullmatch(text):
            plain = text.lstrip("+-0") or "0"
            self._fail(event, f"{text}: is this decimal or octal? Write {plain}, or '{text}' in quotes for text")
        if _INTEGER.fullmatch(text):
            if len(text.lstrip("+-")) > MAX_DIGITS:
                self._fail(event, f"a whole number of more than {MAX_DIGITS} digits")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            return int(number) if _WHOLE_EXPONENT.fullmatch(text) and abs(number) <= MAX_EXACT else number
        return text

    def _fail(self, event: yaml.Event, what: str) -> NoReturn:
        raise StrictYamlError(f"line {event.start_mark.line + 1}: {what}" if event.start_mark else what)
