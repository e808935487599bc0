"""A `Result` as files: one HTML page that stands alone, the figures, and the numbers as JSON.

The page can be mailed: figures are inside it, it runs no script and asks nothing of any server (its own
security policy forbids it).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from odenets.extra import experiments_extra
from odenets.files import folder_errors, write_atomically

with experiments_extra("`odenets.report`"):
    import numpy as np
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from odenets import figures
    from odenets.experiments.result import Cell, Picture, Result, Table, versions

__all__ = ["render", "summary_json", "versions", "write_result"]

DASH, MINUS = "–", "−"
PIXELS_PER_INCH = 96  # a CSS inch
_FORMULA = 1.2  # how much larger than the text: fractions are small print
INK = re.compile(r": (#[0-9a-f]{6})\b")  # a colour in the SVG that Matplotlib writes


def write_result(result: Result, folder: str | Path) -> Path:
    """Write `report.html`, `summary.json` and `figures/<name>.svg` and `.png` into `folder`.

    The folder is made if need be. All is rendered before the first file is written, and each file appears
    whole or not at all, so a failure to render leaves an earlier report as it was. Figures of an earlier
    report with other names stay. Returns the path of the page. Raises `RunFolderError` where the folder
    cannot be written.
    """
    folder = Path(folder)
    files = dict(_files(result))
    with folder_errors("The report", folder):
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
    return folder / "report.html"


def _files(result: Result) -> Iterator[tuple[str, str | bytes]]:
    drawn = {picture.name: figures.to_svg(picture.figure) for picture in result.pictures()}
    for picture in result.pictures():
        yield f"figures/{picture.name}.svg", drawn[picture.name]
        yield f"figures/{picture.name}.png", figures.to_png(picture.figure)
    yield "summary.json", summary_json(result)
    yield "report.html", _page(result, drawn)


def summary_json(result: Result) -> str:
    """`result.summary` with what is needed to believe it: experiment, source, configuration, command, date, versions.

    Tensors and arrays become lists, numbers that JSON cannot hold become "nan", "inf" and "-inf" (which
    `float` reads back), and any other object its `str`.
    """
    kept = ("experiment", "title", "source", "synthetic", "config", "made", "versions", "summary")
    content = {name: _plain(getattr(result, name)) for name in kept}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)


def render(result: Result) -> str:
    """The result as one HTML page: every text is escaped, web addresses in paragraphs become links."""
    return _page(result, {picture.name: figures.to_svg(picture.figure) for picture in result.pictures()})


def _page(result: Result, drawn: Mapping[str, str]) -> str:
    """The page, with the SVG text of each picture given: to draw is what takes the time."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"grid": grid, "paragraphs": _paragraphs, "held": _held, "slug": _slug}
    template = resources.files("odenets").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        result=result,
        palette=figures.PALETTE,
        plot=lambda picture, caption: Plot.of(picture, drawn[picture.name], caption),
        formula=_formula,
        config=_pairs("Configuration", "setting", result.config),
        seeds={key: _exact(value) for key, value in result.config.items() if key in ("seed", "seeds")},
        made={key: _exact(value) for key, value in {**result.made, **result.versions}.items()},
    )


class Plot(NamedTuple):
    """A picture ready for the page: its SVG element and its natural width in pixels; it shrinks with a narrow window.

    `tall` says that it is as high as two others. `themed` says that the SVG takes its colours from the page; a figure
    with other colours than `figures.PALETTE` needs white behind it.
    """

    svg: Markup
    width: int
    tall: bool
    themed: bool

    @classmethod
    def of(cls, picture: Picture, svg: str, caption: str) -> "Plot":
        width, height = (round(float(inches) * PIXELS_PER_INCH) for inches in picture.figure.get_size_inches())
        themed = set(INK.findall(svg)) <= {colour.light for colour in figures.PALETTE.values()}
        return cls(_inline(svg, picture.name, caption, themed), width, height > 1.2 * width, themed)


def _inline(svg: str, name: str, caption: str, themed: bool) -> Markup:
    """An SVG file's text as an element of the page: ids made unique, colours left to the page, described."""
    opening, _, body = svg[svg.index("<svg") :].partition(">")
    box = re.search(r'viewBox="[^"]+"', opening)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body.replace("xlink:href", "href"))
    if themed:
        body = figures.with_variables(body)
    head = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0] if box else ""), caption)
    return head + Markup(body)


def _formula(tex: str, name: str) -> Markup:
    """A formula as an SVG element, as large as the text around it; its TeX is what a screen reader says."""
    svg = figures.formula_svg(tex)
    width = re.search(r'width="([\d.]+)pt"', svg)
    drawn = _inline(svg, name, tex, themed=True)
    size = Markup('<svg style="width: {:.2f}em" ').format(
        _FORMULA * float(width[1]) / figures.FORMULA_SIZE if width else 10
    )
    return size + drawn.removeprefix("<svg ")


class Text(NamedTuple):
    """What stands in a cell, and whether it belongs on the right, with the numbers."""

    text: str
    number: bool


def grid(table: Table) -> dict[str, list]:
    """A table's `head` and `rows` as `Text`: the first column as it is, the others with digits that suit them."""
    names, *columns = zip(*table.rows) if table.rows else [()] * len(table.columns)
    right = [False, *map(_numeric, columns)]
    texts = zip(map(_exact, names), *map(_column, columns))
    return {
        "head": [Text(name, number) for name, number in zip(table.columns, right)],
        "rows": [[Text(text, number) for text, number in zip(row, right)] for row in texts],
    }


def _numeric(column: Sequence[Cell]) -> bool:
    """Whether every cell is a number, missing, or a text that starts as one does, such as "0.09 ± 0.01"."""
    given = [cell for cell in column if cell is not None]
    return all(not isinstance(cell, str) or re.match(r"[-+−±<>≈~]?\s?\.?\d", cell) for cell in given)


def _column(column: Sequence[Cell]) -> list[str]:
    decimals = _decimals([cell for cell in column if isinstance(cell, float) and math.isfinite(cell)])
    return [_cell(cell, decimals) for cell in column]


def _decimals(numbers: Sequence[float]) -> int | None:
    """Digits after the point for a whole column, so that the points stand in one line.

    Four significant digits of the largest number, fewer if no number needs them; `None` if the smallest would
    keep fewer than two.
    """
    sizes = [abs(number) for number in numbers if number]
    if not sizes:
        return 0
    decimals = max(0, 3 - math.floor(math.log10(max(sizes))))
    if min(sizes) < 10.0 ** (1 - decimals) or decimals > 8:
        return None
    return max(len(f"{size:.{decimals}f}".rstrip("0").partition(".")[2]) for size in sizes)


def _cell(cell: Cell, decimals: int | None) -> str:
    if cell is None:
        return DASH
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        text = f"{cell:,}"
    elif decimals is not None and math.isfinite(cell):
        text = f"{cell:,.{decimals}f}"
    else:
        text = f"{cell:,.0f}" if 1000 <= abs(cell) < 1e9 else f"{cell:.4g}"
    return text.replace("-", MINUS)


def _pairs(title: str, heading: str, values: Mapping[str, Any]) -> Table:
    rows = tuple((_words(name), _exact(value)) for name, value in _flatten(values))
    return Table(title, (heading, "value"), rows)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}, ")
        else:
            yield f"{prefix}{name}", value


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _exact(value: Any) -> str:
    """A value of the configuration as it was given, every digit: the experiment must run again from it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_exact, value))
    return DASH if value is None else _cell(value, None) if isinstance(value, bool) else str(value)


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text."""
    return [_held(paragraph.strip()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _held(text: str) -> str:
    """The text, in which a number stays on one line with its ± and what follows, or its %."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def _slug(title: str) -> str:
    """A heading as an anchor: letters and digits of any script, hyphens between."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-") or "section"
