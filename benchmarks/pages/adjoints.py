"""The tables of the page on gradients: errors, evaluations of f, and cost of each adjoint."""

from pages.text import load, markdown, with_versions


def errors() -> str:
    """The relative error of each adjoint's gradient, for each setting."""
    result = load("gradients")
    settings = list(dict.fromkeys(row["setting"] for row in result["errors"]))
    names = list(dict.fromkeys(row["contestant"] for row in result["errors"]))
    found = {(row["contestant"], row["setting"]): row for row in result["errors"]}
    tables = []
    for key, what in (("computed", "from the gradient of what was computed"), ("exact", "from the exact gradient")):
        rows = [(name, *(_error(found[name, setting][key]) for setting in settings)) for name in names]
        tables.append(markdown((f"difference {what}", *settings), rows))
    return with_versions("\n".join(tables), result, "torchdiffeq", dtype="float64")


def _error(value: float | None) -> str:
    return "" if value is None else "rounding" if value < 1e-13 else f"{value:.1e}"


def evaluations() -> str:
    """Evaluations of f in both passes, as the output times become more."""
    result = load("gradients")
    rows = [(name, *(f"{f} + {b}" for f, b in counts)) for name, counts in result["evaluations"].items()]
    return markdown(("evaluations of f; output times:", *(str(n) for n in result["outputs"])), rows)


def costs() -> str:
    """The backward pass in units of the forward pass, for each field."""
    result = load("gradients")
    tables = []
    for field, measured in result["costs"].items():
        direct = measured["odenets Direct"]["forward"]
        rows = [
            (
                name,
                f"{ms['forward']:.2f}",
                f"{ms['backward']:.2f}",
                f"{ms['backward'] / ms['forward']:.1f}",
                f"{(ms['forward'] + ms['backward']) / direct:.1f}",
            )
            for name, ms in measured.items()
        ]
        head = (field, "forward, ms", "backward, ms", "backward / forward", "both / forward of Direct")
        tables.append(markdown(head, rows))
    return with_versions("\n".join(tables), result)


def equations() -> str:
    """A compiled backward pass beside the equations that a compiled continuous adjoint would solve."""
    result = load("gradients")
    rows = [
        (name, f"{ms['checkpointed']:.2f}", f"{ms['equations']:.2f}", f"{ms['equations'] / ms['checkpointed']:.1f}")
        for name, ms in result["equations"].items()
    ]
    head = ("compiled, ms", "backward pass of Checkpointed", "equations (2) and (6) alone", "ratio")
    return with_versions(markdown(head, rows), result)
