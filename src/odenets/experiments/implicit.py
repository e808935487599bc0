"""Implicit layers (section 2.7): against closed forms, and a deep equilibrium network beside its explicit twin.

Run it:     odenets run implicit        (1.5 minutes on one free core, 3 beside other work)
Expect:     In float64 within 3e-11 of the closed forms, slopes within 1e-12; Anderson's method runs away for
            y + y³ = x, which is no contraction. On digits, an equilibrium whose weights are free is found no more after
            two or three epochs, with each of five seeds; one with ‖W‖ ≤ 0.9 is right for 96.3 ± 1.2 %, as are logistic
            regression (96.4 %) and the explicit twins of up to 8 layers (the best 96.3 %), at 20 times the cost of
            the best. It keeps 132 KB with 4 iterations and with 18, the twin 72 KB with 1 layer, 1,332 KB with 64.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odenets.experiments.driver import (
    Quantity,
    Row,
    collect,
    groups,
    interval,
    listed,
    means_table,
    numbers_of,
    rows_table,
    values_of,
)
from odenets.experiments.equilibrium import (
    BATCH,
    BOUNDED,
    DEPTHS,
    EQUILIBRIUM,
    EXPLICIT,
    LONG,
    TRIVIAL,
    Plan,
    memory,
    trained,
    trivial,
)
from odenets.experiments.option import check_at_least, check_choices, option
from odenets.experiments.result import INTRODUCTION, Picture, Result, Section
from odenets.nn.implicit import ImplicitLayer
from odenets.nn.roots import METHODS, ImplicitError

SMALL = {"seeds": 1, "epochs": 2, "width": 16}


@dataclass(frozen=True)
class Config:
    """Options of the implicit experiment."""

    seed: int = option(0, "First seed: of the weights, the order of the digits and the division.")
    seeds: int = option(5, "Number of seeds.")
    epochs: int = option(20, "Epochs of each training.")
    width: int = option(40, "Neurons of the state.")
    method: str = option("anderson", "How the equilibrium is found.", tuple(METHODS))
    tol: float = option(1e-4, "What the equilibrium may still change by, relative to it.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, seed=0, seeds=1, epochs=1, width=1)
        if not 0 < self.tol < 1:
            raise ValueError(f"`tol` must be between 0 and 1, got {self.tol}")


def run(config: Config, folder: Path, *, resume: bool = False, progress: bool = True) -> Result:
    """Solve what has a closed form, train on the digits, weigh the memory; each piece is kept in `folder`."""
    seeds = range(config.seed, config.seed + config.seeds)
    plan = Plan(config.width, config.epochs, config.method, config.tol)
    nets = [(EQUILIBRIUM, 0), (BOUNDED, 0), *((EXPLICIT.format(k), k) for k in DEPTHS)]
    pieces: dict[str, Callable[[], Row]] = {
        **{f"closed-{m}-{i}": partial(closed_form, m, i) for i in range(len(PROBLEMS)) for m in METHODS},
        **{f"digits-{i}-{seed}": partial(trained, *net, plan, seed) for seed in seeds for i, net in enumerate(nets)},
        **{f"trivial-{seed}": partial(trivial, seed) for seed in seeds},
        "memory": partial(memory, plan, config.seed),
    }
    rows = collect(pieces, folder, progress=progress, label="implicit")
    of = {kind: [row for name, row in zip(pieces, rows) if name.startswith(kind)] for kind in ("c", "d", "t", "m")}
    (kept,) = of["m"]
    table = of["d"] + of["t"]
    return Result(
        experiment="implicit",
        title="Implicit layers: an output that solves an equation",
        lead=_lead(of["c"], of["d"], of["t"], kept),
        config=dataclasses.asdict(config),
        source="The 1,797 handwritten digits (8 × 8) that come with scikit-learn, a quarter of them for the test.",
        synthetic=False,
        sections=(_closed(of["c"]), _digits(table), _memory(kept)),
        summary={"table": numbers_of(table), "runs": numbers_of(rows)},
    )


# --- closed forms ----------------------------------------------------------------------------------------------------

_A = torch.tensor([[0.0, 0.5, 0.1], [-0.4, 0.2, 0.0], [0.3, 0.0, -0.5]], dtype=torch.float64)


def _cube(x: Tensor) -> Tensor:
    root = torch.sqrt(x**2 / 4 + 1 / 27)
    large = (root + x / 2) ** (1 / 3)  # of x ≥ 0
    return large - 1 / (3 * large)


# name: g(x, y), y(x), x, y0
PROBLEMS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], Tensor, float]] = {
    "y + y³ = x": (lambda x, y: x - y - y**3, _cube, torch.linspace(0.1, 10, 12).double()[:, None], 0.0),
    "y = A y + x": (
        lambda x, y: y @ _A.T + x - y,
        lambda x: x @ torch.linalg.inv(torch.eye(3) - _A).T,
        torch.linspace(-1, 1, 12).double().reshape(4, 3),
        0.0,
    ),
    "y = (y + x/y)/2, so y = √x": (
        lambda x, y: (y + x / y) / 2 - y,
        torch.sqrt,
        torch.linspace(0.1, 10, 12).double()[:, None],
        1.0,
    ),
}


def closed_form(method: str, number: int) -> Row:
    """How far the layer's solution and gradient are from the closed form's, relative to the largest, in float64."""
    name, (g, exact, x, start) = list(PROBLEMS.items())[number]
    layer = ImplicitLayer(g, method=method)
    x = x.clone().requires_grad_()
    row: dict[str, Any] = {"problem": name, "method": method}
    try:
        y = layer(x, torch.full_like(x, start))
    except ImplicitError as error:
        return row | {"failed": str(error)}
    truth = exact(x)
    found, wanted = (torch.autograd.grad(out.sum(), x)[0] for out in (y, truth))
    stats = layer.stats
    return row | {
        "solution": float((y - truth).detach().abs().max() / truth.detach().abs().max()),
        "gradient": float((found - wanted).abs().max() / wanted.abs().max()),
        **({} if stats is None else {"iterations": stats.iterations, "evaluations": stats.evaluations}),
    }


# --- what is shown ---------------------------------------------------------------------------------------------------


def _lead(closed: Sequence[Row], nets: Sequence[Row], base: Sequence[Row], kept: Row) -> str:
    solved, failed = ([row for row in closed if ("failed" in row) == bad] for bad in (False, True))
    worst = {key: max(row[key] for row in solved) for key in ("solution", "gradient")}
    cases = listed(f"{row['method']} for {row['problem']}" for row in failed)
    (few, one), (many, other) = kept["implicit"][0], kept["implicit"][-1]
    (short, least), (long, most) = kept["explicit"][0], kept["explicit"][-1]
    return (
        f"An implicit layer (section 2.7 of {INTRODUCTION}) gives the y with g(x, y) = 0. Against closed forms it is "
        f"off by {worst['solution']:.1g} at the most in y and by {worst['gradient']:.1g} in dy/dx, where a method "
        f"converges; {len(failed)} of {len(closed)} do not{f' ({cases}), and say so' if failed else ''}.\n\n"
        f"{_comparison(nets, base)}\n\n"
        f"What the equilibrium keeps for the backward pass {'does not depend' if one == other else 'depends'} on the "
        f"iterations: {one / 1024:.0f} KB with {few}, {other / 1024:.0f} KB with {many}. The explicit twin keeps "
        f"{least / 1024:.0f} KB with {short} layer and {most / 1024:.0f} KB with {long}."
    )


def _comparison(nets: Sequence[Row], base: Sequence[Row]) -> str:
    """Each equilibrium beside the best of the explicit twins, which the test digits have chosen."""
    of = {name: mine for (name,), mine in groups([*nets, *base], ["network"]).items()}
    right = {name: _mean(mine, "accuracy") for name, mine in of.items()}
    twins = [EXPLICIT.format(k) for k in DEPTHS]
    best = max(twins, key=lambda name: right[name])
    return (
        f"On 8 × 8 digits: {_equilibrium(of[EQUILIBRIUM], of[best], 'the weights free')} "
        f"{_equilibrium(of[BOUNDED], of[best], 'weights that keep the layer a contraction')} The best of the explicit "
        f"twins of equal parameters, {best}, is right for {right[best]:.1%} after {_mean(of[best], 'seconds'):.1f} "
        f"seconds of training, the one with a single layer for {right[twins[0]]:.1%}; logistic regression for "
        f"{right[TRIVIAL]:.1%}."
    )


def _equilibrium(mine: Sequence[Row], twin: Sequence[Row], how: str) -> str:
    kept, lost = ([row for row in mine if bool(row["lost"]) == bad] for bad in (False, True))
    text = f"A deep equilibrium network with {how} "
    if lost:
        epochs = sorted(row["lost_in"] for row in lost)
        text += f"is lost in {len(lost)} of {len(mine)} trainings, first in epoch {epochs[0]}, since nothing is found"
    if not kept:
        return f"{text}."
    pairs = {row["seed"]: row["accuracy"] for row in twin}
    low, high = interval([100 * (row["accuracy"] - pairs[row["seed"]]) for row in kept])
    text += f"{', and otherwise ' if lost else ''}is right for {_mean(kept, 'accuracy'):.1%} of the test after "
    text += f"{_mean(kept, 'seconds'):.1f} seconds"
    if low is None or high is None:
        return f"{text} (one seed)."
    verdict = "better" if low > 0 else "worse" if high < 0 else "not to be told from it"
    return f"{text}: beside the best twin {verdict} ({low:.1f} to {high:.1f} points, 95 %)."


def _mean(rows: Sequence[Row], key: str) -> float:
    values = values_of(rows, key)
    return sum(values) / len(values) if values else math.nan


def _closed(rows: Sequence[Row]) -> Section:
    columns = {
        "problem": "problem",
        "method": "method",
        "error of y": "solution:.1e",
        "of dy/dx": "gradient:.1e",
        "iterations": "iterations",
        "evaluations of g": "evaluations",
    }
    text = (
        "The layer in float64, each error relative to the largest value. “anderson” and “broyden” are for fixed points "
        "y = h(x, y) whose h changes less than y."
    )
    said = "".join(f"\n\n{row['method']} for {row['problem']}: {row['failed']}" for row in rows if "failed" in row)
    return Section("Closed forms", text + said, (rows_table("Solutions and slopes", rows, columns),))


def _digits(rows: Sequence[Row]) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    quantities = (
        Quantity("parameters", "parameters", 0),
        Quantity("lost", "lost, %", 0, 100),
        Quantity("accuracy", "right, %", 1, 100),
        Quantity("accuracy_on", f"right, % with {LONG} layers", 1, 100),
        Quantity("seconds", "seconds", 1),
        Quantity("iterations", "iterations", 1),
        Quantity("products", "products backward", 1),
    )
    by = {name: values_of(mine, "accuracy") for (name,), mine in groups(rows, ["network"]).items()}
    explicit = [by[EXPLICIT.format(k)] for k in DEPTHS]
    flat = {name: [100 * _mean(mine, "accuracy")] * len(DEPTHS) for (name,), mine in groups(rows, ["network"]).items()}
    lines = {
        "explicit twin": figures.Line(
            DEPTHS,
            [100 * sum(x) / len(x) for x in explicit],
            [100 * min(x) for x in explicit],
            [100 * max(x) for x in explicit],
        ),
        **{name: figures.Line(DEPTHS, flat[name]) for name in (EQUILIBRIUM, BOUNDED, TRIVIAL) if by[name]},
    }
    picture = Picture(
        "accuracy",
        "Accuracy by number of layers",
        "Accuracy on the test digits of the explicit twin by its layers (mean, and as a band the range of the seeds), "
        "of the equilibria whose training was not lost, and of logistic regression (dashed, thin).",
        figures.lines(lines, "layers of the explicit twin", "right, %", log="x", marked=True, level=TRIVIAL),
    )
    said = "".join(
        f"\n\n{row['network']}, seed {row['seed']}, lost in epoch {row['lost_in']} with "
        f"{100 * (row['lost_at'] or 0):.1f} % right before: {row['failed']}"
        for row in rows
        if "failed" in row
    )
    text = (
        "z = tanh(W z + U x + b) between two linear layers: solved for z, or repeated from zero, with the same weights "
        "in every layer, so that all have the same parameters. With ‖W‖ ≤ 0.9 the layer is a contraction, which has "
        "one equilibrium, and repeating it leads there; with free weights there still is one (Brouwer), but it may "
        f"be one of several, and unstable. Adam, rate 0.003. “With {LONG} layers” is the same "
        f"trained network with its layer repeated {LONG} times: for an equilibrium the same function, if that "
        "converges; for the twins another one."
    )
    table = means_table("Digits", rows, {"network": "network"}, quantities)
    return Section("A deep equilibrium network and its explicit twin", text + said, (table,), (picture,))


def _memory(kept: Row) -> Section:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    lines = {
        name: figures.Line([n for n, _ in kept[key]], [size / 1024 for _, size in kept[key]])
        for name, key in (("explicit twin, by layers", "explicit"), ("equilibrium, by iterations", "implicit"))
    }
    picture = Picture(
        "memory",
        "Memory for the backward pass",
        f"What autograd saves in the forward pass of {BATCH} digits, without the parameters: for the explicit twin it "
        "grows with the layers, for the equilibrium it is the same however many iterations the tolerance asks for.",
        figures.lines(lines, "layers, or iterations", "KB kept", log="xy", marked=True),
    )
    text = "The equilibrium was found to tolerances from 0.1 to 1e-6 with untrained weights."
    return Section("Memory", text, (), (picture,))
