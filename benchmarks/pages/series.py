"""The table of the page on irregular series: a training step beside the same model on torchdiffeq and torchcde."""

from pages.text import load, markdown, ratio, with_versions


def steps() -> str:
    """A row for each model: milliseconds of each, how many times as fast, evaluations of f, and their errors."""
    result = load("series")
    rows = [
        (
            name,
            *(f"{work['ms'][who]:.0f}" for who in ("odenets", "compiled", "peer")),
            *(ratio(work["ratio"][who]) for who in ("odenets", "compiled")),
            *(str(work["nfe"][who]) for who in ("odenets", "peer")),
            *(f"{work['error'][who]:.1e}" for who in ("odenets", "compiled", "peer")),
        )
        for name, work in result["works"].items()
    ]
    head = ("", "ms", "compiled", "peer", "times as fast", "compiled", "nfe", "peer's")
    return with_versions(markdown((*head, "error", "compiled", "peer's"), rows), result, "torchdiffeq", "torchcde")
