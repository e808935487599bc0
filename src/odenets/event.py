"""Events: what a solve looks for on its way, and in which form it gets them."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odenets.arguments import count, shown


@dataclass(frozen=True)
class Event:
    """A condition whose zero ends a solve, changes its state, or is only noted.

    The event is where `condition(t, y)` becomes 0, which it does not begin with: a solve that starts on the surface
    leaves it first. `Solution.events` has the times and states of all of them, with exact gradients to y0, to the
    times, to whatever f and the condition reach: those of what the solver computed, by the implicit function theorem.

    When to use: for what happens at a time that nobody knows beforehand: a collision, a threshold, a spike, "until".
    When not: for what happens at a known time (`jumps=` of `solve`).

    How it is looked for: on the continuous extension of each accepted step, at its ends and at 5 places between; where
    the values there turn back towards 0 without a change of sign, the turning point is searched too. So a crossing is
    missed only where the condition turns more than once between two of these places: shorten the steps then, by
    `PID(dt_max=...)`. It is located to the rounding of the time; its accuracy is that of the continuous extension, as
    for all states between the ends of steps.

    Args:
        condition: Called as `condition(t, y, *args)`, as f is; returns one real number as a tensor. It has to be smooth
            where it is 0, if anything is to be differentiated by the event's time. It is called some ten times as
            often as there are steps; `Stats.nfe` does not count that.
        direction: Of the crossings that count, as the solve goes: 1 upward, −1 downward, 0 both.
        terminal: Whether the first one ends the solve (True), none does (False), or after how many it ends. None: the
            first one ends it, unless there is a `jump`.
        jump: Called as `jump(t, y, *args)` at the event; returns the state to go on from, in y0's structure. At an
            event that ends the solve it is not called.

    Raises:
        TypeError, ValueError: If an argument is not as described.

    Source: Hairer, Nørsett and Wanner, *Solving Ordinary Differential Equations I* (1993), II.6, event location by
    dense output; gradients: Chen, Amos and Nickel, "Learning neural event functions", ICLR 2021, equation (6).
    """

    called = "condition"  # what errors call the condition
    wide = False  # whether it gets its time in float64, whatever f gets

    condition: Callable[..., Tensor]
    direction: int = 0
    terminal: bool | int | None = None
    jump: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.condition) or isinstance(self.condition, type):
            raise TypeError(f"`condition` must be a function condition(t, y), got {shown(self.condition)}")
        if self.direction not in (-1, 0, 1) or isinstance(self.direction, bool):
            raise ValueError(f"`direction` must be 1 (upward), -1 (downward) or 0 (both), got {shown(self.direction)}")
        if self.jump is not None and not callable(self.jump):
            raise TypeError(f"`jump` must be a function jump(t, y) that returns a state, got {shown(self.jump)}")
        if self.terminal is not None and not isinstance(self.terminal, bool):
            count("terminal", self.terminal)

    @property
    def limit(self) -> int | None:
        """The how-manyth ends the solve; None where none does."""
        if self.terminal is None:
            return 1 if self.jump is None else None
        return (1 if self.terminal else None) if isinstance(self.terminal, bool) else self.terminal

    def without_slope(self, t: Tensor, y: Tensor, slope: float) -> Tensor | None:
        """What takes the place of its time t, with y there, where the slope of the condition gives t no derivatives.

        None: a gradient that arrives there raises.
        """
        return None


@dataclass(frozen=True)
class Watched:
    """An event in normal form: of one tensor, in the time that f gets, which increases."""

    event: Event
    value: Callable[[Tensor, Tensor], Tensor]  # of (t, y), 0-dimensional
    jump: Callable[[Tensor, Tensor], Tensor] | None  # of (t, y), the state to go on from
    left: int | None  # how many are left until it ends the solve; None: it never does
    residual: float | None = None  # where the solve begins where it has just happened: |the condition| before the jump

    @staticmethod
    def of(
        event: Event, args: tuple, unflatten: Callable[[Tensor], Any], sign: float, batch: int | None = None
    ) -> "Watched":
        """That of an event, whose condition gets states of the caller's structure, and the time `sign` · t.

        With a `batch` of samples that have their own steps, of (t, y) with a time for each, and (batch,).
        """

        def given(t: Tensor, y: Tensor) -> tuple[Tensor, Any]:
            state = unflatten(y)
            if batch is not None:
                t = t.reshape(-1, *(1,) * (pytree.tree_leaves(state)[0].dim() - 1))
            return sign * t, state

        def value(t: Tensor, y: Tensor) -> Tensor:
            return _numbers(_called(event.called, event.condition, *given(t, y), args), batch)

        def jump(t: Tensor, y: Tensor) -> Tensor:
            at, state = given(t, y)
            return _flat_like(_called("jump", event.jump, at, state, args), state, y)

        return Watched(event, value, None if event.jump is None else jump, event.limit)


def events_of(event: Any) -> tuple[Event, ...]:
    """Those that were given: none, one or a sequence.

    Raises:
        TypeError: If that is something else.
    """
    given = () if event is None else (event,) if isinstance(event, Event) else event
    if not isinstance(given, Sequence) or not all(isinstance(one, Event) for one in given):
        raise TypeError(f"`event` must be an Event or a sequence of them, got {shown(event)}: write Event(condition)")
    return tuple(given)


def _called(name: str, function: Any, t: Tensor, y: Any, args: tuple) -> Any:
    """function(t, y, *args).

    Raises:
        TypeError: If it does not take that.
        RuntimeError: If it takes a derivative where autograd does not look on.
    """
    try:
        return function(t, y, *args)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise RuntimeError(
            f"`{name}` takes a derivative inside, and gets y without one where events are looked for: write `with "
            f"torch.enable_grad(): y = y if y.requires_grad else y.requires_grad_()` and what follows inside of it in "
            f"`{name}`"
        ) from error
    except TypeError as error:
        try:
            inspect.signature(function).bind(t, y, *args)
        except ValueError:
            raise error from None  # a builtin, which has none
        except TypeError as mismatch:
            called = f"{name}(t, y{', *args' if args else ''})"
            raise TypeError(f"`{name}` is called as {called}, which it does not take: {mismatch}") from error
        raise


def _numbers(found: Any, batch: int | None) -> Tensor:
    """What a condition has returned: 0-dimensional, or (batch,).

    Raises:
        TypeError, ValueError: If it is no real number, or not one for each sample.
    """
    each = "" if batch is None else f" for each of {batch} samples"
    wrong = f"`condition` must return one real number{each} as a tensor, returned"
    if not isinstance(found, Tensor):
        raise TypeError(f"{wrong} {shown(found)}")
    if found.numel() != (1 if batch is None else batch):
        raise ValueError(f"{wrong} shape {tuple(found.shape)}: pass an Event for each, or take the .min() or .max()")
    if not found.is_floating_point():
        raise TypeError(f"{wrong} {found.dtype}: return what crosses 0, such as y[..., 0] - threshold")
    return found.reshape(() if batch is None else (batch,))


def _flat_like(new: Any, state: Any, y: Tensor) -> Tensor:
    """The state that a jump has returned, as one tensor like y.

    Raises:
        TypeError, ValueError: If it is not like `state`.
    """
    leaves, structure = pytree.tree_flatten(new)
    wanted, given = pytree.tree_flatten(state)
    if structure != given or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"`jump` must return a state of y0's structure, returned {shown(new)}")
    for leaf, like in zip(leaves, wanted):
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise ValueError(
                f"`jump` must return a state of y0's shapes and dtype, returned {tuple(leaf.shape)} in {leaf.dtype} "
                f"for {tuple(like.shape)} in {like.dtype}"
            )
    flat = new if isinstance(state, Tensor) else torch.cat([_beside(leaf, y) for leaf in leaves], -1)
    return flat.to(y.dtype)


def _beside(leaf: Tensor, y: Tensor) -> Tensor:
    """A tensor of a state, with y's axes."""
    batch = y.shape[:-1]
    return leaf.reshape((*batch, math.prod(leaf.shape[len(batch) :])))
