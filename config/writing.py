"""The configuration as text: all of it in YAML, or single keys as arguments of a command line."""

import json
import re
from pathlib import Path

import yaml

from config.config import Config

_NOT_PLAIN = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # some are switches to other readers
_WITH_DATA = ("train_data", "val_data", "test_data")
_LIST = "tag:yaml.org,2002:seq"


class _Dumper(yaml.SafeDumper):
    """Writes what strict_yaml reads back: no aliases, and quotes around all that is not plainly a word or a path."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z_]*([./-][A-Za-z_]+)*", text) and text.lower() not in _NOT_PLAIN
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(tuple, lambda dumper, values: dumper.represent_sequence(_LIST, values, flow_style=True))


def dump(config: Config) -> str:
    """The complete resolved configuration as YAML; `parse` reads it back to an equal object."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**30)


def _override(key: str, text: str | Path) -> str:
    """KEY=VALUE for `--set` with a value that is text, however it would be read without quotes."""
    return f"{key}={json.dumps(str(text), ensure_ascii=False)}"


def overrides(root: str | None = None, output: str | Path | None = None, seed: int | None = None) -> list[str]:
    """The overrides that `--root`, `--output` and `--seed` stand for; those of `--set` come after them and win."""
    given = [_override(f"{section}.root", root) for section in _WITH_DATA] if root is not None else []
    given += [_override("output", output)] if output is not None else []
    return given + ([f"train_spec.seed={seed}"] if seed is not None else [])
