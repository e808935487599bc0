"""f and its pullback by autograd, to y, to t and to every tensor that f reaches."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from odenets.evaluation import CountedField
from odenets.methods import Bars, Carry, Past, Pull, Since, Time, wide
from odenets.pullback.reached import Reached, check_reached, sequence_number


class Wanted:
    """The tensors that f is differentiated by in the backward pass.

    A tensor with hooks (`register_hook`, `retain_grad`) must not fire them at each evaluation: they fire once, when
    the gradient that the Function returns arrives. And through a tensor that was computed from another of them no
    gradient may go on to that one: it would come twice. For such tensors f computes with leaves in their place.
    """

    def __init__(self, reached: Reached) -> None:
        hooked = [t for t in reached.tensors if t._backward_hooks or t.retains_grad]
        self.places = {id(t): t.detach().requires_grad_() for t in (*hooked, *reached.entangled)}
        self.tensors = tuple(self.places.get(id(t), t) for t in reached.tensors)

    def enable_grad(self) -> contextlib.AbstractContextManager:
        """Grad enabled, and the leaves in the places of their tensors."""
        if not self.places:
            return torch.enable_grad()
        stack = contextlib.ExitStack()
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_InPlaceOf(self.places))
        return stack


class _InPlaceOf(TorchFunctionMode):
    """Every torch function gets some tensors replaced by others."""

    def __init__(self, places: dict[int, Tensor]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(lambda x: self.places.get(id(x), x), (args, kwargs or {}))
        return func(*args, **kwargs)


@dataclass
class Summed:
    """f with its pullback, adding up the gradients to tensors: the `Differentiable` of the sweeps in numbers."""

    by_autograd: "ByAutograd"
    grads: "GradientSum"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.by_autograd.f(t, y)

    def at(self, t: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
        k, pullback = self.by_autograd(t, y)

        def pull(k_bar: Tensor, /, *, last: bool = True) -> tuple[Tensor, Any]:
            y_bar, bars, t_bar = pullback(k_bar, last)
            self.grads.add(bars)
            return torch.zeros_like(y) if y_bar is None else y_bar, 0.0 if t_bar is None else t_bar.double()

        return k, pull

    def through(
        self, step: Callable[..., Sequence[Tensor]], t: Time, y: Tensor, dt: float | Tensor, carry: Carry = ()
    ) -> tuple[Sequence[Tensor], Callable[[Sequence[Tensor | None]], Bars]]:
        out, pullback = self.by_autograd.through(step, t, y, dt, carry)

        def pull(bars: Sequence[Tensor | None]) -> Bars:
            y_bar, slope_bars, time_bars, of_tensors = pullback(bars)
            self.grads.add(of_tensors)
            t_bar, dt_bar, *step_bars = (0.0 if bar is None else bar for bar in time_bars)
            return Bars(torch.zeros_like(y) if y_bar is None else y_bar, t_bar, dt_bar, slope_bars, step_bars)

        return out, pull


class ByAutograd:
    """f and its pullback to y, to the tensors that it reaches, and (timed) to t; None for what f does not depend on."""

    def __init__(self, f: CountedField, reached: Reached, wanted: Wanted, timed: bool) -> None:
        self.f, self.wanted, self.reached, self.timed = f, wanted, reached, timed
        self.unchecked = True  # until one step has been checked for tensors that the first evaluation did not show
        self.started = sequence_number()

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        with self.wanted.enable_grad():
            y = y.detach().requires_grad_()
            t = t.detach().requires_grad_() if self.timed else t
            out = self.f(t, y)
        if self.unchecked:
            check_reached(
                out,
                self.started,
                self.reached,
                (y, t, *self.wanted.places.values()),
                functools.partial(self._once_more, t, y),
            )
        wrt = (y, *self.wanted.tensors, *((t,) if self.timed else ()))

        def pullback(bar: Tensor, last: bool = True) -> tuple[Tensor | None, Sequence[Tensor | None], Tensor | None]:
            self.unchecked = False  # all stages of a step are evaluated before the first is pulled back
            if not out.requires_grad:
                return None, [None] * len(self.wanted.tensors), None
            if not last:
                (y_bar,) = torch.autograd.grad(out, y, bar, retain_graph=True, allow_unused=True)
                return y_bar, [None] * len(self.wanted.tensors), None
            y_bar, *bars = torch.autograd.grad(out, wrt, bar, allow_unused=True)
            return y_bar, bars[: len(self.wanted.tensors)], bars[-1] if self.timed else None

        return out.detach(), pullback

    def through(
        self, step: Callable[..., Sequence[Tensor]], t: Time, y: Tensor, dt: float | Tensor, carry: Carry = ()
    ) -> tuple[Any, Any]:
        """step(f, t, y, dt, carry), and its pullback to y, to the carry's slopes, to the times and to the tensors.

        The times are t, dt and the carry's steps.
        """
        origin, t = (t.origin, t.t) if isinstance(t, Since) else (0.0, t)
        past = Past(*carry)
        times: list[Any] = [t, dt, *past.steps]
        with self.wanted.enable_grad():
            y, *slopes = (x.detach().requires_grad_() for x in (y, *past.slopes))
            if self.timed:
                times = [torch.as_tensor(x, dtype=torch.float64, device=y.device).detach().clone() for x in times]
                times = [x.requires_grad_() for x in times]
            carry = carry and past._replace(slopes=tuple(slopes), steps=tuple(times[2:]))
            given = Since(origin, times[0]), y, times[1], carry
            out = step(self.f, *given)
        own = (y, *slopes, *(times if self.timed else ()))
        if self.unchecked:
            again = functools.partial(self._step_once_more, step, *given)
            check_reached(out[0], self.started, self.reached, (*own, *self.wanted.places.values()), again)
        wrt = (*own, *self.wanted.tensors)

        def pullback(bars: Sequence[Tensor | None]) -> tuple[Any, ...]:
            self.unchecked = False
            pairs = [(x, bar) for x, bar in zip(out, bars) if bar is not None and x.requires_grad]
            grads: Sequence[Tensor | None] = [None] * len(wrt)
            if pairs:
                grads = torch.autograd.grad([x for x, _ in pairs], wrt, [bar for _, bar in pairs], allow_unused=True)
            (y_bar, *slope_bars), rest = grads[: len(slopes) + 1], grads[len(slopes) + 1 :]
            time_bars = rest[: len(times)] if self.timed else [None] * len(times)
            return y_bar, slope_bars, time_bars, grads[len(own) :]

        return [x.detach() for x in out], pullback

    def _step_once_more(
        self, step: Callable[..., Sequence[Tensor]], t: Time, y: Tensor, dt: float | Tensor, carry: Carry
    ) -> Tensor:
        with self.wanted.enable_grad(), torch.random.fork_rng([y.device] if y.is_cuda else []):
            return step(self.f.f, t, y, dt, carry)[0]

    def _once_more(self, t: Tensor, y: Tensor) -> Tensor:
        with self.wanted.enable_grad(), torch.random.fork_rng([y.device] if y.is_cuda else []):
            return self.f.f(t, y)


class GradientSum:
    """A sum of gradients of several tensors, each of which may be missing."""

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * count

    def add(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> None:
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            old = self.values[i]
            if old is None:
                self.values[i] = wide(grad) * scale  # a copy: autograd may hand out one tensor twice
            else:
                old.add_(grad, alpha=scale)


def plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product over all elements."""
    return (a.conj() * b).sum().real
