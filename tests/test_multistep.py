"""Adams weights: against the tables of the literature, and by the polynomials that they integrate."""

from fractions import Fraction

import pytest

from odenets.methods.multistep import adams_weights, step_nodes


@pytest.mark.parametrize(
    ("nodes", "numerators", "divisor"),
    [
        ((0,), [1], 1),
        ((0, -1), [3, -1], 2),
        ((0, -1, -2, -3), [55, -59, 37, -9], 24),
        ((1, 0), [1, 1], 2),
        ((1, 0, -1, -2), [9, 19, -5, 1], 24),
    ],
)
def test_weights_on_an_even_grid_are_those_of_the_literature(nodes, numerators, divisor):
    """Hairer, Nørsett and Wanner, (III.1.5') and (III.1.9')."""
    assert adams_weights(tuple(map(Fraction, nodes))) == tuple(n / divisor for n in numerators)


def test_weights_on_an_uneven_grid_integrate_polynomials():
    nodes = tuple(map(Fraction, ("1", "0", "-0.3", "-1.7", "-2")))
    weights = adams_weights(nodes)
    for power in range(len(nodes)):
        assert sum(w * float(x) ** power for w, x in zip(weights, nodes)) == pytest.approx(1 / (power + 1), abs=1e-13)


def test_nodes_are_whole_where_the_times_are_even_up_to_rounding():
    times = [0.1 * k for k in range(10)]
    assert step_nodes(times[::-1], times[-1], 0.1, 2.2e-16) == tuple(Fraction(-k) for k in range(10))
    assert step_nodes([1.0, 0.6], 1.0, 0.25, 2.2e-16)[1] == Fraction((0.6 - 1.0) / 0.25)
