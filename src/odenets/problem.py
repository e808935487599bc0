"""An initial value problem in normal form, and what a solve of it leaves: what every engine and adjoint works with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from odenets.controller import Controller
from odenets.methods import Field, Method, Since, Time, filled
from odenets.solution import Failure, Stats, Status


@dataclass(frozen=True)
class Problem:
    """An initial value problem in normal form: one tensor, every name an object, times that increase from 0.

    Time is counted from the start of the solve, where it has the most digits; f gets `origin` + t.
    """

    bind: Callable[[tuple], Field]  # bind(args) is f with its extra arguments
    args: tuple
    f: Field  # bind(args), or with other tensors in their place
    y0: Tensor
    t: Tensor  # (T,), increasing from 0; may require grad
    times: list[float]  # the same times on the host
    method: Method
    controller: Controller
    max_steps: int
    dense: bool
    watched: object  # the caller's f: where the tensors that it reaches are looked for
    per_sample: bool = False  # a step size for each sample
    plain: bool = False  # f is the caller's own, `watched(t, y, *args)`, with nothing around it
    origin: float = 0.0  # the first time, as f gets it
    sign: float = 1.0  # the caller's time is sign · (origin + t)
    stats: Stats = field(default_factory=Stats)

    @property
    def at_start(self) -> int:
        """How many of the times are the first one."""
        return self.times.count(self.times[0])

    @property
    def has_outputs(self) -> bool:
        """Whether states are wanted between the first and the last time."""
        return len(self.times) > 1 + self.at_start

    def field_time(self, t: float) -> Tensor:
        """A time as f gets it: for each sample, where each has its own."""
        shape = sample_shape(self.y0) if self.per_sample else ()
        return filled(shape, self.origin + t, self.y0)

    def at(self, t: float | Tensor) -> Time:
        """A time as a method gets it."""
        return Since(self.origin, t) if self.origin else t

    def caller_time(self, t: float) -> float:
        """The caller's own name for a time."""
        return caller_time(t, self.origin, self.sign)


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


@dataclass
class Trajectory:
    """What a solve leaves: the outputs reached, and how it ended."""

    ys: Tensor  # (outputs reached, *y0.shape)
    dense: Extension | None = None
    failure: Failure | None = None
    statuses: tuple[Status, ...] | None = None  # of each sample, where each has its own step size
