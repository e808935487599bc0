"""A solve with events of each sample: its pieces, each from where a state was changed to the next event that does."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from odenets.adjoint import Adjoint
from odenets.engine.engines import Engine
from odenets.engine.tensors.events import Sample, events_of_each, field_times
from odenets.methods import real_dtype
from odenets.problem import Own, Problem, Trajectory, sample_shape
from odenets.restart import Flat, Happened, derivatives
from odenets.solution import Failure, Stats, Status


class _Row(NamedTuple):
    """The times of a sample in a piece: what each is the time of."""

    t: float
    output: int | None = None
    event: int | None = None  # which of those found of the sample


@dataclass
class _Piece:
    """A piece of the solve: where each sample begins, and what was found and solved of it."""

    problem: Problem
    start: Tensor  # (batch,), in the whole problem's time
    found: list[Sample]
    rows: list[list[_Row]]

    def place(self, b: int, k: int) -> int:
        """Which of the piece's times is that of the k-th event of sample b."""
        return next(n for n, row in enumerate(self.rows[b], 1) if row.event == k)


class OwnChain:
    """The solves of a problem so far, joined, with the events of each sample; as `Chain`."""

    def __init__(self, problem: Problem) -> None:
        self.problem, batch = problem, len(problem.y0)
        own = problem.own is not None
        self.t = problem.t if own else problem.t.expand(batch, -1)  # (batch, T)
        self.values = self.t.detach().cpu().tolist()
        self.happened: list[Happened] = []
        self.statuses = [Status.SUCCESS] * batch
        self._failure: Failure | None = None
        self._left = [[w.left for w in problem.events] for _ in range(batch)]
        self._going = [True] * batch
        self._reached = [0] * batch
        self._counts = torch.zeros((2, batch), dtype=torch.int64, device=problem.y0.device)

    def solved(self, adjoint: Adjoint, engine: Engine) -> Trajectory:
        """Solve to each sample's last time, or until an event ends it: then its states behind are the one there."""
        y0, batch = self.problem.y0, len(self.problem.y0)
        self.ys = y0.new_full((len(self.problem.times), *y0.shape), math.nan)
        self.ts = self.t
        y, start = y0, self.t[:, 0]
        residuals: list[dict[int, float]] = [{} for _ in range(batch)]
        while any(self._going):
            y, start, residuals = self._piece(y, start, residuals, adjoint, engine)
        self.problem.stats.accepted, self.problem.stats.rejected = self._counts
        return Trajectory(self.ys, None, self._failure, tuple(self.statuses))

    @property
    def ended(self) -> bool:
        """Whether events have ended the solves of all samples."""
        return all(status is Status.EVENT for status in self.statuses)

    def times(self, ts: Tensor) -> Tensor:
        """The caller's times, (batch, T), with that of the end in place of those behind it."""
        if Status.EVENT not in self.statuses:
            return ts
        origins = torch.as_tensor(self.problem.origins, dtype=self.ts.dtype, device=self.ts.device).reshape(-1, 1)
        given = ts if ts.dim() > 1 else ts.expand(len(self.ts), -1)
        moved = (self.problem.sign * (origins + self.ts)).to(ts)
        reached = torch.tensor(self._reached, device=ts.device)[:, None]
        return torch.where(torch.arange(ts.shape[-1], device=ts.device) < reached, given, moved)

    def _piece(
        self, y: Tensor, start: Tensor, residuals: list[dict[int, float]], adjoint: Adjoint, engine: Engine
    ) -> tuple[Tensor, Tensor, list[dict[int, float]]]:
        """Solve the next piece; where each sample goes on from, and behind which events, with their `residual`."""
        piece = self._found(y, start, residuals)
        trajectory = adjoint.integrate(piece.problem, engine)
        stats = self.problem.stats
        self._counts = self._counts + torch.stack([stats.accepted, stats.rejected])
        self._take_failures(piece, trajectory)
        self._end_those_without_steps(piece)
        self._take_outputs(piece, trajectory.ys)
        return self._take_events(piece, trajectory.ys, y)

    def _found(self, y: Tensor, start: Tensor, residuals: list[dict[int, float]]) -> _Piece:
        """The events of the piece, and the problem that has their times among its own."""
        since = start.detach().cpu().tolist()
        ends = [row[-1] - t for row, t in zip(self.values, since)]
        standing = [[0.0, end if going else 0.0] for end, going in zip(ends, self._going)]
        to_the_end = self._problem(y, start, torch.tensor(standing, dtype=torch.float64, device=y.device))
        alone = replace(to_the_end, stats=Stats())
        found = events_of_each(alone, self._left, residuals)
        self.problem.stats.nfe += alone.stats.nfe
        rows = [self._rows(b, since[b], found[b]) for b in range(len(y))]
        return _Piece(self._with_rows(y, start, found, rows), start, found, rows)

    def _rows(self, b: int, since: float, sample: Sample) -> list[_Row]:
        """The times of sample b in a piece, behind its start."""
        if not self._going[b]:
            return []
        until = math.inf if sample.end is None else sample.found[-1].t
        first = self._reached[b]
        outputs = (_Row(t - since, output=j) for j, t in enumerate(self.values[b]) if j >= first and t - since <= until)
        events = (_Row(one.t, event=k) for k, one in enumerate(sample.found))
        end = () if sample.end is None else (_Row(sample.end),)
        return [*sorted([*outputs, *events], key=lambda row: row.t), *end]

    def _with_rows(self, y: Tensor, start: Tensor, found: Sequence[Sample], rows: Sequence[Sequence[_Row]]) -> Problem:
        """The problem of a piece; outputs keep the gradient to their times, and so does its start."""
        fixed = start.detach()[:, None]
        pool = torch.cat([start[:, None] - fixed, self.t - fixed], dim=1)
        longest = max(map(len, rows))
        constants, index = torch.zeros((len(rows), longest), dtype=torch.float64), []
        ends = torch.tensor([x.end or 0.0 for x in found], dtype=torch.float64).to(pool)[:, None] + pool[:, :1]
        for b, row in enumerate(rows):
            places = [0]
            for n, one in enumerate(row):
                constants[b, n] = one.t
                is_end = one.output is None and one.event is None
                where = pool.shape[1] + (longest if is_end else n)
                places.append(where if one.output is None else 1 + one.output)
            index.append(places + [places[-1]] * (longest + 1 - len(places)))
        pool = torch.cat([pool, constants.to(pool), ends], dim=1)  # as all its steps do, the end moves with the start
        return self._problem(y, start, pool.gather(1, torch.tensor(index, device=y.device)))

    def _problem(self, y: Tensor, start: Tensor, t: Tensor) -> Problem:
        """That of a piece whose samples begin there; t are its times, (batch, N)."""
        problem, fixed = self.problem, start.detach()
        at_start = (t.detach() == 0).sum(1).to(t)
        inside = [self._inside(times, fixed, t.detach()[:, -1]) for times in self._stops]
        own = Own(problem.origins + fixed, at_start, int(at_start.max()), *inside)
        times = t.detach().amax(0).tolist()
        return replace(
            problem,
            y0=y,
            t=t,
            times=times,
            origin=0.0,
            stops=(),
            jumps=(),
            own=own,
        )

    @property
    def _stops(self) -> tuple[Tensor, Tensor]:
        """Stops and jumps, (n, batch), in the whole problem's time."""
        where, t = self.problem.own or self.problem, self.t.detach()
        both = (where.stops, where.jumps)
        return tuple(x if isinstance(x, Tensor) else t.new_tensor(x)[:, None].expand(-1, len(t)) for x in both)  # pyright: ignore

    def _inside(self, times: Tensor, start: Tensor, end: Tensor) -> Tensor:
        own = times - start
        own = own.where((own >= 0) & (own <= end), math.inf).sort(0).values
        return own[: int(own.isfinite().sum(0).amax()) if own.numel() else 0]

    def _take_failures(self, piece: _Piece, trajectory: Trajectory) -> None:
        failure = trajectory.failure
        if failure is None or trajectory.statuses is None:
            return
        for b, status in enumerate(trajectory.statuses):
            if self._going[b] and status is not Status.SUCCESS:
                self.statuses[b], self._going[b] = status, False
        if self._failure is None and failure.sample is not None:
            since = float(piece.start.detach()[failure.sample])
            self._failure = replace(failure, t=failure.t + since)

    def _end_those_without_steps(self, piece: _Piece) -> None:
        """Let no sample go on that has taken all its steps."""
        over = (self._counts.sum(0) >= self.problem.max_steps).tolist()
        for b, sample in enumerate(piece.found):
            if self._going[b] and over[b] and sample.end is not None:
                self.statuses[b], self._going[b] = Status.MAX_STEPS, False
                t = float(piece.start.detach()[b]) + sample.found[-1].t
                detail = f"This is sample {b}, behind {len(self.happened)} events of all samples."
                self._failure = self._failure or Failure(Status.MAX_STEPS, t, 0.0, detail, b)

    def _take_outputs(self, piece: _Piece, ys: Tensor) -> None:
        """Write the states at the outputs that each sample has reached."""
        places = torch.full(self.ys.shape[:2], -1)
        for b, row in enumerate(piece.rows):
            for n, one in enumerate(row, 1):
                if one.output is not None:
                    places[one.output, b] = n
                    self._reached[b] = one.output + 1
        self.ys = _put(self.ys, ys, places.to(ys.device))

    def _take_events(self, piece: _Piece, ys: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[dict[int, float]]]:
        """Take up the events; where each sample goes on from, and behind which events."""
        t, here = torch.zeros_like(piece.start.detach()), [{} for _ in piece.found]  # of those that end the piece
        for k, i in itertools.product(range(max(len(x.found) for x in piece.found)), range(len(self.problem.events))):
            samples = [
                b for b, x in enumerate(piece.found) if self._going[b] and k < len(x.found) and x.found[k].of == i
            ]
            if not samples:
                continue
            when, state = self._differentiable(piece, ys, i, samples, k)
            self.happened += [Happened(i, piece.start[b].detach() + when[b], state[b], b) for b in samples]
            last = [b for b in samples if piece.found[b].ends(k)]
            sizes = self._sizes(piece, i, when, state) if last else []
            for b in last:
                here[b][i] = sizes[b]
            mask = self._mask(last)
            t, y = torch.where(mask, when, t), torch.where(mask.reshape(sample_shape(y)), state, y)
        return self._following(piece, here, t, y)

    @torch.no_grad()
    def _sizes(self, piece: _Piece, i: int, t: Tensor, y: Tensor) -> list[float]:
        """How far from 0 the condition of event i is where it was located."""
        return self.problem.events[i].value(field_times(piece.problem, t.detach()), y.detach()).abs().tolist()

    def _following(
        self, piece: _Piece, here: list[dict[int, float]], t: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, list[dict[int, float]]]:
        """Behind the events that have ended the piece at t, the samples' last ones, where there are some."""
        wanted, now = len(self.problem.times), piece.start.detach() + t
        finished = [b for b, events in enumerate(here) if events and 0 in self._left[b]]
        self._fill(finished, now, y)
        self._going = [bool(x) and b not in finished and self._reached[b] < wanted for b, x in enumerate(here)]
        for i, watched in enumerate(self.problem.events):
            mask = self._mask([b for b, events in enumerate(here) if self._going[b] and i in events])
            if watched.jump is not None and bool(mask.any()):
                y = torch.where(mask.reshape(sample_shape(y)), watched.jump(field_times(piece.problem, t), y), y)
        return y, torch.where(self._mask([b for b, on in enumerate(self._going) if on]), now, piece.start), here

    def _fill(self, samples: Sequence[int], t: Tensor, y: Tensor) -> None:
        """Where an event has ended the solve of samples, its time and state stand for all that lie behind it."""
        for b in samples:
            self.statuses[b] = Status.EVENT
        reached = torch.tensor(self._reached, device=t.device)
        late = torch.arange(len(self.ys), device=t.device)[:, None] >= reached
        late = late & self._mask(samples)
        self.ts = torch.where(late.T, t[:, None], self.ts)
        self.ys = torch.where(late.reshape(*late.shape, *(1,) * (y.dim() - 1)), y, self.ys)

    def _mask(self, samples: Sequence[int]) -> Tensor:
        mask = torch.zeros(len(self._going), dtype=torch.bool)
        mask[list(samples)] = True
        return mask.to(self._counts.device)

    def _differentiable(
        self, piece: _Piece, ys: Tensor, i: int, samples: Sequence[int], k: int
    ) -> tuple[Tensor, Tensor]:
        """Time, in the piece, and state of these samples' k-th event, with their derivatives."""
        problem, batch = piece.problem, len(ys[0])
        places = torch.zeros(batch, dtype=torch.int64)
        t = torch.zeros(batch, dtype=torch.float64)
        slope = torch.zeros_like(ys[0])
        for b in samples:
            places[b] = piece.place(b, k)
            t[b], slope[b] = piece.found[b].found[k].t, piece.found[b].found[k].slope
        t, index = t.to(ys.device), places.to(ys.device).reshape(1, *sample_shape(ys[0]))
        y = ys.gather(0, index.expand(1, *ys.shape[1:]))[0]
        if not torch.is_grad_enabled():
            return t, y
        g = self.problem.events[i].value(field_times(problem, t), y)
        if not (g.requires_grad or y.requires_grad):
            return t, y
        moved = self._moved(self._mask(samples), t, g, self._rate(problem, i, t, y, slope), y)
        past = (moved - t).to(real_dtype(y)).reshape(sample_shape(y))
        return moved, y + past * slope

    def _moved(self, mask: Tensor, t: Tensor, g: Tensor, rate: Tensor, y: Tensor) -> Tensor:
        """t − g / rate of the value t, for these samples."""
        has_slope = rate.isfinite() & (rate.abs() >= torch.finfo(rate.dtype).tiny)
        moved = t - torch.where(mask & has_slope, (g - g.detach()) / torch.where(has_slope, rate, 1), 0).to(t.dtype)
        flat = mask & ~has_slope
        return torch.where(flat, Flat.apply(t, y), moved) if bool(flat.any()) else moved

    def _rate(self, problem: Problem, i: int, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """The derivative of each sample's condition along its solution."""
        time_bar, y_bar = derivatives(self.problem.events[i].value, field_times(problem, t).detach(), y.detach())
        return time_bar.flatten() + (y_bar.conj() * slope).real[:, None].flatten(1).sum(1)


def _put(into: Tensor, ys: Tensor, places: Tensor) -> Tensor:
    """`into`, (T, batch, …), with ys[places] where a place, (T, batch), is none below 0."""
    wide = places.reshape(*places.shape, *(1,) * (into.dim() - 2))
    taken = ys.gather(0, wide.clamp(min=0).expand(into.shape))
    return torch.where(wide >= 0, taken, into)
