"""Files and overrides -> one mapping -> `Config`."""

import copy
import difflib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from config import strict_yaml
from config.comparing import below
from config.config import Config
from config.constraints import Problem, contradictions
from config.schema import KINDS, PathText, Section, of_kind, section_of
from config.strict_yaml import StrictYamlError, quoted, shortened
from data.registry import DATA_SETS
from runtime.errors import UserError
from runtime.paths import expanded

_log = logging.getLogger(__name__)

# Keys of the published configuration that have no use here: episodes are drawn on the device, without worker processes,
# the loss is always the full one, and schedulers count steps.
_PUBLISHED_WITHOUT_USE = ("train_spec.full_loss", "train_spec.scheduler.times", "train_spec.n_jobs", "test_spec.n_jobs")
_OTHER_NAMES = {"vma": "published", "omniglot": "published"}  # of an autoencoder, there and in earlier versions of this
_KEYS_OF_A_KIND = ("train_spec.scheduler", "model.autoencoder")  # which are another kind's in another file

# What val_data and test_data take from train_data where they leave it out.
_ALTERNATIVES = ("max_img_per_class", "max_batch_cls")  # of which one is given
_IMAGES = ("kind", "root", "batch_size", "resize", "split", "resample", "classes")
INHERITED = {"val_data": (*_IMAGES, "timesteps", "exact", *_ALTERNATIVES), "test_data": _IMAGES}

# Where the files of a run lie in its folder, the key `output`, unless these keys say otherwise.
IN_OUTPUT = {
    ("train_spec", "checkpoint_path"): "vma.pt",
    ("train_spec", "log_file"): "train.jsonl",
    ("test_spec", "output_file"): "results.csv",
}

_PATH: TypeAdapter[str] = TypeAdapter(PathText)

Raw = dict[str, Any]


class ConfigError(UserError):
    """The configuration is wrong; the message has one line for every mistake."""


class _Layer(NamedTuple):
    """A file, or an override, which replaces what is below its key: `--set model.causal={}` leaves nothing there."""

    source: str
    raw: Raw
    replaces: str = ""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file and those it is based on, changed by `dotted.key=value`.  Raises ConfigError."""
    layers: list[_Layer] = []
    files: list[str] = []
    asked = ""
    while True:
        raw = _mapping(path, f"{asked}{path}")
        files.append(os.path.realpath(path))
        base = raw.pop("base", None)
        layers.insert(0, _Layer(str(path), raw))
        if base is None:
            return _resolve(layers, overrides)
        if not isinstance(base, str) or not base or not base.isprintable():
            raise ConfigError(f"{path}: base: value {quoted(base)}: expected the name of a file, such as vma.yaml")
        try:
            asked, path = f"{path}: base: ", path.parent / expanded(base)
        except ValueError as error:
            raise ConfigError(f"{path}: base: value {quoted(base)}: {error}") from None
        if os.path.realpath(path) in files:
            raise ConfigError(f"{asked}{path} is based on this file in turn; one of them has to be complete")


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration written in `text`; `source` names it in messages.  Raises ConfigError with all mistakes."""
    return _resolve([_Layer(source, _mapping(text, source))], overrides)


def _mapping(written: str | Path, source: str) -> Raw:
    """What is written in a text or a file."""
    try:
        raw = strict_yaml.parse(strict_yaml.read(written) if isinstance(written, Path) else written)
    except StrictYamlError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected sections ({', '.join(Config.model_fields)}), found {_kind_of(raw)}")
    return raw


def _override(text: str) -> _Layer:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {shortened(text)}: expected dotted.key=value, such as train_spec.steps=200")
    try:
        node: Any = strict_yaml.parse(value)
    except StrictYamlError as error:
        hint = "; write null for nothing" if not value.strip() else ""
        raise ConfigError(f"--set {shortened(path)}: {error}{hint}") from None
    for key in reversed(path.split(".")):
        node = {key: node}
    return _Layer("--set", node, path)


def _resolve(layers: list[_Layer], overrides: Sequence[str]) -> Config:
    """The configuration of layers, of which later ones win."""
    layers = [*layers, *map(_override, overrides)]
    merged = _merged(layers)
    problems = [*_correct_keys(merged, Config), *_place(merged)]
    inherited = _inherit(merged)
    sections = {name: section for name in Config.model_fields if (section := _validated(name, merged, problems))}
    problems += contradictions(sections)
    if problems:
        raise ConfigError("\n".join(_told(problems, inherited, layers)))
    return Config(**sections)


def _merged(layers: Sequence[_Layer]) -> Raw:
    """All layers in one mapping."""
    merged: Raw = {}
    for source, raw, replaces in layers:
        _modernise(raw, source)
        parent, _, last = replaces.rpartition(".")
        _section(merged, parent).pop(last, None)
        if "output" in raw:  # the paths of earlier layers are those of another run
            for parent, name in IN_OUTPUT:
                _section(merged, parent).pop(name, None)
        _merge(merged, raw, () if replaces else _KEYS_OF_A_KIND)
    return merged


def _told(problems: Sequence[Problem], inherited: Collection[str], layers: Sequence[_Layer]) -> Iterator[str]:
    """A line for every problem, with the source of the value."""
    in_train_data = any(below(path, ("train_data",)) for path, _ in problems)
    for path, text in problems:
        origin = path
        if path.partition("[")[0] in inherited:
            if in_train_data:
                continue  # what is wrong in train_data is wrong in those that inherit it
            origin = "train_data." + path.partition(".")[2]
        yield f"{_source_of(origin, layers)}: {path}: {text}"


def _validated(name: str, raw: Raw, problems: list[Problem]) -> Any:
    """The section of that name, or else None and what is wrong with it added to the problems."""
    schema: Any = Config.model_fields[name].annotation
    if name not in raw:
        problems.append((name, f"missing section; its keys are {', '.join(schema.model_fields)}"))
        return None
    try:
        return schema.model_validate(raw[name])
    except ValidationError as error:
        problems += [(_dotted(name, *one["loc"]), _text(**one)) for one in error.errors(include_url=False)]
        return None


def _section(raw: Mapping[str, Any], path: str) -> Raw:
    """What is below a dotted key, or all for ""; nothing where there is no section."""
    node: Any = raw
    for key in filter(None, path.split(".")):
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
    if isinstance(name := model.get("autoencoder"), str):
        model["autoencoder"] = {"kind": name}
    if isinstance(kind := _section(model, "autoencoder").get("kind"), str):
        model["autoencoder"]["kind"] = _OTHER_NAMES.get(kind.lower(), kind.lower())
    for key in ("channels", "hidden"):
        if key in model and isinstance(model.setdefault("autoencoder", {}), dict):
            model["autoencoder"][key] = model.pop(key)
    test, key = _section(raw, "test_spec"), "checkpoint_path"
    if test.get(key) is not None and test[key] == _section(raw, "train_spec").get(key):
        del test[key]  # it follows that of train_spec, wherever this goes


def _merge(below_it: Raw, raw: Mapping[str, Any], of_a_kind: Collection[str], prefix: str = "") -> None:
    """Put `raw` over `below_it`, section by section; one that is `of_a_kind` takes nothing over from another kind."""
    for key, value in raw.items():
        old, path = below_it.get(key), prefix + key
        other_kind = path in of_a_kind and isinstance(value, dict) and "kind" in value
        if isinstance(old, dict) and isinstance(value, dict) and not (other_kind and value["kind"] != old.get("kind")):
            _merge(old, value, of_a_kind, f"{path}.")
        else:
            below_it[key] = copy.deepcopy(value)


def _correct_keys(raw: Raw, schema: type[Section], prefix: str = "") -> Iterator[Problem]:
    """Unknown keys; each becomes the one that was probably meant, so that further mistakes are found at once."""
    if schema in KINDS:
        schema = of_kind(schema, raw.get("kind", schema.model_fields["kind"].default))
        if schema in KINDS:
            return  # the kind is wrong
    fields = schema.model_fields
    known = [*fields, *(["output"] if schema is Config else [])]
    for key in [key for key in raw if key not in known]:
        near, value = difflib.get_close_matches(key, known, n=1), raw.pop(key)
        if near:
            raw.setdefault(near[0], value)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        yield f"{prefix}{shortened(key)}", f"unknown key; {hint}"
    for key, field in fields.items():
        found, section = raw.get(key), section_of(field.annotation)
        parts = {f"{prefix}{key}[{i}]": one for i, one in enumerate(found)} if isinstance(found, list) else {}
        for path, part in (parts or {prefix + key: found}).items():
            if section and isinstance(part, dict):
                yield from _correct_keys(part, section, f"{path}.")


def _place(raw: Raw) -> Iterator[Problem]:
    """Files of the run whose paths are left out, or null, go to its folder `output`."""
    output = raw.pop("output", None)
    try:
        output = None if output is None else _PATH.validate_python(output)
    except ValidationError as error:
        yield "output", _text(**error.errors(include_url=False)[0])
        output = "runs"  # so that all else that is wrong is found, too
    for (parent, key), name in IN_OUTPUT.items():
        section = _section(raw, parent)
        if parent not in raw or section.get(key) is not None or (output is None and key == "log_file"):
            continue
        if output is None:
            yield f"{parent}.{key}", "missing; give the folder of the run, such as output: runs/mine, or this path"
        section[key] = str(Path(output or "runs", name))


def _inherit(raw: Raw) -> set[str]:
    """val_data and test_data take from train_data what they leave out; the dotted keys that they did not give."""
    train = _section(raw, "train_data")
    if (of := DATA_SETS.get(str(train.get("kind")).lower())) and of.same_classes:
        train.setdefault("held_out_classes", 0)
    inherited = set()
    for name, keys in INHERITED.items():
        if isinstance(section := raw.setdefault(name, {}), dict):
            left_out = [key for key in keys if key not in section]
            inherited |= {f"{name}.{key}" for key in left_out}
            composed = any(key in section for key in _ALTERNATIVES)
            section |= {key: train[key] for key in left_out if key in train and not (composed and key in _ALTERNATIVES)}
    return inherited


def _source_of(path: str, layers: Sequence[_Layer]) -> str:
    """Where the value at `path` was given, or else the section that lacks it."""
    while path:
        parent, _, last = path.rpartition(".")
        for source, raw, replaces in reversed(layers):
            if last in _section(raw, parent) or (replaces and below(path, (replaces,))):
                return source
        path = (last.endswith("]") and path.rpartition("[")[0]) or parent  # a list is given as a whole
    return layers[0].source


# --- mistakes ---------------------------------------------------------------------------------------------------------


def _dotted(first: str, *rest: str | int) -> str:
    return first + "".join(f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in rest)


def _text(type: str, msg: str, input: object, **_: object) -> str:
    """What is wrong, in the words of a user, from one of pydantic's errors."""
    if type == "missing":
        return "missing; this key has no default"
    if type == "model_type":
        return f"expected a section with keys, found {_kind_of(input)}"
    text = msg.removeprefix("Value error, ").replace("Input should be", "expected")
    for theirs, ours in (("a valid integer", "a whole number"), ("a valid boolean", "true or false")):
        text = text.replace(theirs, ours)
    return f"value {quoted(input)}: {text}"


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else "a section" if isinstance(value, dict) else quoted(value)
