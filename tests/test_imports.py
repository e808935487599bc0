"""What is imported when, by count and not by time; and what a plain installation says about what it lacks."""

import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

SLOW = ("accelerate", "matplotlib", "pandas", "scipy", "sklearn", "sympy", "wfdb", "torch._dynamo", "torch._inductor")


def output_of(program: str) -> str:
    """What a new Python prints that runs `program`."""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_solver_needs_nothing_beside_torch_and_imports_nothing_slow():
    program = """
import sys, torch
before = set(sys.modules)
import odenets, odenets.nn, odenets.torchdiffeq
new = set(sys.modules) - before
print(*(name for name in new if "site-packages" in (getattr(sys.modules[name], "__file__", None) or "")))
"""
    new = set(output_of(program).split())
    assert {name.partition(".")[0] for name in new} <= {"torch"}
    assert new & set(SLOW) == set()


HELP = """
import sys, torch
import odenets.__main__
before = set(sys.modules)

def first_line(text):
    print("first line:", text)
    raise SystemExit

import odenets.cli
odenets.cli.say = first_line
for arguments in (["--version"], ["--help"], ["list"], ["run", "--help"], ["run", "ecg", "--help"], ["run", "cubic"]):
    sys.argv = ["odenets", *arguments]
    try:
        odenets.__main__.main()
    except SystemExit as end:
        assert not end.code, end.code
print("modules", *(set(sys.modules) - before))
"""


def test_help_version_and_the_first_line_of_a_run_come_before_anything_slow():
    shown, _, modules = output_of(HELP).rpartition("modules")
    new = set(modules.split())
    assert "first line: odenets run cubic, into runs/cubic" in shown
    assert "odenets.experiments.ecg" in new
    assert new & set(SLOW) == set()


PLAIN = """
import importlib, importlib.machinery, json, pkgutil, runpy, sys

class Plain:
    '''Finds what a plain installation has: torch's own needs, and odenets.'''

    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

HIDDEN = set(sys.argv[1:])
sys.meta_path = [Plain if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.path_importer_cache.clear()

import odenets

said = {}
for module in pkgutil.walk_packages(odenets.__path__, "odenets.", onerror=lambda name: None):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            said[module.name] = None
    except odenets.extra.MissingExtra as error:
        said[module.name] = str(error)
try:
    odenets.SeriesClassifier
except odenets.extra.MissingExtra as error:
    said["odenets.estimators.SeriesClassifier"] = str(error)
sys.argv = ["odenets", "--help"]
try:
    runpy.run_module("odenets", run_name="__main__")
except SystemExit as end:
    said["python -m odenets"] = end.code
print(json.dumps(said))
"""
# What the extra brings, and torch does not.
EXTRA = (
    "accelerate", "jinja2", "markupsafe", "matplotlib", "numpy", "pandas", "rich", "safetensors", "scipy", "sklearn",
    "typer", "wfdb",
)  # fmt: skip


@pytest.mark.filterwarnings("default")
def test_a_plain_installation_names_the_extra_wherever_it_is_missed():
    done = subprocess.run(
        (sys.executable, "-W", "ignore", "-c", PLAIN, *EXTRA), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    core = {
        "odenets.solve",
        "odenets.tuning.tune",
        "odenets.tuning.check_gradient",
        "odenets.torchdiffeq",
        "odenets.nn.models",
    }
    assert all(said[name] is None for name in core)
    lacking = {name for name, text in said.items() if text}
    ours = (
        "cli",
        "data",
        "estimators",
        "experiments",
        "figures",
        "progress",
        "report",
        "tabular",
        "terminal",
        "tour",
        "train",
    )
    assert {f"odenets.{name}" for name in ours} | {"python -m odenets"} <= lacking
    assert all(name.split(".")[1] in ours for name in lacking - {"python -m odenets"})
    for name in lacking:
        assert "which a plain installation of odenets does not bring: pip install 'odenets[experiments]'" in said[name]
    assert said["odenets.estimators.SeriesClassifier"] == said["odenets.estimators"]
    assert said["odenets.train"].startswith("`odenets.train` needs `")
    assert said["python -m odenets"].startswith("odenets: the command `odenets` needs `typer`, which")


def test_types_are_shipped():
    assert resources.files("odenets").joinpath("py.typed").is_file()


def test_the_command_is_the_module():
    (entry,) = metadata.entry_points(group="console_scripts", name="odenets")
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert 'odenets = "odenets.__main__:main"' in declared
    assert entry.module.startswith("odenets.")
