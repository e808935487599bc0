"""A solve in numbers that is going on: try a step, ask the controller, keep or drop it; and why it goes no further."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenets.advance import Advance, Told
from odenets.controller import PID, Start, rms_of_any_size
from odenets.engine import failures
from odenets.engine.clock import conclude, shortened
from odenets.engine.tape import Accepted
from odenets.evaluation import CountedField, FieldInPieces
from odenets.methods import Carry, Judged, Step, stage_times
from odenets.problem import Problem, count_before
from odenets.solution import Failure, Stats, Status
from odenets.transforms import all_finite, value_of, values_of

_FAR = 1e6  # steps: how far ahead a solve without an end looks
_FOLLOWED = 300  # steps, after which a solution that is still bounded is none that blows up


class Going:
    """One solve in progress: advance it a step at a time. Times increase.

    `clock`, where given, is the pair (start, end) of 0-dimensional float64 tensors that gradients to the times
    flow through; the values are the same as the floats.
    """

    def __init__(
        self,
        problem: Problem,
        y0: Tensor,
        t0: float,
        clock: tuple[Tensor, Tensor] | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        self.method, self.controller = problem.method, problem.controller
        self.stats, self.max_steps = problem.stats, problem.max_steps
        self.f: CountedField = FieldInPieces(problem, self.stats, t0, fresh)
        self.stops = count_before(problem.stops, t0)  # those behind
        self.t, self.y = t0, y0
        self.begun = t0, y0
        self.carry: Carry = ()
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
        if not self.carry or self.carry[0] is None:
            t = self.t if self.clock is None else self.clock[0]
            (t,) = stage_times(self.problem.at(t), 0.0, (0.0,), self.y)
            self.carry = self.method.begin(self.f(t, self.y), self.carry)
        return self.carry[0]

    def jump(self, y: Tensor) -> None:
        """Replace the state in place of time; step size and controller memory go on."""
        self.y, self.carry = y, ()

    def choose_first_step(self, t_end: float) -> None:
        """Let the controller choose the first step of a solve to t_end, and check the start while at it."""
        if not self.controller.chooses_first_step:
            self.dt = self.controller.given_step(self.t, t_end)
            if self.controller.adaptive and not all_finite(self.derivative()):
                self._fail(failures.at_start(self.y, self.derivative()), 0.0)
            return
        f0 = self.derivative()
        with torch.no_grad():
            t0, span = self.problem.origin + self.t, t_end - self.t
            start = Start(self.f, self.y, f0, t0, span, self.method.first_order, read=values_of)
            dt, size = self.controller.first_step(start)
            if not math.isfinite(dt):  # where f0 is not, or where a norm was too large
                dt, size = self.controller.first_step(start._replace(norm=rms_of_any_size))
            self.dt = dt
            if not math.isfinite(dt):
                self._fail(failures.at_start(self.y, f0), 0.0)
            elif isinstance(self.controller, PID):
                self.controller.check_resolution(size, self.problem.dtype)

    def advance(self, t_end: float) -> Accepted | None:
        """Take one accepted step towards t_end, which it never passes; None when the solve has failed."""
        goal, stopping = self._goal(t_end)
        if self.dt is None or (self.method.varies and not self.carry):  # which begins afresh with an order of 1
            self.choose_first_step(t_end)
        while self.failure is None and self.dt is not None:
            if self.stats.steps >= self.max_steps:
                return self._fail_after_all_steps(t_end)
            final, dt = shortened(self.t, self.dt, goal)
            t_in, dt_in = self._differentiable(dt, final, goal if stopping else None)
            step = self.method.step(self.f, self.problem.at(t_in), self.y, dt_in, self.carry)
            if step.trouble is not None and not self._may_be_shorter():
                return self._fail_in_step(step, dt)
            step, ratio, order = self._judge(step, dt)
            accept, t1, following, self.memory = conclude(
                self.controller, order, ratio, self.dt, dt, final, self.t, goal, self.memory
            )
            self.dt = self.method.resized(dt, following) if accept else following
            if accept:
                return self._accept(step, dt, final, stopping, (t_in, dt_in), t1)
            self.stats.rejected += 1
            self.carry = self.method.carry_again(step, self.carry)
            if self.dt is None or math.isnan(self.dt):
                return self._fail_in_tiny_step(step, dt, ratio)
        return None

    def _goal(self, t_end: float) -> tuple[float, bool]:
        """The time that the next step may not pass, and whether that is a stop before t_end."""
        stops = self.problem.stops
        if t_end == math.inf:  # a goal far ahead, but not so far that a step could be too small beside it
            t_end = self.t + _FAR * (self.dt or 1.0)
        if not stops:
            return t_end, False
        while self.stops < len(stops) and stops[self.stops] <= self.t:
            self.stops += 1
        if isinstance(self.f, FieldInPieces) and self.f.enter(self.t):  # f jumps here: begin afresh
            self.carry = ()
        if self.stops < len(stops) and stops[self.stops] < t_end:
            return stops[self.stops], True
        return t_end, False

    def _may_be_shorter(self) -> bool:
        """Whether a shorter step may be made where this one could not be."""
        return self.controller.adaptive and all_finite(self.y)

    def _judge(self, step: Step, dt: float) -> Judged:
        """The step, with all that its error needs, and that in tolerances."""
        if not self.controller.adaptive:
            return Judged(step, 0.0, self.method.order)
        if step.trouble is not None:
            return Judged(step, math.inf, self.method.order)
        if self.method.error_needs_all:
            step = self.method.complete(self.f, step)
        with torch.no_grad():
            return self.method.judged(step, dt, self._ratios(step, self.method.errors(dt, step)))

    def _ratios(self, step: Step, errors: Sequence[Tensor]) -> Sequence[float]:
        """These errors in tolerances: the one host read of a step."""
        found = [self.controller.error_ratio(self.y, step.y, error) for error in errors]
        ratios = values_of(torch.stack(found)) if len(found) > 1 else [value_of(found[0])]
        if not math.isfinite(ratios[0]):
            ratios = [value_of(self.controller.error_ratio(self.y, step.y, e, rms_of_any_size)) for e in errors]
        return ratios

    def _differentiable(self, dt: float, final: bool, stop: float | None) -> tuple[Any, Any]:
        """t and dt as the step gets them: as tensors where gradients flow through the times."""
        if self.clock is None:
            return self.t, dt
        start, end = self.clock
        if final:
            return start, (end if stop is None else stop) - start
        # The steps of `Fixed(steps=...)` take their share of a longer interval.
        return start, dt + self.controller.share * self._stretch if self.controller.share else dt

    def _accept(
        self, step: Step, dt: float, final: bool, stopping: bool, times: tuple[Any, Any], t1: float
    ) -> Accepted:
        clock = None if self.clock is None else times
        carry = self.method.kept(self.carry)
        accepted = Accepted(self.t, dt, final and not stopping, final and stopping, self.y, step, clock, carry=carry)
        self.stats.accepted += 1
        self.t = t1
        self.y = step.y
        self.carry = self.method.carry(step)
        if self.clock is not None:
            start, end = self.clock
            if not final:
                self.clock = start + times[1], end
            else:
                self.clock = torch.full_like(end, t1) if stopping else end, end
        return accepted

    def tell(self, told: Told, taken: Accepted, reached: float) -> None:
        """Tell of an accepted step, which leads as far as that, unless an event ends it."""
        stats, dt = self.stats, self.problem.sign * (reached - taken.t)
        told(Advance(self.problem.caller_time(reached), dt, stats.accepted, stats.rejected, stats.nfe))

    def complete(self, step: Step) -> Step:
        """The step that was just accepted, with all its parts, of which the next one gets what it can use."""
        step = self.method.complete(self.f, step)
        self.carry = self.method.carry(step)
        return step

    def _fail(self, reason: failures.Reason, dt: float) -> None:
        self.failure = Failure(reason.status, self.t, dt, reason.detail)

    def _fail_in_step(self, step: Step, dt: float) -> None:
        reason = failures.Reason(Status.NOT_CONVERGED, str(step.trouble))
        if not all_finite(self.y):
            reason = failures.Reason(Status.NON_FINITE_START, f"y: {failures.locate_non_finite(self.y)}.")
        elif step.trouble is not None and step.trouble.undefined:
            reason = reason._replace(status=Status.NON_FINITE_FIELD)
        self._fail(reason, dt)

    @torch.no_grad()
    def _fail_in_tiny_step(self, step: Step, dt: float, ratio: float) -> None:
        if step.trouble is not None and not failures.blows_up(self.y, self.derivative(), dt):
            return self._fail_in_step(step, dt)
        bounded = failures.stops_at_dt_min(self.controller, self.t)
        self._fail(failures.of_a_tiny_step(self.y, step.parts or (self.derivative(),), dt, ratio, bounded), dt)

    @torch.no_grad()
    def _fail_after_all_steps(self, t_end: float) -> None:
        t0, y0 = self.begun
        (start,) = stage_times(self.problem.at(t0), 0.0, (0.0,), y0)
        slopes = self.derivative(), self.f(start, y0)
        away = failures.runs_away(self.y, slopes[0], y0, slopes[1], self.t - t0, t_end - self.t)
        if not (away and escapes(self.problem, self.y, self.t, self.dt, t_end)):
            return self._fail(failures.Reason(Status.MAX_STEPS), self.dt or 0.0)
        largest = value_of(self.y.abs().max())
        detail = f"`max_steps` allows no more, the largest |y| is {largest:.3g}, and it grows faster and faster."
        self._fail(failures.Reason(Status.DIVERGED, detail), self.dt or 0.0)


@torch.no_grad()
def escapes(problem: Problem, y: Tensor, t: float, dt: float | None, t_end: float) -> bool:
    """Whether the solution, followed on from y at t by a few hundred steps of a loose tolerance, leaves every bound.

    The last rate of growth alone does not tell that from the rise of an oscillation.
    """
    if not problem.controller.adaptive:
        return False
    atol = float(torch.as_tensor(problem.controller.atol).min()) if isinstance(problem.controller, PID) else 1e-9
    loosely = replace(problem, controller=PID(rtol=1e-2, atol=atol), max_steps=sys.maxsize, stats=Stats())
    stepper = Going(loosely, y, t)
    stepper.dt = dt
    while stepper.t < t_end and stepper.stats.accepted < _FOLLOWED:
        if stepper.advance(t_end) is None:
            return stepper.failure is not None and stepper.failure.status is Status.DIVERGED
    return False


@torch.no_grad()
def failure_of_fixed_steps(problem: Problem, y0: Tensor, y_end: Tensor) -> Failure | None:
    """After fixed steps, which read nothing back: is the end finite? If not, walk the steps again to say where."""
    if all_finite(y_end):
        return None
    stepper = Going(replace(problem, stats=Stats()), y0.detach(), problem.times[0])
    if not all_finite(y0):
        return Failure(Status.NON_FINITE_START, stepper.t, 0.0, f"y0: {failures.locate_non_finite(y0)}.")
    usual = value_of(y0.abs().max())  # the size of a state that f was made for
    while all_finite(stepper.y) and stepper.t < problem.times[-1]:
        taken = stepper.advance(problem.times[-1])
        if taken is None or taken.y is None or taken.step is None:
            return stepper.failure
        if usual == 0 and all_finite(taken.step.y):
            usual = value_of(taken.step.y.abs().max())
        for i, k in enumerate(taken.step.parts):
            if not all_finite(k):
                there = problem.method.evaluated_at(i, taken.y, taken.dt, taken.step)
                is_tame = value_of(there.abs().max()) <= 1e6 * usual
                status = Status.NON_FINITE_FIELD if is_tame else Status.NON_FINITE_STATE
                return Failure(status, taken.t, taken.dt, f"f: {failures.locate_non_finite(k)}.")
    detail = f"y: {failures.locate_non_finite(y_end)}."
    return Failure(Status.NON_FINITE_STATE, stepper.t, stepper.dt or 0.0, detail)
