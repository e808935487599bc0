"""The tables of time and memory, beside the peers."""

from typing import Any

from pages.text import load, markdown, optional, ratio, with_versions

WORKS = {
    "ecg": "heartbeat network",
    "cubic": "scalar function, 1e-6",
    "spiral": "torchdiffeq's spiral demo",
    "convolution": "convolutional network",
    "vanderpol": "256 van der Pol oscillators, forward",
}
PEERS = {"torchdiffeq": "torchdiffeq", "torchode": "torchode", "diffrax": "diffrax (JAX)"}
OURS = (
    *("odenets Checkpointed", "odenets Direct", "odenets Checkpointed, compiled", "odenets Direct, compiled"),
    *("odenets, per sample", "odenets, per sample, compiled"),
)


def times(work: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of every contestant of one work."""
    return {row["contestant"]: row["ms"] for row in work["rows"]}


def best(work: dict[str, Any], *starts: str) -> float:
    """The shortest time among the contestants whose names start so."""
    return min(ms for name, ms in times(work).items() if name.startswith(starts))


def best_ways() -> str:
    """The best of our ways beside the best of each peer's."""
    result = load("bench")
    rows = []
    for name, work in result["works"].items():
        ours = best(work, "odenets")
        rows.append((WORKS[name], f"{ours:.1f} ms", *(f"{ratio(best(work, peer) / ours)} ×" for peer in PEERS)))
    return markdown(("one training step", "odenets", *PEERS.values()), rows)


def summary() -> str:
    """How many times as long the peers take as our rows."""
    rows = []
    for name, work in load("bench")["works"].items():
        ms = times(work)
        direct = ms.get("torchdiffeq odeint") or ms["torchdiffeq"]
        adjoint = best(work, "torchdiffeq odeint_adjoint") if "torchdiffeq odeint" in ms else None
        diffrax = best(work, "diffrax, per sample" if "diffrax, per sample" in ms else "diffrax")
        for contestant in (name for name in OURS if name in ms):
            peers = (adjoint, direct, best(work, "torchode"), diffrax)
            ratios = ["" if peer is None else ratio(peer / ms[contestant]) for peer in peers]
            rows.append((f"{name}: {contestant}", f"{ms[contestant]:.2f}", *ratios))
    return markdown(("", "ms", "torchdiffeq adjoint", "torchdiffeq direct", "best torchode", "best diffrax"), rows)


def every_row() -> str:
    """Every work, beside every peer."""
    result = load("bench")
    works = result["works"].values()
    if any(work["versions"] != next(iter(works))["versions"] for work in works):
        raise SystemExit("results/bench.json: its works were measured with different versions; run make bench")
    blocks = [one_work(name, result["method"], work) for name, work in result["works"].items()]
    peers = ("torchdiffeq", "torchode", "diffrax", "jax")
    return with_versions("\n".join(blocks), next(iter(works)), *peers, dtype="one core")


def gpu() -> str:
    """The works that were timed on a GPU."""
    result = load("bench-gpu")
    blocks = [one_work(name, result["method"], work) for name, work in result["works"].items()]
    versions = next(iter(result["works"].values()))["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchdiffeq", "torchode", "diffrax", "jax"))
    return "\n".join([*blocks, f"{versions['gpu']}, {packages}, Python {versions['python']}.\n"])


def one_work(name: str, method: str, work: dict[str, Any]) -> str:
    torchdiffeq = next(ms for name, ms in times(work).items() if name.startswith("torchdiffeq"))
    diffrax = best(work, "diffrax")
    rows = [
        (
            row["contestant"],
            f"{row['ms']:.2f}",
            f"{row['q1']:.2f} to {row['q3']:.2f}",
            ratio(torchdiffeq / row["ms"]),
            ratio(diffrax / row["ms"]),
            f"{row['nfe']} + {row['nfe_backward']}" if "nfe" in row else "",
            f"{row['error']:.1e}" if "error" in row else "",
            f"{row['first_cold']:.1f}, {row['first_warm']:.1f}" if "first_cold" in row else "",
        )
        for row in work["rows"]
    ]
    head = ("", "ms", "quartiles", "× torchdiffeq", "× diffrax", "nfe + backward", "error", "first step, s: cold, warm")
    title = f"**{name}**: {work['what']}; {method}, rtol {work['rtol']:g}, atol {work['atol']:g}."
    remarks = [*work["notes"], *(f"{out['contestant']} failed: {out['why']}." for out in work["left_out"])]
    return f"{title}\n\n{markdown(head, rows)}\n{' '.join(remarks)}\n"


def limits() -> str:
    """Our rows beside what the evaluations of f alone take, and the rest of the step without a solve."""
    works = load("bench")["works"].items()
    rows = [limit_row(name, row, work["limits"]) for name, work in works for row in work["rows"]]
    head = ("", "f, µs", "f and backward, µs", "all of f, ms", "the rest of the step, ms", "ms", "× both")
    return markdown(head, [row for row in rows if row])


def limit_row(name: str, row: dict[str, Any], limits: dict[str, float]) -> tuple[str, ...]:
    """Empty for a row without a limit: the peers'."""
    limit = limits.get(row["contestant"].removesuffix(", compiled"))
    if limit is None:
        return ()
    rest = limits.get("rest ms")
    return (
        f"{name}: {row['contestant']}",
        optional(limits["f ms"], 0, 1e3),
        optional(limits.get("f and backward ms"), 0, 1e3),
        f"{limit:.2f}",
        optional(rest, 2),
        f"{row['ms']:.2f}",
        f"{row['ms'] / (limit + (rest or 0.0)):.2f}",
    )


def memory() -> str:
    """Peak memory of a training step while the steps grow."""
    result = load("bench-memory")
    rows = [(name, *(f"{value / 2**20:.1f}" for value in values)) for name, values in result["bytes"].items()]
    head = (f"MiB; batch {result['batch']}, width {result['width']}; steps:", *(f"{n:,}" for n in result["steps"]))
    return with_versions(markdown(head, rows), result, "torchdiffeq")
