"""`compile=True`: f is traced once into a graph, and the loops around it are compiled, forward and backward.

Tracing f finds every tensor that it reaches, and guards every Python value that it depends on, so each of the tensors
gets its gradient and a change of the others traces anew. The loops (`odenets.march`) are then compiled around the
graph as `while` loops in C++: no Python runs between steps.
"""

import contextlib
import copy
import functools
import itertools
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch._dynamo.exc import TensorifyScalarRestartAnalysis, TorchDynamoException
from torch._dynamo.source import ConstantSource
from torch._higher_order_ops.while_loop import while_loop_op
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from odenets.cut import Cut, vjp
from odenets.loop import CountedField, Problem, sample_shape
from odenets.march import (
    CLOCK,
    NUMBERS,
    Activation,
    Buffers,
    Plan,
    arranged,
    arranged_field,
    backward,
    forward,
    time_shape,
)
from odenets.methods import Field, real_dtype
from odenets.solution import Stats

# Where the compiler chooses how to accumulate a sum by its length: a matter of accuracy, not of what is computed.
_MATTERS_NOT = "need_use_acc_helper"
_GIVEN = ("dt0", "dt", "steps")  # of these a loop gets the size of the first step, as an input
_MOST_VARIANTS = 64  # of one f: dtypes, training or not, shapes without the batch


class NotCompiled(Exception):
    """f, or this machine, cannot be compiled; the text says why."""


@dataclass
class Graph:
    """f as a graph of tensor operations, and the loops that have been compiled around it."""

    module: GraphModule
    inputs: list[Any]  # the fake inputs: tensors, and sizes that may change
    t: int  # which of them is t
    y: int
    traced: int = 0  # how many assumptions the tracer made, which it checks itself
    programs: dict[Any, tuple[Callable[..., Any], Any]] = field(default_factory=dict)
    checked: dict[Any, bool] = field(default_factory=dict)
    cuts: dict[Any, Cut] = field(default_factory=dict)
    activations: dict[Any, tuple[Activation, ...]] = field(default_factory=dict)  # for each set of sizes

    @functools.cached_property
    def rest(self) -> list[int]:
        """The inputs but t and y: tensors first, then sizes."""
        others = [i for i in range(len(self.inputs)) if i not in (self.t, self.y)]
        return sorted(others, key=lambda i: not isinstance(self.inputs[i], Tensor))

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether the loops compiled so far hold for these sizes: the compiler may have assumed something of them."""
        guards = self.environment.guards[self.traced :]
        key = (len(guards), *(value for value in inputs if isinstance(value, int)))
        if key not in self.checked:
            assumed = [guard.expr for guard in guards if _MATTERS_NOT not in str(guard.sloc)]
            numbers = self.numbers([value for value in inputs if isinstance(value, int)])
            self.checked[key] = all(expr.subs(numbers) in (True,) for expr in assumed)
        return self.checked[key]

    def numbers(self, sizes: Sequence[int]) -> dict[Any, int]:
        """The numbers that the symbols stand for, of those sizes among the inputs, in order."""
        fakes = [fake for fake in self.inputs if not isinstance(fake, Tensor)]
        return {fake.node.expr: size for fake, size in zip(fakes, sizes)}

    def cut(self, wanted: Sequence[int]) -> Cut:
        """f, cut from its pullback to these of `rest`."""
        key = tuple(wanted)
        if key not in self.cuts:
            t, y, *rest = (self.inputs[i] for i in (self.t, self.y, *self.rest))
            with _or_not_compiled(), torch.no_grad(), self.mode:
                y = torch.empty(y.shape, dtype=y.dtype, device=y.device)
                rest = [x.detach() if isinstance(x, Tensor) else x for x in rest]
                self.cuts[key] = Cut(self.bind, wanted, t.detach(), y, rest)
        return self.cuts[key]

    @property
    def environment(self) -> ShapeEnv:
        if self.mode.shape_env is None:
            raise RuntimeError("the tracer left no shape environment")
        return self.mode.shape_env

    @property
    def mode(self) -> FakeTensorMode:
        return self.inputs[self.y].fake_mode

    def bind(self, rest: Sequence[Any]) -> Field:
        """f, computing with these for `rest`."""
        inputs: list[Any] = [None] * len(self.inputs)
        for i, value in zip(self.rest, rest):
            inputs[i] = value

        def f(t: Tensor, y: Tensor) -> Tensor:
            inputs[self.t], inputs[self.y] = t, y
            return self.module(*inputs)[0]

        return CountedField(f, Stats())  # whose checks of shape and dtype run while tracing


class Compiled:
    """The loops around one graph, with the tensors that f reaches now: an `Engine` of `odenets.chunks`."""

    def __init__(self, graph: Graph, inputs: Sequence[Any]) -> None:
        values = [inputs[i] for i in graph.rest]
        self.graph = graph
        self.tensors = [v for v in values if isinstance(v, Tensor)]
        self.sizes = [v for v in values if not isinstance(v, Tensor)]
        self.wanted = [i for i, v in enumerate(self.tensors) if v.requires_grad]

    def activations(self) -> tuple[Activation, ...]:
        key = (tuple(self.wanted), tuple(self.sizes))
        if key not in self.graph.activations:
            numbers = self.graph.numbers(self.sizes)
            self.graph.activations[key] = tuple(
                Activation(tuple(n if isinstance(n, int) else int(n.node.expr.subs(numbers)) for n in shape), dtype)
                for shape, dtype in self.graph.cut(self.wanted).activations
            )
        return self.graph.activations[key]

    def forward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]:
        return self._program(plan, "forward", self._forward_example, self._forward)

    def backward(self, plan: Plan) -> Callable[..., Sequence[Tensor]]:
        return self._program(plan, "backward", self._backward_example, self._backward)

    def _forward(self, plan: Plan) -> Callable[..., Any]:
        if plan.activations is None:
            bind = arranged_field(plan, self.graph.bind)
        else:
            bind = functools.partial(functools.partial, self.graph.cut(self.wanted).evaluate)  # bind(tensors)(t, y)
        return functools.partial(forward, plan, _while, bind)

    def _backward(self, plan: Plan) -> Callable[..., Any]:
        bind = arranged_field(plan, self.graph.bind)

        def pullback(tensors: Sequence[Any], t: Tensor, y: Tensor, k: Tensor | None, kept: Any) -> Any:
            if k is None:
                return vjp(bind, self.wanted, tensors, t, y)
            return k, functools.partial(self.graph.cut(self.wanted).pull, tensors, t, y, k, kept)

        return functools.partial(backward, plan, _while, pullback, self.wanted)

    def _program(self, plan: Plan, name: str, example: Callable[[Plan], list], function: Callable) -> Callable:
        controller = plan.controller
        inputs = {*controller.tunable, *(() if controller.chooses_first_step else _GIVEN)}
        fixed = tuple((name, value) for name, value in vars(controller).items() if name not in inputs)
        wanted = () if name == "forward" and plan.activations is None else tuple(self.wanted)
        key = (name, wanted, id(plan.method), type(controller), controller.chooses_first_step, fixed)
        key = (*key, plan.per_sample, plan.keep, plan.outputs, plan.stages, plan.timed, plan.batch_last)
        key = (*key, plan.activations is not None)
        if key not in self.graph.programs:
            program = _compile(self.graph, function(plan), example(plan))
            self.graph.programs[key] = (program, plan.method)  # holding the method keeps its id its own
        return functools.partial(_run, self.graph.programs[key][0], self.sizes)

    def _forward_example(self, plan: Plan) -> list[Any]:
        make = self._fakes(plan)
        ys = (make.ys(),) if plan.outputs else ()
        start = (make.clock(), make.state(), *make.f0())
        return [make.numbers(), make.times(), *start, *ys, *make.buffers(), *make.rest()]

    def _backward_example(self, plan: Plan) -> list[Any]:
        make = self._fakes(plan)
        rows = make.constant(torch.zeros(1, dtype=torch.int64))
        outputs = (make.ys(),) if plan.outputs else ()
        clock = make.clock(rows=3)
        return [rows, make.times(), clock, make.state(), *outputs, *make.buffers(), *make.rest()]

    def _fakes(self, plan: Plan) -> "_Fakes":
        if plan.activations is not None:  # their sizes may change from call to call
            plan = replace(plan, activations=self.graph.cut(self.wanted).activations)
        return _Fakes(self.graph, plan)


class _Fakes:
    """Tensors without contents, of the shapes that a loop gets."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.mode = graph.mode
        with self.mode, torch.no_grad():
            self.y: Tensor = arranged(plan, graph.inputs[graph.y].detach())

    def constant(self, x: Tensor) -> Tensor:
        return self.mode.from_tensor(x.to(self.y.device), static_shapes=True)

    def state(self) -> Tensor:
        with self.mode:
            return torch.empty(self.y.shape, dtype=self.y.dtype, device=self.y.device)

    def f0(self) -> list[Tensor]:
        if not self.plan.carries_f0:
            return []
        with self.mode:
            kept = (torch.empty(x.shape, dtype=x.dtype, device=self.y.device) for x in self.plan.activations or ())
            return [self.state(), *kept]

    def numbers(self) -> Tensor:
        count = NUMBERS + len(self.plan.controller.tunable)
        return self.constant(torch.zeros(count, dtype=torch.float64))

    def clock(self, rows: int = 0) -> Tensor:
        rows = rows or CLOCK + len(self.plan.controller.start)
        with self.mode:
            shape = (rows, *time_shape(self.plan, self.y))
            return torch.empty(shape, dtype=torch.float64, device=self.y.device)

    def times(self) -> Tensor:
        if not self.plan.outputs:
            return self.constant(torch.zeros(1, dtype=torch.float64))
        with self.mode:
            return torch.empty(self._size("times"), dtype=torch.float64, device=self.y.device)

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


_FEW = 4096  # multiplications: below, a matrix product is faster as loops that fuse with their neighbours


def _small_mm(a: Tensor, b: Tensor) -> Tensor:
    if _hint(a.shape[0]) * _hint(a.shape[1]) * _hint(b.shape[1]) > _FEW:
        return NotImplemented
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _small_addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _small_mm(a, b)
    if product is NotImplemented or beta != 1 or alpha != 1:
        return NotImplemented
    return c + product


def _tanh(x: Tensor) -> Tensor:
    """A third faster than the vectorised tanh of the C library; 1 to rounding beyond 10."""
    if x.dtype != torch.float32:
        return NotImplemented
    rise = torch.expm1(2 * x.clamp(-10, 10))
    return rise / (rise + 2)


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else size.node.hint


_FASTER = {
    torch.ops.aten.mm.default: _small_mm,
    torch.ops.aten.addmm.default: _small_addmm,
    torch.ops.aten.tanh.default: _tanh,
}


def _compile(graph: Graph, function: Callable[..., Any], example: list[Any]) -> Callable[..., Any]:
    with _or_not_compiled(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's compiler uses what PyTorch deprecates
        with graph.mode:
            module = make_fx(function, decomposition_table=_FASTER)(*example)
        _spell_out_constants(module)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                node.meta.pop("val", None)  # the compiler takes the example instead, which knows its sizes
        try:
            program = torch._inductor.compile(copy.copy(module), example, options=dict(_OPTIONS))
        except TensorifyScalarRestartAnalysis:
            # Numbers among the inputs made the compiler start over; this time it leaves them as they are.
            program = torch._inductor.compile(module, example, options=dict(_OPTIONS))
        # Without the wrapper that keeps the tracer out, where the tracer never comes.
        return getattr(program, "_torchdynamo_orig_callable", program)  # pyright: ignore[reportReturnType]


_MOST_NUMBERS = 256  # of a constant; each becomes an operation


def _spell_out_constants(module: GraphModule) -> None:
    """Make `torch.tensor(numbers)` of operations: PyTorch's compiler takes no constant inside a loop."""
    full, stack, view = torch.ops.aten.full.default, torch.ops.aten.stack.default, torch.ops.aten.view.default
    for part in (m for m in module.modules() if isinstance(m, GraphModule)):
        graph = part.graph
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.lift_fresh_copy.default):
            (source,) = node.all_input_nodes
            constant = getattr(part, str(source.target), None) if source.op == "get_attr" else None
            if not isinstance(constant, Tensor) or not 0 < constant.numel() <= _MOST_NUMBERS:
                continue
            kwargs = {"dtype": constant.dtype, "device": constant.device}
            with graph.inserting_before(node):
                each = [graph.call_function(full, ((), x), kwargs) for x in constant.flatten().tolist()]
                made = graph.call_function(view, (graph.call_function(stack, (each,)), list(constant.shape)))
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            if not source.users:
                graph.erase_node(source)
        part.recompile()


@contextlib.contextmanager
def _or_not_compiled() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a compiler can run into; the caller says it and goes on eagerly
        raise NotCompiled(_reason(error)) from error


_OPTIONS = {
    "cpp_wrapper": True,
    # Lets the on-disk cache keep loops: their bodies are part of the graph that it is keyed by.
    "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": "1"},
}


def _run(program: Callable[..., Any], sizes: Sequence[int], *arguments: Tensor) -> Sequence[Tensor]:
    return program(*arguments, *sizes)


def _while(condition: Any, body: Any, carry: tuple, constants: tuple, mutated: Sequence[int]) -> Any:
    indices = ",".join(str(len(carry) + i) for i in mutated)
    return while_loop_op(condition, body, tuple(carry), tuple(constants), mutated_arg_indices=indices)


# Tracing. Each f has a region of its own for its variants, shared by all modules of a class and by all functions made
# by one piece of code; the guards of the tracer tell them apart.


def capture(problem: Problem) -> Compiled:
    """f as a graph, traced or found.

    Raises:
        NotCompiled: If f cannot be traced; the text is the tracer's reason.
    """
    y = problem.y0.detach()
    t = _zeros(tuple(sample_shape(y)) if problem.per_sample else (), real_dtype(y), y.device)
    for tensor in (y, t, *problem.args):
        if isinstance(tensor, Tensor) and tensor.dim() and y.dim() and tensor.shape[0] == y.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    f, args = (problem.watched, problem.args) if problem.plain else (problem.f, ())
    for attempt in itertools.count():
        _captured.calls = []
        try:
            with torch.no_grad():
                _region(problem.watched, attempt)(f, t, y, args)
        except TorchDynamoException as error:
            raise NotCompiled(_reason(error)) from error
        graph, inputs = _captured.calls.pop()
        if graph.fits(inputs):
            return Compiled(graph, inputs)
    raise RuntimeError("no end of attempts")


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


_captured = threading.local()
_regions: "weakref.WeakKeyDictionary[Any, list[Callable[..., Any]]]" = weakref.WeakKeyDictionary()


def _region(f: Any, attempt: int) -> Callable[..., Any]:
    regions = _regions.setdefault(_identity(f), [])
    if attempt == len(regions):
        traced = torch.compile(  # pyright: ignore[reportCallIssue]
            _evaluate,
            backend=_backend,
            fullgraph=True,
            dynamic=False,  # but for the batch, see `capture`
            isolate_recompiles=True,
            recompile_limit=_MOST_VARIANTS,
        )
        regions.append(traced)
    return regions[attempt]


def _identity(f: Any) -> Any:
    """What tells one f from another: its class, or its code."""
    while isinstance(f, functools.partial | types.MethodType):
        f = f.func if isinstance(f, functools.partial) else f.__func__
    return f.__code__ if isinstance(f, types.FunctionType) else type(f)


def _evaluate(f: Callable[..., Tensor], t: Tensor, y: Tensor, args: tuple) -> tuple[Tensor, ...]:
    return f(t, y, *args), t.clone(), y.clone()  # the clones make t and y inputs of the graph in any case


def _backend(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    names = [node.meta["grapharg"].source.name for node in placeholders]
    inputs = [node.meta["example_value"] for node in placeholders]
    graph = Graph(module, inputs, names.index("L['t']"), names.index("L['y']"))

    def called(*inputs: Any) -> tuple[Any, ...]:
        graph.traced = graph.traced if graph.programs else len(graph.environment.guards)
        _captured.calls.append((graph, inputs))
        return (inputs[graph.y], inputs[graph.t], inputs[graph.y])

    return called


def _reason(error: BaseException) -> str:
    """The first lines of an error of the tracer or the compiler, without its advice to developers."""
    text = str(error).strip().split("\n\n")[0]
    return " ".join(line.strip() for line in text.splitlines()[:6])[:600] or type(error).__name__


# Failing to compile.

_told: "weakref.WeakSet[Any]" = weakref.WeakSet()


def cannot(f: Any) -> bool:
    """Whether compiling this f has failed before."""
    return _identity(f) in _told


@contextlib.contextmanager
def or_eagerly(problem: Problem) -> Iterator[None]:
    """Turn a failure to compile into one warning; the caller goes on eagerly."""
    try:
        yield
    except NotCompiled as error:
        _told.add(_identity(problem.watched))
        warnings.warn(
            f"`compile=True`: `f` could not be compiled, so this solve and all later ones of this `f` run eagerly. "
            f"The reason: {error}",
            stacklevel=6,
        )
