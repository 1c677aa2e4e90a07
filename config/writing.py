"""The complete configuration as YAML."""

import re

import yaml

from config.config import Config

_NOT_PLAIN = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # some are switches to other readers
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
