"""Write the result tables of the README and of the page on gradients from the committed JSON files of results/.

Run it:  python benchmarks/tables.py            (with --check it writes nothing and fails where a table is out of date)
A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from matplotlib import rc_context
from matplotlib.figure import Figure

from odenets.experiments.ecg import CLASSES
from odenets.figures import NETWORKS, PALETTE, STYLE, Look, to_svg
from odenets.files import write_atomically

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "gradients.md")
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def with_versions(table: str, result: dict[str, Any], *packages: str, dtype: str = "float32") -> str:
    """The table, and below it what it was made with."""
    versions = result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", *packages))
    return f"{table}\n{versions['cpu']}, {named}, Python {versions['python']}, {dtype}, one thread.\n"


def spread(row: dict[str, Any], key: str, digits: int, scale: float = 1.0) -> str:
    return f"{scale * row[key]:.{digits}f} ± {scale * row[f'{key}_sd']:.{digits}f}"


def optional(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def ecg(split: str) -> str:
    """Networks and baselines on one split."""
    result = load("ecg")
    rows = [
        (
            row["network"],
            f"{row['parameters']:,}",
            spread(row, "test_loss", 3),
            f"{row['test_loss_median']:.3f}",
            optional(row["test_loss_document"], 2),
            spread(row, "accuracy", 2, 100),
            f"{100 * row['accuracy_median']:.2f}",
            optional(row["accuracy_document"], 1, 100),
            spread(row, "macro_f1", 3),
        )
        for row in result["table"]
        if row["split"] == split
    ]
    rows += [
        (row["network"], "", "", "", "", f"{100 * row['accuracy']:.2f}", "", "", f"{row['macro_f1']:.3f}")
        for row in result["baselines"]
        if row["split"] == split
    ]
    head = (
        *("", "parameters", "cross entropy", "median", "document"),
        *("accuracy %", "median", "document", "macro-F1"),
    )
    lost = [row for row in result["table"] if row["split"] == split and row["collapsed"]]
    notes = [f"{row['network']}, seeds {row['collapsed']}: calls every beat normal." for row in lost]
    return markdown(head, rows) + "".join(f"\n{note}\n" for note in notes)


def ecg_differences() -> str:
    """ODE-Net minus ResNet, paired by seed."""
    rows = []
    for d in load("ecg")["differences"]:
        rows.append(difference(d, d, ""))
        if d["without_collapsed"]:
            rows.append(difference(d, d["without_collapsed"], f" (without seeds {d['collapsed']})"))
    return markdown(("", "mean", "95 % interval", "settled"), rows)


def difference(d: dict[str, Any], estimate: dict[str, float], remark: str) -> tuple[str, ...]:
    name = {"test_loss": "cross entropy", "accuracy": "accuracy", "macro_f1": "macro-F1"}[d["quantity"]]
    low, high = estimate["low"], estimate["high"]
    label = f"{d['split']}: {d['network']} − ResNet, {name}{remark}"
    settled = "no" if low <= 0 <= high else "yes"
    return label, f"{estimate['mean']:+.4f}", f"[{low:+.4f}, {high:+.4f}]", settled


def ecg_classes() -> str:
    """Sensitivity and precision of every class."""
    rows = [
        (f"{m['split']}: {m['network']}, {m['quantity']}", *(f"{100 * v:.1f}" for v in m["values"]))
        for m in load("ecg")["classes"]
        if m["network"] != "always N"
    ]
    return markdown(("%", *CLASSES), rows)


def ecg_time() -> str:
    """What training cost, in a run of its own."""
    result = load("ecg-time")
    rows = [
        (
            row["network"],
            optional(row["nfe"], 1),
            f"{row['seconds_per_epoch']:.2f}",
            optional(row["seconds_to_resnet"], 1),
        )
        for row in result["table"]
    ]
    head = ("", "nfe a batch, last epoch", "seconds an epoch", "seconds to the ResNet's final test loss")
    return with_versions(markdown(head, rows), result)


def ecg_fast() -> str:
    """The ODE-Net with two evaluations of f beside the ResNet, seed by seed."""
    result = load("ecg-fast")
    pairs: dict[int, dict[str, Any]] = {}
    for row in result["runs"]:
        pairs.setdefault(row["seed"], {})[row["network"]] = row
    rows = []
    for seed, pair in pairs.items():
        resnet, odenet = pair["ResNet"], pair["ODE-Net"]
        goal = resnet["test_losses"][-1]
        times = [optional(_arrival(row, goal), 1) for row in (resnet, odenet)]
        errors = [f"{value:.4f}" for value in (goal, odenet["test_loss"], odenet["exact_test_loss"])]
        per_epoch = [f"{row['seconds_per_epoch']:.2f}" for row in (resnet, odenet)]
        rows.append((str(seed), *per_epoch, *times, *errors))
    head = ("seed", "ResNet, s an epoch", "ODE-Net", "ResNet, s to its final test loss", "ODE-Net, s to that")
    head = (*head, "ResNet's test loss", "ODE-Net's", "ODE-Net's, solved to 1e-6")
    return with_versions(markdown(head, rows), result)


def _arrival(row: dict[str, Any], goal: float) -> float | None:
    passed = itertools.accumulate(row["seconds"])
    return next((time for time, loss in zip(passed, row["test_losses"]) if loss <= goal), None)


def cubic() -> str:
    """Errors of both networks under both settings."""
    rows = [
        (
            f"{row['settings']} settings: {row['network']}",
            str(row["parameters"]),
            f"{row['in_sample']:.2f}",
            f"{row['out_of_sample']:.2f}",
            f"{row['lowest']:.2f} to {row['highest']:.2f}",
            f"{row['extrapolation']:.2f}",
            optional(row["document"], 2),
        )
        for row in load("cubic")["table"]
    ]
    head = ("", "parameters", "in-sample", "out-of-sample", "range", "on [−3, 3]", "document")
    return markdown(head, rows)


def bench_summary() -> str:
    """How many times as long the peers take as our rows."""
    rows = []
    for name, work in load("bench")["works"].items():
        ms = {row["contestant"]: row["ms"] for row in work["rows"]}

        def best(*starts: str, among: dict[str, float] = ms) -> float | None:
            return min((v for k, v in among.items() if k.startswith(starts) and "twin" not in k), default=None)

        samples = "odenets, per sample" in ms
        peers = [
            best("torchdiffeq odeint_adjoint"),
            ms.get("torchdiffeq odeint") or ms.get("torchdiffeq"),
            best("torchode"),
            best("diffrax, per sample" if samples else "diffrax"),
        ]
        for contestant in OURS:
            if contestant in ms:
                ratios = [optional(peer and peer / ms[contestant], 1) for peer in peers]
                rows.append((f"{name}: {contestant}", f"{ms[contestant]:.2f}", *ratios))
    return markdown(("", "ms", "torchdiffeq adjoint", "torchdiffeq direct", "best torchode", "best diffrax"), rows)


OURS = (
    *("odenets Checkpointed", "odenets Direct", "odenets Checkpointed, compiled", "odenets Direct, compiled"),
    *("odenets, per sample", "odenets, per sample, compiled"),
)


def bench() -> str:
    """Every work, beside every peer."""
    result = load("bench")
    works = result["works"].values()
    if any(work["versions"] != next(iter(works))["versions"] for work in works):
        raise SystemExit("results/bench.json: its works were measured with different versions; run make bench")
    blocks = [bench_work(name, result["method"], work) for name, work in result["works"].items()]
    peers = ("torchdiffeq", "torchode", "diffrax", "jax")
    return with_versions("\n".join(blocks), next(iter(works)), *peers, dtype="one core")


def bench_work(name: str, method: str, work: dict[str, Any]) -> str:
    ms = {row["contestant"]: row["ms"] for row in work["rows"]}
    torchdiffeq = next(value for contestant, value in ms.items() if contestant.startswith("torchdiffeq"))
    diffrax = min(value for contestant, value in ms.items() if contestant.startswith("diffrax"))
    rows = [
        (
            row["contestant"],
            f"{row['ms']:.2f}",
            f"{row['q1']:.2f} to {row['q3']:.2f}",
            f"{torchdiffeq / row['ms']:.1f}",
            f"{diffrax / row['ms']:.2f}",
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


def bench_limits() -> str:
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
    rest = limits.get("rest ms", 0.0)
    return (
        f"{name}: {row['contestant']}",
        optional(limits["f ms"], 0, 1e3),
        optional(limits.get("f and backward ms"), 0, 1e3),
        f"{limit:.2f}",
        f"{rest:.2f}",
        f"{row['ms']:.2f}",
        f"{row['ms'] / (limit + rest):.2f}",
    )


def bench_scaling() -> str:
    """How time grows with steps, batch and width, and what a step costs beyond f."""
    result = load("bench-scaling")
    names = list(result["overhead_us"])
    blocks = [scaling_curve(quantity, points, names, result["usual"]) for quantity, points in result["curves"].items()]
    rows = [(name, *(f"{result['overhead_us'][name][k]:.0f}" for k in ("step", "field", "overhead"))) for name in names]
    few, many = result["slope_between"]
    head = (f"µs of one more step, from {few} to {many}", "all", "f's evaluations", "overhead")
    return with_versions("\n".join([*blocks, markdown(head, rows)]), result, "torchdiffeq")


def scaling_curve(quantity: str, points: list[dict[str, Any]], names: list[str], usual: dict[str, int]) -> str:
    held = ", ".join(f"{name} {value}" for name, value in usual.items() if name != quantity)
    head = (f"ms; {held}; {quantity}:", *(f"{point[quantity]:,}" for point in points))
    return markdown(head, [(name, *(f"{point['ms'][name]:.2f}" for point in points)) for name in names])


def bench_memory() -> str:
    """Peak memory of a training step while the steps grow."""
    result = load("bench-memory")
    rows = [(name, *(f"{value / 2**20:.1f}" for value in values)) for name, values in result["bytes"].items()]
    head = (f"MiB; batch {result['batch']}, width {result['width']}; steps:", *(f"{n:,}" for n in result["steps"]))
    return with_versions(markdown(head, rows), result, "torchdiffeq")


def gradient_errors() -> str:
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


def gradient_evaluations() -> str:
    """Evaluations of f in both passes, as the output times become more."""
    result = load("gradients")
    rows = [(name, *(f"{f} + {b}" for f, b in counts)) for name, counts in result["evaluations"].items()]
    return markdown(("evaluations of f; output times:", *(str(n) for n in result["outputs"])), rows)


def gradient_costs() -> str:
    """The backward pass in units of the forward pass, for each field."""
    result = load("gradients")
    tables = []
    for field, costs in result["costs"].items():
        direct = costs["odenets Direct"]["forward"]
        rows = [
            (
                name,
                f"{ms['forward']:.2f}",
                f"{ms['backward']:.2f}",
                f"{ms['backward'] / ms['forward']:.1f}",
                f"{(ms['forward'] + ms['backward']) / direct:.1f}",
            )
            for name, ms in costs.items()
        ]
        head = (field, "forward, ms", "backward, ms", "backward / forward", "both / forward of Direct")
        tables.append(markdown(head, rows))
    return with_versions("\n".join(tables), result)


def gradient_equations() -> str:
    """A compiled backward pass beside the equations that a compiled continuous adjoint would solve."""
    result = load("gradients")
    rows = [
        (name, f"{ms['checkpointed']:.2f}", f"{ms['equations']:.2f}", f"{ms['equations'] / ms['checkpointed']:.1f}")
        for name, ms in result["equations"].items()
    ]
    head = ("compiled, ms", "backward pass of Checkpointed", "equations (2) and (6) alone", "ratio")
    return with_versions(markdown(head, rows), result)


def memory_figure() -> str:
    """Peak memory against the number of steps, as SVG."""
    result = load("bench-memory")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="steps (layers of the ResNet)", ylabel="MiB")
        for name, values in sorted(result["bytes"].items(), key=lambda item: -item[1][-1]):
            look = MEMORY_LOOKS.get(name)
            if look is not None:
                colour, dash, marker = look
                mebibytes = [max(value, 2**16) / 2**20 for value in values]  # a page or so is not worth a decade
                axes.plot(result["steps"], mebibytes, color=colour, linestyle=dash, marker=marker, label=name)
        axes.set_xticks(result["steps"], [f"{n:,}" for n in result["steps"]])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title("Peak memory of a training step")
        figure.legend(loc="outside right center")
    return to_svg(figure)


def _ink(name: str) -> str:
    return PALETTE[name].light


MEMORY_LOOKS: dict[str, Look] = {
    "odenets Direct": Look(_ink("umber"), "-.", "^"),
    "torchdiffeq odeint": Look(_ink("muted"), "-.", "x"),
    "odenets Interpolated": Look(_ink("plum"), (0, (5, 1, 1, 1, 1, 1)), "v"),
    "ResNet of as many layers": NETWORKS["ResNet"],
    "odenets Checkpointed": Look(_ink("odenet"), "-", "o"),
    "odenets Checkpointed(memory=10)": Look(_ink("odenet"), "--", "o"),
    "odenets Reversible": Look(_ink("target"), "-", "D"),
    "odenets Backsolve": Look(_ink("data"), ":", "P"),
    "torchdiffeq odeint_adjoint": Look(_ink("muted"), ":", "x"),
}


TABLES: dict[str, Callable[[], str]] = {
    "ecg-random": lambda: ecg("random"),
    "ecg-inter-patient": lambda: ecg("inter-patient"),
    "ecg-differences": ecg_differences,
    "ecg-classes": ecg_classes,
    "ecg-time": ecg_time,
    "cubic": cubic,
    "ecg-fast": ecg_fast,
    "bench-summary": bench_summary,
    "bench": bench,
    "bench-limits": bench_limits,
    "bench-scaling": bench_scaling,
    "bench-memory": bench_memory,
    "gradient-errors": gradient_errors,
    "gradient-evaluations": gradient_evaluations,
    "gradient-costs": gradient_costs,
    "gradient-equations": gradient_equations,
}


def filled(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def main(check: bool = False) -> None:
    """Write the tables and the figure of memory, or with --check say whether the tables are up to date."""
    for path in PAGES:
        text = path.read_text()
        if check and filled(text) != text:
            raise SystemExit(f"{path.name}: the tables are out of date; run python benchmarks/tables.py")
        if not check:
            write_atomically(path, filled(text))
    if not check:
        write_atomically(ROOT / "docs" / "figures" / "memory.svg", memory_figure())


if __name__ == "__main__":
    typer.run(main)
