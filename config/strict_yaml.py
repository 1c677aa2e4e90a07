"""A small, strict part of YAML: mappings, lists and scalars, nothing else.

Whatever could grow, recurse or run code (aliases, tags, deep nesting) is refused before anything is built.  Scalars
follow YAML 1.2 (`1e-4` is a number, `12:30` and `no` are text), except that `1e5` is a whole number and `010`, which
readers disagree about, is refused.
"""

import re
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml
from yaml.composer import Composer

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
    try:
        loader: Any = type("_Loader", (_Nodes, _LOADER), {"__init__": _LOADER.__init__})(text)
        if not loader.check_node():
            raise StrictYamlError("empty")
        root = loader.get_node()
        if loader.check_node():
            _refuse(loader.peek_event(), "a second document; a configuration is one document")
        return _value(root)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        if "nesting depth" in str(error.problem):  # the parser in C has a limit of its own and looks far ahead
            raise StrictYamlError(f"{where}nested deeper than {MAX_DEPTH} levels") from None
        raise StrictYamlError(f"{where}not valid YAML: {error.problem}") from None
    except StrictYamlError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the parsers let bad escapes and directives through
        raise StrictYamlError(f"not valid YAML: {str(error).splitlines()[0]}") from None


def shown(text: str) -> str:
    """`text` fit for a one-line message, whatever it holds."""
    if len(text) > 60:
        text = text[:57] + "..."
    return text if text.isprintable() else ascii(text)


class _Nodes(Composer):
    """PyYAML's composer, which makes a tree of the parser's events, without all that is not strict."""

    number = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[attr-defined]  # of the parser that this is mixed with
        self.number += 1
        if self.number > MAX_NODES:
            _refuse(event, f"more than {MAX_NODES:,} values, so it cannot be a configuration")
        if isinstance(event, yaml.AliasEvent):
            _refuse(event, f"the alias *{event.anchor}; write the value out")
        if event.anchor is not None:
            _refuse(event, f"the anchor &{event.anchor}; write the value out where it is needed")
        if event.tag is not None:
            _refuse(event, f"the tag {shown(event.tag)}; tags are not read")
        if self.depth >= MAX_DEPTH and isinstance(event, yaml.CollectionStartEvent):
            _refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


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
            _refuse(key, f"the key {shown(key.value)} is given twice")
        mapping[key.value] = _value(value)
    return mapping


def _scalar(node: yaml.Node) -> Value:
    text: str = node.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _AMBIGUOUS.fullmatch(text):
        plain = text.lstrip("+-0") or "0"
        _refuse(node, f"{text}: is this decimal or octal? Write {plain}, or '{text}' in quotes for text")
    if _INTEGER.fullmatch(text):
        if len(text.lstrip("+-")) > MAX_DIGITS:
            _refuse(node, f"a whole number of more than {MAX_DIGITS} digits")
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return int(number) if _WHOLE_EXPONENT.fullmatch(text) and abs(number) <= MAX_EXACT else number
    return text


def _refuse(where: Any, what: str) -> NoReturn:
    raise StrictYamlError(f"line {where.start_mark.line + 1}: {what}" if where.start_mark else what)
