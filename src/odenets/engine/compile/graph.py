"""f as a graph of tensor operations."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from odenets.engine.compile.cxx import Awaited
from odenets.engine.compile.failing import or_not_compiled
from odenets.engine.compile.turns import in_turn
from odenets.evaluation import checked
from odenets.methods import Field
from odenets.pullback.bound import Activation
from odenets.pullback.graph import Halves

# Where the compiler chooses how to accumulate a sum by its length: a matter of accuracy, not of what is computed.
_MATTERS_NOT = "need_use_acc_helper"


@dataclass
class Graph:
    """f as a graph of tensor operations, and the loops that have been compiled around it."""

    module: GraphModule
    inputs: list[Any]  # the fake inputs: tensors, and sizes that may change
    t: int  # which of them is t
    y: int
    why: str | None = None  # why the graphs made before did not do
    proven: bool = False  # held against f
    work: float = math.inf  # floating-point operations of its products for each number of the state, once it is proven
    traced: int = 0  # how many assumptions the tracer made, which it checks itself
    programs: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    checked: dict[Any, bool] = field(default_factory=dict)
    halves: dict[Any, Halves] = field(default_factory=dict)
    activations: dict[Any, tuple[Activation, ...]] = field(default_factory=dict)  # for each set of sizes
    awaited: list[Awaited] = field(default_factory=list)  # what of the programs is still being compiled

    @functools.cached_property
    def rest(self) -> list[int]:
        """The inputs but t and y: tensors first, then sizes."""
        others = [i for i in range(len(self.inputs)) if i not in (self.t, self.y)]
        return sorted(others, key=lambda i: not isinstance(self.inputs[i], Tensor))

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether the loops compiled so far hold for these sizes: the compiler may have assumed something of them."""
        guards = self.environment.guards[self.traced :]
        key = (len(guards), *inputs[self.y].shape, *(value for value in inputs if isinstance(value, int)))
        if key not in self.checked:
            assumed = [guard.expr for guard in guards if _MATTERS_NOT not in str(guard.sloc)]
            numbers = self.numbers(inputs)
            self.checked[key] = all(expr.subs(numbers) in (True,) for expr in assumed)
        return self.checked[key]

    def numbers(self, inputs: Sequence[Any]) -> dict[Any, int]:
        """The numbers that the symbols stand for: those of y's shape, and of the sizes among these inputs."""
        fakes = [*self.inputs[self.y].shape, *(fake for fake in self.inputs if not isinstance(fake, Tensor))]
        sizes = [*inputs[self.y].shape, *(value for value in inputs if not isinstance(value, Tensor))]
        known = [(fake.node, size) for fake, size in zip(fakes, sizes) if isinstance(fake, torch.SymInt)]
        # `_expr`: the symbol itself, also where the compiler has fixed it; `expr` is its number then, or another symbol
        # where two sizes, of y and of a tensor that f reaches, have been found to be one.
        same = {node.expr: size for node, size in known if node.expr.is_symbol}
        return same | {node._expr: size for node, size in known}

    def split(self, wanted: Sequence[int]) -> Halves:
        """f, split from its pullback to these of `rest`."""
        key = tuple(wanted)
        with in_turn():
            if key in self.halves:
                return self.halves[key]
            t, y, *rest = (self.inputs[i] for i in (self.t, self.y, *self.rest))
            with or_not_compiled(), torch.no_grad(), self.tracing():
                y = torch.empty(y.shape, dtype=y.dtype, device=y.device)
                rest = [x.detach() if isinstance(x, Tensor) else x for x in rest]
                self.halves[key] = Halves(self.bind, wanted, t.detach(), y, rest)
        return self.halves[key]

    @property
    def environment(self) -> ShapeEnv:
        if self.mode.shape_env is None:
            raise RuntimeError("the tracer left no shape environment")
        return self.mode.shape_env

    @property
    def mode(self) -> FakeTensorMode:
        return self.inputs[self.y].fake_mode

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Where operations on the fake inputs are recorded: by their Python formulas, which keep sizes symbols."""
        with self.mode, enable_python_dispatcher():
            yield

    def bind(self, rest: Sequence[Any]) -> Field:
        """f, computing with these for `rest`."""
        inputs: list[Any] = [None] * len(self.inputs)
        for i, value in zip(self.rest, rest):
            inputs[i] = value

        def f(t: Tensor, y: Tensor) -> Tensor:
            inputs[self.t], inputs[self.y] = t, y
            return self.module(*inputs)[0]

        return lambda t, y: checked(f(t, y), t, y)
