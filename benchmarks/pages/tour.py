"""The tour as a page of the docs: the lessons' words and code, and what they made."""

import re
from collections.abc import Sequence

from odenets.experiments import Result
from odenets.experiments.result import Section
from odenets.tour.lesson import Lesson
from pages.experiments import escaped, table_text

HEAD = """# The tour

"Introduction to Neural Ordinary Differential Equation" (S. Della Bona and E. Dumez, 2021), "the document", section by
section: what `odenets tour` shows, as a page of the docs. Each section has the idea, its formulas, code that was run to
make this page and can be pasted into Python, and what became of the document's claim. [From the document to the
code](introduction.md) is the map of it, and [the page on gradients](gradients.md) has every adjoint.
`python benchmarks/tour_page.py` writes this page again.
"""
WORKED = ("cubic", "ecg")  # whose numbers stand on the page of the twins


def page(result: Result) -> str:
    """The whole page."""
    names = [section.title for section in result.sections]
    contents = "".join(f"- [{name}](#{anchor(name)})\n" for name in names)
    _, *lead = result.lead.split("\n\n")
    return "\n".join((HEAD, *(f"{escaped(part)}\n" for part in lead), contents, *map(told, result.sections)))


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def told(section: Section) -> str:
    """One lesson with what it made."""
    said = section.explained
    if said is None:
        raise ValueError(f"{section.title!r} is no lesson's section")
    tables = [table_text(table) for table in section.tables]
    pictures = [f"![{escaped(p.title)}](figures/tour/{p.name}.svg)\n\n{escaped(p.caption)}\n" for p in section.pictures]
    output = [f"```text\n{said.output}\n```\n"] if said.output else []
    verdict = f"**{said.verdict}.** " if said.verdict else ""
    claim = [f"The document: {escaped(said.claim)}\n"] if said.claim else []
    found = f"{verdict}{escaped(said.finding)}\n"
    head = words(section.title, section.text, said.formulas, said.code)
    return "\n".join((*head, *output, *tables, *pictures, *claim, found, *more(said.more)))


def words(title: str, idea: str, formulas: Sequence[str], code: str) -> list[str]:
    """What stands in a lesson before it is run."""
    maths = [f"```math\n{formula}\n```\n" for formula in formulas]
    return [f"## {title}\n", f"{escaped(idea)}\n", *maths, f"```python\n{code}\n```\n"]


def more(command: str) -> list[str]:
    """Where the full numbers are."""
    if not command:
        return []
    where = "findings" if command.split()[2] in WORKED else "experiments-results"
    return [f"The full numbers: `{command}`, [what it found]({where}.md).\n"]


def unrun(lesson: Lesson) -> list[str]:
    """All parts of the page that are known of a lesson without running it."""
    head = words(f"{lesson.number} {lesson.title}", lesson.idea, lesson.formulas, lesson.source)
    claim = [f"The document: {escaped(lesson.claim)}\n"] if lesson.claim else []
    return [*head, *claim, *more(lesson.more)]
