"""Tables and figures of the experiment `uniqueness`, made of its rows."""

import math
from collections.abc import Sequence

from odenets.experiments.driver import Quantity, Row, groups, means_table, rows_table
from odenets.experiments.lipschitz import SLOPES, SMOOTH, STARTS, TOLERANCES, measured_slope
from odenets.experiments.result import Picture, Section

END = 3.0  # of x′ = √|x|
KINDS = {"smooth": lambda name: SMOOTH[name] > 1, "with a kink in it or its slope": lambda name: SMOOTH[name] <= 1}


def picard_section(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    errors, iterates = {}, {}
    for row in rows:
        k = list(range(len(row["errors"])))
        errors[row["name"]] = {"error": figures.Line(k, row["errors"]), "bound": figures.Line(k, row["bounds"])}
        shown = {
            f"k = {k}": figures.Line(row["t"], row["iterates"][k]) for k in (0, 1, 2, 4) if k < len(row["iterates"])
        }
        iterates[row["name"]] = {**shown, "solution": figures.Line(row["t"], row["exact"])}
    return Section(
        "Picard's iteration",
        "The proof of theorem 1 is an iteration, u_{k+1}(t) = u₀ + ∫ f(s, u_k(s)) ds; here the integral is exact to "
        "rounding. After k of them the error is at most M Lᵏ Tᵏ⁺¹/(k + 1)!, where M is the largest |f| along the "
        "solution.",
        (
            rows_table(
                "Error after the last iteration",
                rows,
                {"equation": "name", "M": "M:.3f", "L": "L:g", "T": "T:g", "last error": "last:.1e"}
                | {"iterates above the bound": "broken"},
                "Beyond 1e-11, which the solution compared with may be off.",
            ),
        ),
        (
            Picture(
                "picard",
                "Iterates",
                "The first iterates and the solution.",
                figures.line_panels(iterates, "time t", "u(t)", level="solution", share_y=False),
            ),
            Picture(
                "picard-error",
                "Error by iteration",
                "The largest error on the interval, and the theory's bound.",
                figures.line_panels(errors, "iteration k", "largest error", log="y", level="bound"),
            ),
        ),
    )


def without_section(roots: Sequence[Row], blown: Sequence[Row]) -> Section:
    keys = [f"{start:g}" for start in STARTS]
    exact = {"method": "solutions", **{f"{s:g}": f"{(math.sqrt(s) + END / 2) ** 2:.4f}" for s in STARTS if s > 0}}
    exact |= {"0": f"0 … {END**2 / 4:.4f}", f"{STARTS[-1]:g}": f"0 … {END**2 / 4:.4f}"}
    return Section(
        "Without uniqueness, and without a solution",
        "x′ = √|x| has no Lipschitz constant at 0. From x(0) = 0 both 0 and t²/4 solve it, and whatever waits at 0 "
        "and then leaves; a start below 0 comes to 0 and has the same choice. A solver gives one of them. y′ = y² is "
        "Lipschitz on every bounded set only: its solution from y₀ ends at 1/y₀. Adaptive methods with rtol 1e-6, "
        "atol 1e-9 and at most 5,000 steps, the others with 100 equal steps.",
        (
            rows_table(
                f"x′ = √|x|: x({END:g}) from five starts",
                [*roots, exact],
                {"method": "method"} | {f"from {k}": k for k in keys},
            ),
            rows_table(
                "y′ = y²: what the solver reports",
                blown,
                {"method": "method", "y₀": "y0:g", "ends at": "true:g", "status": "status", "stopped at": "t:.7g"}
                | {"relative difference": "off:.1e", "evaluations": "nfe"},
                "Asked for until twice the time at which the solution ends.",
            ),
        ),
    )


def constants_section(rows: Sequence[Row]) -> Section:
    found = [{**row, "slope": measured_slope(row["activation"]), "claimed": SLOPES[row["activation"]]} for row in rows]
    return Section(
        "Lipschitz constants of fields",
        "MLPField(2, (16,)) with PyTorch's weights times three. From above: the product of the spectral norms of the "
        "layers and the largest slope of the activation. From below: the largest difference quotient of 256 random "
        "pairs of points, and after they were moved uphill. The constant lies between the last two. All activations "
        "have one, those without a derivative at 0 too.",
        (
            means_table(
                "Bounds of the Lipschitz constant",
                found,
                {"activation": "activation"},
                (
                    Quantity("claimed", "largest slope", 4),
                    Quantity("slope", "largest found", 4),
                    Quantity("sampled", "random pairs", 2),
                    Quantity("found", "pairs moved uphill", 2),
                    Quantity("upper", "from above", 2),
                    Quantity("gap", "below / above", 2),
                ),
            ),
        ),
    )


def kinks_section(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415

    errors: dict[str, dict[str, figures.Line]] = {kind: {} for kind in KINDS}
    nfes: dict[str, dict[str, figures.Line]] = {kind: {} for kind in KINDS}
    for (name,), mine in groups(rows, ["activation"]).items():
        kind = next(kind for kind, has in KINDS.items() if has(name))
        steps = min((row["rk4 steps"] for row in mine), key=len)
        pooled = [[row["rk4 errors"][i] for row in mine] for i in range(len(steps))]
        errors[kind][name] = figures.Line(steps, [math.exp(sum(map(math.log, e)) / len(e)) for e in pooled])
        counts = list(zip(*(row["nfes"] for row in mine)))
        level = [sum(c) / len(c) for c in counts]
        nfes[kind][name] = figures.Line(TOLERANCES[: len(level)], level)
    pictures = []
    for (kind, curves), stem in zip(errors.items(), ("smooth", "kinked")):
        counts_of = figures.lines(nfes[kind], "tolerance", "evaluations of f", log="xy", marked=True)
        error_of = figures.lines(curves, "steps", "relative error", log="xy", marked=True)
        text = f", activations {kind}"
        pictures += [
            Picture(
                f"kink-order-{stem}",
                "Error of rk4" + text,
                "Relative error at the end over the number of steps, geometric mean of the seeds.",
                error_of,
            ),
            Picture(
                f"kink-work-{stem}",
                "Evaluations of dopri5" + text,
                "Evaluations over the tolerance, mean of the seeds; tighter tolerances are to the left.",
                counts_of,
            ),
        ]
    tightest = TOLERANCES[max(len(row["nfes"]) for row in rows) - 1]
    return Section(
        "What a kink costs",
        "The same fields, 64 starts, from 0 to 1. A kink of f inside a step leaves an error of the step's square, a "
        "kink of its slope one of the cube, whatever the order of the method; the order is that over all starts. With "
        "adaptive steps a kink is found by rejections, and crossed with small steps.",
        (
            means_table(
                "Measured orders, and evaluations of dopri5",
                rows,
                {"activation": "activation"},
                (
                    Quantity("rk4", "order of rk4", 2),
                    Quantity("dopri5", "order of dopri5", 2),
                    Quantity("loose", f"nfe at {TOLERANCES[0]:.0e}", 0),
                    Quantity("tight", f"nfe at {tightest:.0e}", 0),
                ),
                note="Nominal orders are 4 and 5. rtol = atol.",
            ),
        ),
        tuple(pictures),
    )


def trained_section(rows: Sequence[Row], guesses: Sequence[Row]) -> Section:
    failed = [f"{row['activation']} of seed {row['seed']} ({row['failed']})" for row in rows if row["failed"]]
    return Section(
        "ODE-Nets with each activation",
        "Linear, dz/dt = f(t, z) of 16 numbers with a hidden layer of 32, linear; tsit5; Adam. The gradient is exact "
        "for the steps that were taken; “gradient off” is how far they and it are from a tight solve (tsit5 at 1e-8, "
        "float64).",
        (
            means_table(
                "Digits, test set",
                [*rows, *guesses],
                {"activation": "activation"},
                (
                    Quantity("accuracy", "accuracy in %", 2, 100),
                    Quantity("loss", "test loss"),
                    Quantity("nfe", "evaluations", 1),
                    Quantity("gradient", "gradient off by", 1, scientific=True),
                    Quantity("moved", "outputs move", 1, scientific=True),
                    Quantity("seconds", "seconds", 1),
                ),
                note="Relative differences from the tight solve. With identity the field is linear. Published for this "
                "question: none found. "
                + (f"Failed trainings, left out of the means: {', '.join(failed)}." if failed else ""),
            ),
        ),
    )
