"""Files and overrides -> one mapping -> `Config`."""

import copy
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config import strict_yaml
from config.comparing import below
from config.config import Config
from config.schema import autoencoder_section
from config.strict_yaml import StrictYamlError, shown
from config.writing import one_line
from runtime.errors import UserError

_log = logging.getLogger(__name__)

# Keys of the published configuration that have no use here: episodes are drawn on the device, without worker processes,
# the loss is always the full one, and schedulers count steps.
_PUBLISHED_WITHOUT_USE = ("train_spec.full_loss", "train_spec.scheduler.times", "train_spec.n_jobs", "test_spec.n_jobs")
_MOVED = {key: f"model.autoencoder.{key.partition('.')[2]}" for key in ("model.channels", "model.hidden")}
_KEYS_OF_A_KIND = ("train_spec.scheduler", "model.autoencoder")  # which are another kind's in another file

# What val_data and test_data take from train_data where they leave it out.
_ALTERNATIVES = ("max_img_per_class", "max_batch_cls")  # of which one is given
_IMAGES = ("kind", "root", "batch_size", "resize", "split", "resample", "classes")
INHERITED = {"val_data": (*_IMAGES, "timesteps", "exact", *_ALTERNATIVES), "test_data": _IMAGES}

Raw = dict[str, Any]


class ConfigError(UserError):
    """The configuration is wrong; the message has one line for every mistake."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file and those it is based on, changed by `dotted.key=value`.  Raises ConfigError."""
    layers: list[tuple[str, Raw]] = []
    files: list[str] = []
    asked = ""
    while True:
        try:
            raw = _mapping(strict_yaml.read(path), f"{asked}{path}")
            files.append(os.path.realpath(path))
        except StrictYamlError as error:
            raise ConfigError(f"{asked}{path}: {error}") from None
        base = raw.pop("base", None)
        layers.insert(0, (str(path), raw))
        if base is None:
            return _resolve(layers, overrides)
        if not isinstance(base, str) or not base or not base.isprintable():
            raise ConfigError(f"{path}: base: value {_shown(base)}: expected the name of a file, such as vma.yaml")
        asked, path = f"{path}: base: ", path.parent / base
        if os.path.realpath(path) in files:
            raise ConfigError(f"{asked}{path} is based on this file in turn; one of them has to be complete")


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration written in `text`; `source` names it in messages.  Raises ConfigError with all mistakes."""
    return _resolve([(source, _mapping(text, source))], overrides)


def _mapping(text: str, source: str) -> Raw:
    try:
        raw = strict_yaml.parse(text)
    except StrictYamlError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected sections ({', '.join(Config.model_fields)}), found {_kind_of(raw)}")
    return raw


def _resolve(layers: Sequence[tuple[str, Raw]], overrides: Sequence[str]) -> Config:
    """The configuration of layers, each with its source, of which later ones win."""
    merged: Raw = {}
    for source, raw in layers:
        _modernise(raw, source)
        _merge(merged, raw)
    overridden = []
    for one in overrides:
        overridden.append(_override(merged, one))
        _modernise(merged, "--set")
    given = {f"{section}.{key}" for section in INHERITED for key in _section(merged, section)}
    given |= {section for section in INHERITED if not isinstance(merged.get(section, {}), dict)}
    _inherit(merged)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        problems = [_described(dict(one)) for one in error.errors(include_url=False)]
    repeated = "train_data" not in merged or any(below(path, ("train_data",)) for path, _ in problems)
    lines = []
    for path, text in problems:
        origin = path
        if (section := path.partition(".")[0]) in INHERITED and not below(path.partition("[")[0], given):
            if repeated:
                continue  # what is wrong in train_data is wrong in those that inherit it
            origin = path.replace(section, "train_data", 1)
        lines.append(f"{_source_of(origin, layers, overridden)}: {path}: {text}")
    raise ConfigError("\n".join(lines))


def _section(raw: Mapping[str, Any], path: str) -> Raw:
    """What is below a dotted key; nothing where there is no section."""
    node: Any = raw
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _modernise(raw: Raw, source: str) -> None:
    """Keys of the published code, and of earlier versions of this, get their present place or go."""
    for path in _PUBLISHED_WITHOUT_USE:
        parent, _, last = path.rpartition(".")
        if last in (section := _section(raw, parent)):
            del section[last]
            _log.warning("%s: %s has no use here and is ignored", source, path)
    model = _section(raw, "model")
    if "autoencoder" in model:
        model["autoencoder"] = autoencoder_section(model["autoencoder"])
    for old in _MOVED:
        if (key := old.partition(".")[2]) in model and isinstance(model.setdefault("autoencoder", {}), dict):
            model["autoencoder"][key] = model.pop(key)


def _merge(below_it: Raw, raw: Mapping[str, Any], prefix: str = "") -> None:
    """Put `raw` over `below_it`, section by section."""
    for key, value in raw.items():
        old, path = below_it.get(key), prefix + key
        other_kind = path in _KEYS_OF_A_KIND and isinstance(value, dict) and "kind" in value
        if isinstance(old, dict) and isinstance(value, dict) and not (other_kind and value["kind"] != old.get("kind")):
            _merge(old, value, f"{path}.")
        else:
            below_it[key] = copy.deepcopy(value)


def _override(raw: Raw, text: str) -> str:
    """Put `dotted.key=value` into `raw` and return the key."""
    path, equals, value = text.partition("=")
    path = _MOVED.get(path.strip(), path.strip())
    *parents, last = path.split(".")
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {shown(text)}: expected dotted.key=value, such as train_spec.steps=200")
    try:
        new = strict_yaml.parse(value)
    except StrictYamlError as error:
        hint = "; write null for nothing" if not value.strip() else ""
        raise ConfigError(f"--set {shown(path)}: {error}{hint}") from None
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {shown(path)}: {shown(key)} is a value, not a section")
    node[last] = new
    return path


def _inherit(raw: Raw) -> None:
    """val_data and test_data take from train_data what they leave out."""
    train = raw.get("train_data")
    if not isinstance(train, dict):
        return
    for name, keys in INHERITED.items():
        section = raw.setdefault(name, {})
        if not isinstance(section, dict):
            continue
        composed = any(key in section for key in _ALTERNATIVES)
        for key in keys:
            if key in train and not (composed and key in _ALTERNATIVES):
                section.setdefault(key, train[key])


def _source_of(path: str, layers: Sequence[tuple[str, Raw]], overridden: Collection[str]) -> str:
    """Where the value at `path` was given, or else the section that lacks it."""
    path = path.partition("[")[0]
    if below(path, overridden) or any(below(key, (path,)) for key in overridden):
        return "--set"
    while path:
        parent, _, last = path.rpartition(".")
        for source, raw in reversed(layers):
            if last in (_section(raw, parent) if parent else raw):
                return source
        path = parent
    return layers[-1][0]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def _described(error: Mapping[str, Any]) -> tuple[str, str]:
    """Dotted path, and what is wrong there."""
    first, *rest = error["loc"]
    path = shown(first) + "".join(f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in rest)
    if error["type"] == "contradiction":
        return first, error["msg"].removeprefix(f"{first}: ")
    if error["type"] == "missing" and not rest:
        schema = Config.model_fields[first].annotation
        return path, f"missing section; its keys are {', '.join(schema.model_fields)}"  # type: ignore[union-attr]
    if error["type"] == "missing":
        return path, "missing; this key has no default"
    if error["type"] == "unknown":
        return path, error["msg"]
    if error["type"] == "model_type":
        return path, f"expected a section with keys, found {_kind_of(error['input'])}"
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return path, f"value {_shown(error['input'])}: {text.replace('a valid integer', 'a whole number')}"


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else "a section" if isinstance(value, dict) else _shown(value)


def _shown(value: object) -> str:
    return shown(repr(value) if isinstance(value, str) else one_line(value))
