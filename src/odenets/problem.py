"""An initial value problem in normal form, and what a solve of it leaves: what every engine and adjoint works with."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.advance import Told
from odenets.controller import PID, Controller
from odenets.event import Watched
from odenets.methods import Field, Method, Since, Time, filled, real_dtype
from odenets.solution import Failure, Stats, Status
from odenets.state import Narrowed, same


@dataclass(frozen=True)
class Own:
    """What is each sample's own, where each has its own times; tensors in float64."""

    origin: Tensor  # (batch,): its first time, as f gets it
    at_start: Tensor  # (batch,): how many of its times are that one
    most_at_start: int
    stops: Tensor  # (stops, batch), increasing; infinite where a sample has fewer inside of its interval
    jumps: Tensor


@dataclass(frozen=True)
class Problem:
    """An initial value problem in normal form: one tensor, every name an object, times that increase from 0.

    Time is counted from the start of the solve, where it has the most digits; f gets `origin` + t.
    """

    bind: Callable[[tuple], Field]  # bind(args) is f with its extra arguments
    args: tuple
    f: Field  # bind(args), or with other tensors in their place
    y0: Tensor
    t: Tensor  # (T,), increasing from 0; may require grad; (batch, T) where each sample has its own times
    times: list[float]  # the same times on the host; the latest of all samples where each has its own
    method: Method
    controller: Controller
    max_steps: int
    dense: bool
    watched: object  # the caller's f: where the tensors that it reaches are looked for
    stops: tuple[float, ...] = ()  # times inside of the interval on which a step ends, increasing
    jumps: tuple[float, ...] = ()  # those of them at which f is discontinuous
    events: tuple[Watched, ...] = ()
    per_sample: bool = False  # a step size for each sample
    split: Callable[[Tensor], Any] = same  # gives states (..., *y0.shape) the caller's structure
    plain: bool = False  # f is the caller's own, `watched(t, y, *args)`, with nothing around it
    origin: float = 0.0  # the first time, as f gets it
    sign: float = 1.0  # the caller's time is sign · (origin + t)
    own: Own | None = None  # where each sample has its own times: then `origin` is 0, and no stops stand here
    told: Told | None = None  # whom to tell of each accepted step
    stats: Stats = field(default_factory=Stats)

    @property
    def dtype(self) -> torch.dtype:
        """Of the state as f gets it."""
        return self.split.dtype if isinstance(self.split, Narrowed) else self.y0.dtype

    @property
    def at_start(self) -> int:
        """How many of the times are the first one, of every sample."""
        return self.times.count(self.times[0])

    @property
    def most_at_start(self) -> int:
        """The same of the sample that has most of them."""
        return self.at_start if self.own is None else self.own.most_at_start

    @property
    def has_outputs(self) -> bool:
        """Whether states are wanted between the first and the last time."""
        return len(self.times) > 1 + self.at_start

    @property
    def origins(self) -> float | Tensor:
        """The time of f at time 0: a number, or each sample's, (batch,)."""
        return self.origin if self.own is None else self.own.origin

    def origin_of(self, sample: int | None) -> float | Tensor:
        """The time of f at time 0, of that sample where each has its own."""
        return self.origin if self.own is None else self.own.origin[sample]

    @property
    def ends(self) -> float | Tensor:
        """The last time: a number, or each sample's, (batch,)."""
        return self.times[-1] if self.own is None else self.t.detach()[:, -1]

    def piece(self, t: float, backward: bool = False) -> int:
        """Which of the pieces between two jumps a step that begins at t lies in."""
        return count_before(self.jumps, t, too=not backward)

    def field_in(self, piece: int) -> Field:
        """f in that piece."""
        if not self.jumps:
            return self.f
        low, high = ((-math.inf, *self.jumps, math.inf)[piece + i] for i in range(2))
        return Between(self.f, *edges(self.origin, low, high))

    def field_time(self, t: float) -> Tensor:
        """A time as f gets it: for each sample, where each has its own."""
        shape = sample_shape(self.y0) if self.per_sample else ()
        if self.own is None:
            return filled(shape, self.origin + t, self.y0)
        return (self.own.origin + t).to(real_dtype(self.y0)).reshape(shape)

    def of_state(self, controller: Controller) -> Controller:
        """The controller, as the caller made it, for the state as it is here.

        Raises:
            ValueError: If a tolerance has not the structure of the caller's y0.
        """
        is_pid = isinstance(controller, PID)
        return controller.of_state(self.y0, self.split, self.per_sample) if is_pid else controller

    def at(self, t: float | Tensor) -> Time:
        """A time as a method gets it."""
        return Since(self.origin, t) if self.origin else t

    def caller_time(self, t: float, sample: int | None = None) -> float:
        """The caller's own name for a time, of that sample where each has its own."""
        origin = self.origin if self.own is None or sample is None else float(self.own.origin[sample])
        return caller_time(t, origin, self.sign)


@dataclass(frozen=True)
class Between:
    """f inside of (low, high): at these ends, where f may jump, it gives the value on this side."""

    f: Field
    low: float
    high: float
    resolved = True  # as f is

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(inside(t, self.low, self.high), y)


def count_before(times: Sequence[float], t: float, too: bool = True) -> int:
    """How many of the times, which are increasing, lie before t, or at t `too`."""
    if torch.compiler.is_compiling():  # which does not see into `bisect`
        return sum(time < t or (too and time == t) for time in times)
    return bisect.bisect_right(times, t) if too else bisect.bisect_left(times, t)


def edges(origin: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """The ends of a piece as f gets them.

    A jump was counted from the origin, which has rounded it, and adding that again may give a number beyond the jump
    as the caller has named it. Two units in the last place inward make up for it, since sums are rounded monotonously.
    """
    return origin + low * (1 + _ROUNDING), origin + high * (1 - _ROUNDING)


_ROUNDING = 2.0**-51


def inside(t: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """t in (low, high): moved to the next number inside where it is an end."""
    ends = (torch.as_tensor(x, dtype=torch.float64, device=t.device) for x in (low, high))
    low, high = (end.to(t.dtype).expand(t.shape) for end in ends)
    there = t.detach().clamp(torch.nextafter(low, high), torch.nextafter(high, low))
    return t + (there - t.detach())


def caller_time(t: float, origin: float, sign: float) -> float:
    """The caller's own name for a time t of a solve that counts from its origin."""
    return sign * (origin + t) + 0.0  # + 0.0: never "-0"


def sample_shape(y: Tensor) -> tuple[int, ...]:
    """(batch, 1, …, 1): the shape of a number for each sample, with as many axes as y."""
    return (y.shape[0], *(1,) * (y.dim() - 1))


@dataclass(frozen=True)
class Extension:
    """What the continuous extension of a whole solve is made of: its accepted steps, in order of time."""

    t: list[float]  # where each begins
    dt: list[float]
    y: Tensor  # the states there, (steps, *y.shape)
    parts: Tensor  # the parts of each, (steps, parts, *y.shape)
    clock: Tensor | None = None  # t and dt of each, (steps, 2) in float64, where gradients flow through the times
    end: float | None = None  # where it ends, if that is inside of the last step


@dataclass(frozen=True)
class OwnExtension:
    """The same of a solve in which each sample takes its own steps; a row is one round of steps.

    A sample that took no step in a round has dt = 0 there.
    """

    t: Tensor  # (rows, batch), where each step begins
    dt: Tensor
    ends: Tensor  # t + dt
    y: Tensor  # (rows, batch, …)
    parts: Tensor  # (rows, parts, batch, …)


class Located(NamedTuple):
    """An event that has happened."""

    of: int  # which of the problem's events
    t: float  # when; to derivatives a constant
    y: Tensor  # the state there
    slope: Tensor  # dy/dt there
    # The same two at a time near t that has derivatives; None where they are not wanted.
    at: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


@dataclass
class Trajectory:
    """What a solve leaves: the outputs reached, and how it ended."""

    ys: Tensor  # (outputs reached, *y0.shape)
    dense: Extension | None = None
    failure: Failure | None = None
    statuses: tuple[Status, ...] | None = None  # of each sample, where each has its own step size
    own_dense: OwnExtension | None = None  # in place of `dense`, where each sample has its own step size
    events: list[Located] = field(default_factory=list)  # in order
    end: float | None = None  # where the last of them has ended it: the end of the step that it is in

    @property
    def ended(self) -> bool:
        """Whether an event has ended it."""
        return self.end is not None
