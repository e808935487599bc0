"""The table of what goes with what, from the one that `solve` checks by."""

from odenets import support
from pages.text import markdown


def pairs() -> str:
    """A row for each thing that can be asked for: what it does not go with, and what to write instead."""
    others: dict[tuple[str, str], list[str]] = {}
    for clash in support.CLASHES:
        others.setdefault((clash.one.name, clash.remedy), []).append(clash.other.name)
    ones: dict[tuple[str, str], list[str]] = {}
    for (one, remedy), with_ in others.items():
        ones.setdefault((", ".join(with_), remedy), []).append(one)
    rows = [(", ".join(names), with_, remedy) for (with_, remedy), names in ones.items()]
    return markdown(("", "does not go with", "instead"), rows).replace("---:", "---")
