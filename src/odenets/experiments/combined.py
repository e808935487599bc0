"""Several experiments as one `Result`: a section each, with the answer, the first tables and every picture."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from odenets.experiments.result import Result, Section, Table


class Part(NamedTuple):
    """One experiment of several: its options, and its result or what it failed with."""

    name: str
    options: Mapping[str, Any]
    found: Result | str


def combine(parts: Sequence[Part]) -> Result:
    """One result of the small forms of experiments, in order; a failed one has a section that says why."""
    done = [part.found for part in parts if isinstance(part.found, Result)]
    synthetic = bool(done) and all(result.synthetic for result in done)
    return Result(
        experiment="all",
        title="All experiments in their small forms",
        lead=_lead(parts),
        config={part.name: part.options for part in parts},
        source="Each section says where its data come from.",
        synthetic=synthetic,
        sections=tuple(_section(part, marked=not synthetic) for part in parts),
        summary={part.name: _summary(part.found) for part in parts},
    )


def _summary(found: Result | str) -> Mapping[str, Any]:
    return {"failed": found} if isinstance(found, str) else found.summary


def _lead(parts: Sequence[Part]) -> str:
    failed = [part.name for part in parts if isinstance(part.found, str)]
    count = f"{len(parts) - len(failed)} of {len(parts)} experiments ran in their small forms"
    lost = f", and {', '.join(failed)} failed: the section of each says why" if failed else ""
    return (
        f"{count}{lost}.\n\nA small form takes seconds. It shows that an experiment works and what its page looks "
        "like; numbers of so little work settle nothing. Those are made by the full form, `odenets run EXPERIMENT`."
    )


def _section(part: Part, marked: bool) -> Section:
    """The section of an experiment; `marked` where synthetic data must be called so here, and not by the page."""
    if isinstance(part.found, str):
        return Section(part.name, f"This experiment failed: {part.found}")
    result = part.found
    mark = "Synthetic data. " if marked and result.synthetic else ""
    return Section(
        result.title,
        f"{mark}{result.lead}\n\n{result.source}\n\nAll of its tables: {part.name}/report.html, beside this page.",
        tuple(_tables(result, mark)),
        tuple(
            dataclasses.replace(
                picture,
                name=f"{part.name}-{picture.name}",
                title=before + picture.title,
                caption=mark + picture.caption,
            )
            for before, section in _headed(result)
            for picture in section.pictures
        ),
    )


def _tables(result: Result, mark: str) -> Iterator[Table]:
    """The first table of each section."""
    for before, section in _headed(result):
        for table in section.tables[:1]:
            yield dataclasses.replace(table, title=f"{mark}{before}{table.title}")


def _headed(result: Result) -> Iterator[tuple[str, Section]]:
    """The sections, each with what must stand before its titles to tell them from those of the others."""
    for section in result.sections:
        yield f"{section.title}: " if len(result.sections) > 1 else "", section
