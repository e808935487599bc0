"""A function of tensors compiled to a program without Python in it."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from odenets.engine.compile.failing import or_not_compiled
from odenets.engine.compile.graph import Graph

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
    with or_not_compiled(), torch.no_grad(), warnings.catch_warnings():
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


_OPTIONS = {
    "cpp_wrapper": True,
    # Lets the on-disk cache keep loops: their bodies are part of the graph that it is keyed by.
    "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": "1"},
}


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
