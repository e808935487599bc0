"""Which tensors that require grad does f reach? Parameters, arguments, closures, attributes, partials, globals.

All adjoints but `Direct` run f outside of autograd, so they must know every tensor a gradient is due to.
Two views are joined: the autograd graph of one evaluation of f, which is complete for that evaluation, and a walk
over the Python objects that f refers to, which also finds tensors that f uses only at other times.
"""

import functools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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


REMEDY = "pass it through `args=`, detach it, or use `adjoint=Direct()`"


class LostGradientError(RuntimeError):
    """f reaches a tensor that requires grad, in a way in which its gradient would be lost.

    `what` says what f does, `remedy` what to write instead.
    """

    def __init__(self, what: str, remedy: str = REMEDY) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True)
class Reached:
    """The tensors a gradient is due to: leaves of autograd, and results of earlier computations."""

    leaves: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    entangled: tuple[Tensor, ...] = ()  # those results that were computed from another of these tensors
    modules: tuple[nn.Module, ...] = ()  # among the objects that f refers to

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.leaves, *self.results)


Again = Callable[[], Tensor]  # the same evaluation of f once more


def reached_tensors(
    f0: Tensor,
    started: int,
    watched: Iterable[object],
    again: Again,
    own: Iterable[Tensor],
    named: Iterable[Tensor] = (),
) -> Reached:
    """The tensors that f reaches.

    Args:
        f0: One evaluation of f with grad enabled, for a y that does not require grad.
        started: `sequence_number()` from just before that evaluation.
        watched: The objects that f refers to: f itself, its arguments.
        again: That evaluation once more, called where the first one leaves a doubt about what f makes itself.
        own: The tensors that f got as y. It may have made them require grad.
        named: Tensors that the caller says f uses, if only later.

    Raises:
        LostGradientError: If f uses the result of an earlier computation that requires grad and cannot be found
            among the objects that f refers to; or if FSDP shards the weights of f alone.
    """
    objects, of_f = list(_objects(watched)), {id(t) for t in own}
    found = [item for item in objects if isinstance(item, Tensor) and item.requires_grad]
    by_edge = {(t.grad_fn, t.output_nr): t for t in found if not t.is_leaf}
    leaves, lost, edges = _crossed(f0, started, of_f | {id(t) for t in found}, by_edge, again)
    if lost:
        raise LostGradientError(
            f"`f` uses the result of an earlier computation that requires grad ({lost[0].name()}) and that is not an "
            "attribute, closure variable or argument of `f`; its gradient would be lost"
        )
    leaves = tuple(leaf for leaf in leaves if id(leaf) not in of_f)
    results = _unique([*(by_edge[edge] for edge in edges), *(t for t in named if t.requires_grad and not t.is_leaf)])
    behind = {id(result): _behind(result) for result in results}
    wanted = {*map(id, leaves), *(result.grad_fn for result in results)}
    entangled = tuple(r for r in results if behind[id(r)] & (wanted - {r.grad_fn}))
    hidden = set().union(*behind.values())
    spare = [t for t in found if t.is_leaf and id(t) not in hidden]
    modules = tuple(item for item in objects if isinstance(item, nn.Module))
    _check_whole(modules)
    return Reached(_unique([*leaves, *spare]), results, entangled, modules)


def _check_whole(modules: Iterable[nn.Module]) -> None:
    """Refuse modules whose sharded weights FSDP gathers at each call: what a solve calls outside of autograd it misses.

    One whose own forward pass is under way has its weights together, for the solve and for its reverse.

    Raises:
        LostGradientError: Naming the remedy.
    """
    for module in modules:
        state = _of_fsdp(module)
        if state is not None and state.name == "IDLE":
            raise LostGradientError(
                "`f` is or has a module whose weights FSDP gathers at each call; their gradients would be lost",
                "shard the module that calls the solve, such as `fully_shard(block)`, or use `adjoint=Direct()`",
            )


def _of_fsdp(module: Any) -> Any:
    """What FSDP does with a module at present; None where it does not shard it."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return None
    # Private in torch 2.13: no public attribute says whether a module is being called.
    if isinstance(module, fsdp.FullyShardedDataParallel):
        return module.training_state
    return module._get_fsdp_state()._training_state if isinstance(module, fsdp.FSDPModule) else None


def check_reached(
    out: Tensor,
    started: int,
    reached: Reached,
    substitutes: Iterable[Tensor],
    again: Again,
    since: float = math.inf,
) -> None:
    """Refuse a step whose graph reaches a tensor that the first evaluation of f did not show.

    The step's own nodes are those from number `started` on; those between `since` and there are of the steps before it.

    Raises:
        LostGradientError: Naming the shape of the tensor, and the remedy.
    """
    known = {id(t) for t in (*reached.leaves, *substitutes)}
    by_edge = {(t.grad_fn, t.output_nr): t for t in reached.results}
    leaves, nodes, _ = _crossed(out, started, known, by_edge, again, since)
    lost = [str(tuple(leaf.shape)) for leaf in leaves if id(leaf) not in known] + [node.name() for node in nodes]
    if lost:
        raise LostGradientError(
            f"at another time than the first, `f` uses a tensor that requires grad ({lost[0]}) and that is not a "
            "parameter, attribute, closure variable or argument of `f`"
        )


def _crossed(
    out: Tensor,
    started: int,
    known: set[int],
    by_edge: dict[tuple[Any, int], Tensor],
    again: Again,
    since: float = math.inf,
) -> tuple[tuple[Tensor, ...], list[Node], list[tuple[Node, int]]]:
    """What an evaluation of f uses and did not make: leaves, nodes of unknown results, and edges to the known ones.

    A leaf or a node that is not known may be f's own: a leaf made to take a gradient inside f, or a node that another
    thread made, whose number says nothing. What f makes is new in each evaluation; what both share it has captured.
    """
    leaves, edges = _frontier(out, lambda node: node._sequence_nr() < started)
    edges = [(node, nr) for node, nr in edges if node._sequence_nr() < since]
    if any(id(leaf) not in known for leaf in leaves) or any(edge not in by_edge for edge in edges):
        shared = _behind(out) & _behind(again())
        leaves, edges = _frontier(out, lambda node: node in shared)
        edges = [(node, nr) for node, nr in edges if node._sequence_nr() < since]
        leaves = tuple(leaf for leaf in leaves if id(leaf) in shared)
    return leaves, [node for node, nr in edges if (node, nr) not in by_edge], [e for e in edges if e in by_edge]


def sequence_number() -> int:
    """The number that the next node of the autograd graph gets on this thread."""
    # Private in torch 2.13, but the only way to tell the nodes of f's evaluation from those made before it.
    return torch.autograd._get_sequence_nr()


def _objects(roots: Iterable[object]) -> Iterator[object]:
    """All objects that `roots` refer to, each once."""
    seen: set[int] = set()
    stack = list(roots)
    while stack and len(seen) < _MOST_OBJECTS:
        item = stack.pop()
        if isinstance(item, _SKIPPED) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if not isinstance(item, Tensor):
            stack.extend(_referents(item))


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


def _frontier(out: Tensor, before: Callable[[Node], bool]) -> tuple[tuple[Tensor, ...], list[tuple[Node, int]]]:
    """The leaves that the graph of `out` reaches, and the edges by which it leaves this evaluation.

    Args:
        before: Whether a node was made before it.
    """
    if out.grad_fn is None:
        return ((out,) if out.requires_grad else ()), []
    if before(out.grad_fn):
        return (), [(out.grad_fn, out.output_nr)]
    leaves: list[Tensor] = []
    edges: dict[tuple[Node, int], None] = {}
    seen: set[Node] = {out.grad_fn}
    stack: list[Node] = [out.grad_fn]
    while stack:
        for node, nr in stack.pop().next_functions:
            if node is None:
                continue
            leaf = getattr(node, "variable", None)  # of an AccumulateGrad
            if leaf is not None:
                leaves.append(leaf)
            elif before(node):
                edges[node, nr] = None
            elif node not in seen:
                seen.add(node)
                stack.append(node)
    return _unique(leaves), list(edges)


def _behind(out: Tensor) -> set[Any]:
    """All nodes of the graph of `out`, and the ids of its leaves."""
    if out.grad_fn is None:
        return {id(out)} if out.requires_grad else set()
    seen: set[Any] = {out.grad_fn}
    stack: list[Node] = [out.grad_fn]
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            seen.add(id(leaf))
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        stack.extend(new)
    return seen


def kept_by_graph(out: Tensor, started: int) -> dict[int, int]:
    """What the graph of `out` keeps for its backward pass, from node number `started` on: bytes by storage."""
    found: dict[int, int] = {}
    seen: set[Node] = set()
    stack = [out.grad_fn] if out.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen or node._sequence_nr() < started:
            continue
        seen.add(node)
        for name in _kept_names(type(node)):
            value = getattr(node, name)
            for saved in value if isinstance(value, tuple | list) else (value,):
                if isinstance(saved.data, Tensor):  # what a hook has packed otherwise lies elsewhere, and stays packed
                    memory = saved.data.untyped_storage()
                    found[memory._cdata] = memory.nbytes()
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return found


@functools.cache
def _kept_names(kind: type) -> tuple[str, ...]:
    """The attributes of such a node in which it keeps tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _unique(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple({id(t): t for t in tensors}.values())
