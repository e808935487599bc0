"""A lesson of the tour: an idea, its formulas, code that is run to make it, a claim and what the code says of it."""

import contextlib
import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from odenets.experiments.result import Explained, Picture, Section, Table

HOLDS, PARTLY, FAILS = "Holds", "Holds in part", "Does not hold"

Names = Mapping[str, Any]  # the variables that a lesson's code has made


class Shown(NamedTuple):
    """What the variables of the code show: a sentence or more, whether the claim holds, tables and pictures."""

    finding: str
    verdict: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """One section of the document.

    `code` stands for itself: a reader can paste it into Python. It is run with a generator of its own, `show` gets the
    variables it leaves, and what it prints is shown too. `formulas` are TeX as Matplotlib's mathtext reads it.
    """

    number: str
    title: str
    idea: str
    formulas: tuple[str, ...]
    code: str
    show: Callable[[Names], Shown]
    claim: str = ""
    more: str = ""

    @property
    def source(self) -> str:
        """The code as it can be pasted."""
        return textwrap.dedent(self.code).strip()

    def section(self) -> Section:
        """Run the code and make the section of it."""
        code, names, printed = self.source, {}, io.StringIO()
        with contextlib.redirect_stdout(printed), torch.random.fork_rng():
            exec(compile(code, f"<tour {self.number}>", "exec"), names)
        shown = self.show(names)
        told = Explained(
            self.formulas, code, printed.getvalue().rstrip(), self.claim, shown.verdict, shown.finding, self.more
        )
        return Section(f"{self.number} {self.title}", self.idea, shown.tables, shown.pictures, told)


def table(title: str, columns: tuple[str, ...], rows: Any, note: str = "") -> Table:
    """A table of rows that may hold tensors of one number."""
    plain = tuple(tuple(x.item() if isinstance(x, torch.Tensor) else x for x in row) for row in rows)
    return Table(title, columns, plain, note)
