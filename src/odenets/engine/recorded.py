"""The first steps of a solve with their graph, so that the backward pass need not make them again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.engine.going import Going
from odenets.engine.tape import Accepted
from odenets.methods import Carry, Past
from odenets.pullback.by_autograd import Wanted
from odenets.pullback.function import Begun
from odenets.pullback.reached import Reached, check_reached, sequence_number


@dataclass
class Recorded:
    """The graph of the first steps of a solve, from a leaf y0 on.

    Args:
        begun: The evaluation at the start, of which the graph goes on.
        steps: How many steps it may be.
    """

    begun: Begun
    wanted: Wanted
    reached: Reached
    steps: int
    taken: int = 0
    outputs: list[Tensor] = field(default_factory=list)  # those that lie in it, the ones at the start included
    end: tuple[Tensor, ...] = ()  # the state behind it, and f where steps before that began
    _tried: tuple[int, Tensor, Carry] | None = None  # the number of the next node, y and the carry where a step begins
    _last: tuple[Accepted, int, Tensor, Carry] | None = None  # the same of the last one accepted

    def enter(self, going: Going) -> None:
        """A step begins."""
        self._tried = sequence_number(), going.y, going.carry

    def leave(self, step: Accepted) -> bool:
        """It was accepted: whether it is the last that may be recorded."""
        if self._tried is None:
            raise RuntimeError("a step has ended that has not begun")
        self.taken, self._last = self.taken + 1, (step, *self._tried)
        return self.taken >= self.steps

    def cut(self, going: Going, outputs: Sequence[Tensor]) -> None:
        """The graph ends here: what follows begins at a constant."""
        if self._last is not None:
            self._check(going, *self._last)
        self.outputs = list(outputs)
        self.end = going.y, *Past(*going.method.kept(going.carry)).slopes
        self._tried = self._last = None
        going.y = going.y.detach()
        going.carry = pytree.tree_map_only(Tensor, Tensor.detach, going.carry)

    def _check(self, going: Going, step: Accepted, started: int, y: Tensor, carry: Carry) -> None:
        """Refuse an f that in this step has reached a tensor which the first evaluation did not show."""

        def again() -> Tensor:
            with torch.random.fork_rng([y.device] if y.is_cuda else []):
                return going.method.step(going.f.f, going.problem.at(step.t), y, step.dt, carry).y

        check_reached(going.y, started, self.reached, (self.begun.y0,), again, since=self.begun.started)

    def pull(self, bars: Sequence[Tensor | None], output_bars: Tensor) -> Sequence[Tensor | None]:
        """∂L/∂y0 and ∂L/∂(each wanted tensor), from those of `end` and of the outputs; the graph is used up by it."""
        pairs = [*zip(self.end, bars), *zip(self.outputs, output_bars.unbind())]
        pairs = [(x, bar) for x, bar in pairs if bar is not None and x.grad_fn is not None]
        self.outputs, self.end = [], ()
        y0 = [self.begun.y0] if self.begun.y0.requires_grad else []
        wrt = [*y0, *self.wanted.tensors]
        found: Sequence[Tensor | None] = [None] * len(wrt)
        if pairs and wrt:
            found = torch.autograd.grad([x for x, _ in pairs], wrt, [bar for _, bar in pairs], allow_unused=True)
        return found if y0 else [None, *found]
