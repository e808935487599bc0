"""The table of what the newest rebuilding of the core costs or saves."""

from pages.text import load, markdown


def ratios() -> str:
    """A row for each work: the time after, in units of that before, and the evaluations of f."""
    works = load("changed")["works"]
    ways = list(next(iter(works.values())))
    rows = [
        (name, *(f"{by[way]['ratio']:.2f}" + _evaluations(**by[way]["nfe"]) for way in ways))
        for name, by in works.items()
    ]
    return markdown(("", *ways), rows)


def _evaluations(before: int, after: int) -> str:
    return "" if before == after else f" ({before} → {after} evaluations)"
