"""A small, strict part of YAML: mappings, lists and scalars, nothing else.

Whatever could grow, recurse or run code (aliases, tags, deep nesting) is refused before anything is built.  Scalars
follow YAML 1.2 (`1e-4` is a number, `12:30` and `no` are text), except that `1e5` is a whole number, `.inf` and `.nan`
are text, and `010`, which readers disagree about, is refused.
"""

import re
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from runtime.errors import printable
from runtime.files import opened

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_DIGITS = 18  # fits 63 bits
MAX_EXACT = 2**53  # up to here every whole number is a float

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C is 20 times as fast
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
_CONSTANTS |= {form: _CONSTANTS[form.lower()] for form in ("Null", "NULL", "True", "TRUE", "False", "FALSE")}
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class StrictYamlError(Exception):
    """The text is not acceptable; the message says why and, where it is known, in which line."""


def read(path: Path) -> str:
    """The text of a UTF-8 file of at most `MAX_BYTES`.

    Raises StrictYamlError where there is no such file, or one that is too large, unreadable or not text.
    """
    try:
        with opened(path, most=MAX_BYTES) as file:
            raw: bytes = file.read()
    except FileNotFoundError:
        raise StrictYamlError("no such file") from None
    except OSError as error:
        raise StrictYamlError(f"cannot be read: {error.strerror or error}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StrictYamlError(f"line {line}: not UTF-8 text (byte {raw[error.start]:#04x})") from None


def parse(text: str) -> Value:
    """The value written in `text`.  Raises StrictYamlError."""
    if len(text) > MAX_BYTES:
        raise StrictYamlError(f"longer than {MAX_BYTES:,} characters, so it cannot be a configuration")
    if tab := re.search(r"^ *\t", text, re.MULTILINE):
        raise StrictYamlError(f"line {text.count(chr(10), 0, tab.start()) + 1}: a tab in the indentation; use spaces")
    try:
        _check_events(text)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        if "nesting depth" in str(error.problem):  # the parser in C has a limit of its own and looks far ahead
            raise StrictYamlError(f"{where}nested deeper than {MAX_DEPTH} levels") from None
        raise StrictYamlError(f"{where}not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the parsers let bad escapes and directives through
        raise StrictYamlError(f"not valid YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise StrictYamlError("empty")
    return _value(root)


def one_line(value: object) -> str:
    """A value on one line, as it is written in the file."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(one_line, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one_line(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def shortened(text: str) -> str:
    """`text` fit for a one-line message, whatever it holds."""
    return printable(text if len(text) <= 60 else text[:57] + "...")


def quoted(value: object) -> str:
    """A value in a message; text in quotes."""
    return shortened(repr(value) if isinstance(value, str) else one_line(value))


def _check_events(text: str) -> None:
    """Refuse what could grow or run code, as the parser comes upon it."""
    documents = depth = nodes = 0
    event: Any
    for event in yaml.parse(text, Loader=_LOADER):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if documents > 1:
            _refuse(event, "a second document; a configuration is one document")
        if depth > MAX_DEPTH:
            _refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            _refuse(event, f"more than {MAX_NODES:,} values, so it cannot be a configuration")
        if (anchor := getattr(event, "anchor", None)) is not None:
            what = "alias *" if isinstance(event, yaml.AliasEvent) else "anchor &"
            _refuse(event, f"the {what}{anchor}; write the value out where it is needed")
        if (tag := getattr(event, "tag", None)) is not None:
            _refuse(event, f"the tag {shortened(tag)}; tags are not read")


def _value(node: yaml.Node) -> Value:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else _scalar(node)  # a style is quotes or a block of text
    mapping: dict[str, Value] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse(key, "a key that is a list or a mapping; keys are names")
        if key.value in mapping:
            _refuse(key, f"the key {shortened(key.value)} is given twice")
        mapping[key.value] = _value(value)
    return mapping


def _scalar(node: yaml.Node) -> Value:
    text: str = node.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not _NUMBER.fullmatch(text):
        return text
    digits = text.lstrip("+-")
    if not digits.isdigit():
        number = float(text)
        return int(number) if "." not in text and number.is_integer() and abs(number) <= MAX_EXACT else number
    if len(digits) > MAX_DIGITS:
        _refuse(node, f"a whole number of more than {MAX_DIGITS} digits")
    if digits[0] == "0" and len(digits) > 1:
        _refuse(node, f"{text}: is this decimal or octal? Write {int(digits)}, or '{text}' in quotes for text")
    return int(text)


def _refuse(where: Any, what: str) -> NoReturn:
    raise StrictYamlError(f"line {where.start_mark.line + 1}: {what}" if where.start_mark else what)
