"""The callbacks of torchdiffeq, and its linear interpolation between steps."""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from odenets.methods import Carry, ExplicitRungeKutta, Field, ImplicitRungeKutta, RungeKutta, Since, Step, Time

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
        self.step = self._shown(t, y, dt)
        self.before(*self.step)

    @property
    def told(self) -> tuple[Callable[..., Any], ...]:
        """The callbacks as solver classes call them, each with the step that it is about."""
        callbacks = (self.before, self.accepted, self.rejected)
        return tuple(lambda *step, callback=callback: callback(*self._shown(*step)) for callback in callbacks)

    def _shown(self, t: float | Tensor, y: Tensor, dt: float | Tensor) -> tuple:
        t, dt = (torch.as_tensor(x, dtype=torch.float64, device=y.device) for x in (t, dt))
        return self.show(t, y, dt)

    def silence(self) -> None:
        """Tell nobody from now on."""
        self.before = self.accepted = self.rejected = nothing

    def end(self, accept: bool) -> None:
        """It has been judged."""
        (self.accepted if accept else self.rejected)(*self.step)


def find_watch(func: Any, show: Callable[[Tensor, Tensor, Tensor], tuple], suffix: str = "") -> Watch | None:
    """The callbacks that are attributes of func, by their names and a suffix; None where there are none."""
    found = {name: getattr(func, name) for name in given(func, suffix)}
    before, accepted, rejected = (found.get(name + suffix, nothing) for name in CALLBACKS)
    return Watch(before, accepted, rejected, show) if found else None


def given(func: Any, suffix: str = "") -> list[str]:
    """The names of the callbacks that func has."""
    callbacks = {name + suffix: getattr(func, name + suffix, None) for name in CALLBACKS}
    return [name for name, callback in callbacks.items() if callable(callback) and callback is not nothing]


def warn_of_silence(func: Any, method: str, called: Collection[str], suffix: str = "") -> None:
    """Warn of callbacks that func has and the method does not call; it does those that are named in `called`."""
    silent = [name for name in given(func, suffix) if name.removesuffix(suffix) not in called]
    if silent:
        warnings.warn(f"method {method!r} does not call {', '.join(silent)}", stacklevel=4)


def nothing(*_: Any, **__: Any) -> None:
    """A callback that does nothing."""


@dataclass(frozen=True)
class _Watched(RungeKutta):
    """A method that tells each step before it is made, and interpolates linearly where that is asked for."""

    watch: Watch | None = field(default=None, compare=False)
    linear: bool = False

    def step(self, f: Field, t: Time, y: Tensor, dt: float | Tensor, carry: Carry) -> Step:
        if self.watch is not None:
            self.watch.begin(t.absolute if isinstance(t, Since) else t, y, dt)
        return super().step(f, t, y, dt, carry)

    @property
    def smooth(self) -> bool:
        return not self.linear

    def _dense(self) -> Sequence[Sequence[float]]:
        if self.linear:
            return [[b_i] for b_i in (*self.b, 0.0)]
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
    kind = _WatchedImplicit if method.iterates else _WatchedExplicit
    given = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    return kind(**given, watch=watch, linear=linear)
