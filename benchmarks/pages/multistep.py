"""The table of the page on solving: evaluations of f at the same error."""

from pages.text import load, markdown


def evaluations() -> str:
    """A row for each problem and error."""
    result = load("multistep")
    contestants = list(next(iter(result["evaluations"].values())))
    rows = [
        (f"{problem}, {error:g}", *("" if counts[i] is None else str(counts[i]) for counts in by.values()))
        for problem, by in result["evaluations"].items()
        for i, error in enumerate(result["errors"])
    ]
    names = (name if name == "VODE" else f"`{name}`" for name in contestants)
    return markdown(("problem, relative error at the end", *names), rows)
