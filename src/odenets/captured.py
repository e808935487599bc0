"""Which tensors that require grad does f reach? Parameters, arguments, closures, attributes, partials, globals.

`Checkpointed` and `Backsolve` run f outside of autograd, so they must know every tensor a gradient is due to.
Two views are joined: the autograd graph of one evaluation of f, which is complete for that evaluation, and a walk
over the Python objects that f refers to, which also finds tensors that f uses only at other times.
"""

import functools
import types
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

_SKIPPED = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    type(None),
)
_MOST_OBJECTS = 10_000  # beyond that the walk stops, and the graph of the evaluation alone decides


class LostGradientError(RuntimeError):
    """f reaches a tensor that requires grad, in a way in which its gradient would be lost or counted twice."""


@dataclass(frozen=True)
class Reached:
    """The tensors a gradient is due to: leaves of autograd, and results of earlier computations."""

    leaves: tuple[Tensor, ...]
    results: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.leaves, *self.results)


def reached_tensors(f0: Tensor, started: int, watched: Iterable[object]) -> Reached:
    """The tensors that f reaches.

    Args:
        f0: One evaluation of f with grad enabled, for a y that does not require grad.
        started: `sequence_number()` from just before that evaluation.
        watched: The objects that f refers to: f itself, its arguments.

    Raises:
        LostGradientError: If f uses the result of an earlier computation that requires grad and cannot be found
            among the objects that f refers to, or one that shares parameters with f itself.
    """
    found = walk(watched)
    leaves, edges = _frontier(f0, started)
    by_edge = {(t.grad_fn, t.output_nr): t for t in found if not t.is_leaf}
    lost = [edge for edge in edges if edge not in by_edge]
    if lost:
        raise LostGradientError(
            f"`f` uses the result of an earlier computation that requires grad ({lost[0][0].name()}) and that is "
            "not an attribute, closure variable or argument of `f`; its gradient would be lost: pass it through "
            "`args=`, detach it, or use `adjoint=Direct()`"
        )
    results = tuple(by_edge[edge] for edge in edges)
    behind = {id(leaf) for result in results for leaf in _leaves_behind(result)}
    shared = [leaf for leaf in leaves if id(leaf) in behind]
    if shared:
        raise LostGradientError(
            f"`f` uses a tensor of shape {tuple(shared[0].shape)} both directly and through the result of an earlier "
            "computation that it closes over; pass that result through `args=`, or use `adjoint=Direct()`"
        )
    spare = [t for t in found if t.is_leaf and id(t) not in behind]
    return Reached(_unique([*leaves, *spare]), results)


def check_reached(out: Tensor, started: int, reached: Reached, substitutes: Iterable[Tensor]) -> None:
    """Refuse a replayed step whose graph reaches a tensor that the first evaluation of f did not show.

    Raises:
        LostGradientError: Naming the shape of the tensor, and the remedy.
    """
    leaves, edges = _frontier(out, started)
    known = {id(t) for t in (*reached.leaves, *substitutes)}
    known_edges = {(t.grad_fn, t.output_nr) for t in reached.results}
    lost = [tuple(leaf.shape) for leaf in leaves if id(leaf) not in known]
    lost += [node.name() for node, nr in edges if (node, nr) not in known_edges]
    if lost:
        raise LostGradientError(
            f"at another time than the first, `f` uses a tensor that requires grad ({lost[0]}) and that is not a "
            "parameter, attribute, closure variable or argument of `f`: pass it through `args=`, or use "
            "`adjoint=Direct()`"
        )


def sequence_number() -> int:
    """The number that the next node of the autograd graph gets on this thread."""
    # Private in torch 2.13, but the only way to tell the nodes of f's evaluation from those made before it.
    return torch.autograd._get_sequence_nr()


def walk(roots: Iterable[object]) -> list[Tensor]:
    """All tensors that require grad among the objects that `roots` refer to, each once."""
    tensors: list[Tensor] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack and len(seen) < _MOST_OBJECTS:
        item = stack.pop()
        if isinstance(item, _SKIPPED) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if item.requires_grad:
                tensors.append(item)
        else:
            stack.extend(_referents(item))
    return tensors


def _referents(item: object) -> Iterable[object]:
    """What an object refers to, as far as calling it could use that."""
    if isinstance(item, dict):
        return item.values()
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if isinstance(item, types.FunctionType):
        return _function_referents(item)
    if isinstance(item, types.MethodType):
        return (item.__self__, item.__func__)
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, nn.Module):
        return _module_referents(item)
    slots = [getattr(item, name, None) for cls in type(item).__mro__ for name in _slots(cls)]
    return (*slots, *getattr(item, "__dict__", {}).values(), vars(type(item)).get("__call__"))


_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those that every module has: parameters, buffers, modules, hooks


def _module_referents(module: nn.Module) -> Iterable[object]:
    own = [value for name, value in vars(module).items() if name not in _MODULE_ATTRIBUTES]
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    code = () if type(module).__module__.startswith("torch.nn.") else (type(module).forward,)
    parts = (module._parameters, module._buffers, module._modules)
    return (*own, *hooks, *code, *(value for part in parts for value in part.values()))


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _function_referents(function: types.FunctionType) -> Iterable[object]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
    global_names = _global_names(function.__code__)
    return (
        *cells,
        *defaults,
        *(function.__globals__[name] for name in global_names if name in function.__globals__),
    )


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 — reading an empty cell is how Python tells
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return (*code.co_names, *(name for nested in inner for name in _global_names(nested)))


def _frontier(out: Tensor, started: int) -> tuple[tuple[Tensor, ...], list[tuple[Node, int]]]:
    """The leaves that the graph of `out` reaches, and the edges by which it leaves this evaluation."""
    if out.grad_fn is None:
        return ((out,) if out.requires_grad else ()), []
    if out.grad_fn._sequence_nr() < started:
        return (), [(out.grad_fn, out.output_nr)]
    leaves: list[Tensor] = []
    edges: list[tuple[Node, int]] = []
    seen: set[Node] = {out.grad_fn}
    stack: list[Node] = [out.grad_fn]
    while stack:
        for node, nr in stack.pop().next_functions:
            if node is None:
                continue
            leaf = getattr(node, "variable", None)  # of an AccumulateGrad
            if leaf is not None:
                leaves.append(leaf)
            elif node._sequence_nr() < started:
                if (node, nr) not in edges:
                    edges.append((node, nr))
            elif node not in seen:
                seen.add(node)
                stack.append(node)
    return _unique(leaves), edges


def _leaves_behind(tensor: Tensor) -> tuple[Tensor, ...]:
    return _frontier(tensor, 0)[0]


def _unique(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple({id(t): t for t in tensors}.values())
