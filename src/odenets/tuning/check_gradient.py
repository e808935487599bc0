"""`check_gradient`: every adjoint on the user's own problem, beside each other and beside finite differences."""

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.adjoint import Adjoint, Backsolve, Checkpointed, Direct, Interpolated, Reversible
from odenets.arguments import given_times, shown
from odenets.pullback.reached import LostGradientError, reached_tensors, sequence_number
from odenets.pullback.replay import ReplayError
from odenets.solution import Solution, SolveError
from odenets.solve import solve
from odenets.table import aligned
from odenets.tuning.measure import difference, flat, saved_bytes, synchronize

PARTS = ("y0", "tensors", "t")
_EXACT = 1e3  # times the rounding error of the dtype: a difference below is rounding
_FEW = 8  # states of `Checkpointed(memory=...)`
_SMALL = 64 * 2**20  # bytes: what `Direct` may keep before it is advised against
_SUSPICIOUS = 0.05  # relative difference from finite differences beyond which the gradient is doubted


@dataclass(frozen=True)
class Row:
    """One adjoint.

    Attributes:
        adjoint: It.
        errors: ‖gradient − reference‖ / ‖reference‖ for "y0", "tensors" (all that f reaches, together) and "t"; NaN
            where the solve failed. The reference is the gradient of what the solver computed, by `Direct`.
        nfe, nfe_backward: Evaluations of f in the forward and in the backward pass.
        seconds: Median time of a forward and a backward pass.
        kept: Bytes held between the two passes, beside the inputs and weights.
        failure: Why there is no gradient; empty where there is one.
    """

    adjoint: Adjoint
    errors: dict[str, float]
    nfe: int = 0
    nfe_backward: int = 0
    seconds: float = math.nan
    kept: int = 0
    failure: str = ""

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values()) if self.errors else math.nan


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradient` found. Printed, it is the table, and what follows from it.

    Attributes:
        rows: A row for each adjoint.
        discretisation: The relative difference between the gradient at the given tolerance or step and at a far
            finer one: what no adjoint can be better than, as an approximation of the exact solution's gradient. NaN
            where that solve fails.
        finite_differences: The relative difference between the slope of the loss, by central differences, and what
            the gradient to y0 and the tensors says, along that gradient and a random direction together.
        warning: What may be wrong with the reference itself; empty where nothing was seen.
        recommended: The adjoint to use, and why in `reason`.
    """

    rows: tuple[Row, ...]
    discretisation: float
    finite_differences: float
    recommended: Adjoint
    reason: str
    warning: str = ""

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "relative difference from the gradient of what the solver computed (Reversible has its own scheme):"
        yield from aligned([_HEAD, *(_cells(row) for row in self.rows)], range(1, len(_HEAD) - 1))
        if math.isnan(self.discretisation):
            yield "no far finer solve: nothing is known of the solver's own error"
        else:
            yield f"a far finer solve changes the gradient by {self.discretisation:.1e}: the solver's own error"
        yield f"finite differences of the loss differ from the gradient by {self.finite_differences:.1e}"
        if self.warning:
            yield f"WARNING: {self.warning}"
        yield f"recommended: {_short(self.recommended)}, {self.reason}"


_CHANGES = (
    "`f` does not return the same for the same t and y: it draws random numbers (dropout) or changes a state of its "
    "own (a counter, a running mean); the gradients of two solves differ, and an adjoint that evaluates it again is "
    "refused"
)
_HEAD = ("adjoint", *PARTS, "nfe", "backward", "ms", "kept", "")


def _cells(row: Row) -> tuple[str, ...]:
    name = _short(row.adjoint)
    if row.failure:
        return (name, *[""] * (len(_HEAD) - 2), row.failure)
    errors = [f"{row.errors[part]:.1e}" if part in row.errors else "" for part in PARTS]
    return (name, *errors, str(row.nfe), str(row.nfe_backward), f"{1e3 * row.seconds:.2f}", _size(row.kept), "")


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


@torch.inference_mode(False)  # which has no derivatives
def check_gradient(
    f: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    args: tuple = (),
    *,
    loss: Callable[[Any], Tensor] | None = None,
    adjoints: Sequence[Adjoint] = (
        Direct(),
        Checkpointed(),
        Checkpointed(memory=_FEW),
        Interpolated(),
        Backsolve(),
        Reversible(),
    ),
    repeats: int = 5,
    verbose: bool = True,
    **options: Any,
) -> GradientCheck:
    """Compare the adjoints on your own problem: error, evaluations of f, time and memory of each.

    When to use: before trusting a gradient, above all a continuous adjoint's at a loose tolerance or a low order;
    where a gradient seems to be missing (finite differences see what autograd does not, such as a `detach` in f);
    to decide what an approximation would save. When not: in a training loop; it solves some dozens of times.

    The differences are relative to `Direct` with the same steps, the exact gradient of what the solver computed.
    `Reversible` computes with a scheme of its own: its row says by how much that scheme's gradient differs.

    Args:
        f, y0, t, args: The problem, as in `solve`. Nothing of it is changed.
        loss: A scalar function of the states at the times, (len(t), *y0.shape) in y0's structure; None for a sum with
            weights that differ, so that no part of the gradient is zero by symmetry.
        adjoints: Those to compare.
        repeats: How often each is timed.
        verbose: Whether to print the table.
        options: Further options of `solve`: method, rtol, atol, controller, max_steps.

    Returns:
        A `GradientCheck`, with `rows`, `recommended` and the two checks of the reference itself.

    Raises:
        TypeError: If an option is given that is compared (`adjoint`), or that not all adjoints have.
        SolveError: If the reference solve fails.
    """
    for name in ("adjoint", "compile", "per_sample", "dense", "on_failure"):
        if name in options:
            instead = "give `adjoints`" if name == "adjoint" else "the comparison is of eager solves: leave it out"
            raise TypeError(f"`{name}` is not an option of check_gradient: {instead}")
    lab = _Lab(f, y0, t, args, loss or _weighted_sum, options)
    reference = lab.gradients(Direct())
    rows = tuple(_row(lab, adjoint, reference, repeats) for adjoint in adjoints)
    changes = any(row.failure.startswith(ReplayError.__name__) for row in rows)
    discretisation = math.nan if changes else _discretisation(lab, reference)  # no step is small enough for such an f
    slope = _finite_differences(lab, reference)
    recommended, reason = _recommend(rows, lab.rounding)
    warning = ""
    if changes:
        recommended, reason, warning = Direct(), "which evaluates `f` once", _CHANGES
    elif slope > _SUSPICIOUS:
        warning = (
            "finite differences do not agree with the gradient: f may cut it off (detach, no_grad, .data, .item()), "
            "may be discontinuous, or may not return the same for the same input (random numbers, a state of its own)"
        )
    check = GradientCheck(rows, discretisation, slope, recommended, reason, warning)
    if verbose:
        print(check)
    return check


@dataclass(frozen=True)
class _Gradients:
    parts: dict[str, list[Tensor]]
    solution: Solution


class _Lab:
    """The problem, with leaves of its own for y0 and t."""

    def __init__(self, f: Any, y0: Any, t: Any, args: tuple, loss: Any, options: dict[str, Any]) -> None:
        self.f, self.args, self.loss, self.options = f, args, loss, options
        leaves, self.spec = pytree.tree_flatten(y0)
        self.y0 = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        times = given_times(t)
        if not isinstance(times, Tensor):
            times = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in times])
        self.t = times.detach().to(torch.float64).clone().requires_grad_()
        self.tensors = self._reached()
        self.rounding = _EXACT * torch.finfo(self.y0[0].dtype).eps

    def _reached(self) -> list[Tensor]:
        """What f reaches that requires grad."""
        y0 = [leaf.detach() for leaf in self.y0]
        time = self.t.detach()[0].to(y0[0].real.dtype)

        def evaluate() -> Tensor:
            out = pytree.tree_leaves(self.f(time, pytree.tree_unflatten(y0, self.spec), *self.args))
            return torch.stack([x.abs().sum() for x in out]).sum()

        with torch.enable_grad():
            started = sequence_number()
            try:
                return list(reached_tensors(evaluate(), started, (self.f, self.args), evaluate, y0).tensors)
            except LostGradientError:
                return []  # the rows of the adjoints that need to know say so

    def solve(self, adjoint: Adjoint, options: dict[str, Any]) -> tuple[Tensor, Solution]:
        y0 = pytree.tree_unflatten(self.y0, self.spec)
        solution = solve(self.f, y0, self.t, self.args, adjoint=adjoint, **options)
        return self.loss(solution.ys), solution

    def gradients(self, adjoint: Adjoint, options: dict[str, Any] | None = None) -> _Gradients:
        with torch.enable_grad():
            loss, solution = self.solve(adjoint, self.options if options is None else options)
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                raise ValueError(f"`loss` must return a scalar made from the states, returned {shown(loss)}")
            wanted = [*self.y0, *self.tensors, self.t]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        full = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads)]
        n = len(self.y0)
        return _Gradients(dict(zip(PARTS, (full[:n], full[n:-1], full[-1:]))), solution)

    def flat(self, gradients: _Gradients) -> Tensor:
        return torch.cat([flat(parts) for parts in gradients.parts.values() if parts])

    def finer(self) -> dict[str, Any]:
        """Options of a solve whose own error is far smaller."""
        eps = torch.finfo(self.y0[0].dtype).eps
        tight = 1e-10 if eps < 1e-10 else 16 * eps
        rest = {k: v for k, v in self.options.items() if k not in ("method", "rtol", "atol", "controller")}
        return {**rest, "method": "tsit5", "rtol": tight, "atol": tight}


def _row(lab: _Lab, adjoint: Adjoint, reference: _Gradients, repeats: int) -> Row:
    try:
        found = lab.gradients(adjoint)
        stats = found.solution.stats
        errors = {
            part: difference(flat(reference.parts[part]), flat(grads)) for part, grads in found.parts.items() if grads
        }
        seconds = statistics.median(_seconds(lab, adjoint) for _ in range(repeats))
        return Row(adjoint, errors, stats.nfe, stats.nfe_backward or 0, seconds, _kept(lab, adjoint))
    except SolveError as error:
        return Row(adjoint, {}, failure=f"SolveError: {error.status.name} at t = {error.t!r}")
    except (LostGradientError, ReplayError) as error:
        return Row(adjoint, {}, failure=f"{type(error).__name__}: {re.split('[;:,]', str(error))[0]}")


def _discretisation(lab: _Lab, reference: _Gradients) -> float:
    try:
        fine = lab.gradients(Direct(), lab.finer())
    except SolveError:  # f is too rough for it
        return math.nan
    return difference(lab.flat(reference), lab.flat(fine))


def _seconds(lab: _Lab, adjoint: Adjoint) -> float:
    begun = time.perf_counter()
    lab.gradients(adjoint)
    synchronize({lab.t.device})
    return time.perf_counter() - begun


def _kept(lab: _Lab, adjoint: Adjoint) -> int:
    """Bytes of what autograd saves between the passes, each storage once; not those of inputs and weights."""
    with torch.enable_grad():
        return saved_bytes(lambda: lab.solve(adjoint, lab.options)[0], (*lab.y0, lab.t, *lab.tensors))


@torch.no_grad()
def _finite_differences(lab: _Lab, reference: _Gradients) -> float:
    """By how much the loss's slope differs from what the gradient g says, along g and a random direction together.

    The random part also sees what g leaves out altogether. y0 and tensors are put back as they were.
    """
    inner = [(x, g) for x, g in zip(lab.tensors, reference.parts["tensors"]) if x.is_leaf]
    places, grads = [list(x) for x in zip(*zip(lab.y0, reference.parts["y0"]), *inner)]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device) for x in places]
    directions = [g / _nonzero(_norm(grads)) + u / _norm(drawn) for g, u in zip(grads, drawn)]
    expected = float(sum(flat([d]) @ flat([g]) for d, g in zip(directions, grads)))
    step = (1 + _norm(places)) * torch.finfo(lab.y0[0].dtype).eps ** (1 / 3)
    before = [x.clone() for x in places]
    losses = []
    try:
        for sign in (1, -1):
            for x, old, d in zip(places, before, directions):
                x.copy_(old + d * (sign * step))
            losses.append(float(lab.solve(Direct(), lab.options)[0]))
    finally:
        for x, old in zip(places, before):
            x.copy_(old)
    slope = (losses[0] - losses[1]) / (2 * step)
    return abs(slope - expected) / _nonzero(max(abs(slope), abs(expected)))


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(flat(tensors).norm())


def _nonzero(x: float) -> float:
    return x if x > 0 else 1.0


def _recommend(rows: Sequence[Row], rounding: float) -> tuple[Adjoint, str]:
    exact = [row for row in rows if row.error <= rounding]
    if not exact:
        best = min((row for row in rows if not row.failure), key=lambda row: row.error, default=None)
        if best is None:
            return Direct(), "since the others cannot differentiate this problem; their rows say why"
        return best.adjoint, f"the most accurate here, with a difference of {best.error:.1e}"
    affordable = [row for row in exact if row.kept <= _SMALL] or exact
    best = min(affordable, key=lambda row: row.seconds)
    least = min(exact, key=lambda row: row.kept)
    reason = f"exact, the fastest that keeps no more than {_size(_SMALL)}" if best.kept <= _SMALL else "exact"
    if least is not best and best.kept > 2 * least.kept:
        reason += (
            f"; {_short(least.adjoint)} keeps {best.kept / max(1, least.kept):.0f} times less in "
            f"{least.seconds / best.seconds:.1f} times the time"
        )
    return best.adjoint, reason


def _short(adjoint: Adjoint) -> str:
    return repr(adjoint).replace("memory=None, activations=None", "").replace("method=None, controller=None", "")


def _weighted_sum(ys: Any) -> Tensor:
    total: Any = 0.0
    for y in pytree.tree_leaves(ys):
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.real.dtype, device=y.device).reshape(y.shape)
        total = total + ((y.real + y.imag if y.is_complex() else y) * weights).sum()
    return total
