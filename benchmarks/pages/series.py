"""The table of the page on irregular series: a training step beside the same model on torchdiffeq and torchcde."""

from pages.text import load, markdown, ratio, with_versions


def steps() -> str:
    """A row for each model: milliseconds of both, how many times as fast, evaluations of f, and how far they differ."""
    result = load("series")
    rows = [
        (
            name,
            f"{work['ms']['odenets']:.0f}",
            f"{work['ms']['peer']:.0f}",
            ratio(work["ratio"]),
            *(str(work["nfe"][who]) for who in ("odenets", "peer")),
            *(f"{work['error'][who]:.1e}" for who in ("odenets", "peer")),
        )
        for name, work in result["works"].items()
    ]
    head = ("", "ms", "peer, ms", "times as fast", "nfe", "peer's nfe", "error", "peer's error")
    return with_versions(markdown(head, rows), result, "torchdiffeq", "torchcde")
