"""f and its pullback as one graph, split in two: an evaluation keeps what its pullback needs, and is not repeated."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from odenets.pullback.bound import Activation, Bind

_aten = torch.ops.aten


def vjp(bind: Bind, wanted: Sequence[int], rest: Sequence[Any], t: Tensor, y: Tensor) -> Any:
    """f(t, y), and its pullback to (t, y, *the wanted of `rest`)."""

    def f(t: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        values = list(rest)
        for i, tensor in zip(wanted, tensors):
            values[i] = tensor
        return bind(values)(t, y)

    out, pull, *_ = torch.func.vjp(f, t, y, *(rest[i] for i in wanted))
    return out, pull


def vjp_through(
    bind: Bind,
    wanted: Sequence[int],
    rest: Sequence[Any],
    step: Callable[..., Sequence[Tensor]],
    *at: Tensor,
    moved: Sequence[int],
) -> Any:
    """step(f, *at), and its pullback to (*at, *the wanted of `rest`), with 0 for all of `at` but those `moved`."""

    def stepped(*given: Tensor) -> tuple[Tensor, ...]:
        values, there = list(rest), list(at)
        for i, tensor in zip(moved, given):
            there[i] = tensor
        for i, tensor in zip(wanted, given[len(moved) :]):
            values[i] = tensor
        return tuple(step(bind(values), *there))

    out, pull, *_ = torch.func.vjp(stepped, *(at[i] for i in moved), *(rest[i] for i in wanted))

    def pulled(bars: Sequence[Tensor]) -> list[Tensor]:
        found = pull(tuple(bars))
        own = dict(zip(moved, found))
        return [*(own[i] if i in own else torch.zeros_like(x) for i, x in enumerate(at)), *found[len(moved) :]]

    return out, pulled


class Halves:
    """f as `evaluate`, which returns activations beside f(t, y), and its pullback, which takes them.

    Kept is what the pullback reads and what costs more than reading it: the results of matrix products and the like,
    and whatever is made of those. Made again are views, whatever depends on neither t nor y, and what the compiler
    fuses or what is a product of narrow factors, where it is made of t and y alone.

    Args:
        bind: f, computing with given tensors in the place of `rest`.
        wanted: Which of `rest` a gradient is due to.
        t, y, rest: Tensors without contents, and sizes.
    """

    def __init__(self, bind: Bind, wanted: Sequence[int], t: Tensor, y: Tensor, rest: Sequence[Any]) -> None:
        def joint(t: Tensor, y: Tensor, k_bar: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            k, pull = vjp(bind, wanted, rest, t, y)
            return k, *pull(k_bar)

        self._module = make_fx(torch.func.functionalize(joint))(t, y, torch.empty_like(y), *rest)
        nodes = list(self._module.graph.nodes)
        t_, y_, k_bar, *self._rest = (node for node in nodes if node.op == "placeholder")
        self._at, self._k_bar = (t_, y_), k_bar
        self._k, *self._bars = nodes[-1].args[0]
        self._kept = _kept(nodes, self._at, self._k_bar, self._k, self._bars)
        inputs = [*self._at, *self._rest]
        self._forward = _between(nodes, inputs, [self._k, *self._kept])
        self._backward = _between(nodes, [*inputs, k_bar, self._k, *self._kept], self._bars)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """What an evaluation keeps; the sizes may be symbols."""
        values = (node.meta["val"] for node in self._kept)
        return tuple(Activation(tuple(value.shape), value.dtype) for value in values)

    def evaluate(self, rest: Sequence[Any], t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """f(t, y) and the activations."""
        values = self._inputs(rest, t, y)
        self._run(self._forward, values)
        return values[self._k], *(values[node] for node in self._kept)

    def pull(
        self, rest: Sequence[Any], t: Tensor, y: Tensor, k: Tensor, kept: Sequence[Tensor], k_bar: Tensor
    ) -> tuple[Tensor, ...]:
        """∂L/∂(t, y, the wanted of `rest`) from ∂L/∂k, at k = f(t, y)."""
        values = {**self._inputs(rest, t, y), self._k: k, **dict(zip(self._kept, kept)), self._k_bar: k_bar}
        self._run(self._backward, values)
        return tuple(values[node] for node in self._bars)

    def _inputs(self, rest: Sequence[Any], t: Tensor, y: Tensor) -> dict[Node, Any]:
        return dict(zip((*self._at, *self._rest), (t, y, *rest)))

    def _run(self, nodes: Iterable[Node], values: dict[Node, Any]) -> None:
        interpreter = Interpreter(self._module, garbage_collect_values=False)
        interpreter.env = values
        for node in nodes:
            values[node] = interpreter.run_node(node)


def _kept(nodes: Sequence[Node], at: Sequence[Node], k_bar: Node, k: Node, bars: Sequence[Node]) -> list[Node]:
    """The results of the evaluation, but k, that its pullback needs and does not make again."""
    pulled, moving, light = {k_bar}, set(at), set(at)  # depend on k_bar; on t or y; of the latter those made again
    for node in nodes:
        inputs = set(node.all_input_nodes)
        if inputs & pulled:
            pulled.add(node)
        elif inputs & moving or _is_random(node):
            moving.add(node)
            if inputs & moving <= light and (_is_light(node) or _is_view(node) or not _is_tensor(node)):
                light.add(node)
    kept: dict[Node, None] = {}
    needed = [bar for bar in bars if bar not in pulled]
    needed += [node for after in nodes if after in pulled for node in after.all_input_nodes]
    while needed:
        node = needed.pop()
        if node in pulled or node is k or node not in moving or node in light:
            continue
        if _is_view(node) or not _is_tensor(node):
            needed += node.all_input_nodes
        else:
            kept[node] = None
    return list(kept)


def _between(nodes: Sequence[Node], given: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
    """Those that make `wanted` of `given`, in order."""
    there, needed, todo = set(given), set(), list(wanted)
    while todo:
        node = todo.pop()
        if node not in there and node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    return [node for node in nodes if node in needed]


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_random(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _is_light(node: Node) -> bool:
    """Whether it costs little more than writing its result: what PyTorch's compiler makes again, and a little more."""
    return (
        (_ops().is_recomputable(node) and not _is_random(node)) or node.target is _aten.cat.default or _is_narrow(node)
    )


_NARROW = 4  # terms of a sum: making a product of so narrow factors again is as fast as keeping it


def _is_narrow(node: Node) -> bool:
    if node.target not in (_aten.mm.default, _aten.addmm.default):
        return False
    terms = node.all_input_nodes[-1].meta["val"].shape[0]
    return isinstance(terms, int) and terms <= _NARROW


@functools.cache
def _ops() -> Any:
    from torch._functorch.partitioners import get_default_op_list  # noqa: PLC0415 — slow to import

    return get_default_op_list()


def _is_view(node: Node) -> bool:
    """Whether it is a view of another tensor, or one of several views."""
    if isinstance(node.target, OpOverload):
        return any(result.alias_info is not None for result in node.target._schema.returns)
    return node.target is operator.getitem and _is_view(node.all_input_nodes[0])
