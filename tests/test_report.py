"""The report: what stands on the page and in the files, and that nothing is written by halves."""

import json
import math
import platform
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from odenets import figures
from odenets.experiments import result as result_module
from odenets.experiments.result import Picture, Result, Section, Table, made
from odenets.files import RunFolderError
from odenets.report import render, summary_json, versions, write_result

VOID = {"meta", "link", "br", "img", "hr", "path", "use"}


class Page(HTMLParser):
    """The elements of a page with their attributes, all its ids, its text, and its table cells."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.tables, self.open = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def picture(name="fit", **changes):
    drawn = figures.regression_fit([0.0, 1.0], [0.0, 1.0], {"ResNet": [0.1, 0.9]}, [0.5], [0.4])
    return Picture(name, **{"title": "The fit", "caption": "What one sees", "figure": drawn} | changes)


def result(**changes):
    parts = {
        "experiment": "cubic",
        "title": "Two networks",
        "lead": "The ResNet was a little nearer.",
        "config": {"seed": 3, "lr": 1e-05, "data": {"points": 10, "noise": None}},
        "source": "Ten points, see https://example.org/points.",
        "synthetic": False,
        "sections": (Section("Fits", "One.\n\nTwo.", pictures=(picture(),)),),
        "summary": {"ResNet": {"test_loss": 4.673, "nfe": None}, "ODE-Net": {"test_loss": 7.72, "nfe": 26}},
    }
    return Result(**parts | changes)


def page(**changes):
    return Page(render(result(**changes)))


def with_table(columns, *rows, **changes):
    """The cells of a section's table as shown, without its head."""
    table = Table("Numbers", columns, rows, **changes)
    return page(sections=(Section("Tables", "", tables=(table,)),), summary={}).tables[0][1:]


def columns_of(*rows):
    return with_table(tuple("abcdef"[: len(rows[0])]), *rows)


# ---- the page -----------------------------------------------------------------------------------------------


def test_page_stands_alone():
    """No script, nothing to fetch: addresses lead only to anchors, and in links to the documents they name."""
    html = render(result(sections=(Section("Fits", "", pictures=(picture(), picture("second"))),)))
    content = Page(html)
    tags = {tag for tag, _ in content.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "image", "base", "form", "video", "audio"}
    assert [link["href"] for link in content.all("link")] == ["data:,"]
    for tag, attributes in content.elements:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for address in (attributes.get("href"), attributes.get("xlink:href")):
            allowed = r"#|data:," if tag != "a" else r"#|https://example\.org/points$"
            assert address is None or re.match(allowed, address)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    policy = next(meta for meta in content.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_page_is_well_formed_and_every_anchor_exists_once():
    sections = (Section("Same", "", pictures=(picture(), picture("second"))), Section("Same", ""), Section("§ 2", ""))
    content = page(sections=sections)
    ids = [attributes["id"] for _, attributes in content.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [
        attributes["href"][1:] for tag, attributes in content.elements if attributes.get("href", "").startswith("#")
    ]
    assert set(inside) <= set(ids)
    assert content.open == []


def test_page_has_language_title_headings_and_contents():
    content = page()
    assert content.all("html") == [{"lang": "en"}]
    assert [tag for tag, _ in content.elements if re.fullmatch("h[1-6]", tag)] == ["h1", "h2", "h2", "h2"]
    assert "Two networks" in content.text
    assert {"#1-fits", "#configuration", "#provenance"} <= {link["href"] for link in content.all("a")}


def test_figures_are_described_and_follow_the_theme():
    html = render(result())
    (svg,) = Page(html).all("svg")
    assert svg["role"] == "img"
    assert svg["aria-label"] == "What one sees"
    assert svg["viewbox"] == "0 0 388.8 252"
    assert "stroke: var(--resnet)" in html
    drawing = html[html.index("<svg") : html.index("</svg>")]
    assert "#" + figures.NETWORKS["ResNet"].colour.lstrip("#") not in drawing
    for colour in figures.PALETTE.values():
        assert colour.light in html.partition("</style>")[0]
        assert colour.dark in html.partition("</style>")[0]


def test_figure_with_colours_of_its_own_stands_on_white():
    foreign = Figure()
    foreign.subplots().plot([0, 1])
    html = render(result(sections=(Section("Fits", "", pictures=(picture(figure=foreign),)),)))
    assert 'class="plot foreign"' in html
    assert "#1f77b4" in html


def test_tall_figures_stand_beside_two_others():
    tall = figures.learning_curves({name: [{"epoch": 1, "train_loss": 1, "test_loss": 1}] for name in "abc"})
    pictures = (picture(), picture("tall", figure=tall))
    content = page(sections=(Section("Fits", "", pictures=pictures),))
    assert [shown.get("class") for shown in content.all("figure")] == [None, "tall"]


def test_text_is_escaped_everywhere():
    evil = '<script>alert("1")</script>'
    drawn = Figure()
    drawn.subplots().set_title(f"{evil} -->")
    html = render(
        result(
            experiment=evil,
            title=evil,
            lead=evil,
            config={evil: evil},
            source=evil,
            sections=(
                Section(
                    evil,
                    evil,
                    tables=(Table(evil, (evil, evil), ((evil, evil),), note=evil),),
                    pictures=(picture(title=evil, caption=evil, figure=drawn),),
                ),
            ),
            versions={evil: evil},
        )
    )
    content = Page(html)
    assert content.all("script") == []
    assert content.text.count(evil) >= 12
    assert content.all("svg")[0]["aria-label"] == evil


def test_paragraphs_links_and_plus_minus():
    content = page(lead="First: 1 ± 2.\n\n \n\nSecond, https://example.org/points", source="x")
    assert [text.get("class") for text in content.all("p")].count("lead") == 2
    assert "1\u00a0±\u00a02" in "".join(content.words)
    (link,) = [link for link in content.all("a") if link["href"].startswith("http")]
    assert link == {"href": "https://example.org/points", "rel": "noopener"}


def test_synthetic_data_is_marked_everywhere():
    sections = (Section("Fits", "", tables=(Table("Numbers", ("a",), ()),), pictures=(picture(),)),)
    made_up = page(synthetic=True, sections=sections)
    assert made_up.text.startswith("Two networks (synthetic data) Synthetic data. Every number and figure")
    assert "The fit. Synthetic data. What one sees" in made_up.text
    assert "Synthetic data. Numbers" in made_up.text
    assert made_up.all("svg")[0]["aria-label"] == "Synthetic data. What one sees"
    assert "ynthetic" not in page(sections=sections).text


def test_footer_tells_source_seed_and_versions():
    footer = [word for word in page().words if word.strip()]
    assert "".join(footer[footer.index("data") + 1 :]).startswith("Ten points, see https://example.org/points.seed3")
    assert footer[footer.index("torch") + 1] == torch.__version__


def test_footer_tells_command_date_and_commit():
    made = {"command": "odenets run cubic", "date": "2026-11-25 12:00 UTC", "commit": "804c6230fe23"}
    footer = [word for word in page(made=made).words if word.strip()]
    for key, value in made.items():
        assert footer[footer.index(key) + 1] == value


def test_config_keeps_every_digit():
    config = {"lr": 1e-05, "rtol": 0.123456789, "seeds": (1, 2), "data": {"points": 10000, "noise": None}, "fast": True}
    rows = page(config=config).tables[-1]
    assert rows == [
        ["setting", "value"],
        ["lr", "1e-05"],
        ["rtol", "0.123456789"],
        ["seeds", "1, 2"],
        ["data, points", "10000"],
        ["data, noise", "–"],
        ["fast", "yes"],
    ]


# ---- numbers ------------------------------------------------------------------------------------------------


def test_columns_get_equal_digits_and_missing_values_a_dash():
    assert columns_of(("a", 4.673, 45253, None), ("b", 0.0912345, 7, "x"), ("c", None, None, "y")) == [
        ["a", "4.673", "45,253", "–"],
        ["b", "0.091", "7", "x"],
        ["c", "–", "–", "y"],
    ]


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([1.5, 2.0], ["1.5", "2.0"]),  # no digit that nobody needs
        ([0.97463, 0.9759], ["0.9746", "0.9759"]),
        ([-0.0123456, 0.5], ["−0.0123", "0.5000"]),
        ([123456.7, 1e-6], ["123,457", "1e−06"]),  # too different for one column of points
        ([1e-12], ["1e−12"]),
        ([1.23456e12], ["1,234,560,000,000"]),
        ([0.0, 0.0], ["0", "0"]),
        ([math.nan, math.inf, 2.5], ["nan", "inf", "2.5"]),
        ([True, False], ["yes", "no"]),
    ],
)
def test_significant_digits(numbers, shown):
    assert [row[1] for row in columns_of(*(("row", number) for number in numbers))] == shown


def test_first_column_is_left_as_it_is():
    assert [row[0] for row in columns_of((1e-3, 1), (2026, 2), (True, 3))] == ["0.001", "2026", "yes"]


def test_numbers_stand_on_the_right():
    table = Table("Numbers", ("name", "float", "text", "both", "range"), (("a", 1.0, "one", None, "0.09 ± 0.01"),))
    content = page(sections=(Section("Tables", "", tables=(table,)),), summary={})
    heads = [head.get("class") for head in content.all("th")][:5]
    cells = [cell.get("class") for cell in content.all("td")][:4]
    assert heads == [None, "number", None, "number", "number"]
    assert cells == heads[1:]


def test_tables_scroll_in_their_own_box_and_show_title_and_note():
    table = Table("Numbers", ("name",), (("a",),), note="Of 5 seeds.")
    content = page(sections=(Section("Tables", "", tables=(table,)),), summary={})
    boxes = [box for box in content.all("div") if box.get("class") == "table"]
    assert boxes[0] == {"class": "table", "role": "region", "tabindex": "0", "aria-label": "Numbers"}
    assert "Numbers name a Of 5 seeds." in content.text


# ---- the files ----------------------------------------------------------------------------------------------


def test_written_files(tmp_path):
    written = write_result(result(), tmp_path / "runs" / "cubic")
    folder = tmp_path / "runs" / "cubic"
    assert written == folder / "report.html"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["figures/fit.png", "figures/fit.svg", "report.html", "summary.json"]
    assert written.read_text(encoding="utf-8") == render(result())
    assert (folder / "figures/fit.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (folder / "figures/fit.png").read_bytes().startswith(b"\x89PNG")


def test_summary_round_trip(tmp_path):
    given = result()
    write_result(given, tmp_path)
    read = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert read["summary"] == given.summary
    assert read["config"] == given.config
    assert read["versions"] == given.versions
    assert read["made"] == given.made
    about = ("experiment", "title", "source", "synthetic")
    assert [read[name] for name in about] == [getattr(given, name) for name in about]


def test_summary_takes_arrays_and_numbers_that_json_lacks():
    summary = {
        "loss": float("nan"),
        "range": (float("-inf"), np.float64("inf")),
        "counts": torch.tensor([[1, 2]]),
        "share": np.float32(0.5),
        "folder": Path("runs"),
        "good": np.True_,
    }
    read = json.loads(summary_json(result(summary=summary)), parse_constant=pytest.fail)["summary"]
    assert read == {
        "loss": "nan",
        "range": ["-inf", "inf"],
        "counts": [[1, 2]],
        "share": 0.5,
        "folder": "runs",
        "good": True,
    }
    assert math.isnan(float(read["loss"]))


def test_failure_to_render_leaves_the_earlier_report(tmp_path, monkeypatch):
    write_result(result(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(figure):
        raise RuntimeError("no ink")

    monkeypatch.setattr(figures, "to_png", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        write_result(result(title="Another"), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"The report .*file.*[Uu]se another folder"):
        write_result(result(), tmp_path / "file")


# ---- what an experiment hands over --------------------------------------------------------------------------


def test_row_of_another_length():
    with pytest.raises(ValueError, match=r"`rows\[1\]` of table 'Numbers' has 1 cells and `columns` has 2.*`None`"):
        Table("Numbers", ("a", "b"), ((1, 2), (3,)))


@pytest.mark.parametrize("name", ["", "Fit", "../fit", "a fit", "fit-", "fit.svg"])
def test_picture_name_that_is_no_file_stem(name):
    with pytest.raises(ValueError, match=f"`name` of a picture is {name!r}.*such as 'learning-curves'"):
        picture(name)


def test_two_pictures_of_one_name():
    sections = (Section("One", "", pictures=(picture(),)), Section("Two", "", pictures=(picture(),)))
    with pytest.raises(ValueError, match=r"`sections` have more than one picture named \['fit'\]"):
        result(sections=sections)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/a/bin/odenets", "run", "cubic", "--out", "my runs"], "odenets run cubic --out 'my runs'"),
        (["/lib/odenets/__main__.py", "list"], "python -m odenets list"),
        (["my script.py"], "'my script.py'"),
        ([""], "python"),
    ],
)
def test_the_command_can_be_given_again(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert made()["command"] == command


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_codes_own_checkout(tmp_path, monkeypatch):
    """None outside of a checkout, in somebody else's one, where an installed package may lie, and without git."""
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("")
    assert result_module._commit(package) is None
    git(tmp_path / "project", "init")
    git(tmp_path / "project", "commit", "--allow-empty", "--message", "theirs")
    assert result_module._commit(package) is None
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "commit", "--message", "ours")
    commit = result_module._commit(package)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{12}", commit)
    (package / "code.py").write_text("changed = True")
    assert result_module._commit(package) == f"{commit}, with changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert result_module._commit(package) is None


def test_versions_say_what_ran():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert result().versions == found
    assert replace(result(), versions={}).versions == {}


def test_processor_is_named_where_the_system_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(result_module, "CPU_INFO", tmp_path / "cpuinfo")
    assert versions()["cpu"] == platform.processor() or platform.machine()
    (tmp_path / "cpuinfo").write_text("flags : a\nmodel name\t: Abacus 9\n")
    assert versions()["cpu"] == "Abacus 9"
