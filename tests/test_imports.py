"""Imports point one way, down the layers.  Those within functions count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

LAYERS = (  # each may import what is in a later one
    ("studies", "benchmarks"),
    ("run",),
    ("commands",),
    ("parsers", "trainer", "evaluator", "reports"),
    ("config", "models", "autoencoders", "data"),
    ("runtime",),
)
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}
SIDEWAYS = {("benchmarks", "studies"), ("reports", "evaluator"), ("config", "data"), ("models", "autoencoders")}

# Modules -> all that they may import of the project, where that is less than the layers allow.
LESS = {
    "models.objectives": ("runtime",),
    "trainer": ("models.base", "runtime"),
    "evaluator": ("models.base", "data", "runtime"),
}
# Only these know which models there are; all others know the contract in models.base.
KNOW_MODELS = ("parsers", "models", "studies", "benchmarks")


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def modules() -> dict[str, Path]:
    """The project's modules by name, those of the tests left out."""
    files = [*ROOT.glob("*.py"), *(path for name in LAYER for path in (ROOT / name).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


def imports_of(path: Path) -> Iterator[str]:
    """The project's modules that the module imports, wherever in its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                named = [name.name for name in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0 and module, f"{path}:{node.lineno}: a relative import"
                named = [f"{module}.{name.name}" for name in names]
            case _:
                continue
        for name in named:
            if name in MODULES:
                yield name
            elif (parent := name.rpartition(".")[0]) in MODULES:  # a name within a module
                yield parent
            else:
                assert name.split(".")[0] not in LAYER, f"{path}:{node.lineno}: no module {name}"


IMPORTS = {name: sorted(set(imports_of(path))) for name, path in MODULES.items()}
EDGES = [(module, imported) for module, found in IMPORTS.items() for imported in found]


def allowed(module: str, imported: str) -> bool:
    above, below = module.split(".")[0], imported.split(".")[0]
    if above == below:
        return True
    if any(is_in(module, one) and not any(is_in(imported, other) for other in less) for one, less in LESS.items()):
        return False
    if below == "models" and above not in KNOW_MODELS:
        return imported == "models.base"
    return LAYER[above] < LAYER[below] or (above, below) in SIDEWAYS


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} == LAYER.keys()


def test_imports_point_down() -> None:
    assert not [edge for edge in EDGES if not allowed(*edge)]


def test_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("module", ["config", "data.registry", "data.composition"])
def test_a_configuration_is_read_without_torch(module: str) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; assert 'torch' not in sys.modules"], cwd=ROOT, check=True
    )
