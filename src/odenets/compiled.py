"""`compile=True`: f is traced once into a graph, and the loops around it are compiled, forward and backward.

Tracing f finds every tensor that it reaches, and guards every Python value that it depends on, so each of the tensors
gets its gradient and a change of the others traces anew. The loops (`odenets.march`) are then compiled around the
graph as `while` loops in C++: no Python runs between steps.
"""

import contextlib
import copy
import functools
import itertools
import math
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch._inductor
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.exc import TensorifyScalarRestartAnalysis, TorchDynamoException
from torch._dynamo.source import ConstantSource
from torch._higher_order_ops.while_loop import while_loop_op
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from odenets.cut import Cut, vjp
from odenets.evaluation import checked
from odenets.loop import Problem, sample_shape
from odenets.march import (
    BACK,
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

# Where the compiler chooses how to accumulate a sum by its length: a matter of accuracy, not of what is computed.
_MATTERS_NOT = "need_use_acc_helper"
_FEW_PROGRAMS = 2  # of one kind and one f: those for one sample and for several, say; more are told
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
    why: str | None = None  # why the graphs made before did not do
    proven: bool = False  # held against f
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
        # `_expr`: the symbol itself, also where the compiler has fixed it; `expr` is its number then.
        return {fake.node._expr: size for fake, size in zip(fakes, sizes)}

    def cut(self, wanted: Sequence[int]) -> Cut:
        """f, cut from its pullback to these of `rest`."""
        key = tuple(wanted)
        if key not in self.cuts:
            t, y, *rest = (self.inputs[i] for i in (self.t, self.y, *self.rest))
            with _or_not_compiled(), torch.no_grad(), self.tracing():
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


class Compiled:
    """The loops around one graph, with the tensors that f reaches now: an `Engine` of `odenets.chunks`."""

    def __init__(self, graph: Graph, inputs: Sequence[Any], f: Any) -> None:
        values = [inputs[i] for i in graph.rest]
        self.graph, self.f = graph, f
        self.tensors = [v for v in values if isinstance(v, Tensor)]
        self.sizes = [v for v in values if not isinstance(v, Tensor)]
        self.wanted = [i for i, v in enumerate(self.tensors) if v.requires_grad]

    def check(self) -> None:
        """Nothing: a graph has no state of its own."""

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
            _tell_of_many(self.f, key, self.graph)
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
        clock = make.clock(rows=BACK)
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
        with graph.tracing():
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
        NotCompiled: If f cannot be traced, or is no function of (t, y) and what it reaches; the text is the reason.
    """
    for attempt in itertools.count():
        graph, inputs = _trace(problem, attempt)
        if graph.fits(inputs):
            if not graph.proven:
                _prove(problem, graph, inputs, attempt)
            return Compiled(graph, inputs, problem.watched)
    raise RuntimeError("no end of attempts")


def _trace(problem: Problem, attempt: int) -> tuple[Graph, Sequence[Any]]:
    """The graph that the tracer makes or finds, and its inputs now."""
    y, t = problem.y0.detach(), _time(problem)
    for tensor in (y, t, *problem.args):
        if isinstance(tensor, Tensor) and tensor.dim() and y.dim() and tensor.shape[0] == y.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    f, args = (problem.watched, problem.args) if problem.plain else (problem.f, ())
    _captured.calls = []
    try:
        with torch.no_grad():
            _region(problem.watched, attempt)(f, t, y, args)
    except TorchDynamoException as error:
        inner = getattr(error, "inner_exception", None)
        raise inner if isinstance(inner, NotCompiled) else NotCompiled(_reason(error)) from error
    graph, inputs = _captured.calls.pop()
    if graph.why is None:
        graph.why = _why_anew()
    return graph, inputs


def _time(problem: Problem) -> Tensor:
    y = problem.y0
    return _zeros(tuple(sample_shape(y)) if problem.per_sample else (), real_dtype(y), y.device)


def _prove(problem: Problem, graph: Graph, inputs: Sequence[Any], attempt: int) -> None:
    """Hold a new graph against f: whatever f changes, or draws, the graph has as it was while it was traced."""
    t = problem.field_time(0.0)
    values = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
    values[graph.t] = t
    versions = [x._version for x in values if isinstance(x, Tensor)]
    with torch.no_grad(), torch.random.fork_rng([problem.y0.device] if problem.y0.is_cuda else []):
        replayed = graph.module(*values)[0]
        if versions != [x._version for x in values if isinstance(x, Tensor)]:
            raise NotCompiled("`f` writes into y, or into another tensor that it reaches, a buffer for example")
        once, twice = (problem.f(t, problem.y0.detach().clone()) for _ in range(2))
    if not _close(once, twice):
        raise NotCompiled("two evaluations of `f` at one (t, y) differ: it draws random numbers, or has a state")
    if not _close(once, replayed):
        raise NotCompiled("`f` and its traced graph differ: it depends on something that the tracer does not see")
    if _trace(problem, attempt)[0] is not graph:
        raise NotCompiled(f"each evaluation of `f` changes what the next depends on ({_why_anew()})")
    graph.proven = True


def _close(a: Any, b: Any) -> bool:
    """Whether they are equal but for rounding."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    rounding = math.sqrt(torch.finfo(a.dtype).eps)
    size = a.detach().abs().nan_to_num(posinf=0.0).max().item() if a.numel() else 0.0
    return torch.allclose(a, b, rtol=rounding, atol=rounding * size, equal_nan=True)


def _why_anew() -> str:
    """Which assumption of the graphs before did not hold, when the newest was traced."""
    reasons = [metrics.recompile_reason for metrics in torch._dynamo.utils.get_compilation_metrics()[-1:]]
    text = " ".join(str(reasons[0] or "").split()) if reasons else ""
    return text.partition(": ")[2][:300]  # without the number of the graph


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
    f = _unwrapped(f)
    return f.__code__ if isinstance(f, types.FunctionType) else type(f)


def _unwrapped(f: Any) -> Any:
    while isinstance(f, functools.partial | types.MethodType):
        f = f.func if isinstance(f, functools.partial) else f.__func__
    return f


def _evaluate(f: Callable[..., Tensor], t: Tensor, y: Tensor, args: tuple) -> tuple[Tensor, ...]:
    # The clones make t and y inputs of the graph in any case, and the first what f returns an output of it.
    return f(t, y, *args).clone(), t.clone(), y.clone()


_TRANSFORMS = ("torch._functorch", "torch._C._functorch")  # their calls name levels, which a loop has of its own


def _backend(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if any(str(getattr(node.target, "__module__", "")).startswith(_TRANSFORMS) for node in module.graph.nodes):
        raise NotCompiled("`f` calls `torch.func` (`grad`, `vjp`, `jvp`, `jacrev`, `vmap`, …), which runs eagerly only")
    (output,) = module.graph.find_nodes(op="output")
    clone, *others = output.all_input_nodes
    if len(others) > 2:  # those of `_evaluate`
        raise NotCompiled("`f` keeps a tensor from one evaluation for another")
    _drop_clone(module, clone)
    _flatten_linear(module)
    names = [node.meta["grapharg"].source.name for node in placeholders]
    inputs = [node.meta["example_value"] for node in placeholders]
    graph = Graph(module, inputs, names.index("L['t']"), names.index("L['y']"))

    def called(*inputs: Any) -> tuple[Any, ...]:
        graph.traced = graph.traced if graph.programs else len(graph.environment.guards)
        _captured.calls.append((graph, inputs))
        return (inputs[graph.y], inputs[graph.t], inputs[graph.y])

    return called


def _flatten_linear(module: GraphModule) -> None:
    """Let `linear` see a matrix: PyTorch's own, of three axes, fixes the size of the batch in its pullback."""
    for part in (m for m in module.modules() if isinstance(m, GraphModule)):
        for node in part.graph.find_nodes(op="call_function", target=nn.functional.linear):
            node.target = _linear
        part.recompile()


def _drop_clone(module: GraphModule, clone: Node) -> None:
    """Do without `_evaluate`'s clone of the result, where that is none of the inputs."""
    (result,) = clone.all_input_nodes
    if result.op not in ("placeholder", "get_attr"):
        clone.replace_all_uses_with(result)
        module.graph.erase_node(clone)
    module.recompile()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() < 3:
        return nn.functional.linear(x, weight, bias)
    return nn.functional.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def _reason(error: BaseException) -> str:
    """The first lines of an error of the tracer or the compiler, without its advice to developers."""
    text = str(error).strip().split("\n\n")[0]
    return " ".join(line.strip() for line in text.splitlines()[:6])[:600] or type(error).__name__


# What a user is told, once for each f: the object, or the code of a function, which may be made anew at every call.

_failed: "weakref.WeakKeyDictionary[Any, set[Any]]" = weakref.WeakKeyDictionary()  # which variants of f
_made: "weakref.WeakKeyDictionary[Any, dict[Any, int]]" = weakref.WeakKeyDictionary()  # programs of each kind
_MANY = (
    "`compile=True`: a third program is made for one `f`, and each takes seconds. What changed: {why}. Let `f` read a "
    "tensor in place of a number that changes, keep to few shapes and layouts in memory (pad, or `.contiguous()`), or "
    "leave out `compile=True`."
)


def _owner(f: Any) -> Any:
    f = _unwrapped(f)
    if isinstance(f, types.FunctionType):
        return f.__code__
    return f if isinstance(f, nn.Module) else type(f)


def _variant(problem: Problem) -> tuple[Any, ...]:
    return problem.y0.dtype, problem.y0.dim(), problem.per_sample, getattr(problem.watched, "training", None)


def refused(problem: Problem) -> bool:
    """Whether compiling this f for such a state has failed before."""
    return _variant(problem) in _failed.get(_owner(problem.watched), ())


def cannot(f: Any) -> bool:
    """Whether compiling this f has failed before, for any state."""
    return _owner(f) in _failed


@contextlib.contextmanager
def or_eagerly(problem: Problem) -> Iterator[None]:
    """Turn a failure to compile into one warning; the caller goes on eagerly."""
    try:
        yield
    except NotCompiled as error:
        variants = _failed.setdefault(_owner(problem.watched), set())
        told = bool(variants)
        variants.add(_variant(problem))
        if not told:
            warnings.warn(
                f"`compile=True`: `f` could not be compiled, so this solve and all later ones of this `f` run "
                f"eagerly. The reason: {error}",
                stacklevel=6,
            )


def _tell_of_many(f: Any, kind: Any, graph: Graph) -> None:
    counts = _made.setdefault(_owner(f), {})
    counts[kind] = counts.get(kind, 0) + 1
    if counts[kind] == _FEW_PROGRAMS + 1 and "told" not in counts:
        counts["told"] = 1
        warnings.warn(_MANY.format(why=graph.why or "the size of the batch"), stacklevel=8)
