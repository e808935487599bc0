"""Every snippet and every command of the README and the docs works; every link leads somewhere; tables are current."""

import importlib
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from odenets import Status
from odenets.cli import app
from odenets.data.synthetic import make_synthetic
from odenets.experiments import EXPERIMENTS
from train_script import EXAMPLE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IRREGULAR = ROOT / "docs" / "irregular.md"
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
TINY = {
    "all": ["--quiet"],
    "cubic": ["--epochs", "1", "--seeds", "1", "--quiet"],
    "fit": ["--model", "gru", "--epochs", "1", "--quiet"],
    "ecg": ["--epochs", "1", "--seeds", "1", "--data", "synthetic", "--no-baselines", "--quiet"],
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def make_stays_file():
    """The file that the page on irregular series begins with."""
    first = blocks(IRREGULAR, "python")[0].partition("frame =")[0]
    exec(compile(first, IRREGULAR.name, "exec"), {})


def commands():
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield pytest.param(shlex.split(line[2:]), id=line[2:])


@PAGE
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from torch.func.jvp, when it is first called
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    code = "\n\n".join(blocks(page, "python"))
    if code and page.name != "tour.md":  # whose blocks test_tour.py runs, each in a name space of its own
        monkeypatch.chdir(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchdiffeq"]:
            monkeypatch.delitem(sys.modules, name)  # which other tests import
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", list(commands()))
def test_commands_work(command, tmp_path, monkeypatch):
    """Long ones are shortened: fewer epochs, synthetic beats; `make` and `pip` are asked what they would do."""
    match command:
        case ["odenets", *arguments]:
            monkeypatch.chdir(tmp_path)
            monkeypatch.setattr("odenets.data.ecg.make_synthetic", partial(make_synthetic, 1200))
            for name in set(EXPERIMENTS) - {"cubic"} if arguments[:2] == ["run", "all"] else ():
                monkeypatch.delitem(EXPERIMENTS, name)  # a slow test of the command line runs them all
            tiny = TINY.get(arguments[1] if arguments[0] == "run" else arguments[0], [])
            if arguments[0] in ("fit", "predict"):
                make_stays_file()
            if arguments[0] == "predict":
                (fit,) = re.findall(r"^\$ odenets (fit .*)$", IRREGULAR.read_text(), re.M)
                assert CliRunner().invoke(app, [*shlex.split(fit), *TINY["fit"]]).exit_code == 0
            if arguments == ["tour"]:
                tiny = ["2.3"]
            result = CliRunner().invoke(app, [*arguments, *tiny])
            assert result.exit_code == 0, result.output
        case ["make", target]:
            subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
        case ["torchrun", "--standalone", "--nproc-per-node", "1" | "2", script]:
            assert ROOT / script == EXAMPLE  # a test of training runs it so
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


@PAGE
def test_the_document_is_named_wherever_a_page_speaks_of_it(page):
    text = " ".join(page.read_text().split())
    if re.search(r"\b[Tt]he (document|introduction)\b", text):
        assert '"Introduction to Neural Ordinary Differential Equation" (S. Della Bona and E. Dumez, 2021)' in text


@PAGE
def test_a_page_that_speaks_of_adjoints_leads_to_the_table_of_all(page):
    if page.name not in ("CHANGELOG.md", "gradients.md") and re.search("(?<!test_)adjoint", page.read_text()):
        assert re.search(r"\]\((docs/)?gradients\.md[)#]", page.read_text())


def test_every_way_to_fail_is_in_the_table_of_them():
    section = (ROOT / "docs" / "solve.md").read_text().partition("## When it fails")[2]
    named = re.findall(r"^\| `([A-Z_]+)` \|", section, re.M)
    assert sorted(named) == sorted(status.name for status in Status if status not in (Status.SUCCESS, Status.EVENT))


def test_the_page_on_installing_names_what_test_torch_runs():
    (core,) = re.findall(r"^CORE := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    told = (ROOT / "docs" / "install.md").read_text().partition("$ make test-torch")[2]
    assert sorted(set(re.findall(r"`test_(\w+)`", told))) == sorted(core.split())


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\((docs/[\w-]+\.md)", (ROOT / "README.md").read_text())
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(linked)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("tables")
    for name in [name for name in sys.modules if name == "tables" or name.partition(".")[0] == "pages"]:
        del sys.modules[name]


def test_tables_are_those_of_the_results(tables):
    text = "".join(page.read_text() for page in tables.PAGES)
    assert sorted(re.findall(r"<!-- table: ([a-z-]+) -->", text)) == sorted(tables.TABLES)
    assert tables.filled(text) == text
    assert not any("<!-- table:" in page.read_text() for page in set(PAGES) - set(tables.PAGES))


def test_the_introduction_leads_to_the_results_that_are_kept(tables):
    text = (ROOT / "docs" / "introduction.md").read_text()
    for path in (ROOT / "results" / "experiments").glob("*.json"):
        if path.stem in EXPERIMENTS:
            assert f"[`{path.stem}`](experiments-results.md#{path.stem})" in text
    assert tables.filled("| `descent` | `none` |") == "| [`descent`](experiments-results.md#descent) | `none` |"


def test_figures_are_those_of_the_results(tables):
    for path, draw in tables.FIGURES.items():
        assert path.read_text() == draw(), f"{path.name} is out of date: run python benchmarks/tables.py"


def test_check_says_which_page_or_figure_is_out_of_date(tables, tmp_path, monkeypatch):
    page, figure = tmp_path / "page.md", tmp_path / "figure.svg"
    page.write_text("<!-- table: one -->\nold\n<!-- end -->")
    monkeypatch.setattr(tables, "PAGES", (page,))
    monkeypatch.setattr(tables, "FIGURES", {figure: lambda: "new"})
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "new\n"})
    for path in (page, figure):
        with pytest.raises(SystemExit, match=f"{path.name} is out of date; run python benchmarks/tables.py"):
            tables.main(check=True)
        path.write_text(tables.contents()[path])
    tables.main(check=True)
    page.write_text(page.read_text().replace("new", "old"))
    figure.write_text("old")
    tables.main()
    assert "new" in page.read_text()
    assert figure.read_text() == "new"


@pytest.mark.parametrize(
    ("value", "text"),
    [(60.31, "60.3"), (1.04, "1.0"), (0.96, "1.0"), (0.948, "0.95"), (0.5, "0.50"), (0.0263, "0.026")],
)
def test_a_ratio_has_digits_that_suit_its_size(tables, value, text):
    assert tables.speed.ratio(value) == text


@pytest.mark.parametrize("name", ["bench-best", "bench-summary", "bench"])
def test_no_ratio_prints_as_zero(tables, name):
    assert not re.search(r"\| 0\.0+( ×)? \|", tables.TABLES[name]())


def test_what_the_readme_says_about_speed_is_true(tables):
    speed, faster = tables.speed, []
    for name, work in speed.load("bench")["works"].items():
        ours = speed.best(work, "odenets")
        assert ours < min(speed.best(work, "torchdiffeq"), speed.best(work, "torchode"))
        if speed.best(work, "diffrax") < ours:
            faster.append(name)
    assert faster == ["cubic", "spiral", "vanderpol"]


def test_what_the_readme_says_about_the_twins_is_true(tables):
    result = tables.findings.load("ecg")
    right = {
        (row["split"], row["network"]): row.get("accuracy_median", row["accuracy"])
        for row in (*result["baselines"], *result["table"])
    }
    for (split, network), accuracy in right.items():
        if network in ("always N", "nearest neighbour"):
            continue
        if split == "random":
            assert abs(accuracy - right[split, "nearest neighbour"]) < 0.005
        else:
            assert accuracy < right[split, "always N"]


def test_what_the_findings_say_about_the_cubic_is_true(tables):
    rows = {(row["settings"], row["network"]): row for row in tables.findings.load("cubic")["table"]}
    error = {key: row["out_of_sample"] for key, row in rows.items()}
    assert error["document", "ODE-Net"] < error["document", "ResNet"]
    assert error["chosen", "ResNet"] < error["chosen", "ODE-Net"]
    assert rows["document", "ODE-Net"]["document"] > rows["document", "ResNet"]["document"]
    assert rows["document", "ODE-Net"]["document"] > rows["document", "ODE-Net"]["highest"]
