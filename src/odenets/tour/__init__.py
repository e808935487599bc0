"""The tour: the sections of the introduction in its order, each with code that is run to make it."""

import torch

from odenets.arguments import shown
from odenets.experiments.result import INTRODUCTION, Result
from odenets.progress import no_progress, progress_bar
from odenets.tour import equations, findings, learning, odenet, residual
from odenets.tour.lesson import FAILS, HOLDS, PARTLY, Lesson

LESSONS: tuple[Lesson, ...] = (
    *learning.LESSONS,
    *residual.LESSONS,
    *equations.LESSONS,
    *odenet.LESSONS,
    *findings.LESSONS,
)


def find(section: str | None) -> tuple[Lesson, ...]:
    """The lessons of a section ("2.5", or "2" for all of it); all lessons of None.

    Raises:
        ValueError: If there is no such section.
    """
    found = tuple(x for x in LESSONS if section is None or f"{x.number}.".startswith(f"{section}."))
    if not found:
        named = ", ".join(x.number for x in LESSONS)
        raise ValueError(f"`section` must be one of {named}, or a number that they begin with; got {shown(section)}")
    return found


def make(section: str | None = None, *, progress: bool = True) -> Result:
    """Run the lessons of a section, or all, and return the page as a `Result`.

    Raises:
        ValueError: If there is no such section.
    """
    lessons, bar = find(section), progress_bar if progress else no_progress
    sections = tuple(lesson.section() for lesson in bar(lessons, "Lessons"))
    verdicts = [made.explained.verdict for made in sections if made.explained and made.explained.verdict]
    counts = ", ".join(f"{x.lower()}: {verdicts.count(x)}" for x in (HOLDS, PARTLY, FAILS) if x in verdicts)
    return Result(
        experiment="tour",
        title="ODE-Nets: the tour",
        lead=f"The sections of {INTRODUCTION}, “the document” below, each with code that was run to make this page and "
        "that can be pasted into Python."
        + (f"\n\nIts {len(verdicts)} claims on this page: {counts}." if len(verdicts) > 1 else ""),
        config={"section": section or "all", "threads": torch.get_num_threads()},
        source="Made by the code on this page.",
        synthetic=False,
        sections=sections,
        summary={
            x.title: {"verdict": x.explained.verdict, "finding": x.explained.finding} for x in sections if x.explained
        },
    )
