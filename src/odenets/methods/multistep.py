"""Adams methods: the next state from the derivatives at earlier times, by integrating the polynomial through them.

Hairer, Nørsett and Wanner, *Solving Ordinary Differential Equations I* (1993), III.1; on uneven grids III.5. Everything
here is for any grid: a step of another size than those before it has other weights, and the same order.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from odenets.methods.base import Carry, Field, Judged, Method, Past, Step
from odenets.methods.divided import Integral, IntegralOfTensors, Number, Polynomial, Row
from odenets.methods.explicit import ExplicitRungeKutta
from odenets.methods.sums import Time, combine, stage_times
from odenets.methods.tableaus import DOPRI5, RK4


def _nodes(steps: Row, dt: Number) -> list[Number]:
    """Where a step of size dt and the steps before it began, in units of it from its start."""
    nodes: list[Number] = [0.0]
    total = 0.0
    for size in steps:
        total = total + size
        nodes.append(-total / (dt or 1.0) if isinstance(dt, float) else -total / dt)
    return nodes


class Made(NamedTuple):
    """What else is known of a step."""

    past: Past  # what it hands on
    integral: Integral | IntegralOfTensors | None = None  # of a step of one order; None at the start
    polynomial: Polynomial | None = None  # that was integrated, of a step of variable order
    predicted: Tensor | None = None  # where f was evaluated last
    order: int = 0
    slopes: Sequence[Tensor] = ()  # f where it and the steps before it begin
    leading: Tensor | None = None  # f[1, x_0, …, x_(k−1)], the leading coefficient of the polynomial of order k + 1


@dataclass(frozen=True)
class Multistep(Method):
    """What the methods here have in common.

    The parts of a step are the derivatives that it was made of, until it is complete: then they are the coefficients
    of its continuous extension, the integral of the polynomial through them, which needs no evaluation of f.
    """

    remembers = True

    @property
    def error_needs_all(self) -> bool:
        return False

    def _dense(self) -> Sequence[Sequence[float]]:
        return [[0.0] * power + [1.0] for power in range(self.parts)]

    def begin(self, f0: Tensor, carry: Carry = ()) -> Carry:
        return Past(*carry)._replace(f=f0)

    def carry(self, step: Step) -> Carry:
        return step.memory.past

    def _kept(self, carry: Carry, order: int) -> Past:
        """So much of the carry as a step of that order needs."""
        past = Past(*carry)
        return past._replace(f=None, slopes=past.slopes[: order - 1], steps=past.steps[: order - 1])


@dataclass(frozen=True)
class Adams(Multistep):
    """An Adams method of one order, 1 to 5: Adams–Bashforth, or Adams–Bashforth–Moulton.

    Adams–Bashforth takes the next state from the last k derivatives, for one evaluation of f a step, whatever k is.
    Adams–Bashforth–Moulton evaluates f there, corrects the state by the k − 1 last derivatives and that one, and
    evaluates f again (PECE), so for two evaluations its error is far smaller and it is stable for longer steps.

    When to use: for fixed steps where f is smooth and its evaluations are what a solve costs: a step of order 4 takes
    one or two of them, that of `rk4` four. When not: at large steps, since the region of stability shrinks with the
    order (that of `ab4` is a tenth of that of `rk4` along the negative axis); where f jumps often, as each beginning
    takes k − 1 steps of a Runge–Kutta method of order 4 (`ab5` and `abm5`: of order 5, for its continuous extension).

    Args:
        name: The name in `METHODS`.
        order: The order k: the global error is O(dt^k), for steps that change, too.
        corrects: Whether it is Adams–Bashforth–Moulton.

    Source: Hairer, Nørsett and Wanner, III.1 and III.5.
    """

    corrects: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 5:
            raise ValueError(f"`order` of an Adams method must be 1 to 5, got {self.order}")
        super().__post_init__()

    @property
    def adaptive(self) -> bool:
        return False

    @property
    def starter(self) -> ExplicitRungeKutta:
        """What makes the first k − 1 steps: its local error, and that inside of its steps, is O(dt^k) at least."""
        return RK4 if self.order <= 4 else DOPRI5

    @property
    def parts(self) -> int:
        return 1 if self.order == 1 else max(self.order, 4)

    @property
    def evaluations(self) -> int:
        return 2 if self.corrects else 1

    def kept(self, carry: Carry) -> Carry:
        return self._kept(carry, self.order)

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        past = self._kept(carry, self.order)
        t0, t1 = stage_times(t, dt, (0.0, 1.0), y)
        f0 = carry[0] if carry and carry[0] is not None else f(t0, y)
        following = self._kept(Past(None, (f0, *past.slopes), (dt, *past.steps)), self.order)
        if len(past.slopes) < self.order - 1:
            return self.starter.step(f, t, y, dt, (f0,))._replace(memory=Made(following))
        slopes, nodes = (f0, *past.slopes), _nodes(past.steps, dt)
        integral = Integral.through(nodes, y)
        y1 = predicted = combine(y, dt, integral.weights, slopes)
        if self.corrects:
            slopes = (f(t1, predicted), *slopes[:-1])
            integral = Integral.through([1.0, *nodes[:-1]], y)
            y1 = combine(y, dt, integral.weights, slopes)
        return Step(y1, slopes, t1, memory=Made(following, integral, predicted=predicted))

    def complete(self, f: Field, step: Step) -> Step:
        if step.complete:
            return step
        made: Made = step.memory
        if made.integral is not None:
            rows, slopes = made.integral.coefficients, step.parts
        else:
            slopes = self.starter.complete(f, step).parts
            rows = list(itertools.zip_longest(*self.starter.dense, fillvalue=0.0))
            made = made._replace(past=made.past._replace(f=slopes[-1]))
        parts = tuple(combine(None, 1.0, row, slopes) for row in rows)
        return step._replace(parts=parts, complete=True, memory=made)

    def quadrature(self, step: Step) -> Sequence[tuple[Tensor, float]]:
        made: Made = step.memory
        if made.integral is None:
            return self.starter.quadrature(step)
        return list(zip(step.parts, made.integral.weights))

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        return carry

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        made: Made = step.memory
        if made.integral is None:
            return self.starter.evaluated_at(i, y, dt, step)
        return made.predicted if self.corrects and i == 0 and made.predicted is not None else y


def _whole(step: Step) -> tuple[int, Polynomial, Sequence[Tensor], Tensor]:
    """The order of a step, and what it was made of."""
    made: Made = step.memory
    if made.polynomial is None or made.leading is None:
        raise RuntimeError("a step came without what it was made of")
    return made.order, made.polynomial, made.slopes, made.leading


class Policy(NamedTuple):
    """How a method of variable order came to the order of its next step."""

    order: int = 1
    even: int = 0  # how many steps of about one size it has made one after the other
    size: float = 0.0  # that of the last
    rising: bool = True  # whether it is still finding its order, which then rises with every step
    failed: int = 0  # how often the step has been rejected


@dataclass(frozen=True)
class VariableAdams(Multistep):
    """The Adams–Bashforth–Moulton method of variable order, 1 to 12, and variable steps, with error control.

    A step of order k predicts by the last k derivatives, corrects by these and f there, and evaluates f again (PECE),
    so it takes two evaluations of f, whatever its order; its error estimate is the difference to the correction of one
    order less. Beside it stand those that the orders k − 2, k − 1 and k + 1 would have: the order that promises the
    smallest is the next one. A solve begins with order 1 and a tiny step, both of which rise with each step until the
    errors say otherwise. A step size is kept until it can be doubled, since errors are known best on an even grid.

    When to use: where f is smooth and costly, and tolerances are tight (1e-8 and below): it takes half the
    evaluations of `dopri5` there, or fewer. When not: at loose tolerances, where `tsit5` is no dearer and its states in
    between are better; for stiff problems; where f jumps or has kinks, or the solve is short, since each beginning
    takes some twenty steps; with `Backsolve` and `Interpolated` and many times, for the same reason.

    Source: Shampine and Gordon, *Computer Solution of Ordinary Differential Equations* (1975), the code DE/STEP,
    INTRP; Hairer, Nørsett and Wanner, III.5 and III.7.
    """

    varies = True

    @property
    def adaptive(self) -> bool:
        return True

    @property
    def first_order(self) -> int:
        return 2

    @property
    def parts(self) -> int:
        return self.order + 1

    @property
    def evaluations(self) -> int:
        return 2

    def kept(self, carry: Carry) -> Carry:
        return self._kept(carry, _policy(carry).order)

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        past, k = Past(*carry), _policy(carry).order
        t0, t1 = stage_times(t, dt, (0.0, 1.0), y)
        f0 = f(t0, y) if past.f is None else past.f
        slopes = (f0, *past.slopes)
        polynomial = Polynomial.through(_nodes(past.steps, dt))
        predicted = combine(y, dt, polynomial.weights(k), slopes[:k])
        f1 = f(t1, predicted)
        ends = [polynomial.at_end(q) for q in range(k + 1)]
        missed = combine(f1, -1.0, polynomial.combined(ends[:k]), slopes[:k])  # f there less the polynomial's value
        leading = combine(None, 1.0, (1 / ends[k],), (missed,))
        y1 = combine(predicted, dt, (polynomial.integral(k),), (leading,))
        following = Past(None, slopes, (dt, *past.steps), _policy(carry))
        return Step(
            y1, (f0, f1, *past.slopes), t1, memory=Made(following, None, polynomial, predicted, k, slopes, leading)
        )

    def complete(self, f: Field, step: Step) -> Step:
        if step.complete:
            return step
        k, polynomial, slopes, leading = _whole(step)
        last = polynomial.primitive(k)
        rows = [(*row, c) for row, c in zip([*polynomial.coefficients(k), [0.0] * k], last)]
        parts = tuple(combine(None, 1.0, row, (*slopes[:k], leading)) for row in rows)
        return step._replace(parts=parts, complete=True)

    def quadrature(self, step: Step) -> Sequence[tuple[Tensor, float]]:
        k, polynomial, slopes, _ = _whole(step)
        ends = [polynomial.at_end(q) for q in range(k + 1)]
        last = polynomial.integral(k) / ends[k]  # of f at the end, by which the integral is corrected
        rest = zip(polynomial.weights(k), polynomial.combined(ends[:k]))
        return [(step.parts[1], last), *zip(slopes, [w - last * e for w, e in rest])]

    def carry_again(self, step: Step, carry: Carry) -> Carry:
        return Past(*carry)._replace(f=step.parts[0], policy=_policy(step.memory.past))

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        return step.memory.predicted if i == 1 else y

    def errors(self, dt: float | Tensor, step: Step) -> Sequence[Tensor]:
        """Of this step as it was, and as the orders k, k − 1, k − 2 and k + 1 would have it between even ones."""
        k, polynomial, slopes, leading = _whole(step)
        x = polynomial.nodes
        differences = [leading]  # those of orders k, k − 1 and k − 2, with the value at the end
        for q in range(k - 1, max(k - 3, 0), -1):
            known = combine(None, 1.0, polynomial.divided[q], slopes[: q + 1])
            differences.append(combine(known, 1.0, (1.0 - x[q],), (differences[-1],)))
        errors = [combine(None, dt, (_EVEN_ERRORS[k - i],), (d,)) for i, d in enumerate(differences)]
        if k < self.order and len(slopes) > k:
            known = combine(leading, -1.0, polynomial.divided[k], slopes[: k + 1])
            errors.append(combine(None, dt, (_EVEN_ERRORS[k + 1] / (1.0 - x[k]),), (known,)))
        own = polynomial.integral(k) - (1.0 - x[k - 1]) * polynomial.integral(k - 1)
        return combine(None, dt, (own,), (leading,)), *errors

    def judged(self, step: Step, dt: float, ratios: Sequence[float]) -> Judged:
        made: Made = step.memory
        policy = _policy(made.past)
        k, (ratio, *others) = policy.order, ratios
        even = policy.even + 1 if math.isclose(dt, policy.size, rel_tol=0.1) else 1
        by_order = {k - i: error for i, error in enumerate(others[: min(k, 3)])}
        if len(others) > len(by_order):
            by_order[k + 1] = others[-1]
        if not ratio <= 1:
            failed = policy.failed + 1
            order = 1 if failed >= _MOST_FAILED else k - 1 if _falls(k, by_order) else k
            policy = policy._replace(order=order, rising=False, failed=failed)
        else:
            rising = policy.rising and k < min(self.order, _RISING) and not _falls(k, by_order)
            order = k + 1 if rising else _next_order(k, by_order, even)
            ratio = 0.0 if rising else min(by_order[order], 1.0)
            policy = Policy(order, even, dt, rising)
        past = made.past._replace(
            slopes=made.past.slopes[: policy.order], steps=made.past.steps[: policy.order], policy=policy
        )
        return Judged(step._replace(memory=made._replace(past=past)), ratio, policy.order + 1)

    def resized(self, dt: float, proposed: float) -> float:
        return 2 * dt if proposed >= 2 * dt else min(proposed, dt)


def _policy(carry: Carry) -> Policy:
    return Past(*carry).policy or Policy()


def _falls(k: int, errors: dict[int, float]) -> bool:
    """Whether one order less than k does as well, or better: the higher differences are rounding errors, or grow."""
    if k == 2:
        return errors[1] <= 0.5 * errors[2]
    return k > 2 and max(errors[k - 1], errors[k - 2]) <= errors[k]


def _next_order(k: int, errors: dict[int, float], even: int) -> int:
    """The order after an accepted step of order k, the last of so many of about one size."""
    if _falls(k, errors):
        return k - 1
    if k + 1 not in errors or even <= k:
        return k
    if k == 1:
        return 2 if errors[2] < 0.5 * errors[1] else 1
    if errors[k - 1] <= min(errors[k], errors[k + 1]):
        return k - 1
    return k + 1 if errors[k + 1] < errors[k] else k


def _even_errors(most: int) -> tuple[float, ...]:
    """The error of order q = 0, 1, … between even steps, in units of dt f[1, 0, −1, …, 1 − q]."""
    found, product = [1.0], [Fraction(-1), Fraction(1)]  # (x − 1) x (x + 1) …
    for q in range(most):
        found.append(float(abs(sum(c / n for n, c in enumerate(product, 1)))))
        product = [a + q * b for a, b in zip([Fraction(0), *product], [*product, Fraction(0)])]
    return tuple(found)


_MOST_FAILED = 3  # tries after which f is taken to be no smooth one, and the order to be 1
_HIGHEST = 12
_RISING = 4  # the highest order while each step is twice the last: weights of order 7 are in the millions there
_EVEN_ERRORS = _even_errors(_HIGHEST + 1)

BASHFORTH = tuple(Adams(f"ab{order}", order) for order in range(1, 6))
MOULTON = tuple(Adams(f"abm{order}", order, corrects=True) for order in range(1, 6))
MULTISTEP = (*BASHFORTH, *MOULTON, VariableAdams("adams", _HIGHEST))
