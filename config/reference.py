"""The table of all keys in docs/configuration.md, from the schema:  python -m config.reference"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.config import Config
from config.reading import INHERITED
from config.schema import AUTOENCODERS
from config.writing import one_line

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- All below is written by `python -m config.reference`. -->\n"


def tables() -> str:
    """One table for each section."""
    lines: list[str] = []
    for name, field in Config.model_fields.items():
        lines += [f"\n### {name}\n", f"{_sentence(field.description)}\n"]
        if inherited := INHERITED.get(name):
            lines.append(f"The keys are those of train_data; left out, these are as there: {', '.join(inherited)}.")
            continue
        lines += ["| key | default, other values | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _rows(_section(field))]
    return "\n".join(lines) + "\n"


def _rows(section: type[BaseModel] | None, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items() if section else ():
        below, key = _section(field), prefix + name
        if isinstance(field.default, BaseModel):
            kind = getattr(field.default, "kind", None)
            default = f"`kind: {kind}`" if kind else "as below"
        else:
            default = "needed" if field.is_required() else f"`{one_line(field.default)}`"
        others = [f", `{one_line(value)}`" for value in _values(field.annotation) if value != field.default]
        yield key, default + "".join(others), (field.description or "as in train_data").replace("|", "\\|")
        if name == "autoencoder":
            for kind, schema in AUTOENCODERS.items():
                yield from ((k, d, f"{m} (kind {kind})") for k, d, m in _rows(schema, f"{key}.") if k != f"{key}.kind")
        else:
            yield from _rows(below, f"{key}[]." if "tuple" in str(field.annotation) else f"{key}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The schema in a type such as `Section`, `Section | None` or `tuple[Section, ...]`."""

    def found(annotation: Any) -> type[BaseModel] | None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        return next((section for part in get_args(annotation) if (section := found(part))), None)

    return found(field.annotation)


def _values(annotation: Any) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _sentence(text: str | None) -> str:
    return f"{(text or '')[:1].upper()}{(text or '')[1:]}."


def page() -> str:
    """The whole page: what a person wrote, and the tables."""
    written, _, _ = PAGE.read_text().partition(BEGIN)
    return written + BEGIN + tables()


if __name__ == "__main__":
    PAGE.write_text(page())
