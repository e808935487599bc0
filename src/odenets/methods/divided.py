"""Polynomials through values at nodes of any spacing, and their integrals: what Adams methods are made of.

Numbers are Python's, or 0-dimensional tensors where gradients flow through the times.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Number = Any  # a Python float, or a 0-dimensional float64 tensor
Row = Sequence[Number]


class Polynomial(NamedTuple):
    """Newton's form of the polynomial through values at some nodes x_0, x_1, …, in units of a step from 0 to 1.

    It is Σ_q f[x_0, …, x_q] N_q(x), with N_q(x) = (x − x_0) … (x − x_(q−1)) and f[x_0, …, x_q] = Σ_i divided[q][i] f_i.
    """

    nodes: Row
    divided: Sequence[Row]
    products: Sequence[Row]  # the coefficients of 1, x, x², … in N_q, for q up to the number of nodes

    @staticmethod
    def through(nodes: Row) -> "Polynomial":
        # Steps of one size differ by rounding errors of the time; a node that is off by 1e-12 changes nothing.
        if any(isinstance(x, Tensor) for x in nodes):
            return _through(tuple(_rounded(x) if isinstance(x, Tensor) else x for x in nodes))
        return _through_known(tuple(round(x * 2.0**40) * 2.0**-40 for x in nodes))

    def at_end(self, q: int) -> Number:
        """N_q(1)."""
        return math.prod(1.0 - x for x in self.nodes[:q])

    def primitive(self, q: int) -> Row:
        """The coefficients of θ, θ², … in the integral of N_q from 0 to θ."""
        return [c / n for n, c in enumerate(self.products[q], 1)]

    def integral(self, q: int) -> Number:
        """That from 0 to 1."""
        return sum(self.primitive(q))

    def combined(self, values: Sequence[Number]) -> Row:
        """The weight of each f_i in Σ_q values[q] f[x_0, …, x_q]."""
        rows = self.divided[: len(values)]
        return [sum(v * row[i] for v, row in zip(values[i:], rows[i:])) for i in range(len(rows))]

    def weights(self, count: int) -> Row:
        """Those of the first f_i, so many, in the integral from 0 to 1 of the polynomial through them."""
        return self.combined([self.integral(q) for q in range(count)])

    def coefficients(self, count: int) -> Sequence[Row]:
        """Those in each coefficient of θ, θ², … of the integral from 0 to θ."""
        primitives = [[*self.primitive(q), *[0.0] * (count - 1 - q)] for q in range(count)]
        return [self.combined([primitive[power] for primitive in primitives]) for power in range(count)]


class Integral(NamedTuple):
    """The integral of the polynomial through values at some nodes, from the start of a step."""

    weights: Row  # of the values in that to the end of the step
    coefficients: Sequence[Row]  # of the values in each coefficient of θ, θ², … of that to θ

    @staticmethod
    def through(nodes: Row, like: Tensor) -> "Integral | IntegralOfTensors":
        if any(isinstance(x, Tensor) for x in nodes):
            return IntegralOfTensors.through(nodes, like)
        known = tuple(round(x * 2.0**40) * 2.0**-40 for x in nodes)
        if known in EVEN:
            return EVEN[known]
        return (_integral if torch.compiler.is_compiling() else _known_integral)(known)  # Dynamo warns of a cache


def _integral(nodes: tuple[float, ...]) -> Integral:
    polynomial = _through(nodes)
    return Integral(polynomial.weights(len(nodes)), polynomial.coefficients(len(nodes)))


class IntegralOfTensors(NamedTuple):
    """The same where the nodes are tensors, by few operations: a compiler takes its time for each."""

    divided: Tensor  # (q, i)
    primitives: Tensor  # (q, power): the coefficients of θ, θ², … in the integral of N_q from 0 to θ

    @staticmethod
    def through(nodes: Row, like: Tensor) -> "IntegralOfTensors":
        x = _rounded(torch.stack([torch.as_tensor(node, dtype=torch.float64, device=like.device) for node in nodes]))
        places = torch.arange(len(nodes), device=like.device)
        same = (places[:, None] == places).to(torch.float64)
        gaps, divisor, product = x[:, None] - x + same, torch.ones_like(x), same[0]
        divided, primitives = [], []
        for q in range(len(nodes)):
            divisor = divisor * gaps[:, q]
            divided.append(torch.where(places <= q, 1 / divisor, 0.0))
            primitives.append(product / (places + 1))
            product = torch.cat([torch.zeros_like(product[:1]), product[:-1]]) - x[q] * product
        return IntegralOfTensors(torch.stack(divided), torch.stack(primitives))

    @property
    def weights(self) -> Row:
        return (self.primitives.sum(1)[:, None] * self.divided).sum(0).unbind()

    @property
    def coefficients(self) -> Sequence[Row]:
        each = (self.primitives[:, :, None] * self.divided[:, None]).sum(0)
        return [row.unbind() for row in each.unbind()]


def _rounded(x: Tensor) -> Tensor:
    """The number that it would be as a float, with the derivative of x."""
    value = x.detach()
    return x + ((value * 2.0**40).round() * 2.0**-40 - value)


def _through(nodes: tuple[Number, ...]) -> Polynomial:
    divided: list[list[Number]] = [[1.0]]
    products: list[list[Number]] = [[1.0]]
    for q, x in enumerate(nodes):
        if q:
            gaps = [node - x for node in nodes[:q]]
            divided.append([*(w / gap for w, gap in zip(divided[-1], gaps)), 1 / math.prod([-gap for gap in gaps])])
        last = products[-1]
        products.append([a - x * b for a, b in zip([0.0, *last], [*last, 0.0])])
    return Polynomial(nodes, divided, products)


_through_known = functools.lru_cache(maxsize=256)(_through)
_known_integral = functools.lru_cache(maxsize=256)(_integral)
# Those between even steps, of orders 1 to 5, explicit and implicit.
EVEN = {
    nodes: _integral(nodes)
    for count in range(1, 6)
    for nodes in (tuple(float(first - i) for i in range(count)) for first in (0, 1))
}
