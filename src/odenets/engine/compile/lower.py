"""A function of tensors compiled to a program without Python in it."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._higher_order_ops.while_loop import while_loop_op
from torch._inductor import config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import BoxedBool
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from odenets.engine.compile import waiting
from odenets.engine.compile.cxx import in_background, vectors_are_known
from odenets.engine.compile.failing import or_not_compiled
from odenets.engine.compile.graph import Graph
from odenets.engine.compile.threads import SHARED

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's compiler uses what PyTorch deprecates
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner, get_cpp_wrapper_config

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


def lowered(graph: Graph, function: Callable[..., Any], example: list[Any]) -> Callable[..., Any]:
    """The function as a program for arguments like these."""
    waiting.begin()
    with or_not_compiled(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with graph.tracing():
            module = make_fx(function, decomposition_table={**select_decomp_table(), **_FASTER})(*example)
        _spell_out_constants(module, graph.mode)
        _written_into_at_once(module)
        program = _compiled(graph, module, example)
    return lambda *arguments: program(list(arguments))


def _compiled(graph: Graph, module: GraphModule, example: list[Any]) -> Callable[[list[Any]], Any]:
    """The graph as a program.

    It goes to the last stage of PyTorch's compiler at once: it is a graph of that stage's own operations already, which
    the stages before would trace twice more to find.
    """
    with contextlib.ExitStack() as stack:
        for context in (
            in_background(graph.awaited),
            config.patch(_options()),
            config.patch(get_cpp_wrapper_config()),
            V.set_fake_mode(graph.mode),
            tracing(TracingContext(graph.mode)),
        ):
            stack.enter_context(context)
        device = graph.inputs[graph.y].device
        module = _recursive_joint_graph_passes(module, input_device=device)
        compiled: Any = compile_fx_inner(
            module, example, is_inference=True, cpp_wrapper=True, cudagraphs=BoxedBool(False)
        )
        return compiled.current_callable  # without what looks at its inputs, which are ours


def _written_into_at_once(module: GraphModule) -> None:
    """Let loops write into what they are given: no later stage has to be told of it."""
    for part in (m for m in module.modules() if isinstance(m, GraphModule)):
        for node in part.graph.find_nodes(op="call_function", target=while_loop_op):
            node.kwargs = {}
        part.graph.eliminate_dead_code()
        part.recompile()


def _options() -> dict[str, Any]:
    return {
        "cpp_wrapper": True,
        "cpp.min_chunk_size": SHARED,
        # Lets the on-disk cache keep loops: their bodies are part of the graph that it is keyed by.
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": "1"},
        **({"cpp.vec_isa_ok": True} if vectors_are_known() else {}),  # or else it compiles a program to find out
    }


_MOST_NUMBERS = 256  # of a constant; each becomes an operation


def _spell_out_constants(module: GraphModule, mode: FakeTensorMode) -> None:
    """Make `torch.tensor(numbers)` of operations: PyTorch's compiler takes no constant inside a loop."""
    full, cat, view = torch.ops.aten.full.default, torch.ops.aten.cat.default, torch.ops.aten.view.default
    for part in (m for m in module.modules() if isinstance(m, GraphModule)):
        graph = part.graph

        def add(operation: Any, *args: Any, **kwargs: Any) -> Node:
            node = graph.call_function(operation, args, kwargs)  # noqa: B023 — called in this round alone
            with mode:  # what later stages read the shape from
                node.meta["val"] = operation(*map_arg(args, lambda of: of.meta["val"]), **kwargs)
            return node

        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.lift_fresh_copy.default):
            (source,) = node.all_input_nodes
            constant = getattr(part, str(source.target), None) if source.op == "get_attr" else None
            if not isinstance(constant, Tensor) or not 0 < constant.numel() <= _MOST_NUMBERS:
                continue
            kwargs = {"dtype": constant.dtype, "device": constant.device}
            with graph.inserting_before(node):
                each = [add(full, [1], x, **kwargs) for x in constant.flatten().tolist()]
                made = add(view, add(cat, each), list(constant.shape))
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            if not source.users:
                graph.erase_node(source)
        part.recompile()
