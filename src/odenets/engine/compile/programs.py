"""The loops in tensors around a graph of f, compiled: one program for each plan."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.while_loop import while_loop_op
from torch.fx.experimental.symbolic_shapes import DimDynamic

from odenets.engine.compile.cxx import settle
from odenets.engine.compile.graph import Graph
from odenets.engine.compile.lower import lowered
from odenets.engine.compile.threads import is_little, one_thread
from odenets.engine.compile.told import tell_of_many
from odenets.engine.compile.turns import in_turn
from odenets.engine.tensors.backward import backward
from odenets.engine.tensors.forward import forward
from odenets.engine.tensors.history import HistoryBars
from odenets.engine.tensors.plan import BackClock, Buffers, Clock, Flow, Numbers, Plan
from odenets.pullback.bound import Activation, Bind
from odenets.pullback.graph import vjp, vjp_through


class CompiledLoops:
    """`Loops` around one graph, with the tensors that f reaches now."""

    def __init__(self, graph: Graph, inputs: Sequence[Any], f: Any) -> None:
        values = [inputs[i] for i in graph.rest]
        self.graph, self.f, self.inputs = graph, f, inputs
        self.tensors = [v for v in values if isinstance(v, Tensor)]
        self.sizes = [v for v in values if not isinstance(v, Tensor)]
        self.wanted = [i for i, v in enumerate(self.tensors) if v.requires_grad]

    def check(self) -> None:
        """Nothing: a graph has no state of its own."""

    def settle(self) -> None:
        """Wait for the programs that are still being compiled.

        Raises:
            NotCompiled: If one cannot be.
        """
        settle(self.graph.awaited)

    def activations(self) -> tuple[Activation, ...]:
        key = (tuple(self.wanted), *self.inputs[self.graph.y].shape, *self.sizes)
        if key not in self.graph.activations:
            numbers = self.graph.numbers(self.inputs)
            self.graph.activations[key] = tuple(
                Activation(tuple(n if isinstance(n, int) else int(n.node.expr.subs(numbers)) for n in shape), dtype)
                for shape, dtype in self.graph.split(self.wanted).activations
            )
        return self.graph.activations[key]

    def forward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]:
        return self._program(plan, "forward", self._forward_example, self._forward)

    def backward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]:
        return self._program(plan, "backward", self._backward_example, self._backward)

    def _forward(self, plan: Plan) -> Callable[..., Any]:
        if plan.activations is None:
            bind = plan.arranged_field(self.graph.bind)
        else:
            bind = functools.partial(functools.partial, self.graph.split(self.wanted).evaluate)  # bind(tensors)(t, y)
        return functools.partial(forward, plan, _FLOW, bind)

    def _backward(self, plan: Plan) -> Callable[..., Any]:
        pullback = _ByGraph(self.graph, plan.arranged_field(self.graph.bind), self.wanted)
        return functools.partial(backward, plan, _FLOW, pullback, self.wanted)

    def _program(self, plan: Plan, name: str, example: Callable[[Plan], list], function: Callable) -> Callable:
        wanted = () if name == "forward" and plan.activations is None else tuple(self.wanted)
        key = (name, wanted, *plan.key)
        if key not in self.graph.programs:
            with in_turn():
                if name == "backward":
                    self.forward(plan)  # the larger one first, so that it is compiled while the other is traced
                if key not in self.graph.programs:  # another thread may have made it meanwhile
                    tell_of_many(self.f, key, self.graph.why)
                    self.graph.programs[key] = lowered(self.graph, function(plan), example(plan))
        y = self.inputs[self.graph.y]
        alone = is_little(self.graph.work * y.numel(), y.device.type)
        return functools.partial(_run, self.graph.programs[key], self.sizes, alone)

    def _forward_example(self, plan: Plan) -> list[Any]:
        make = self._fakes(plan)
        ys = (make.ys(),) if plan.outputs else ()
        start = (make.clock(), make.state(), *make.stops(), *make.carry())
        return [make.numbers(), make.times(), *start, *ys, *make.buffers(), *make.rest()]

    def _backward_example(self, plan: Plan) -> list[Any]:
        make = self._fakes(plan)
        rows = make.constant(torch.zeros(1, dtype=torch.int64))
        outputs = (make.ys(),) if plan.outputs else ()
        clock = make.clock(rows=len(BackClock._fields))
        return [
            rows,
            make.times(),
            clock,
            make.state(),
            *make.stops(),
            *make.behind(),
            *outputs,
            *make.buffers(),
            *make.rest(),
        ]

    def _fakes(self, plan: Plan) -> "_Fakes":
        if plan.activations is not None:  # their sizes may change from call to call
            plan = replace(plan, activations=self.graph.split(self.wanted).activations)
        return _Fakes(self.graph, plan)


class _ByGraph:
    """The pullback of f by its graph: a `Vjp`."""

    def __init__(self, graph: Graph, bind: Bind, wanted: Sequence[int]) -> None:
        self.graph, self.bind, self.wanted = graph, bind, wanted

    def __call__(self, tensors: Sequence[Any], t: Tensor, y: Tensor, k: Tensor | None, activations: Any) -> Any:
        if k is None:
            return vjp(self.bind, self.wanted, tensors, t, y)
        return k, functools.partial(self.graph.split(self.wanted).pull, tensors, t, y, k, activations)

    def through(self, tensors: Sequence[Any], step: Any, *at: Tensor, moved: Sequence[int]) -> Any:
        return vjp_through(self.bind, self.wanted, tensors, step, *at, moved=moved)


class _Fakes:
    """Tensors without contents, of the shapes that a loop gets."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.mode = graph.mode
        with self.mode, torch.no_grad():
            self.y: Tensor = plan.arranged(graph.inputs[graph.y].detach())

    def constant(self, x: Tensor) -> Tensor:
        return self.mode.from_tensor(x.to(self.y.device), static_shapes=True)

    def state(self) -> Tensor:
        with self.mode:
            return torch.empty(self.y.shape, dtype=self.y.dtype, device=self.y.device)

    def carry(self) -> list[Tensor]:
        with self.mode:
            return [torch.empty_like(x) for x in self.plan.carry(self.y)]

    def behind(self) -> list[Tensor]:
        with self.mode:
            return list(HistoryBars.none(self.plan.past, self.state())) if self.plan.past else []

    def numbers(self) -> Tensor:
        length = Numbers.length(self.plan.controller)
        if self.plan.own:
            return self.clock(length)
        return self.constant(torch.zeros(length, dtype=torch.float64))

    def clock(self, rows: Any = None) -> Tensor:
        rows = Clock.length(self.plan.controller) if rows is None else rows
        with self.mode:
            shape = (rows, *self.plan.time_shape(self.y))
            return torch.empty(shape, dtype=torch.float64, device=self.y.device)

    def times(self) -> Tensor:
        if self.plan.own:
            return self.clock(self._size("times") if self.plan.outputs else 1)
        if not self.plan.outputs:
            return self.constant(torch.zeros(1, dtype=torch.float64))
        with self.mode:
            return torch.empty(self._size("times"), dtype=torch.float64, device=self.y.device)

    def stops(self) -> list[Tensor]:
        wanted = [name for name in ("stops", "jumps") if getattr(self.plan, name)]
        if self.plan.own:
            return [self.clock(self._size(name)) for name in wanted]
        with self.mode:
            return [torch.empty(self._size(n), dtype=torch.float64, device=self.y.device) for n in wanted]

    def ys(self) -> Tensor:
        with self.mode:
            return torch.empty((self._size("times"), *self.y.shape), dtype=self.y.dtype, device=self.y.device)

    def buffers(self) -> tuple[Tensor, ...]:
        if not self.plan.buffered:
            return ()
        with self.mode:
            return Buffers.empty(self.plan, self.y, self._size("capacity")).tensors

    def rest(self) -> list[Any]:
        return [
            self.graph.inputs[i].detach() if isinstance(self.graph.inputs[i], Tensor) else self.graph.inputs[i]
            for i in self.graph.rest
        ]

    @functools.lru_cache  # noqa: B019 — lives as long as this object, which is short
    def _size(self, name: str) -> Any:
        """A size that may change from call to call."""
        environment = self.graph.environment
        source = ConstantSource(f"odenets_{name}_{len(self.graph.programs)}")
        symbol = environment.create_symbol(37, source, dynamic_dim=DimDynamic.DYNAMIC)
        return environment.create_symintnode(symbol, hint=37, source=source)


def _run(program: Callable[..., Any], sizes: Sequence[int], alone: bool, *arguments: Tensor) -> Sequence[Tensor]:
    with one_thread(alone):
        return program(*arguments, *sizes)


def _while(condition: Any, body: Any, carry: tuple, constants: tuple, mutated: Sequence[int]) -> Any:
    indices = ",".join(str(len(carry) + i) for i in mutated)
    return while_loop_op(condition, body, tuple(carry), tuple(constants), mutated_arg_indices=indices)


def _branch(which: Tensor, one: Any, other: Any, operands: tuple) -> Any:
    return cond_op(which, one, other, tuple(operands))


_FLOW = Flow(_while, _branch)
