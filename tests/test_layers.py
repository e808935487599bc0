"""Imports go one way: a module may import only what stands to its left; the core needs torch and nothing else."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

import odenets

ROOT = Path(odenets.__file__).parent
ORDER = [
    ("arguments", "extra", "transforms"),
    ("advance", "given_stops"),
    ("returned", "solution"),
    ("methods",),
    ("event", "state", "tolerance"),
    ("controller",),
    ("problem",),
    ("evaluation", "interpolate", "path"),
    ("pullback", "resolution"),
    ("own_times",),
    ("engine",),
    ("adjoint",),
    ("restart", "support"),
    ("own_events",),
    ("solve",),
    ("stepper",),
    ("series",),
    ("nn", "torchdiffeq"),
    ("files", "table", "progress"),
    ("data", "fitting", "train", "figures", "tuning"),
    ("estimators", "experiments"),
    ("tour",),
    ("report",),
    ("tabular", "terminal"),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
CORE = RANK["stepper"]
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def unit(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "odenets":
            yield from (f"odenets.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def modules_of_ours(path, known):
    """The modules of `known` that a file imports; by `from odenets.engine import eager` that is `eager` alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from inner & known or {node.module} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    for name in imported_modules(path):
        if name.startswith("odenets."):
            target = name.split(".")[1]
            same = target == unit(path)
            assert same or RANK[target] < RANK[unit(path)], f"{unit(path)} imports {target}"
        elif name == "odenets":  # the whole package imports the core
            assert RANK[unit(path)] > CORE


def test_imports_go_one_way_inside_packages_too():
    names = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in MODULES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known = set(names.values())
    graph = {name: set(modules_of_ours(path, known)) - {name} for path, name in names.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError that names one


@pytest.mark.parametrize("path", [p for p in MODULES if RANK.get(unit(p), 99) <= CORE], ids=lambda p: p.name)
def test_the_core_needs_torch_alone(path):
    for name in imported_modules(path):
        top = name.split(".")[0]
        assert top in ("torch", "odenets") or top in sys.stdlib_module_names
