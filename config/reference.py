"""The table of all keys in docs/configuration.md, from the schema:  python -m config.reference"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from config.config import Config
from config.reading import IN_OUTPUT, INHERITED
from config.schema import AUTOENCODERS, Autoencoder, Section, section_of
from config.strict_yaml import one_line

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- All below is written by `python -m config.reference`. -->\n"


def page() -> str:
    """The whole page: what a person wrote, and a table for each section."""
    text = PAGE.read_text().partition(BEGIN)[0] + BEGIN
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation) or Section
        text += f"\n### {name}\n\n{section.__doc__}\n\n"
        if name in INHERITED:
            inherited = ", ".join(INHERITED[name])
            text += f"The keys are those of train_data. If left out, these are taken from there: {inherited}.\n"
            continue
        text += "| key | default, other values | meaning |\n|---|---|---|\n"
        text += "".join(f"| `{key}` | {default} | {meaning} |\n" for key, default, meaning in _rows(section))
    return text


_PLACES = {key: f"`{name}` in `output`" for (_, key), name in IN_OUTPUT.items()}


def _rows(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        key, below = prefix + name, section_of(field.annotation)
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        default = _PLACES.get(name, "needed") if field.is_required() else f"`{one_line(field.default)}`"
        if isinstance(field.default, Section):
            default = f"`kind: {field.default.kind}`" if isinstance(field.default, Autoencoder) else "as below"
        others = "".join(f", `{one_line(value)}`" for value in values if value != field.default)
        yield key, default + others, (field.description or "as in train_data").replace("|", "\\|")
        if below is Autoencoder:
            for kind, schema in AUTOENCODERS.items():
                yield from ((k, d, f"{m} (kind {kind})") for k, d, m in _rows(schema, f"{key}.") if k != f"{key}.kind")
        elif below:
            yield from _rows(below, f"{key}[]." if "tuple" in str(field.annotation) else f"{key}.")


if __name__ == "__main__":
    PAGE.write_text(page())
