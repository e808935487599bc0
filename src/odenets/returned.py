"""What f returned, beside what it should have: checked leaf by leaf, and said with the remedy.

All of it runs only where something is wrong, but for `leaves_like`, which a state of several tensors needs.
"""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets.arguments import shown


def as_tensor(out: Any, name: str = "") -> Tensor:
    """What f returned for one tensor of y, which `name` names where there are several.

    Raises:
        TypeError: If it is no tensor.
    """
    if isinstance(out, Tensor):
        return out
    if out is None:
        remedy = "end `f` with `return`"
    elif isinstance(out, int | float | complex):
        remedy = f"write torch.full_like(y, {out})"
    elif hasattr(out, "__array__"):
        remedy = "write torch.as_tensor(...); no gradient goes through NumPy"
    elif isinstance(out, tuple | list):
        remedy = "write torch.stack(...), or give `y0` that structure"
    else:
        remedy = "return dy/dt"
    raise TypeError(f"`f` must return a tensor for each tensor of y{name}, returned {_named(out)}: {remedy}")


def _named(out: Any) -> str:
    return type(out).__name__ if out is None else f"{type(out).__name__} {shown(out)}"


def in_dtype_of(y: Tensor, out: Tensor) -> Tensor:
    """What f returned in y's dtype; another is f's own affair under autocast alone.

    Raises:
        TypeError: With what to write.
    """
    if out.dtype == y.dtype:
        return out
    if not torch.is_autocast_enabled(y.device.type):
        raise TypeError(
            f"`f` must return y's dtype {y.dtype}, returned {out.dtype}; cast inside `f`, or give `y0` that dtype"
        )
    return out.to(y.dtype)  # mixed precision inside f; state and error stay in y's dtype


def leaves_like(out: Any, state: Any) -> list[Tensor]:
    """The tensors that f returned, in the order of y's, and each of the shape of y's.

    The keys of a dict may come in any order, and a list may stand for a tuple.

    Raises:
        TypeError, ValueError: If the structures differ otherwise, naming where.
    """
    wanted, structure = pytree.tree_flatten(state)
    leaves, found = pytree.tree_flatten(out)
    if found != structure:
        leaves = list(_in_order(out, state, ""))
    for i, (k, y) in enumerate(zip(leaves, wanted)):
        if as_tensor(k, f" (leaf {i})").shape != y.shape:
            raise ValueError(
                f"`f` must return a tensor of y's shape {tuple(y.shape)} for leaf {i}, returned {tuple(k.shape)}"
            )
    return leaves


def _in_order(out: Any, state: Any, place: str) -> list[Any]:
    if isinstance(state, dict) and isinstance(out, dict):
        for kind, keys in (("lacks", state.keys() - out.keys()), ("has the unknown", out.keys() - state.keys())):
            if keys:
                raise ValueError(
                    f"`f` must return y's structure: what it returned{_at(place)} {kind} "
                    f"key {', '.join(sorted(map(shown, keys)))}; y's keys are {', '.join(map(shown, state))}"
                )
        return [leaf for key in state for leaf in _in_order(out[key], state[key], f"{place}[{key!r}]")]
    if isinstance(state, tuple | list) and isinstance(out, tuple | list) and len(out) == len(state):
        return [leaf for i, part in enumerate(state) for leaf in _in_order(out[i], part, f"{place}[{i}]")]
    leaves, structure = pytree.tree_flatten(out)
    if structure == pytree.tree_structure(state):
        return leaves
    raise ValueError(
        f"`f` must return y's structure: y{place} is {_kind(state)}, and what it returned{_at(place)} is {_kind(out)}"
    )


def _at(place: str) -> str:
    return f" at {place}" if place else ""


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list | dict) else "")


def refuse_shape(out: Tensor, t: Tensor, y: Tensor) -> NoReturn:
    """Say that f(t, y) has not y's shape."""
    when = f"t = {t.item()!r}" if t.numel() == 1 else f"times around t = {t.flatten()[0].item()!r}"
    raise ValueError(
        f"`f` must return a tensor of y's shape {tuple(y.shape)}, returned {tuple(out.shape)} at {when}"
        f"{_shape_remedy(out, t, y)}"
    )


def _shape_remedy(out: Tensor, t: Tensor, y: Tensor) -> str:
    if out.shape == t.shape:
        return ": that is t's shape, and time comes first, `def f(t, y)`"
    if out.dim() > 0 and out.numel() == y.numel() and _without_ones(out) == _without_ones(y):
        return ": write `.reshape(y.shape)`"
    if out.numel() > y.numel() and out.dim() >= y.dim() and _broadcasts(y, out):
        return ": something in `f` broadcasts y against another shape, such as (N,) against (N, 1); give both y's shape"
    return ""


def _without_ones(x: Tensor) -> list[int]:
    return [size for size in x.shape if size != 1]


def _broadcasts(y: Tensor, out: Tensor) -> bool:
    """Whether out's shape is that of y against another."""
    try:
        return torch.broadcast_shapes(y.shape, out.shape) == out.shape
    except RuntimeError:
        return False


def refuse_hidden(f: Callable[[Tensor], Tensor], y: Tensor, value: Tensor) -> None:
    """Refuse an f whose derivative is wanted and which depends on y where autograd does not look on.

    Raises:
        RuntimeError: With the remedy.
    """
    if value.requires_grad or not y.numel() or torch.compiler.is_compiling():
        return
    with torch.no_grad():
        moved = f(y + y.abs() + 1)
    if not torch.equal(moved, value.detach()):
        raise RuntimeError(
            "the derivative of `f` is wanted, and autograd does not see that it depends on y: leave `torch.no_grad()`, "
            "`detach` and NumPy out of it, and write create_graph=True for a derivative inside"
        )


def explain(error: Exception, f: Callable[..., Any], t: Tensor, y: Any, args: tuple) -> None:
    """Raise what is wrong with how f takes its arguments, where that is why calling it raised `error`.

    Raises:
        RuntimeError: If f takes a derivative where autograd does not look on.
        TypeError: If f does not take (t, y, *args), takes y first, or wants t of shape (1,).
    """
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        raise RuntimeError(
            "`f` takes a derivative inside, and gets y without one: the solver evaluates it outside of autograd. Write "
            "`with torch.enable_grad(): y = y.requires_grad_()` and what follows inside of it in `f`"
            + (
                ", and solve under `torch.no_grad()`: `inference_mode` has no derivatives."
                if torch.is_inference_mode_enabled()
                else "."
            )
        ) from error
    called = f.forward if isinstance(f, nn.Module) else f
    try:
        inspect.signature(called).bind(t, y, *args)
    except ValueError:
        return  # a builtin, which has none
    except TypeError as mismatch:
        raise TypeError(
            f"`f` is called as f(t, y{', *args' if args else ''}), and {_name_of(f)} does not take that "
            f"({mismatch}): write `lambda t, y: f(y)` around one without time, `lambda t, y: f(t, y, other)` around "
            "one that takes more"
        ) from error
    if works(f, t, y, y, args):  # it is autograd that f does not work with
        return
    if t.dim() == 0 and works(f, t.reshape(1), y, y, args):
        raise TypeError(
            f"`f` gets t as a 0-dimensional tensor, and {_name_of(f)} works with one of shape (1,) alone: "
            "write t for t[0], t.reshape(1) for t in torch.cat"
        ) from error
    if not (isinstance(y, Tensor) and y.shape == t.shape) and works(f, y, t, y, args):
        raise TypeError(
            f"`f` is called as f(t, y), and {_name_of(f)} works as f(y, t) alone: time comes first, write `def f(t, y)`"
        ) from error


def _name_of(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)


def works(f: Callable[..., Any], first: Any, second: Any, y: Any, args: tuple) -> bool:
    """Whether f works with these for t and y, outside of autograd."""
    try:
        with torch.no_grad():
            leaves_like((f(first, second, *args),), (y,))
    except Exception:  # f may raise anything
        return False
    return True
