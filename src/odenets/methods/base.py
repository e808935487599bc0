"""What every method is: one step as one pure function of tensors, and what is made of a step.

A step leaves its `parts`, tensors of y's shape, of which its error, its continuous extension and the `carry` to the
next step are made when they are asked for. A Runge–Kutta method's parts are its stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from odenets.methods.sums import Time, combine

Field = Callable[[Tensor, Tensor], Tensor]  # f(t, y): t 0-dimensional in y's real dtype, y and f of one shape

Inner = Callable[[Tensor, Tensor], Tensor]  # the real inner product of two states


class Pull(Protocol):
    """From ∂L/∂f(t, y): ∂L/∂y and ∂L/∂t (0 where nobody asks); it adds up the gradients to other tensors itself.

    With `last=False` ∂L/∂y alone is meant: nothing is added up, and it may be called again.
    """

    def __call__(self, k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Any]: ...


class Differentiable(Protocol):
    """f as a step is made again with it, to be undone."""

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y) alone."""
        ...

    def at(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        """f(t, y) and its pullback."""
        ...

    def through(
        self, step: Callable[..., Sequence[Tensor]], t: Time, y: Tensor, dt: float | Tensor, carry: "Carry" = ()
    ) -> tuple[Sequence[Tensor], Callable[[Sequence[Tensor | None]], "Bars"]]:
        """step(f, t, y, dt, carry), several tensors; and its pullback, from ∂L/∂(each), None for 0."""
        ...


class NotConverged(RuntimeError):
    """The equations of an implicit step could not be solved; the text says how far it got.

    `undefined` says that the function was not finite where the iteration began.
    """

    def __init__(self, text: str, undefined: bool = False) -> None:
        super().__init__(text)
        self.undefined = undefined


class Past(NamedTuple):
    """The carry of a method with memory. Numbers are floats, or float64 tensors where gradients flow through them."""

    f: Tensor | None = None  # f where the step begins; None where it has yet to be evaluated
    slopes: tuple[Tensor, ...] = ()  # f where the steps before that began, the newest first
    steps: tuple[float | Tensor, ...] = ()  # the sizes of these steps
    policy: Any = None  # what the method itself remembers, no tensors: of which order the step is to be, and why


# What a method hands from a step to the next: () where it has nothing, (f where that begins or None, …), or a `Past`.
Carry = tuple[Any, ...]


class Step(NamedTuple):
    """One step that was tried."""

    y: Tensor  # the candidate for y(t + dt), of y's shape
    parts: tuple[Tensor, ...]  # what else it was made of, each of y's shape
    t1: Tensor  # t + dt as f receives it
    complete: bool = False  # whether all parts are there
    trouble: NotConverged | None = None  # why there is no such step; y is then of no meaning
    memory: Any = None  # what else a method with memory knows of it
    start: tuple[Tensor, Tensor] | None = None  # t and y where it begins, where f is not known there and may be wanted


class Bars(NamedTuple):
    """What a step in reverse gives."""

    y: Tensor  # ∂L/∂(the state where it begins)
    t: Any  # ∂L/∂t and ∂L/∂dt; zeros where they are not asked for
    dt: Any
    slopes: Sequence[Tensor | None] = ()  # ∂L/∂(those of the `Past` that it was handed)
    steps: Sequence[Any] = ()  # and ∂L/∂(the sizes of the steps before), as ∂L/∂dt


class Remade(NamedTuple):
    """A step made again, to be undone."""

    y: Tensor  # where it leads
    parts: Sequence[Tensor]
    # pull(∂L/∂y1, ∂L/∂(each part) or None, the inner product that gradients to the times are made with or None,
    # ∂L/∂(the slopes of the `Past` that it hands on))
    pull: Callable[[Tensor, Sequence[Tensor] | None, Inner | None, Sequence[Tensor | None]], Bars]


class Judged(NamedTuple):
    """A step with its error."""

    step: Step
    ratio: float  # the error in tolerances: the step is accepted where it is at most 1
    order: int  # it is O(dt^order)


@dataclass(frozen=True)
class Method:
    """How one step is made. Subclasses are families of methods; an object is one method.

    The continuous extension is y(t + θ dt) = y + dt Σ_i b_i(θ) part_i, so its derivative by y is the identity. The b_i
    are polynomials of any degree without a constant term: `dense` has the coefficients of θ, θ², … of each.
    """

    name: str
    order: int
    dense: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = (list(row) for row in self._dense())
        object.__setattr__(self, "dense", tuple(tuple(_without_last_zeros(row)) for row in rows))

    def _dense(self) -> Sequence[Sequence[float]]:
        """The coefficients of θ, θ², … in b_i(θ), a row a part; none where a step has no continuous extension."""
        return ()

    iterates = False  # whether a step goes on until values that it reads are small enough
    remembers = False  # whether a step is made of those before it: its carry is a `Past`
    varies = False  # whether the method chooses its order by its error, step by step
    halves = False  # whether it makes steps of systems alone whose two halves move each other
    hands_on = False  # whether a step that is not complete hands something to the next, too
    smooth = True  # whether its continuous extension has a derivative worth the name: straight lines have none
    reuses = False  # whether `remake` makes use of known parts

    def check_state(self, y0: Any) -> None:
        """Refuse a state, a tensor or a nest of them, of whose shapes the method can make no step.

        Raises:
            ValueError: With what to pass instead.
        """

    @property
    def adaptive(self) -> bool:
        """Whether the method estimates its error, and so can choose its own step size."""
        raise NotImplementedError

    @property
    def first_order(self) -> int:
        """The error of the first step is O(dt^first_order)."""
        return self.order

    @property
    def parts(self) -> int:
        """How many parts a complete step has, at most."""
        raise NotImplementedError

    @property
    def evaluations(self) -> int:
        """How many evaluations of f a step takes, at least."""
        return self.parts - 1

    @property
    def error_needs_all(self) -> bool:
        """Whether the error is made of all parts, not of those alone that every step has."""
        raise NotImplementedError

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        """The step from y(t) to y(t + dt), with what the step before has handed over."""
        raise NotImplementedError

    def begin(self, f0: Tensor, carry: Carry = ()) -> Carry:
        """The carry at the start of a solve, where f is f0, or `carry` with that f, which is the first of a carry."""
        return (f0,)

    def kept(self, carry: Carry) -> Carry:
        """What of the carry a step was made of, but for the f where it begins."""
        return ()

    def complete(self, f: Field, step: Step) -> Step:
        """The step with all its parts."""
        raise NotImplementedError

    def carry(self, step: Step) -> Carry:
        """What the step hands to the next one."""
        raise NotImplementedError

    def quadrature(self, step: Step) -> Sequence[tuple[Tensor, float]]:
        """The derivatives of which the step, made in numbers, is y + dt Σ_i b_i k_i, and their weights b_i."""
        raise NotImplementedError

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        """What another try from the same start gets, where `carry` was handed to this one."""
        return carry

    def remake(
        self,
        tracked: Differentiable,
        t: Time,
        y: Tensor,
        dt: float | Tensor,
        *,
        complete: bool = False,
        known: Sequence[Tensor] | None = None,
        carry: Carry = (),
    ) -> Remade:
        """The step once more; `complete` with all its parts, made from `known` ones where those were kept.

        Here by the derivative of the step as a whole, which makes nothing of known parts; a family that knows better
        does better.
        """

        count = 0  # of the parts

        def made(f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Sequence[Tensor]:
            nonlocal count
            step = self.step(f, t, y, dt, carry)
            if step.trouble is not None:
                raise step.trouble
            step = self.complete(f, step) if complete else step
            count = len(step.parts)
            return step.y, *step.parts, *slopes_of(self, step)

        (y1, *rest), pull = tracked.through(made, t, y, dt, carry)

        def pulled(
            y_bar: Tensor,
            part_bars: Sequence[Tensor] | None,
            inner: Inner | None,
            slope_bars: Sequence[Tensor | None] = (),
        ) -> Bars:
            return pull([y_bar, *(part_bars or [None] * count)[:count], *slope_bars])

        return Remade(y1, rest[:count], pulled)

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        """The state at which part i of a step, that of y, dt and not more parts than it needs, is f."""
        raise NotImplementedError

    def error(self, dt: float | Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The estimate of the step's local error, of y's shape."""
        raise NotImplementedError

    def errors(self, dt: float | Tensor, step: Step) -> Sequence[Tensor]:
        """That estimate, and those by which a method chooses its next order."""
        return (self.error(dt, step.parts),)

    def judged(self, step: Step, dt: float, ratios: Sequence[float]) -> Judged:
        """The step, where `ratios` are its errors in tolerances, and what the next step size is chosen by."""
        return Judged(step, ratios[0], self.order)

    def resized(self, dt: float, proposed: float) -> float:
        """The size of the step after one of size dt that was accepted, where a controller proposes one."""
        return proposed

    def interpolate(self, y: Tensor, dt: float | Tensor, parts: Sequence[Tensor], theta: float | Tensor) -> Tensor:
        """y(t + θ dt) for 0 ≤ θ ≤ 1 in a complete step from y, of y's shape (with θ's axes where they broadcast)."""
        return combine(y, dt, self.dense_weights(theta)[: len(parts)], parts)

    def interpolate_all(self, y: Tensor, dt: float, parts: Sequence[Tensor], thetas: Sequence[float]) -> Tensor:
        """The same at many θ, which are numbers, (len(thetas), *y.shape), in one product."""
        flat = torch.stack(list(parts)).reshape(len(parts), y.numel())
        return y + (self._output_weights(dt, flat, thetas, len(parts)) @ flat).reshape(len(thetas), *y.shape)

    def pull_outputs(self, dt: float, parts: Sequence[Tensor], thetas: Sequence[float], bars: Tensor) -> list[Tensor]:
        """`interpolate_all` in reverse: ∂L/∂(each part) of ∂L/∂(each output); ∂L/∂y is the sum of these."""
        flat = bars.reshape(len(thetas), bars[0].numel())
        found = self._output_weights(dt, flat, thetas, len(parts)).mT @ flat
        return list(found.reshape(len(parts), *bars.shape[1:]).unbind())

    def _output_weights(self, dt: float, x: Tensor, thetas: Sequence[float], parts: int) -> Tensor:
        """dt b_i(θ) of so many parts, a row each θ, in x's dtype."""
        theta = torch.tensor(thetas, dtype=torch.float64)
        columns: list[Any] = self.dense_weights(theta)[:parts]
        return (dt * torch.stack(columns, dim=1)).to(x)

    def slope(self, dt: float | Tensor, parts: Sequence[Tensor], theta: float | Tensor) -> Tensor:
        """The derivative of the continuous extension, dy/dt at t + θ dt."""
        return combine(None, 1.0, self.dense_slopes(theta)[: len(parts)], parts)

    def pull_output(
        self,
        dt: float | Tensor,
        parts: Sequence[Tensor],
        theta: float | Tensor,
        cotangent: Tensor,
        inner: Inner | None = None,
    ) -> tuple[list[Tensor], Any, Any]:
        """The interpolation in reverse: ∂L/∂(each part), and ∂L/∂t_out = −∂L/∂t and ∂L/∂dt.

        ∂L/∂y is the cotangent itself. The times' gradients are zeros where `inner` is not given.
        """
        weights = self.dense_weights(theta)[: len(parts)]
        scales = [dt * w for w in weights]
        bars = [cotangent * (c.to(cotangent.dtype) if isinstance(c, Tensor) else c) for c in scales]
        if inner is None:
            return bars, 0.0, 0.0
        rise = inner(cotangent, self.slope(dt, parts, theta))
        level = inner(cotangent, combine(None, 1.0, weights, parts))
        return bars, rise, level - theta * rise

    def dense_weights(self, theta: float | Tensor) -> list:
        """b_i(θ)."""
        return [theta * _polynomial(row, theta) for row in self.dense]

    def dense_slopes(self, theta: float | Tensor) -> list:
        """db_i/dθ: y'(t + θ dt) = Σ_i b_i'(θ) part_i on the continuous extension."""
        return [_polynomial([n * c for n, c in enumerate(row, 1)], theta) for row in self.dense]


def _without_last_zeros(row: list[float]) -> list[float]:
    while row and row[-1] == 0:
        row.pop()
    return row or [0.0]


def _polynomial(row: Sequence[float], x: float | Tensor) -> float | Tensor:
    """Σ_n row[n] xⁿ."""
    value: float | Tensor = row[-1]
    for c in row[-2::-1]:
        value = c + x * value if c else x * value
    return value


def slopes_of(method: Method, step: Step) -> tuple[Tensor, ...]:
    """What a step hands to the next one of f where steps before that began."""
    return method.carry(step)[1] if method.remembers else ()
