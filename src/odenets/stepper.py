"""A solve that its caller takes step by step: to couple a solver with something else."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets import support
from odenets.adjoint import Direct
from odenets.arguments import number, refuse_class, shown
from odenets.controller import Controller
from odenets.engine.eager import extension_of
from odenets.engine.going import Going
from odenets.engine.tape import Accepted
from odenets.given_stops import times_inside
from odenets.interpolate import DenseOutput
from odenets.methods import Method, find
from odenets.problem import Problem
from odenets.resolution import check_field
from odenets.solution import SolveError, Stats
from odenets.solve import controller_of, paths_among
from odenets.state import field_of, flatten_state, same


class Stepper:
    """The Cauchy problem dy/dt = f(t, y, *args), y(t0) = y0, solved a step at a time.

    When to use: where something has to happen between two steps that the solver cannot know of: a controller that acts
    at times of its own, a second solver to exchange values with, a decision made of the state. When not: where the
    times are known (`solve`, with `stops` and `jumps`), or a condition of the state tells them (`event` of `solve`).

    Gradients are those of autograd, through each step that was accepted, step sizes taken as constants, as with
    `adjoint=Direct()`: where y0, args or what f reaches require grad, `y` does too, and keeps what all the steps before
    have computed; `restart(stepper.y.detach())` lets go of it. Under `torch.no_grad()` nothing is kept.

    `copy.copy` gives a stepper that goes on from the same place by itself, so that a step can be tried and given up;
    `copy.deepcopy` and `pickle` take f along, where it can be copied.

    Args:
        f, y0, args, method, rtol, atol, controller: As of `solve`.
        t0: The time of y0.
        t_end: A time that no step passes, after t0 or before it: that is the direction of the solve.

    Attributes:
        t: The time reached.
        t_before: Where the last step began; t0 before the first one.
        y: The state at t, of y0's structure.
        stats: `Stats` of all steps so far.

    Raises:
        TypeError, ValueError: If an argument is not as described.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        y0: Any,
        t0: float = 0.0,
        args: tuple = (),
        *,
        method: str | Method = "tsit5",
        rtol: Any = None,
        atol: Any = None,
        controller: Controller | None = None,
        t_end: float = math.inf,
    ) -> None:
        given = controller_of(controller, rtol, atol)
        self._options = {"method": find(method), "controller": given, "t_end": t_end}
        self._start = f, y0, t0, args
        self._problem = self._normal(f, y0, t0, args, find(method), given, t_end)
        self.stats = self._problem.stats
        self._going = Going(self._problem, self._problem.y0, 0.0)
        self._taken: Accepted | None = None
        self._goes_on = False  # whether the next step begins where the last one has ended
        self._dense: DenseOutput | None = None

    @staticmethod
    def _normal(f: Any, y0: Any, t0: float, args: Any, method: Method, controller: Controller, t_end: float) -> Problem:
        refuse_class("f", f)
        if not callable(f):
            raise TypeError(f"`f` must be a function f(t, y), got {shown(f)}: the order is Stepper(f, y0, t0)")
        if not isinstance(args, tuple):
            raise TypeError(f"`args` must be a tuple, got {shown(args)}: write `args=(value,)`")
        origin = float(number("t0", t0, "a finite number", math.isfinite))
        end = float(number("t_end", t_end, "a number other than `t0`", lambda t: t == t and t != origin))
        if math.isinf(end) and controller.share:
            raise ValueError(f"{shown(controller)} divides an interval: give `t_end`, or write `Fixed(dt=...)`")
        support.check(support.Request(method, controller, Direct()))
        flat, split = flatten_state(y0, per_sample=False, widen=not method.iterates)
        sign = 1.0 if end > origin else -1.0
        span = sign * (end - origin)
        jumps = [t for path in paths_among(args) for t in path.jumps.tolist()]
        knots = [t for path in paths_among(args) for t in path.knots.tolist()]
        problem = Problem(
            bind=lambda args: field_of(f, args, split, sign),
            args=args,
            f=field_of(f, args, split, sign),
            y0=flat.clone(),  # the caller may change y0 between two steps
            t=torch.tensor([0.0, span], dtype=torch.float32 if flat.device.type == "mps" else torch.float64),
            times=[0.0, span],
            origin=sign * origin,
            sign=sign,
            method=method,
            controller=controller,
            max_steps=sys.maxsize,
            dense=False,
            watched=f,
            stops=times_inside(knots + jumps, sign, origin, span),
            jumps=times_inside(jumps, sign, origin, span),
            split=split,
            plain=sign > 0 and split is same,
        )
        problem = replace(problem, controller=problem.of_state(controller))
        check_field(problem)
        return problem

    @property
    def t(self) -> float:
        return self._problem.caller_time(self._going.t)

    @property
    def t_before(self) -> float:
        return self._problem.caller_time(0.0 if self._taken is None else self._taken.t)

    @property
    def y(self) -> Any:
        return self._problem.split(self._going.y.clone())  # whose owner may change it

    @property
    def dt(self) -> float | None:
        """The size, > 0, of the step that is tried next; None before the first one, where it is still to be chosen."""
        return self._going.dt

    def step(self, until: float | None = None) -> float:
        """Take one accepted step, which does not pass `until`; the time reached.

        A step that ends on `until` leaves the size of the next one as it was planned. So this goes on to a time:
        `while stepper.t < until: stepper.step(until)`.

        Raises:
            SolveError: If no step can be taken; the stepper stays where it is.
            ValueError: If `until` or `t_end` is not ahead.
        """
        end = self._problem.times[-1]
        if until is not None:
            until = float(number("until", until, "a number", lambda t: t == t))
            end = min(self._problem.sign * until - self._problem.origin, end)
        if not end > self._going.t:
            name, value = ("t_end", self._options["t_end"]) if until is None else ("until", until)
            raise ValueError(f"`{name}` = {value!r} is not ahead of the time that is reached, {self.t!r}")
        taken = self._going.advance(end)
        if taken is None:
            failure, self._going.failure, self._going.dt = self._going.failure, None, None
            if failure is None:
                raise RuntimeError("no step was taken, without a reason")
            t, dt = self._problem.caller_time(failure.t), self._problem.sign * failure.dt
            raise SolveError(replace(failure, t=t, dt=dt), self.stats)
        self._taken, self._dense, self._goes_on = taken, None, True
        return self.t

    def interpolate(self, t: float | Tensor) -> Any:
        """The state at any time of the last step: t a number or a tensor of any shape; (*t.shape, *y0.shape).

        Raises:
            ValueError: If a time lies outside of the last step, or none has been taken.
        """
        if self._taken is None or self._taken.step is None:
            raise ValueError("no step has been taken yet: `interpolate` gives states inside of the last one")
        if self._dense is None:
            going, step = self._going, self._taken.step
            # What completes it is handed to the next step, but not where that begins afresh.
            complete = going.complete(step) if self._goes_on else going.method.complete(going.f, step)
            extension = extension_of([self._taken._replace(step=complete)])
            problem = self._problem
            self._dense = DenseOutput(problem.method, extension, problem.origin, problem.sign, problem.split)
        return self._dense(t)

    def restart(self, y: Any = None) -> None:
        """Go on from another state, or where f has become another function: what is known of f is forgotten.

        To call wherever f changes by other means than t and y, such as a control that f reads: most methods hand f at
        the end of a step to the next one. The planned step size stays; the last step can still be interpolated.

        Args:
            y: The state to go on from at the present time, of y0's structure, shapes and dtype; None for that reached.

        Raises:
            TypeError, ValueError: If it is not like y0.
        """
        flat = self._going.y
        if y is not None:
            flat, split = flatten_state(y, per_sample=False, widen=not self._problem.method.iterates)
            like, found = (pytree.tree_map(_kind, s) for s in (self.y, split(flat)))
            if like != found:
                raise ValueError(f"`y` must be like y0, {shown(like)}, got {shown(found)}")
            flat = flat.clone()
        self._going.jump(flat)
        self._goes_on = False

    def __reduce__(self) -> tuple[Any, ...]:
        going = self._going
        state = {name: getattr(going, name) for name in ("t", "y", "begun", "carry", "dt", "memory", "stops")}
        return _again, (self._start, self._options, state, self.stats, self._taken, self._goes_on)


def _kind(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype, x.device


def _again(
    start: tuple, options: dict[str, Any], state: dict[str, Any], stats: Stats, taken: Accepted | None, goes_on: bool
) -> Stepper:
    """The stepper that was copied."""
    stepper = Stepper(*start, **options)
    vars(stepper._going).update(state)
    vars(stepper.stats).update(vars(stats))
    stepper._taken, stepper._goes_on = taken, goes_on
    return stepper
