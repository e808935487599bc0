"""Where a function of one number ceases to be positive."""

import math
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
_ROUNDING = 2 * 2.0**-52
_LEAST = 2.0**-100  # so that a root at the very start ends the search too


Asking = Generator[float, float, T]  # asks for a value at the θ that it yields, and gets it sent


def answered(asking: Asking[T], value: Callable[[float], float]) -> T:
    """What comes of it where these are the values."""
    try:
        theta = next(asking)
        while True:
            theta = asking.send(value(theta))
    except StopIteration as end:
        return end.value


def locate(value: Callable[[float], float], at_end: float) -> float:
    """The θ in (0, 1] where a value, positive at 0 and `at_end` ≤ 0 at 1, ceases to be; to the rounding of θ itself."""
    return answered(locating(value(0.0), at_end), value)


def locating(at_start: float, at_end: float) -> Asking[float]:
    """The same, asking for the values on its way.

    A smooth function takes some ten evaluations, one that jumps as many as halving the interval. Source: Chandrupatla,
    "A new hybrid quadratic/bisection algorithm", Adv. Eng. Software 28 (1997).
    """
    a, f_a, b, f_b = 1.0, at_end, 0.0, at_start  # on either side of the place, a the newest
    c, f_c = b, f_b  # the one before
    share = 0.5  # of the way from a to b
    while True:
        best, f_best = (a, f_a) if abs(f_a) < abs(f_b) else (b, f_b)
        least = max(_ROUNDING * abs(best), _LEAST) / abs(b - a)
        if least > 0.5:
            return max(a, b)
        if f_best == 0 and (yield best * (1 - 4 * _ROUNDING)) > 0:  # else it is 0 from an earlier place on
            return best
        x = a + min(max(share, least), 1 - least) * (b - a)
        f_x = yield x
        if (f_x > 0) == (f_a > 0):
            c, f_c = a, f_a
        else:
            c, f_c, b, f_b = b, f_b, a, f_a
        a, f_a = x, f_x
        share = _inverse_quadratic(a, f_a, b, f_b, c, f_c)


def _inverse_quadratic(a: float, f_a: float, b: float, f_b: float, c: float, f_c: float) -> float:
    """The share of the way from a to b where the inverse parabola through the points is 0; half where that is risky."""
    if 0 in (f_a, f_b, f_c):  # flat there: the parabola says nothing
        return 0.5
    xi = (a - b) / (c - b)
    phi = (f_a - f_b) / (f_c - f_b)
    if not (math.isfinite(f_c) and phi**2 < xi and (1 - phi) ** 2 < 1 - xi):
        return 0.5
    return f_a / (f_b - f_a) * f_c / (f_b - f_c) + (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
