"""Arguments of a command line that stand for keys of the configuration."""

import json
from pathlib import Path

_WITH_DATA = ("train_data", "val_data", "test_data")


def override(key: str, text: str | Path) -> str:
    """KEY=VALUE for `--set` with a value that is text, however it would be read without quotes."""
    return f"{key}={json.dumps(str(text), ensure_ascii=False)}"


def overrides(root: str | None = None, output: str | Path | None = None, seed: int | None = None) -> list[str]:
    """The overrides that `--root`, `--output` and `--seed` stand for; those of `--set` come after them and win."""
    given = [override(f"{section}.root", root) for section in _WITH_DATA] if root is not None else []
    given += [override("output", output)] if output is not None else []
    return given + ([f"train_spec.seed={seed}"] if seed is not None else [])
