"""A `Result` in the terminal: its answer and its tables, in whatever width there is."""

import itertools
from collections.abc import Sequence

from odenets.extra import experiments_extra

with experiments_extra("`odenets.terminal`"):
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from odenets.experiments.result import Result, Table
    from odenets.report import Text as Cell
    from odenets.report import grid

__all__ = ["show", "show_table"]


def show(result: Result) -> None:
    """The answer and the first table of each section, in the terminal."""
    console = Console(highlight=False, markup=False)
    if result.synthetic:
        console.print(Text(" SYNTHETIC DATA ", "bold reverse"), result.source, end="\n\n")
    console.print(result.lead)
    for section in result.sections:
        if section.explained is not None and section.explained.finding:
            console.print(f"\n{section.title}", style="bold")
            console.print(f"{section.explained.verdict}: {section.explained.finding}".removeprefix(": "))
        if section.explained is not None or not section.tables:
            continue
        table = section.tables[0]
        console.print(f"\n{section.title}: {table.title}", style="bold")
        show_table(console, table)
        console.print(table.note, style="italic")


def show_table(console: Console, table: Table) -> None:
    """A table in the terminal: on its side where it is too wide, and past the edge rather than cut."""
    cells = grid(table)
    lines = [cells["head"], *cells["rows"]]
    upright, sideways = _grid(lines), _grid(list(zip(*lines)))
    shown = upright if _narrowest(upright) <= console.width else sideways
    Console(file=console.file, width=max(console.width, _narrowest(shown)), markup=False).print(shown)


def _grid(lines: Sequence[Sequence[Cell]]) -> Grid:
    """The lines as columns of a grid, none too narrow for its words; cells with numbers keep to one line."""
    out = Grid(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for place, (head, *column) in enumerate(zip(*lines)):
        if place > 0 and any(cell.number for cell in column):
            out.add_column(head.text, justify="right", width=_widest(head.text.split(), [c.text for c in column]))
        else:
            out.add_column(head.text, min_width=_widest(*(cell.text.split() for cell in (head, *column))))
    for line in lines[1:]:
        out.add_row(*(cell.text for cell in line))
    return out


def _widest(*words: Sequence[str]) -> int:
    return max(map(cell_len, itertools.chain.from_iterable(words)))


def _narrowest(table: Grid) -> int:
    """The width that a grid of `_grid` needs, with two spaces between columns. rich's own measure cuts words."""
    return sum(column.width or column.min_width or 0 for column in table.columns) + 2 * (len(table.columns) - 1)
