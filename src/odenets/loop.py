"""The loop of the eager engine: try a step, ask the controller, keep or drop it, and hand out what falls inside it."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from odenets.controller import PID, Controller, Number, Start, maximum, rms_of_any_size, where
from odenets.evaluation import CountedField
from odenets.methods import Field, NotConverged, RungeKutta, Since, Step, Time, filled, real_dtype, stage_times
from odenets.solution import Failure, Stats, Status
from odenets.transforms import all_finite, unwrapped, value_of, values_of

Piece = TypeVar("Piece")  # what a tape keeps of each step
State = TypeVar("State")  # and what it starts from


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
    method: RungeKutta
    controller: Controller
    max_steps: int
    dense: bool
    watched: object  # the caller's f: where the tensors that it reaches are looked for
    per_sample: bool = False  # a step size for each sample
    compile: bool = False  # run the loops compiled
    plain: bool = False  # f is the caller's own, `watched(t, y, *args)`, with nothing around it
    origin: float = 0.0  # the first time, as f gets it
    sign: float = 1.0  # the caller's time is sign · (origin + t)
    stats: Stats = field(default_factory=Stats)

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


@dataclass(frozen=True)
class Taken:
    """An accepted step, just taken."""

    t: float
    dt: float
    y: Tensor  # the state at t
    step: Step
    final: bool  # the step was cut to end on t_end: dt = t_end − t
    t_in: float | Tensor  # t and dt as tensors where gradients flow through the times
    dt_in: float | Tensor

    @property
    def clock(self) -> Tensor | None:
        """Both as one tensor, where gradients flow through them."""
        if not isinstance(self.t_in, Tensor):
            return None
        return torch.stack([self.t_in, torch.as_tensor(self.dt_in, dtype=torch.float64, device=self.t_in.device)])


class Kept(NamedTuple):
    """What a replay needs of an accepted step, besides the state it starts from: its stages are made again."""

    t: float
    dt: float
    final: bool
    ends: tuple[int, ...]  # the outputs that are the end of this step
    inside: tuple[int, ...]  # the outputs that are interpolated inside it


class Tape(Generic[Piece, State]):
    """The accepted steps, and the states that some of them start from: of all, or evenly spaced as far as room goes.

    Where the room is used up, every second state is dropped and the spacing doubles: so the number of steps need not
    be known. The first state, the start of the solve, takes no room.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room, self.spacing = room, 1
        self.steps: list[Piece] = []
        self.states: dict[int, State] = {}  # by the index of the step
        self.end: State | None = None  # after the last step

    def add(self, step: Piece, state: State) -> None:
        index = len(self.steps)
        self.steps.append(step)
        if index == 0 or self._has_room(index):
            self.states[index] = state

    def _has_room(self, index: int) -> bool:
        if self.room == 0:
            return False
        if self.room is not None and index % self.spacing == 0 and len(self.states) - 1 == self.room:
            self.spacing *= 2
            self.states = {k: state for k, state in self.states.items() if k % self.spacing == 0}
        return index % self.spacing == 0


class Move(NamedTuple):
    """One move of a reversal: go from a state to a later one, which is kept or not; or undo the step that starts there.

    Undoing is a move from a state to itself.
    """

    start: int
    end: int
    keep: bool


def reversal(steps: int, kept: Sequence[int], free: int) -> Iterator[Move]:
    """The moves that undo all steps, the last first, with no more than `free` states beside those kept from the start.

    Where a state is missing, a binomial schedule leads there from the one before it: Griewank and Walther,
    *Evaluating Derivatives* (2008), chapter 12.
    """
    stack = sorted(kept)
    given = set(kept)
    for k in reversed(range(steps)):
        here = stack[-1]
        while here < k:
            room = free - sum(i not in given for i in stack)
            there = here + _stride(k + 1 - here, room) if room > 0 else k
            yield Move(here, there, room > 0)
            here = there
            if room > 0:
                stack.append(here)
        yield Move(k, k, False)
        if stack[-1] == k:
            stack.pop()


def _stride(steps: int, free: int) -> int:
    """After how many of the steps to keep a state, so that all can be undone with the fewest repetitions."""
    repeats = 0
    while math.comb(free + 1 + repeats, repeats) < steps:
        repeats += 1
    return max(1, steps - math.comb(free + repeats, repeats))


class DenseStep(NamedTuple):
    """What the continuous extension needs of an accepted step."""

    t: float
    dt: float
    y: Tensor  # the state at t
    stages: Tensor  # (s + 1, *y.shape)
    clock: Tensor | None = None  # t and dt in float64, where gradients flow through the times


@dataclass
class Trajectory:
    """What a run of the loop leaves: the outputs reached, and how it ended."""

    ys: Tensor  # (outputs reached, *y0.shape)
    dense: list[DenseStep]
    failure: Failure | None
    statuses: tuple[Status, ...] | None = None  # of each sample, where each has its own step size


def sample_shape(y: Tensor) -> tuple[int, ...]:
    """(batch, 1, …, 1): the shape of a number for each sample, with as many axes as y."""
    return (y.shape[0], *(1,) * (y.dim() - 1))


def cut(t: Number, dt: Number, t_end: Number) -> tuple[Any, Number]:
    """Whether the next step is the last, and its size: cut to end on t_end, which no step passes.

    Of a size dt the time moves by what it can resolve, and y has to move by the same.
    """
    final = dt >= (t_end - t) * (1 - 1e-6)  # rounding errors of t must not cost a sliver of a step
    return final, where(final, t_end, t + dt) - t


def conclude(
    controller: Controller,
    order: int,
    ratio: Number,
    planned: Number,
    dt: Number,
    final: Any,
    t: Number,
    t_end: Number,
    memory: tuple[Number, ...],
) -> tuple[Any, Number, Number, tuple[Number, ...]]:
    """What follows from a step of size dt that was tried: (accepted?, the time now, the next step size, memory).

    The next step size is NaN where it would be too small for the time to move: the solve is stuck.
    """
    accept, dt_next, memory = controller.decide(ratio, dt, memory, order)
    if accept is True:  # by a controller that judges nothing
        return True, where(final, t_end, t + dt), where(final, maximum(dt_next, planned), dt_next), memory
    # A step that was cut short says nothing against the size that was planned.
    dt_next = where(accept & final, maximum(dt_next, planned), dt_next)
    moved = (t + dt_next) - t  # by what the time would move: it has to, and by less than in the step that was tried
    moves = (moved > 0) & (moved < dt) & (dt_next >= 1e-30 * (t_end - t))  # at t = 0 any step would move it
    dt_next = where(accept | moves, dt_next, math.nan)
    return accept, where(accept, where(final, t_end, t + dt), t), dt_next, memory


class Stepper:
    """One solve in progress: advance it a step at a time. Times increase.

    `clock`, where given, is the pair (start, end) of 0-dimensional float64 tensors that gradients to the times
    flow through; the values are the same as the floats.
    """

    def __init__(self, problem: Problem, y0: Tensor, t0: float, clock: tuple[Tensor, Tensor] | None = None) -> None:
        self.method, self.controller = problem.method, problem.controller
        self.stats, self.max_steps = problem.stats, problem.max_steps
        self.f = CountedField(problem.f, self.stats)
        self.t, self.y = t0, y0
        self.begun = t0, y0
        self.f0: Tensor | None = None
        self.dt: float | None = None
        self.memory: tuple[float, ...] = self.controller.start
        self.clock = clock
        self.failure: Failure | None = None
        self.problem = problem
        self._stretch: Any = 0.0  # what the whole interval gets longer by: 0, but for its gradient
        if clock is not None and self.controller.share:
            span = problem.t[-1] - problem.t[0]
            self._stretch = span - span.detach()

    def derivative(self) -> Tensor:
        """f at the present point, evaluated once."""
        if self.f0 is None:
            t = self.t if self.clock is None else self.clock[0]
            (t,) = stage_times(self.problem.at(t), 0.0, (0.0,), self.y)
            self.f0 = self.f(t, self.y)
        return self.f0

    def jump(self, y: Tensor) -> None:
        """Replace the state in place of time; step size and controller memory go on."""
        self.y, self.f0 = y, None

    def choose_first_step(self, t_end: float) -> None:
        """Let the controller choose the first step of a solve to t_end, and check the start while at it."""
        if not self.controller.chooses_first_step:
            self.dt = self.controller.given_step(self.t, t_end)
            if self.controller.adaptive and not all_finite(self.derivative()):
                self._fail_at_start(self.derivative())
            return
        f0 = self.derivative()
        with torch.no_grad():
            t0, span = self.problem.origin + self.t, t_end - self.t
            start = Start(self.f, self.y, f0, t0, span, self.method.order, read=values_of)
            dt, size = self.controller.first_step(start)
            if not math.isfinite(dt):  # where f0 is not, or where a norm was too large
                dt, size = self.controller.first_step(start._replace(norm=rms_of_any_size))
            self.dt = dt
            if not math.isfinite(dt):
                self._fail_at_start(f0)
            elif isinstance(self.controller, PID):
                self.controller.check_resolution(size, self.y.dtype)

    def advance(self, t_end: float) -> Taken | None:
        """Take one accepted step towards t_end, which it never passes; None when the solve has failed."""
        if self.dt is None:
            self.choose_first_step(t_end)
        while self.failure is None and self.dt is not None:
            if self.stats.steps >= self.max_steps:
                return self._fail_after_all_steps(t_end)
            final, dt = cut(self.t, self.dt, t_end)
            t_in, dt_in = self._differentiable(dt, final)
            try:
                step = self.method.step(self.f, self.problem.at(t_in), self.y, dt_in, self.f0)
            except NotConverged as error:
                return self._fail_in_step(error, dt)
            ratio = 0.0
            if self.controller.adaptive:
                step, ratio = self._judge(step, dt)
            accept, t1, self.dt, self.memory = conclude(
                self.controller, self.method.order, ratio, self.dt, dt, final, self.t, t_end, self.memory
            )
            if accept:
                return self._accept(Taken(self.t, dt, self.y, step, final, t_in, dt_in), t1)
            self.stats.rejected += 1
            self.f0 = step.stages[0]
            if self.dt is None or math.isnan(self.dt):
                return self._diagnose_underflow(step, dt, ratio)
        return None

    def _judge(self, step: Step, dt: float) -> tuple[Step, float]:
        if self.method.error_needs_f1:
            step = step.with_f1(self.f)
        with torch.no_grad():
            error = self.method.error(dt, step.stages)
            ratio = value_of(self.controller.error_ratio(self.y, step.y, error))  # the one host read of a step
            if not math.isfinite(ratio):
                ratio = value_of(self.controller.error_ratio(self.y, step.y, error, rms_of_any_size))
        return step, ratio

    def _differentiable(self, dt: float, final: bool) -> tuple[float | Tensor, float | Tensor]:
        """t and dt as the step gets them: as tensors where gradients flow through the times."""
        if self.clock is None:
            return self.t, dt
        start, end = self.clock
        if final:
            return start, end - start
        # The steps of `Fixed(steps=...)` take their share of a longer interval.
        return start, dt + self.controller.share * self._stretch if self.controller.share else dt

    def _accept(self, taken: Taken, t1: float) -> Taken:
        self.stats.accepted += 1
        self.t = t1
        self.y = taken.step.y
        self.settle(taken.step)
        if self.clock is not None:
            start, end = self.clock
            self.clock = (end if taken.final else start + taken.dt_in, end)
        return taken

    def settle(self, step: Step) -> None:
        """Keep f1, where it is known, as the first stage of the next step."""
        self.f0 = step.stages[-1] if step.complete else None

    # Failures. Only here is the state inspected element by element.

    def _fail(self, status: Status, dt: float, detail: str) -> None:
        self.failure = Failure(status, self.t, dt, detail)

    def _fail_at_start(self, f0: Tensor) -> None:
        if not all_finite(self.y):
            self._fail(Status.NON_FINITE_START, 0.0, f"y0: {locate_non_finite(self.y)}.")
        elif not all_finite(f0):
            self._fail(Status.NON_FINITE_FIELD, 0.0, f"f(t0, y0): {locate_non_finite(f0)}.")
        else:
            detail = (
                f"f(t0, y0) is as large as {value_of(f0.abs().max()):.3g}, which in tolerances {f0.dtype} cannot hold."
            )
            self._fail(Status.STEP_SIZE_UNDERFLOW, 0.0, detail)

    def _fail_in_step(self, error: NotConverged, dt: float) -> None:
        if not all_finite(self.y):
            return self._fail(Status.NON_FINITE_START, dt, f"y: {locate_non_finite(self.y)}.")
        self._fail(Status.NON_FINITE_FIELD if error.undefined else Status.NOT_CONVERGED, dt, str(error))

    @torch.no_grad()
    def _fail_after_all_steps(self, t_end: float) -> None:
        t0, y0 = self.begun
        (start,) = stage_times(self.problem.at(t0), 0.0, (0.0,), y0)
        away = runs_away(self.y, self.derivative(), y0, self.f(start, y0), self.t - t0, t_end - self.t)
        if not (away and escapes(self.problem, self.y, self.t, self.dt, t_end)):
            return self._fail(Status.MAX_STEPS, self.dt or 0.0, "")
        largest = value_of(self.y.abs().max())
        detail = f"`max_steps` allows no more, the largest |y| is {largest:.3g}, and it grows faster and faster."
        self._fail(Status.DIVERGED, self.dt or 0.0, detail)

    @torch.no_grad()
    def _diagnose_underflow(self, step: Step, dt: float, ratio: float) -> None:
        y = unwrapped(self.y)
        seen = f"The largest |y| is {float(y.abs().max()):.3g}, the last error was {ratio:.3g} tolerances."
        broken = next((k for k in step.stages if not all_finite(k)), None)
        jumps_off = broken is not None and bool(torch.isnan(unwrapped(broken)).any())  # log, sqrt, 0 / 0
        outgrown = value_of(self.y.abs().max()) > math.sqrt(torch.finfo(y.dtype).max)
        if outgrown or (not jumps_off and blows_up(self.y, step.stages[0], dt)):
            return self._fail(Status.DIVERGED, dt, f"{seen} Largest at {_position(y, int(y.abs().argmax()))}.")
        if broken is not None:
            return self._fail(Status.NON_FINITE_FIELD, dt, f"Just after this t, f: {locate_non_finite(broken)}. {seen}")
        return self._fail(Status.STEP_SIZE_UNDERFLOW, dt, seen)


def stretch(grad_t: Tensor, lam_span: Any, controller: Controller) -> None:
    """Add what a longer interval changes, ∂L/∂(its length) by the steps with a share in it, to ∂L/∂(its ends)."""
    if controller.share:
        grad_t[0] -= controller.share * lam_span
        grad_t[-1] += controller.share * lam_span


def evaluate_at_start(problem: Problem, y0: Tensor) -> Tensor:
    """f(t0, y0); y0 is `problem.y0`, or a copy of it outside of autograd."""
    return CountedField(problem.f, problem.stats)(problem.field_time(0.0), y0)


def stand_still(problem: Problem) -> Trajectory:
    """A solve of no length, all of whose times are one: no step, and y0 is the state at each.

    Whatever the adjoint, gradients are those of y0 + (t − t0) f(t0, y0).
    """
    y0 = problem.y0
    f0 = evaluate_at_start(problem, y0)
    past = (problem.t - problem.t[0]).to(real_dtype(y0))
    ys = y0 + past.reshape(-1, *(1,) * y0.dim()) * f0
    stepper = Stepper(problem, y0.detach(), problem.times[0])
    if not all_finite(ys[-1]):
        stepper._fail_at_start(f0.detach())
    trajectory = Trajectory(ys, [DenseStep(problem.times[0], 0.0, y0, f0[None])], stepper.failure)
    if problem.per_sample:
        problem.stats.accepted, problem.stats.rejected = torch.zeros((2, len(y0)), dtype=torch.int64, device=y0.device)
        trajectory.statuses = (Status.SUCCESS if stepper.failure is None else stepper.failure.status,) * len(y0)
    return trajectory


def run(
    problem: Problem,
    y0: Tensor,
    f0: Tensor | None,
    *,
    tape: Tape[Kept, Tensor] | None = None,
    clock: Tensor | None = None,
    timed: bool = False,
    read: bool = True,
    slopes: dict[int, Tensor] | None = None,
) -> Trajectory:
    """Solve from the first time to the last.

    Args:
        y0: The start; `problem.y0`, or a copy of it outside of autograd.
        f0: f(t0, y0) where it is known already.
        tape: Where to write what a replay of the accepted steps needs.
        clock: `problem.t`, where gradients to the times shall flow through the loop itself.
        timed: Whether gradients to the times are wanted at all, by the clock or by a replay.
        slopes: Where to write dy/dt at the outputs that lie inside a step, by their index.
        read: Whether the host may read values: without, nobody sees whether fixed steps ended in finite numbers.
    """
    times, t_end = problem.times, problem.times[-1]
    stepper = Stepper(problem, y0, times[0], None if clock is None else (clock[0], clock[-1]))
    stepper.f0 = f0
    timed = timed or clock is not None
    ys = [y0] * (1 if timed else times.count(times[0]))
    dense: list[DenseStep] = []
    while stepper.t < t_end:
        taken = stepper.advance(t_end)
        if taken is None:
            break
        step, ends, inside = _emit(problem, stepper, ys, taken, clock, timed)
        if problem.dense:
            dense.append(DenseStep(taken.t, taken.dt, taken.y, torch.stack(step.stages), taken.clock))
        if slopes is not None:
            theta = {j: (problem.times[j] - taken.t) / taken.dt for j in inside}
            slopes |= {j: problem.method.slope(step.stages, theta[j]) for j in inside}
        if tape is not None:
            tape.add(Kept(taken.t, taken.dt, taken.final, ends, inside), taken.y)
    if tape is not None:
        tape.end = stepper.y
    failure = stepper.failure
    if failure is None and read and not problem.controller.adaptive:
        failure = find_non_finite(problem, y0, ys[-1])
    return Trajectory(torch.stack(ys), dense, failure)


def _emit(
    problem: Problem, stepper: Stepper, ys: list[Tensor], taken: Taken, clock: Tensor | None, timed: bool
) -> tuple[Step, tuple[int, ...], tuple[int, ...]]:
    """Append the outputs that lie in this step; the step (with f1 if it was needed) and the outputs' indices."""
    first = last = len(ys)
    slack = _ROUNDING * stepper.t
    while last < len(problem.times) and problem.times[last] <= stepper.t + slack:
        last += 1
    if first == last and not problem.dense:
        return taken.step, (), ()
    ends = tuple(j for j in range(first, last) if _ends_step(problem, stepper.t - slack, j, timed))
    inside = tuple(j for j in range(first, last) if j not in ends)
    step = taken.step
    if inside or problem.dense:
        step = step.with_f1(stepper.f)
        stepper.settle(step)
    for j in range(first, last):
        if j in ends:
            ys.append(step.y)
        else:
            t_out = problem.times[j] if clock is None else clock[j]
            ys.append(interpolate(problem.method, taken.y, step, taken.t_in, taken.dt_in, t_out))
    return step, ends, inside


_ROUNDING = 2.0**-50  # of a time that is the sum of a few


def _ends_step(problem: Problem, t: float, j: int, timed: bool) -> bool:
    """Whether output j is the end of the step itself, not before t, and not an interpolation inside it.

    Where gradients to the times are wanted only the last output is: there alone the step's own length carries
    the gradient; every other one gets it from the interpolation.
    """
    return j == len(problem.times) - 1 if timed else problem.times[j] >= t


def interpolate(
    method: RungeKutta,
    y: Tensor,
    step: Step,
    t: float | Tensor,
    dt: float | Tensor,
    t_out: float | Tensor,
) -> Tensor:
    """The state at t_out in the step from t to t + dt that starts at y."""
    return method.interpolate(y, dt, step.stages, (t_out - t) / dt)


def find_non_finite(problem: Problem, y0: Tensor, y_end: Tensor) -> Failure | None:
    """After fixed steps, which read nothing back: is the end finite? If not, walk the steps again to say where."""
    if all_finite(y_end):
        return None
    with torch.no_grad():
        stepper = Stepper(replace(problem, stats=Stats()), y0.detach(), problem.times[0])
        if not all_finite(y0):
            return Failure(Status.NON_FINITE_START, stepper.t, 0.0, f"y0: {locate_non_finite(y0)}.")
        usual = value_of(y0.abs().max())  # the size of a state that f was made for
        while all_finite(stepper.y) and stepper.t < problem.times[-1]:
            taken = stepper.advance(problem.times[-1])
            if taken is None:
                return stepper.failure
            if usual == 0 and all_finite(taken.step.y):
                usual = value_of(taken.step.y.abs().max())
            for i, k in enumerate(taken.step.stages):
                if not all_finite(k):
                    there = problem.method.stage_input(i, taken.y, taken.dt, taken.step.stages)
                    is_tame = value_of(there.abs().max()) <= 1e6 * usual
                    status = Status.NON_FINITE_FIELD if is_tame else Status.NON_FINITE_STATE
                    return Failure(status, taken.t, taken.dt, f"f: {locate_non_finite(k)}.")
        return Failure(Status.NON_FINITE_STATE, stepper.t, stepper.dt or 0.0, f"y: {locate_non_finite(y_end)}.")


def blows_up(y: Tensor, k: Tensor, dt: float) -> bool:
    """Whether the state, of slope k, would double within a few steps as short as dt, where that is too short to go on.

    It does just before it becomes infinite; not where f breaks off, or jumps, or is stiff.
    """
    rise, size = value_of(k.abs().max()), value_of(y.abs().max())
    return not rise * dt < 1e-4 * size if size > 0 and not math.isnan(rise) else False


def runs_away(y: Tensor, k: Tensor, y0: Tensor, k0: Tensor, elapsed: float, remaining: float) -> bool:
    """Whether a component has grown a hundredfold, at a rate that went up with it and leads to infinity before the end.

    Growth by that factor has the mean rate log(grown) / elapsed. Exponential growth has no other rate; before a
    blow-up in finite time the last one is far above the mean. Slopes are k at y, and k0 at the start y0.
    """
    usual = torch.maximum(y0.abs(), k0.abs() * elapsed)  # of a component that starts at 0
    grown = (y.abs() / usual).log()
    rate = torch.real(k / y)
    away = (grown > math.log(100)) & (rate * min(elapsed, remaining) > 10 * grown)
    return value_of(away.any()) > 0


@torch.no_grad()
def escapes(problem: Problem, y: Tensor, t: float, dt: float | None, t_end: float) -> bool:
    """Whether the solution, followed on from y at t by a few hundred steps of a loose tolerance, leaves every bound.

    The last rate of growth alone does not tell that from the rise of an oscillation.
    """
    if not problem.controller.adaptive:
        return False
    atol = problem.controller.atol if isinstance(problem.controller, PID) else 1e-9
    loosely = replace(problem, controller=PID(rtol=1e-2, atol=atol), max_steps=sys.maxsize, stats=Stats())
    stepper = Stepper(loosely, y, t)
    stepper.dt = dt
    while stepper.t < t_end and stepper.stats.accepted < _FOLLOWED:
        if stepper.advance(t_end) is None:
            return stepper.failure is not None and stepper.failure.status is Status.DIVERGED
    return False


_FOLLOWED = 300  # steps


def locate_non_finite(x: Tensor) -> str:
    """Say where x is not finite, and in how many places."""
    x = unwrapped(x)
    bad = ~torch.isfinite(x)
    index = int(bad.flatten().to(torch.int8).argmax())
    return (
        f"{_position(x, index)} is {x.flatten()[index].item()} ({int(bad.sum())} of {x.numel()} values are not finite)"
    )


def _position(x: Tensor, flat_index: int) -> str:
    if x.dim() == 0:
        return "the state"
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat_index), x.shape)]
    return f"sample {index[0]}" + (f", component {tuple(index[1:])}" if len(index) > 1 else "")
