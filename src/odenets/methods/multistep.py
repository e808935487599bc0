"""Adams methods: the next state from the derivatives at earlier times, by integrating the polynomial through them.

Hairer, Nørsett and Wanner, *Solving Ordinary Differential Equations I* (1993), III.1; on uneven grids III.5.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction


@functools.lru_cache(maxsize=4096)
def adams_weights(nodes: tuple[Fraction, ...]) -> tuple[float, ...]:
    """The weights w with ∫ p(x) dx from 0 to 1 = Σ w_i p(x_i) for each polynomial p through the nodes x_i.

    Nodes 0, −1, −2, … give the explicit methods (Adams–Bashforth), nodes 1, 0, −1, … the implicit ones
    (Adams–Moulton). Computed in rational numbers, so they are exact before they are rounded once.
    """
    weights = []
    for i, node in enumerate(nodes):
        polynomial = [Fraction(1)]  # coefficients of 1, x, x², …: the one that is 1 at this node and 0 at the others
        for other in (*nodes[:i], *nodes[i + 1 :]):
            scale = 1 / (node - other)
            shifted = [Fraction(0), *polynomial]
            polynomial = [scale * (a - other * b) for a, b in zip(shifted, [*polynomial, Fraction(0)])]
        weights.append(float(sum(c / (power + 1) for power, c in enumerate(polynomial))))
    return tuple(weights)


def step_nodes(times: Sequence[float], t: float, dt: float, rounding: float) -> tuple[Fraction, ...]:
    """Times in units of the step from t to t + dt; whole numbers where they are, up to the rounding error of times."""
    nodes = [(time - t) / dt for time in times]
    slack = 16 * rounding * max(abs(time) for time in (*times, t + dt)) / abs(dt)
    return tuple(Fraction(round(x)) if abs(x - round(x)) <= slack else Fraction(x) for x in nodes)
