"""Iterations for g(y) = 0 of many samples at once, y (samples, n): Newton's, Anderson's and Broyden's.

Each sample stops by itself and stays as it is from then on, so that it does not matter which others come with it.

Sources: Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011); Broyden, "A
class of methods for solving nonlinear simultaneous equations", Math. Comp. 19 (1965), inverted by the formula of
Sherman and Morrison as in Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019; backtracking: Dennis and
Schnabel, "Numerical Methods for Unconstrained Optimization and Nonlinear Equations", 1983.
"""

from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from odenets.methods.newton import FEW, by_differences, irregular, positive, rounding_of
from odenets.nn.derivative import (
    Equations,
    inverted,
    jacobian,
    norms,
    positive_rows,
    precise,
    pulled,
    pushed,
    sees_others,
    solve_scaled,
    with_graph,
)

_NOISE = 8.0  # units of rounding of the terms of an equation, below which it holds
_NOISE_AT_LEAST = 256.0  # so many do where no step makes the residual smaller
_HALVINGS = 10  # of a Newton step that goes too far
_MEMORY = 5  # earlier differences that Anderson's method mixes
_UPDATES = 30  # updates of rank one that Broyden's method keeps before it starts anew
_RIDGE = 1e-12  # what keeps the mixing from dividing by zero, of unit columns


class ImplicitError(RuntimeError):
    """g(x, y) = 0 was not solved, or its solution has no derivative; the text says how far it got and what to try.

    `iterations` that were made, `sample`: the worst one's number, `residual`: the norm of its g.
    """

    def __init__(self, text: str, iterations: int = 0, sample: int = 0, residual: float = float("nan")) -> None:
        super().__init__(text, iterations, sample, residual)
        self.iterations, self.sample, self.residual = iterations, sample, residual

    def __str__(self) -> str:
        return str(self.args[0])


class Root(NamedTuple):
    """What was found: y (samples, n), and in how many iterations the last sample got there."""

    y: Tensor
    iterations: int


class Goal:
    """When a sample is done: what is still to change is small beside its y."""

    def __init__(self, name: str, y: Tensor, value: Tensor, tol: float, most: int) -> None:
        self.name, self.tol, self.most = name, tol, most
        self.start = norms(value)
        self.first: Tensor | None = None
        self.rounding = rounding_of(y)
        self.left = torch.full_like(self.start, float("inf"))
        self.open = self.start > 0

    def close(self, change: Tensor, y: Tensor) -> Tensor:
        """The samples that are done now, whose y will be that after that change of it."""
        size, moved = norms(y), norms(change)
        if self.first is None:
            self.first = torch.maximum(size, moved)
        # A solution of zero has no size: what is left of where it began.
        allowed = torch.maximum(self.tol * size, self.rounding**2 * self.first)
        self.left = torch.where(self.open, moved / positive(size), self.left)
        return self.open & (moved <= allowed)

    def fail(self, g: Equations, y: Tensor, value: Tensor) -> NoReturn:
        """Say how far it got."""
        self._refuse_random(g, y)
        residual = torch.where(self.open, norms(value), -1.0)
        worst = int(torch.where(self.open, self.left, -1.0).argmax())
        now, before = float(residual[worst]), float(self.start[worst])
        raise ImplicitError(
            f"g(x, y) = 0 was not solved: after {self.most} iterations of `method` {self.name!r}, "
            f"{int(self.open.sum())} of {len(value)} samples still change by more than {self.tol:.1g} of y; the worst, "
            f"sample {worst}, by {float(self.left[worst]):.2g}, its |g| is {now:.3g}, from {before:.3g} at the "
            f"start. {_advice(self.name, now < 0.5 * before)}",
            self.most,
            worst,
            now,
        )

    def _refuse_random(self, g: Equations, y: Tensor) -> None:
        first, second = g(y), g(y)
        if bool(((first - second).abs() > self.rounding**0.5 * first.abs().max()).any()):
            raise ImplicitError(
                "`g` gives two values at one y, so no y can solve it: draw random numbers outside of it, once, and "
                "hand them over in x or as an attribute",
                self.most,
            )


def _advice(name: str, falls: bool) -> str:
    if name == "newton":
        near = "; there may be no solution, or a multiple one, to which the way is slow" if falls else ""
        return f"Give a nearer `y0` or a larger `max_iter`{near}"
    if falls:
        return "Give a larger `max_iter` or a larger `tol`, or take method='newton'"
    return (
        f"{name!r} is for fixed points, g = h(x, y) − y, where h changes less than y does: take method='newton', "
        "or make h's weights smaller"
    )


def check_finite(value: Tensor, iteration: int) -> Tensor:
    """g's value, where all of it is finite.

    Raises:
        ImplicitError: Naming the sample and the iteration.
    """
    bad = ~torch.isfinite(value).all(1)
    if not bad.any():
        return value
    sample = int(bad.nonzero()[0])
    where = f"in iteration {iteration}: the iteration runs away" if iteration else "at the start value"
    advice = "method='newton', which takes shorter steps there, or another `y0`" if iteration else "x and another `y0`"
    raise ImplicitError(
        f"g(x, y) is not finite for {int(bad.sum())} of {len(value)} samples, first for sample {sample}, {where}: "
        f"{'try' if iteration else 'check'} {advice}",
        iteration,
        sample,
    )


# --- Newton's method -------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """The step of Newton's method, the size of the terms that meet in each equation, and where there is no step."""

    change: Tensor
    terms: Tensor
    singular: Tensor


def newton(g: Equations, y: Tensor, tol: float, most: int) -> Root:
    """With the matrix of each sample up to 32 unknowns, else by GMRES; steps are halved until g gets smaller."""
    value, at = with_graph(g, y)
    goal = Goal("newton", y, check_finite(value.detach(), 0), tol, most)
    for iteration in range(1, most + 1):
        if not goal.open.any():
            return Root(y, iteration - 1)
        if iteration == 1 and not at.is_inference() and sees_others(partial(pulled, value, at), y):
            return _together(g, y, tol, most)
        few = y.shape[1] <= FEW and not at.is_inference()
        step = _dense_step(value, at) if few else _krylov_step(g, value, at)
        _refuse_singular(step.singular & goal.open, value, iteration)
        change = torch.where(goal.open[:, None], step.change, 0.0)
        done = goal.close(change, y + change)
        done |= goal.open & _holds(value, step.terms, _NOISE * goal.rounding)
        (value, at), stuck = _shortened(g, y, value, change, step.terms, done | ~goal.open)
        y = at.detach()
        done |= stuck & _holds(value, step.terms, _NOISE_AT_LEAST * goal.rounding)
        check_finite(value, iteration)
        goal.open &= ~done
    if not goal.open.any():
        return Root(y, most)
    goal.fail(g, y, value)


def _together(g: Equations, y: Tensor, tol: float, most: int) -> Root:
    """All samples as one, since they are no samples."""
    root = newton(lambda v: g(v.reshape(y.shape)).reshape(1, -1), y.reshape(1, -1), tol, most)
    return Root(root.y.reshape(y.shape), root.iterations)


def _holds(value: Tensor, terms: Tensor, relative: float) -> Tensor:
    return (value.abs() <= relative * terms).all(1)


def _refuse_singular(singular: Tensor, value: Tensor, iteration: int) -> None:
    if not singular.any():
        return
    sample = int(singular.nonzero()[0])
    where = "at the start value" if iteration == 1 else f"in iteration {iteration}"
    raise ImplicitError(
        f"the Jacobian ∂g/∂y is singular {where} for {int(singular.sum())} of {len(value)} samples, first for sample "
        f"{sample}, where |g| is {float(norms(value)[sample]):.3g}: give another `y0`; if g does not depend on all of "
        "y there, its solution is not unique",
        iteration,
        sample,
        float(norms(value)[sample]),
    )


def _shortened(
    g: Equations, y: Tensor, value: Tensor, change: Tensor, terms: Tensor, free: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """g and y after the change, halved for each sample until its g gets smaller; and for which it did not."""
    before, halvings = norms(value / terms), 0
    while True:
        new, at = with_graph(g, y + change)
        worse = ~(free | (norms(new / terms) < before))
        if halvings == _HALVINGS or not worse.any():
            return (new, at), worse
        change, halvings = torch.where(worse[:, None], change / 2, change), halvings + 1


def _dense_step(value: Tensor, at: Tensor) -> Step:
    matrices = jacobian(partial(pulled, value, at), at.detach())
    inverse, singular = inverted(matrices, rounding_of(at))
    change = -(inverse @ value.to(matrices.dtype)[..., None])[..., 0]
    terms = positive((matrices.abs() @ at.abs().to(matrices.dtype)[..., None])[..., 0])
    return Step(change.to(at.dtype), terms.to(at.dtype), singular)


def _krylov_step(g: Equations, value: Tensor, at: Tensor) -> Step:
    rounding, y = rounding_of(at), at.detach()
    along = by_differences(g, torch.zeros_like(y), rounding)(y)[1] if at.is_inference() else pushed(value, at)
    change, left = solve_scaled(along, -value, min(rounding**0.25, 0.01))
    terms = along(y * irregular(y.flatten()).reshape(y.shape)).abs()  # along one direction; some cancel
    terms = positive(torch.maximum(terms, terms.mean(1, keepdim=True)))
    return Step(change, terms, torch.full_like(norms(y), not left < 0.9, dtype=torch.bool))


# --- fixed points ----------------------------------------------------------------------------------------------------


def anderson(g: Equations, y: Tensor, tol: float, most: int) -> Root:
    """For g = h − y: the step g, less what the last differences of g say of it."""
    value = check_finite(g(y), 0)
    goal = Goal("anderson", y, value, tol, most)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for iteration in range(most + 1):
        goal.open &= ~goal.close(value, y + value)
        if not goal.open.any():
            return Root(y, iteration)
        if iteration == most:
            break
        step = value - _mixed(steps, changes, value) if steps else value
        step = torch.where(goal.open[:, None], step, 0.0)
        y, new = y + step, check_finite(g(y + step), iteration + 1)
        steps, changes = [*steps[1 - _MEMORY :], step], [*changes[1 - _MEMORY :], new - value]
        value = new
    goal.fail(g, y, value)


def _mixed(steps: list[Tensor], changes: list[Tensor], value: Tensor) -> Tensor:
    """(ΔY + ΔG) γ with the γ for which ΔG γ comes nearest to g."""
    wide = precise(value)
    d_g, d_y = (torch.stack(x, 2).to(wide) for x in (changes, steps))  # (samples, n, memory)
    sizes = positive_rows(norms(d_g))
    d_g, d_y = d_g / sizes[:, None], d_y / sizes[:, None]
    gram = d_g.mT @ d_g + _RIDGE * torch.eye(len(steps), dtype=wide, device=value.device)
    gamma = torch.linalg.solve_ex(gram, d_g.mT @ value.to(wide)[..., None])[0]
    return ((d_y + d_g) @ gamma)[..., 0].to(value.dtype)


def broyden(g: Equations, y: Tensor, tol: float, most: int) -> Root:
    """For g = h − y: the inverse of the Jacobian is guessed as −1, and improved by what each step shows of it."""
    value = check_finite(g(y), 0)
    goal = Goal("broyden", y, value, tol, most)
    updates: list[tuple[Tensor, Tensor]] = []
    for iteration in range(most + 1):
        goal.open &= ~goal.close(value, y + value)
        if not goal.open.any():
            return Root(y, iteration)
        if iteration == most:
            break
        step = torch.where(goal.open[:, None], -_inverse(updates, value), 0.0)
        y, new = y + step, check_finite(g(y + step), iteration + 1)
        updates = [*(updates if len(updates) < _UPDATES else ()), _update(updates, step, new - value)]
        value = new
    goal.fail(g, y, value)


def _inverse(updates: list[tuple[Tensor, Tensor]], v: Tensor) -> Tensor:
    """The inverse of the Jacobian, −1 + Σ u wᵀ, times v."""
    return sum((u * (w * v).sum(1, keepdim=True) for u, w in updates), -v)


def _update(updates: list[tuple[Tensor, Tensor]], step: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """u and w for which the new inverse maps the change of g to the step."""
    mapped = _inverse(updates, change)
    w = sum((w * (u * step).sum(1, keepdim=True) for u, w in updates), -step)
    along = (step * mapped).sum(1, keepdim=True)
    safe = along.abs() > 1e-8 * norms(step)[:, None] * norms(mapped)[:, None]
    return torch.where(safe, (step - mapped) / torch.where(safe, along, 1.0), 0.0), w


METHODS = {"newton": newton, "anderson": anderson, "broyden": broyden}
