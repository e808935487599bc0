"""The callbacks of torchdiffeq, and its linear interpolation between steps."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from odenets.methods import ExplicitRungeKutta, Field, ImplicitRungeKutta, RungeKutta, Since, Step, Time

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass
class Watch:
    """The callbacks of a solve, and the step that they hear of."""

    before: Callable[..., Any]
    accepted: Callable[..., Any]
    rejected: Callable[..., Any]
    show: Callable[[Tensor, Tensor, Tensor], tuple]  # a step as the callbacks get it
    step: tuple = ()

    def begin(self, t: float | Tensor, y: Tensor, dt: float | Tensor) -> None:
        """A step of size dt from y(t) is about to be made."""
        t, dt = (torch.as_tensor(x, dtype=torch.float64, device=y.device) for x in (t, dt))
        self.step = self.show(t, y, dt)
        self.before(*self.step)

    def end(self, accept: bool) -> None:
        """It has been judged."""
        (self.accepted if accept else self.rejected)(*self.step)


def find_watch(func: Any, show: Callable[[Tensor, Tensor, Tensor], tuple], suffix: str = "") -> Watch | None:
    """The callbacks that are attributes of func, by their names and a suffix; None where there are none."""
    found = [getattr(func, name + suffix, None) for name in CALLBACKS]
    if not any(callable(callback) for callback in found):
        return None
    before, accepted, rejected = (callback if callable(callback) else nothing for callback in found)
    return Watch(before, accepted, rejected, show)


def nothing(*_: Any, **__: Any) -> None:
    """A callback that does nothing."""


@dataclass(frozen=True)
class _Watched(RungeKutta):
    """A method that tells each step before it is made, and interpolates linearly where that is asked for."""

    watch: Watch | None = field(default=None, compare=False)
    linear: bool = False

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, f0: Tensor | None) -> Step:
        if self.watch is not None:
            self.watch.begin(t.absolute if isinstance(t, Since) else t, y, dt)
        return super().step(f, t, y, dt, f0)

    def _dense(self) -> tuple[tuple[float, float, float, float], ...]:
        if self.linear:
            return tuple((b_i, 0.0, 0.0, 0.0) for b_i in (*self.b, 0.0))
        return super()._dense()


@dataclass(frozen=True)
class _WatchedExplicit(_Watched, ExplicitRungeKutta):
    pass


@dataclass(frozen=True)
class _WatchedImplicit(_Watched, ImplicitRungeKutta):
    pass


def watched(method: RungeKutta, watch: Watch | None, linear: bool = False) -> RungeKutta:
    """The method with its steps watched, and with linear interpolation if asked for."""
    if watch is None and not linear:
        return method
    kind = _WatchedImplicit if isinstance(method, ImplicitRungeKutta) else _WatchedExplicit
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    return kind(**given, watch=watch, linear=linear)
