"""Sections 3.1 to 3.4: a first equation, existence and uniqueness, one-step methods, Euler's method."""

import math

import torch

from odenets import figures
from odenets.experiments.result import Picture
from odenets.figures import Line
from odenets.tour.lesson import FAILS, HOLDS, PARTLY, Lesson, Names, Shown, table


def _simple(names: Names) -> Shown:
    t, family, errors = names["t"], names["family"], names["errors"]
    lines = {f"a = {a:g}": Line(t, y) for a, y in family.items()}
    worst = max(float((y - a * t.exp()).abs().max()) for a, y in family.items())
    rows = sorted(((name, error) for name, error in errors.items()), key=lambda row: row[1])
    return Shown(
        f"Five initial conditions pick five solutions, all a·eᵗ to {worst:.1e}. With ten steps from 0 to 1 the "
        f"{len(errors)} methods come as near to e as {rows[0][1]:.0e} ({rows[0][0]}) and {rows[-1][1]:.2f} "
        f"({rows[-1][0]}).",
        HOLDS if worst < 1e-6 else FAILS,
        tables=(table("Error at t = 1 after ten steps, x(0) = 1", ("method", "|error|"), rows),),
        pictures=(
            Picture(
                "solution-family",
                "The solutions of x′ = x",
                "One for each initial value a; x(0) = 1 picks eᵗ.",
                figures.lines(lines, "time t", "x(t)"),
            ),
        ),
    )


SIMPLE = Lesson(
    "3.1",
    "A simple example",
    "The equation x′ = x has a whole family of solutions. An initial condition picks one; equation and condition "
    "together "
    "are a Cauchy problem.",
    (r"\frac{\partial x}{\partial t}(t) = x(t), \quad x(0) = a \quad \Rightarrow \quad x(t) = a\,e^t",),
    """
    import math, torch
    from odenets import METHODS, Fixed, solve

    t, f = torch.linspace(0, 2, 41, dtype=torch.float64), lambda t, x: x
    start = {a: torch.tensor(a, dtype=torch.float64) for a in (-1.0, -0.5, 0.0, 0.5, 1.0)}
    family = {a: solve(f, x0, t, rtol=1e-9, atol=1e-9).ys for a, x0 in start.items()}

    errors = {}
    every = [name for name, m in METHODS.items() if not m.remembers and not m.halves]  # one-step, for any f
    for name in every:                                          # ten steps of 0.1
        solution = solve(f, start[1.0], [0.0, 1.0], method=name, controller=Fixed(steps=10))
        errors[name] = abs(solution.ys[-1].item() - math.e)
    """,
    _simple,
    claim="The solutions are x(t) = a·eᵗ; with x(0) = 1 the solution is eᵗ.",
)


def _uniqueness(names: Names) -> Shown:
    t = names["t"]
    picard = {f"iteration {k}": Line(t, y) for k, y in names["iterates"].items()} | {"eᵗ": Line(t, t.exp())}
    last = max(names["iterates"])
    gap = float((names["iterates"][last] - t.exp()).abs().max())
    stays, leaves = float(names["from_zero"].abs().max()), float(names["from_little"][-1])
    root = {"from 0": Line(names["time"], names["from_zero"]), "from 1e-12": Line(names["time"], names["from_little"])}
    root |= {"t²/4": Line(names["time"], names["time"] ** 2 / 4)}
    return Shown(
        f"Picard's iteration comes to eᵗ: after {last} times it is within {gap:.0e}. For x′ = √|x|, which has no "
        "Lipschitz "
        f"constant at 0, both x = 0 and x = t²/4 solve x(0) = 0. A solver started at 0 stays there (largest value "
        f"{stays:.0e}); started at 1e-12 it follows the other ({leaves:.3f} at t = {float(names['time'][-1]):g}, where "
        "t²/4 is "
        f"{float(names['time'][-1]) ** 2 / 4:.3f}). A solver gives one of the solutions and says nothing of the "
        "others.",
        HOLDS if gap < 1e-4 and stays == 0 and leaves > 0.5 else FAILS,
        pictures=(
            Picture(
                "picard",
                "Picard's iteration for x′ = x",
                "Each iterate integrates the one before; they converge to eᵗ.",
                figures.lines(picard, "time t", "x(t)", level="eᵗ"),
            ),
            Picture(
                "two-solutions",
                "Two solutions of x′ = √|x|",
                "A start at 0 stays, a start at 1e-12 does not: without a Lipschitz constant there is no uniqueness.",
                figures.lines(root, "time t", "x(t)", level="t²/4"),
            ),
        ),
    )


UNIQUENESS = Lesson(
    "3.2",
    "Existence and uniqueness",
    "If f is Lipschitz continuous in the state and continuous in time, there is a solution for some time, and only one "
    "(Picard and Lindelöf). The proof is an iteration that one can run.",
    (
        r"u_{k+1}(t) = u_0 + \int_{t_0}^{t} f(s, u_k(s))\,ds",
        r"\Vert f(t,u)-f(t,v)\Vert \leq K\,\Vert u-v\Vert",
    ),
    """
    import torch
    from odenets import solve

    t = torch.linspace(0, 2, 401, dtype=torch.float64)
    u, iterates = torch.ones_like(t), {}
    for k in range(1, 13):                                      # Picard's iteration for x' = x, x(0) = 1
        u = 1 + torch.cat([torch.zeros(1), torch.cumulative_trapezoid(u, t)])
        if k in (1, 2, 4, 12):
            iterates[k] = u

    root, time = lambda t, x: x.abs().sqrt(), torch.linspace(0, 3, 61, dtype=torch.float64)
    from_zero = solve(root, torch.zeros((), dtype=torch.float64), time).ys
    from_little = solve(root, torch.tensor(1e-12, dtype=torch.float64), time, rtol=1e-9, atol=1e-15).ys
    """,
    _uniqueness,
    claim="If f is Lipschitz continuous in u and continuous in t there is, for some T > 0, a unique solution.",
    more="odenets run uniqueness",
)


def _one_step(names: Names) -> Shown:
    time, exact, points = names["time"], names["exact"], names["points"]
    lines = {name: Line(t, y) for name, (t, y) in points.items()} | {"exact": Line(time, exact)}
    errors = {name: float((y[-1] - exact[-1]).abs()) for name, (t, y) in points.items()}
    best = min(errors, key=lambda name: errors[name])
    rows = [(name, len(t) - 1, errors[name]) for name, (t, y) in points.items()]
    return Shown(
        f"Equal steps or steps that a controller chooses: each point is made of the one before. {best} ends nearest, "
        "with "
        f"an error of {errors[best]:.1e}.",
        tables=(table("Error at the end", ("method", "steps", "|error|"), rows),),
        pictures=(
            Picture(
                "one-step",
                "The points of one-step methods",
                "x′ = −x + sin 3t from x(0) = 2: eight steps of Euler, eight of the midpoint method, and dopri5 with "
                "steps "
                "that a controller chose, drawn at as many even times.",
                figures.lines(lines, "time t", "x(t)", marked=True, level="exact"),
            ),
        ),
    )


ONE_STEP = Lesson(
    "3.3",
    "One-step methods",
    "Few equations have a solution in closed form. A one-step method computes points near the solution, each from the "
    "point before and the step to it.",
    (r"u_{i+1} = u_i + h_i\,\Phi(t_i, u_i, h_i) \approx u(t_{i+1}), \quad h_i = t_{i+1}-t_i",),
    """
    import torch
    from odenets import Fixed, solve

    f = lambda t, x: -x + torch.sin(3 * t)
    x0, time = torch.tensor(2.0, dtype=torch.float64), torch.linspace(0, 4, 201, dtype=torch.float64)
    exact = 2.3 * torch.exp(-time) + (torch.sin(3 * time) - 3 * torch.cos(3 * time)) / 10

    points = {}
    for name in ("euler", "midpoint"):
        t = torch.linspace(0, 4, 9, dtype=torch.float64)
        points[f"{name}, h = 0.5"] = t, solve(f, x0, t, method=name, controller=Fixed(dt=0.5)).ys
    dense = solve(f, x0, [0.0, 4.0], method="dopri5", rtol=1e-4, atol=1e-6, dense=True)
    t = torch.linspace(0, 4, dense.stats.accepted + 1, dtype=torch.float64)
    points["dopri5, adaptive"] = t, dense(t)
    """,
    _one_step,
)


def _order(names: Names) -> Shown:
    steps, errors = names["steps"], names["errors"]
    slopes = {name: _slope(steps, e) for name, e in errors.items()}
    nominal = names["order"]
    rows = [(name, nominal[name], slope) for name, slope in slopes.items()]
    taylor = _slope([1 / n for n in names["shifts"]], names["remainders"])
    off = max(abs(-slope - nominal[name]) for name, slope in slopes.items())
    return Shown(
        f"Twice as many steps: half the error of Euler's method (measured order {-slopes['euler']:.2f}), a sixteenth "
        "of "
        f"RK4's ({-slopes['rk4']:.2f}). The remainder of Taylor's formula (definition 4), from which the step is made, "
        f"falls as a^{-taylor:.2f}.",
        HOLDS if off < 0.2 else PARTLY,
        tables=(table("Measured order", ("method", "order", "slope of the error"), rows),),
        pictures=(
            Picture(
                "order",
                "Error against the number of steps",
                "x′ = −x + sin 3t: on logarithmic axes each method is a line whose slope is its order.",
                figures.lines(
                    {name: Line(steps, e) for name, e in errors.items()},
                    "steps",
                    "|error| at t = 4",
                    log="xy",
                    marked=True,
                ),
            ),
        ),
    )


def _slope(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x, by least squares."""
    a, b = (torch.tensor([math.log(v) for v in values], dtype=torch.float64) for values in (x, y))
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


EULER = Lesson(
    "3.4",
    "Euler's method",
    "The simplest one-step method follows the tangent: Taylor's formula without its remainder. Its error falls as the "
    "step, that of a method of order p as its power p.",
    (r"u(t_{i+1}) \approx u(t_i) + h\,f(t_i, u(t_i))", r"f(x+a) = f(x) + a\cdot\partial f(x) + O(\Vert a\Vert^2)"),
    """
    import math, torch
    from odenets import METHODS, Fixed, solve

    f = lambda t, x: -x + torch.sin(3 * t)
    x0, end = torch.tensor(2.0, dtype=torch.float64), 4.0
    exact = 2.3 * math.exp(-end) + (math.sin(3 * end) - 3 * math.cos(3 * end)) / 10
    steps, order, errors = [32, 64, 128, 256], {}, {}
    for name in ("euler", "midpoint", "heun3", "rk4", "tsit5"):
        found = [solve(f, x0, [0.0, end], method=name, controller=Fixed(steps=n)).ys[-1] for n in steps]
        order[name], errors[name] = METHODS[name].order, [abs(y.item() - exact) for y in found]

    shifts = [2.0**k for k in range(2, 10)]                       # sin(1 + a) for a = 1/4 … 1/512
    remainders = [abs(math.sin(1 + 1 / n) - math.sin(1) - math.cos(1) / n) for n in shifts]
    """,
    _order,
    claim="Euler's method follows Taylor's formula, whose remainder is of second order in the step.",
    more="odenets run order",
)

LESSONS = (SIMPLE, UNIQUENESS, ONE_STEP, EULER)
