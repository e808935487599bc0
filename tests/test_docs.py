"""Every snippet and every command of the README and the docs works; every link leads somewhere; tables are current."""

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from odenets.cli import app
from odenets.data.synthetic import make_synthetic

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
TINY = {
    "cubic": ["--epochs", "1", "--seeds", "1", "--quiet"],
    "ecg": ["--epochs", "1", "--seeds", "1", "--data", "synthetic", "--no-baselines", "--quiet"],
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def commands():
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield pytest.param(shlex.split(line[2:]), id=line[2:])


@PAGE
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    code = "\n\n".join(blocks(page, "python"))
    if code:
        monkeypatch.chdir(tmp_path)
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", list(commands()))
def test_commands_work(command, tmp_path, monkeypatch):
    """Long ones are shortened: fewer epochs, synthetic beats; `make` and `pip` are asked what they would do."""
    match command:
        case ["odenets", *arguments]:
            monkeypatch.chdir(tmp_path)
            monkeypatch.setattr("odenets.data.ecg.make_synthetic", partial(make_synthetic, 1200))
            tiny = TINY.get(arguments[1], []) if arguments[0] == "run" else []
            result = CliRunner().invoke(app, [*arguments, *tiny])
            assert result.exit_code == 0, result.output
        case ["make", target]:
            subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
        case ["python", script, *arguments]:
            monkeypatch.syspath_prepend((ROOT / script).parent)
            monkeypatch.setattr(sys, "argv", [script, *arguments, "--help"])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            assert not end.value.code
        case ["pip", "install", "-c", constraints, what]:
            assert (ROOT / constraints).exists()
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
            assert extra
            assert extra[1] is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
        case _:
            pytest.fail(f"no test for {shlex.join(command)}")


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@PAGE
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@PAGE
def test_named_tests_and_files_exist(page):
    for name in re.findall(r"`((?:tests|benchmarks|examples|results)/[\w/.]*)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_tables_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = "".join(page.read_text() for page in tables.PAGES)
    assert sorted(re.findall(r"<!-- table: ([a-z-]+) -->", text)) == sorted(tables.TABLES)
    assert tables.filled(text) == text
    assert not any("<!-- table:" in page.read_text() for page in set(PAGES) - set(tables.PAGES))
