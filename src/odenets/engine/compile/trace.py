"""Tracing: f as a graph, which finds every tensor that f reaches, and guards every Python value that it depends on.

So each of the tensors gets its gradient, and a change of the others traces anew. Each f has a region of its own for
its variants, shared by all modules of a class and by all functions made by one piece of code; the guards of the tracer
tell them apart.
"""

import functools
import itertools
import math
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from odenets.engine.compile import waiting
from odenets.engine.compile.failing import NotCompiled, reason_of
from odenets.engine.compile.graph import Graph
from odenets.engine.compile.programs import CompiledLoops
from odenets.engine.compile.told import unwrapped
from odenets.engine.compile.turns import in_turn
from odenets.methods import real_dtype
from odenets.problem import Problem, sample_shape

_MOST_VARIANTS = 64  # of one f: dtypes, training or not, shapes without the batch


def traced_loops(problem: Problem) -> CompiledLoops:
    """The loops around f, of which a graph is traced or found.

    Raises:
        NotCompiled: If f cannot be traced, or is no function of (t, y) and what it reaches; the text is the reason.
    """
    if problem.y0.is_complex():
        raise NotCompiled("the state is complex, and PyTorch's compiler makes no code of complex numbers")
    with in_turn():
        for attempt in itertools.count():
            graph, inputs = _trace(problem, attempt)
            if graph.fits(inputs):
                if not graph.proven:
                    _prove(problem, graph, inputs, attempt)
                return CompiledLoops(graph, inputs, problem.watched)
    raise RuntimeError("no end of attempts")


def _trace(problem: Problem, attempt: int) -> tuple[Graph, Sequence[Any]]:
    """The graph that the tracer makes or finds, and its inputs now."""
    y, t = problem.y0.detach(), _time(problem)
    for tensor in (y, t, *problem.args):
        if isinstance(tensor, Tensor) and tensor.dim() and y.dim() and tensor.shape[0] == y.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    f, args = (problem.watched, problem.args) if problem.plain else (problem.f, ())
    _traced.calls = []
    try:
        with torch.no_grad():
            _region(problem.watched, attempt)(f, t, y, args)
    except TorchDynamoException as error:
        inner = getattr(error, "inner_exception", None)
        raise inner if isinstance(inner, NotCompiled) else NotCompiled(reason_of(error)) from error
    graph, inputs = _traced.calls.pop()
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
        with FlopCounterMode(display=False) as counted:
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
    graph.work = counted.get_total_flops() / problem.y0.numel()
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
    return text.partition(": ")[2].partition(" User stack trace")[0][:300]  # without the number of the graph


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


_traced = threading.local()
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
    f = unwrapped(f)
    return f.__code__ if isinstance(f, types.FunctionType) else type(f)


def _evaluate(f: Callable[..., Tensor], t: Tensor, y: Tensor, args: tuple) -> tuple[Tensor, ...]:
    # The clones make t and y inputs of the graph in any case, and the first what f returns an output of it.
    return f(t, y, *args).clone(), t.clone(), y.clone()


_TRANSFORMS = ("torch._functorch", "torch._C._functorch")  # their calls name levels, which a loop has of its own


def _backend(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    waiting.begin()
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
        _traced.calls.append((graph, inputs))
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
