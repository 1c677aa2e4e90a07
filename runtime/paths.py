"""Paths as people write them."""

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)  # as os.path.expandvars finds them


def expanded(text: str) -> str:
    """`text` with `$NAME`, `${NAME}`, `~` and `~user` replaced.  Raises ValueError for one that is not known."""
    for name in (plain or in_braces for plain, in_braces in _VARIABLE.findall(text)):
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
    path = os.path.expandvars(text)
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        home = path.partition("/")[0]
        raise ValueError(f"the home folder {home} is not known; write the whole path") from None
