"""Splitting methods for systems in two halves that move each other: symplectic, and reversible in time.

Hairer, Lubich and Wanner, *Geometric Numerical Integration* (2006), chapters I and II.5.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.methods.base import Carry, Field, Method, Step
from odenets.methods.sums import Time, combine, stage_times


@dataclass(frozen=True)
class Splitting(Method):
    """A composition of kicks, p += b dt f_p(t, q), and drifts, q += a dt f_q(t, p), that begins and ends with a kick.

    The system is dq/dt = f_q(t, p), dp/dt = f_p(t, q), so also q'' = a(t, q) with p = q'. f(t, y) returns both halves,
    as for any method. The state is a nest whose tensors are those of q and then those of p, such as a pair (q, p), or
    one tensor whose halves along the last axis are q and p.

    When to use: long solves of mechanics and of Hamiltonian networks. The energy of the exact solution does not drift
    away but swings within O(dt^order), a solve back from the end leads to the start, but for rounding, and volumes are
    kept. When not: where dq/dt depends on q, or dp/dt on p (friction): nothing notices that, and the order is 1 then.
    Nor for accuracy alone over a short time, where the step size may adapt: 'tsit5', 'dopri8'.

    A kick takes place at the time to which the drifts before it have brought q, and a drift at that to which the kicks
    have brought p. So the composition is symmetric, and of its order, for a system that depends on time, too.

    A step costs two evaluations of f for each drift: one for its q half, one for the p half of the kick behind it, and
    the last one of these, in which p plays no part, is the first of the next step. Where a state inside of a step is
    wanted, f at both ends comes on top: with `dense=True` one more evaluation a step.

    Args:
        name: The name in `METHODS`.
        order: The order.
        kicks: The weights b of the kicks; one more than there are drifts.
        drifts: The weights a of the drifts.

    Raises:
        ValueError: If the weights of either kind do not sum to 1, or are not the same read from the end.
    """

    kicks: tuple[float, ...]
    drifts: tuple[float, ...]

    halves = True
    hands_on = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.kicks) != len(self.drifts) + 1:
            raise ValueError(f"splitting {self.name!r}: `kicks` must be one more than `drifts`")
        for label, weights in (("kicks", self.kicks), ("drifts", self.drifts)):
            if abs(sum(weights) - 1) > 1e-12 or weights != weights[::-1]:
                raise ValueError(f"splitting {self.name!r}: `{label}` must sum to 1 and be symmetric, got {weights}")

    def check_state(self, y0: Any) -> None:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(y0)]
        half = len(shapes) // 2
        if isinstance(y0, Tensor):
            fits = y0.dim() > 0 and y0.shape[-1] % 2 == 0
        else:
            fits = shapes[:half] == shapes[half:]
        if not fits:
            got = f"shape {shapes[0]}" if isinstance(y0, Tensor) else f"shapes {', '.join(map(str, shapes))}"
            raise ValueError(
                f"`y0` must be positions and momenta for `method` {self.name!r}, got {got}: pass a pair (q, p) of "
                "tensors of one shape, or one tensor whose halves along the last axis they are"
            )

    @property
    def adaptive(self) -> bool:
        return False

    @property
    def error_needs_all(self) -> bool:
        return False

    @property
    def parts(self) -> int:
        return 3

    @property
    def evaluations(self) -> int:
        return 2 * len(self.drifts)

    @property
    def nodes(self) -> tuple[float, ...]:
        """When the kicks and drifts take place, one after the other."""
        of_kicks, of_drifts = itertools.accumulate(self.drifts[:-1]), itertools.accumulate(self.kicks[:-1])
        return (*itertools.chain(*zip((0.0, *of_kicks), of_drifts)), 1.0)

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        times = stage_times(t, dt, self.nodes, y)
        parts: list[Tensor] = []

        def evaluated(state: Tensor) -> Tensor:
            known = carry and not parts
            parts.append(carry[-1] if known else f(times[len(parts)], state))
            return parts[-1]

        y1 = self._moved(y, dt, evaluated)
        start = (times[0], y) if carry and carry[0] is None else None
        return Step(y1, tuple(parts), times[-1], start=start)

    def _moved(self, y: Tensor, dt: float | Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """y1, from the values of f that follow each other."""
        q, p = _halves(y)
        p = combine(p, dt, self.kicks[:1], (_halves(f(y))[1],))
        for drift, kick in zip(self.drifts, self.kicks[1:]):
            q = combine(q, dt, (drift,), (_halves(f(_joined(q, p)))[0],))
            p = combine(p, dt, (kick,), (_halves(f(_joined(q, p)))[1],))
        return _joined(q, p)

    def complete(self, f: Field, step: Step) -> Step:
        """The step with f where it begins, (y1 − y) / dt, and f where it ends as its parts."""
        if step.complete:
            return step
        start = step.parts[0] if step.start is None else f(*step.start)
        q, p = (combine(None, 1.0, w, [_halves(k)[i] for k in step.parts[1 - i :: 2]]) for i, w in self._weights)
        return Step(step.y, (start, _joined(q, p), f(step.t1, step.y)), step.t1, complete=True)

    @property
    def _weights(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        return (0, self.drifts), (1, self.kicks)

    def carry(self, step: Step) -> Carry:
        return step.parts[-1:] if step.complete else (None, step.parts[-1])

    def evaluated_at(self, i: int, y: Tensor, dt: float | Tensor, step: Step) -> Tensor:
        states: list[Tensor] = []

        def evaluated(state: Tensor) -> Tensor:
            states.append(state)
            return step.parts[len(states) - 1]

        self._moved(y, dt, evaluated)
        return states[i]

    def _dense(self) -> Sequence[Sequence[float]]:
        """Cubic Hermite interpolation, whose error is O(dt⁴)."""
        return (1, -2, 1), (0, 3, -2), (0, -1, 1)


def _halves(y: Tensor) -> tuple[Tensor, Tensor]:
    half = y.shape[-1] // 2
    return y[..., :half], y[..., half:]


def _joined(q: Tensor, p: Tensor) -> Tensor:
    return torch.cat([q, p], dim=-1)


# Störmer and Verlet's method: Hairer, Lubich and Wanner, I.1.4.
LEAPFROG = Splitting("leapfrog", order=2, kicks=(1 / 2, 1 / 2), drifts=(1.0,))

_B = (0.0792036964311957, 0.353172906049774, -0.0420650803577195)
_A = (0.209515106613362, -0.143851773179818)
# S₆ of order 4 in Blanes and Moan, "Practical symplectic partitioned Runge–Kutta and Runge–Kutta–Nyström methods",
# J. Comput. Appl. Math. 142 (2002), table 2: of six drifts, since at an equal number of evaluations its error is far
# below those of Suzuki's and Yoshida's compositions of the leapfrog.
BLANES_MOAN4 = Splitting(
    "blanes_moan4",
    order=4,
    kicks=(*_B, 1 - 2 * sum(_B), *_B[::-1]),
    drifts=(*_A, 1 / 2 - sum(_A), 1 / 2 - sum(_A), *_A[::-1]),
)

SYMPLECTIC = (LEAPFROG, BLANES_MOAN4)
