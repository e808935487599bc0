"""The record of the accepted steps, and the order in which they are undone."""

import math
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from odenets.methods import Carry, Past, Step

Piece = TypeVar("Piece")  # what a tape keeps of each step
State = TypeVar("State")  # and what it starts from


class Accepted(NamedTuple):
    """An accepted step."""

    t: float
    dt: float
    final: bool  # it was cut to end on the time that the solve went to: dt = that time − t
    stopped: bool = False  # it was cut to end on a stop before that, which is a constant
    y: Tensor | None = None  # the state at t; None where it is kept elsewhere, or nobody asks for it
    step: Step | None = None  # what was made of it; None where it is made again
    clock: tuple[Tensor, Tensor] | None = None  # t and dt as tensors, where gradients flow through the times
    ends: tuple[int, ...] = ()  # the outputs that are the end of this step
    inside: tuple[int, ...] = ()  # the outputs that are interpolated inside it
    events: tuple[int, ...] = ()  # the events that happen in it
    carry: Carry = ()  # what it was made of beside y, where its method has a memory

    def thetas(self, times: Sequence[float]) -> list[float]:
        """Where in it the outputs inside of it lie, of these times: the θ of each."""
        return [(times[j] - self.t) / self.dt for j in self.inside]

    @property
    def light(self) -> "Accepted":
        """What is needed to make it again, but for tensors."""
        carry = self.carry and Past(*self.carry)._replace(slopes=())
        return self._replace(y=None, step=None, clock=None, carry=carry)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The tensors that are needed to make it again: the state at t, and f where the steps before began."""
        return (() if self.y is None else (self.y,)) + Past(*self.carry).slopes

    def carried(self, slopes: Sequence[Tensor]) -> Carry:
        """What it was made of beside y, where it is light itself."""
        if not self.carry:
            return ()
        past = Past(*self.carry)
        return past._replace(slopes=tuple(slopes[: len(past.steps)]))


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
