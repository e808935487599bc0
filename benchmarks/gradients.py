"""How good and how dear the gradient of each adjoint is: errors, evaluations of f, and time of the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import odenets
from curves import USUAL, field_work, fixed
from measure import interleaved
from odenets.adjoint import Adjoint
from odenets.nn import MLPField
from works import METHOD, Work, make

ADJOINTS: dict[str, Adjoint] = {
    "Direct": odenets.Direct(),
    "Checkpointed": odenets.Checkpointed(),
    "Checkpointed(memory=4)": odenets.Checkpointed(memory=4),
    "Interpolated": odenets.Interpolated(),
    "Backsolve": odenets.Backsolve(),
    "Reversible": odenets.Reversible(),
}
TDQ = "torchdiffeq odeint_adjoint"
EXACT = 1e-12
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"dopri5 at {tol:g}": {"method": "dopri5", "rtol": tol, "atol": tol} for tol in (1e-3, 1e-5, 1e-7)},
    "Euler, step 0.1": {"method": "euler", "step": 0.1},
    "RK4, step 0.1": {"method": "rk4", "step": 0.1},
}
OUTPUTS = (2, 20, 200)
STEPS = 16
FIELDS = {"no hidden layer": (), "one hidden layer": (64,)}  # of ecg's width


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 8 numbers and time, in float64, and three times."""
    torch.manual_seed(0)
    field = MLPField(8, hidden=(32,)).double()
    for p in field.parameters():
        p.data *= 2  # so that it bends
    return field, torch.randn(16, 8, dtype=torch.float64), torch.tensor([0.0, 1.3, 4.0], dtype=torch.float64)


Solve = Callable[[nn.Module, Tensor, Tensor], Tensor]


def ours(adjoint: Any, setting: dict[str, Any]) -> Solve:
    options = dict(setting)
    if "step" in options:
        options["controller"] = odenets.Fixed(dt=options.pop("step"))
    return lambda field, y0, t: odenets.solve(field, y0, t, adjoint=adjoint, **options).ys


def theirs(odeint: Callable[..., Any], setting: dict[str, Any]) -> Solve:
    options = dict(setting)
    if "step" in options:
        options["options"] = {"step_size": options.pop("step"), "interp": "cubic"}
    return lambda field, y0, t: odeint(field, y0, t, **options)


def gradient(solve: Solve) -> Tensor:
    """That of a sum of sines, to y0, the parameters and the times, as one vector."""
    field, y0, t = problem()
    y0.requires_grad_()
    t.requires_grad_()
    grads = torch.autograd.grad(solve(field, y0, t).sin().sum(), [y0, t, *field.parameters()])
    return torch.cat([g.flatten() for g in grads])


def relative(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def errors() -> list[dict[str, Any]]:
    """Of each adjoint and setting: the difference from the gradient of what was computed, and from the exact one.

    The former is by autograd through the same solver; `Reversible` computes by a scheme of its own.
    """
    exact = gradient(ours(odenets.Direct(), {"method": "tsit5", "rtol": EXACT, "atol": EXACT}))
    rows = []
    for name, setting in SETTINGS.items():
        computed = gradient(ours(odenets.Direct(), setting))
        solves = {f"odenets {key}": (ours(adjoint, setting), computed) for key, adjoint in ADJOINTS.items()}
        solves[TDQ] = (theirs(torchdiffeq.odeint_adjoint, setting), gradient(theirs(torchdiffeq.odeint, setting)))
        for contestant, (solve, reference) in solves.items():
            found = gradient(solve)
            own = None if "Reversible" in contestant else relative(found, reference)
            rows.append({"contestant": contestant, "setting": name, "computed": own, "exact": relative(found, exact)})
    return rows


def evaluations() -> dict[str, list[list[int]]]:
    """Evaluations of f, forward and backward, for each number of output times; dopri5 at 1e-3."""
    setting = SETTINGS["dopri5 at 0.001"]
    solves = {f"odenets {key}": ours(adjoint, setting) for key, adjoint in ADJOINTS.items()}
    solves[TDQ] = theirs(torchdiffeq.odeint_adjoint, setting)
    return {name: [counted(solve, outputs) for outputs in OUTPUTS] for name, solve in solves.items()}


def counted(solve: Solve, outputs: int) -> list[int]:
    field, y0, t = problem()
    calls: list[int] = []
    field.register_forward_hook(lambda *_: calls.append(1))
    ys = solve(field, y0, torch.linspace(float(t[0]), float(t[-1]), outputs, dtype=torch.float64))
    forward = len(calls)
    ys.sum().backward()
    return [forward, len(calls) - forward]


def costs(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of the forward and of the backward pass of each field: rk4 with 16 steps."""
    return {name: _costs(field_work(USUAL["batch"], USUAL["width"], hidden), rounds) for name, hidden in FIELDS.items()}


def _costs(work: Work, rounds: int) -> dict[str, dict[str, float]]:
    solvers = {f"odenets {key}": fixed(adjoint=adjoint)(STEPS) for key, adjoint in ADJOINTS.items()}
    for key in ("Direct", "Checkpointed"):
        solvers[f"odenets {key}, compiled"] = fixed(adjoint=ADJOINTS[key], compile=True)(STEPS)
    passes: dict[tuple[str, bool], Callable[[], None]] = {}
    for name, solver in solvers.items():
        solve = solver(work, work.network.field)
        for backward in (False, True):
            passes[name, backward] = one_pass(solve, work.y0, list(work.network.field.parameters()), backward)
    ms = {key: row["ms"] for key, row in interleaved(passes, rounds).items()}
    return {name: {"forward": ms[name, False], "backward": ms[name, True] - ms[name, False]} for name in solvers}


def equations(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, compiled: a whole backward pass of `Checkpointed`, and equations (2) and (6) alone.

    The latter are what a compiled continuous adjoint would have to solve at least: the state and its adjoint backward
    in time, without the parameter gradient.
    """
    found = {}
    for name in ("ecg", "cubic", "spiral"):
        work = make(name)
        ms = interleaved(_passes(work), rounds)
        backward = ms["both"]["ms"] - ms["forward"]["ms"]
        found[name] = {"checkpointed": backward, "equations": ms["equations"]["ms"]}
    return found


def _passes(work: Work) -> dict[str, Callable[[], None]]:
    field, y0 = work.network.field, work.y0.requires_grad_()
    ends = (work.times[0], work.times[-1])
    options: dict[str, Any] = {"method": METHOD, "rtol": work.rtol, "atol": work.atol, "compile": True}
    end = odenets.solve(field, y0, ends, **options).ys[-1].detach()
    bar = torch.full_like(end, 1 / end.numel())

    def adjoint_equations(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, a = state
        out, pull, *_ = torch.func.vjp(lambda z: field(-s, z), z)
        return -out, pull(a)[0]

    def forward() -> Tensor:
        return odenets.solve(field, y0, ends, **options).ys[-1]

    def forward_alone() -> None:
        forward()

    def equations_alone() -> None:
        with torch.no_grad():
            odenets.solve(adjoint_equations, (end, bar), (-ends[1], -ends[0]), **options)

    return {
        "forward": forward_alone,
        "both": lambda: forward().backward(bar),
        "equations": equations_alone,
    }


def one_pass(
    solve: Callable[[Tensor], Any], y0: Tensor, parameters: list[nn.Parameter], backward: bool
) -> Callable[[], None]:
    y0 = y0.requires_grad_()

    def run() -> None:
        ys = solve(y0)[0]
        if backward:
            torch.autograd.grad(ys[-1].sum(), [y0, *parameters])

    return run
