"""The tables of the page on scale: how the cost of a training step grows, and what two processes gain."""

from typing import Any

from pages.text import load, markdown, with_versions


def axes() -> str:
    """Milliseconds of a training step in every way along each axis, a table each."""
    result = load("scale")
    blocks = [_axis(name, curve, result["usual"]) for name, curve in result["axes"].items()]
    return with_versions("\n".join(blocks), result, "torchdiffeq")


def _axis(name: str, curve: dict[str, Any], usual: dict[str, int]) -> str:
    held = {"steps": usual["steps"], "batch": usual["batch"], "width": usual["width"], name: None}
    held |= {"steps": 1} if name == "solves" else {}
    shown = ", ".join(f"{key} {value}" for key, value in held.items() if value is not None)
    head = (f"ms; {shown}; {name}:", *(f"{value:,}" for value in curve["values"]))
    return markdown(head, [(_named(way), *map(_ms, ms)) for way, ms in curve["ms"].items()])


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _named(way: str) -> str:
    """A way in the words of the pages."""
    ours = {"compiled": "odenets Checkpointed, compiled", "f": "f alone, forward and backward"}
    return ours.get(way, way if way.startswith("torchdiffeq") else f"odenets {way}")


def laws() -> str:
    """The exponent, the fixed cost and that of one more unit, and from where f has most of the time."""
    rows = []
    for name, curve in load("scale")["axes"].items():
        for way, law in curve["laws"].items():
            if not way.startswith("torchdiffeq"):
                ends = [_from(name, law[bound]) if bound in law else "" for bound in ("half", "tenth")]
                fixed, unit = law["fixed_us"] / 1e3, law["unit_us"]
                rows.append((f"{name}: {_named(way)}", f"{law['exponent']:.2f}", _ms(fixed), _short(unit), *ends))
    head = ("", "exponent", "fixed, ms", "one more, µs", "solver below 50 % from", "below 10 % from")
    return markdown(head, rows)


def _short(value: float) -> str:
    """Three digits, all of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _from(axis: str, value: float | None) -> str:
    if value is None:
        return "never"
    least = load("scale")["axes"][axis]["values"][0]
    return "everywhere" if value <= least else f"{value:#,.2g}".rstrip(".") if value < 100 else f"{value:,.0f}"


def steps() -> str:
    """One more step of every kind, and what the solver adds to each evaluation of f."""
    rows = [
        (
            name,
            f"{row['us']:.0f}",
            f"{row['nfe']:g}",
            f"{row['f_us']:.0f}",
            f"{row['overhead_us']:.0f}",
            _dominated(row),
        )
        for name, row in load("scale")["step"]["kinds"].items()
    ]
    head = (
        "µs of one more step",
        "all",
        "evaluations of f",
        "f alone",
        "solver's, an evaluation",
        "below 10 % where f takes",
    )
    return markdown(head, rows)


def _dominated(row: dict[str, float]) -> str:
    """How long f and its pullback have to take for the solver to have less than a tenth."""
    return f"{9 * row['overhead_us'] / 1e3:.1f} ms" if row["overhead_us"] > 0 else "any time"


def processes() -> str:
    """One training by one process and by two."""
    found = load("scale")["processes"]
    one = found["1"]
    rows = [
        (
            count,
            f"{row['seconds']:.2f}",
            f"{row['processor_seconds']:.2f}",
            f"{one['processor_seconds'] / row['processor_seconds']:.2f}",
            f"{row['loss']:.6f}",
        )
        for count, row in found.items()
    ]
    return markdown(("processes", "seconds an epoch", "of the processor, each", "times as fast", "test loss"), rows)


NODES = (1, 2, 4, 8, 16, 64)
SAMPLES, BYTES_PER_SECOND, LATENCY = 8192, 10e9 / 8, 50e-6


def many() -> str:
    """A training step by many processes, as the laws and the formula of the page have it."""
    result = load("scale")
    laws, width = result["axes"]["batch"]["laws"], result["usual"]["width"]
    head = ("ms, and times as fast; processes:", *map(str, NODES))
    rows = []
    for way in ("Checkpointed", "compiled"):
        ms = [_step(laws[way], n, width * (width + 1)) for n in NODES]
        rows.append((_named(way), *(f"{x:.1f} ({ms[0] / x:.1f})" for x in ms)))
    return markdown(head, rows)


def _step(law: dict[str, float], processes: int, weights: int) -> float:
    """Milliseconds."""
    exchange = 2 * (processes - 1) * (4 * weights / processes / BYTES_PER_SECOND + LATENCY)
    return (law["fixed_us"] + law["unit_us"] * SAMPLES / processes) / 1e3 + 1e3 * exchange
