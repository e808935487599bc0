"""What is remembered of each f that was to be compiled, and what its owner is told: once."""

import contextlib
import functools
import itertools
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from odenets.engine.compile.failing import NotCompiled
from odenets.problem import Problem

_FEW_PROGRAMS = 2  # of one kind and one f: those for one sample and for several, say; more are told
_MANY = (
    "A third program is compiled for one `f`, and each takes seconds. What changed: {why}. Let `f` read a "
    "tensor in place of a number that changes, keep to few shapes and layouts in memory (pad, or `.contiguous()`), or "
    "leave out what compiles: `compile=True`, or `torch.compile` of the model around it."
)

_failed: "weakref.WeakKeyDictionary[Any, set[Any]]" = weakref.WeakKeyDictionary()  # which variants of f
_made: "weakref.WeakKeyDictionary[Any, dict[Any, int]]" = weakref.WeakKeyDictionary()  # programs of each kind
_names: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
_counter = itertools.count()


def unwrapped(f: Any) -> Any:
    """The function behind partials and bound methods."""
    while isinstance(f, functools.partial | types.MethodType):
        f = f.func if isinstance(f, functools.partial) else f.__func__
    return f


def _owner(f: Any) -> Any:
    """What f is remembered by: a function, which may be made anew at every call, by its code."""
    f = unwrapped(f)
    if isinstance(f, types.FunctionType):
        return f.__code__
    try:
        weakref.ref(f)
        hash(f)
    except TypeError:
        return type(f)
    return f


def _variant(problem: Problem) -> tuple[Any, ...]:
    f = problem.watched
    return problem.y0.dtype, problem.y0.dim(), problem.per_sample, getattr(f, "training", None), *_parts(f)


def _parts(f: Any) -> Iterator[int]:
    """The modules that a function is made of, each by a number of its own."""
    while isinstance(f, functools.partial | types.MethodType):
        held = (f.__self__,) if isinstance(f, types.MethodType) else (*f.args, *f.keywords.values())
        yield from (_name(part) for part in held if isinstance(part, nn.Module))
        f = f.__func__ if isinstance(f, types.MethodType) else f.func
    for cell in getattr(f, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell has no contents
            if isinstance(cell.cell_contents, nn.Module):
                yield _name(cell.cell_contents)


def _name(part: nn.Module) -> int:
    if part not in _names:
        _names[part] = next(_counter)
    return _names[part]


def forget() -> None:
    """Know nothing of any f."""
    _failed.clear()
    _made.clear()


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
                f"`f` could not be compiled, so this solve and all later ones of this `f` run "
                f"eagerly. The reason: {error}",
                stacklevel=7,
            )


def tell_of_many(f: Any, kind: Any, why: str | None) -> None:
    """Count a program of that kind for f, and warn where there are many; `why` says what has changed."""
    counts = _made.setdefault(_owner(f), {})
    counts[kind] = counts.get(kind, 0) + 1
    if counts[kind] == _FEW_PROGRAMS + 1 and "told" not in counts:
        counts["told"] = 1
        warnings.warn(_MANY.format(why=why or "the size of the batch"), stacklevel=9)
