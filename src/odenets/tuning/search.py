"""The search of `tune`: which candidates are tried, given up, timed, compiled and chosen."""

import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from odenets.adjoint import Adjoint
from odenets.controller import Fixed
from odenets.engine.compile import told
from odenets.engine.compile.known import compiler
from odenets.methods import Method, find
from odenets.solution import SolveError, Status
from odenets.tuning.measure import DEFAULTS, State, goes, method_text, value_of
from odenets.tuning.reference import Lab, Reference
from odenets.tuning.tuned import Row, cells, or_infinity

_FAR_SLOWER = 2.0  # times the fewest evaluations of f that suffice: a candidate that needs more is given up
_SLOWER = 1.5  # times the best time: a candidate that takes longer is dropped after the first rounds
_FIRST_ROUNDS = 3
_COMPILED = 2  # how many candidates are compiled: each takes up to a minute
_TIGHTER_HELPS = (Status.DIVERGED, Status.NON_FINITE_FIELD, Status.NON_FINITE_STATE, Status.NOT_CONVERGED)


class Limits(NamedTuple):
    loss: float
    gradient: float


Ladder = Sequence[dict[str, Any]]  # options from the cheapest to the most accurate


def ladders(
    methods: Iterable[str | Method], tolerances: Iterable[float], steps: Iterable[int], lab: Lab
) -> Iterator[Ladder]:
    finest = torch.finfo(lab.dtype).eps  # tighter tolerances are refused by the controller
    tolerances = [tolerance for tolerance in sorted(tolerances, reverse=True) if tolerance >= finest]
    for method in methods:
        if find(method).adaptive:
            yield [{"method": method, "rtol": tolerance, "atol": tolerance} for tolerance in tolerances]
        elif not lab.others.get("per_sample"):  # which fixed steps do not go with
            yield [{"method": method, "controller": Fixed(steps=n)} for n in sorted(steps)]


@dataclass
class Search:
    """The search: candidates are tried for their errors, and those that are accurate enough are timed."""

    lab: Lab
    state: State
    limits: Limits
    reference: Reference
    timer: Callable[[], float]
    rounds: int
    seconds: float
    rows: list[Row] = field(default_factory=list)

    def try_present(self) -> None:
        """Try the settings that the layer has now."""
        attempt = self._try_compiled if self.lab.present.get("compile") else self._try
        self.rows.append(replace(attempt(self.lab.present), present=True))

    def climb(self, ladder: Ladder, adjoints: Sequence[Adjoint]) -> None:
        """Try options of growing accuracy up to the first that are admissible, and on from there with each adjoint."""
        for adjoint in adjoints:
            ladder = self._climb(ladder, adjoint)

    def _climb(self, ladder: Ladder, adjoint: Adjoint) -> Ladder:
        """The rungs from the first admissible one on."""
        for i, options in enumerate(ladder):
            row = self._try({**options, "adjoint": adjoint}, self._budget())
            self.rows.append(row)
            if row.admissible:
                return ladder[i:]
            if row.failed and row.status not in _TIGHTER_HELPS:
                return ()
        return ()

    def _budget(self) -> int:
        """The most evaluations of f that a further candidate may take."""
        enough = [row.nfe for row in self.rows if row.admissible]
        return int(_FAR_SLOWER * min(enough)) if enough else self.reference.measured.nfe

    def _try(self, options: dict[str, Any], budget: int | None = None) -> Row:
        """The errors of a candidate, given up where it takes more evaluations of f than its budget."""
        allowed = self.lab.others.get("max_steps", DEFAULTS["max_steps"])
        evaluations = find(value_of(options, "method")).evaluations
        steps = allowed if budget is None else min(allowed, max(1, budget // evaluations))
        self.state.rewind()
        try:
            measured = self.lab.measure({**options, "max_steps": steps})
        except SolveError as error:
            gave_up = error.status is Status.MAX_STEPS and steps < allowed
            note = f"given up at nfe {error.stats.nfe}" if gave_up else f"{error.status.name} at t = {error.t!r}"
            return Row(options, note=note, status=error.status)
        except torch.OutOfMemoryError:
            return Row(options, note="out of memory")
        errors = self.reference.errors(measured)
        admissible = errors[0] <= self.limits.loss and errors[1] <= self.limits.gradient
        return Row(options, *errors, measured.nfe, measured.nfe_backward, admissible)

    def finalists(self) -> list[int]:
        """The rows that the choice is between: the admissible ones, or else the most accurate."""
        admissible = [i for i, row in enumerate(self.rows) if row.admissible]
        return admissible or [i for i, row in enumerate(self.rows) if row is self._most_accurate(self.rows)]

    def _most_accurate(self, rows: Sequence[Row]) -> Row:
        finished = [row for row in rows if not row.failed]
        if not finished:
            raise ValueError(
                f"no candidate reaches the last time, although {self.reference.text} does: "
                "give other `methods`, tighter `tolerances` or more `steps`"
            )
        loss, gradient = self.limits
        return min(finished, key=lambda row: max(row.loss_error / loss, row.gradient_error / gradient))

    def time(self, indices: Sequence[int]) -> None:
        """Time these rows in turn, so that a change of the machine's speed hits all alike."""
        times: dict[int, list[float]] = {i: [] for i in indices}
        racing, begun = list(indices), self.timer()
        for done in range(1, self.rounds + 1):
            for i in racing:
                times[i].append(self._time_once(self.rows[i].options))
            if done == _FIRST_ROUNDS:
                medians = {i: statistics.median(times[i]) for i in racing}
                racing = [i for i in racing if medians[i] <= _SLOWER * min(medians.values())]
            if done >= _FIRST_ROUNDS and self.timer() - begun > self.seconds:
                break
        for i in indices:
            self.rows[i] = replace(self.rows[i], seconds=statistics.median(times[i]))

    def _time_once(self, options: dict[str, Any]) -> float:
        self.state.rewind()
        self.lab.synchronize()
        begun = self.timer()
        self.lab.step(options)
        self.lab.synchronize()
        return self.timer() - begun

    def compile_best(self, verbose: bool, loud: bool) -> None:
        """Compile the candidates with the fewest evaluations of f, and time them beside the fastest eager one."""
        finalists = self.finalists()
        fastest = min(finalists, key=lambda i: or_infinity(self.rows[i].seconds))
        contestants = [fastest]
        for options in self._to_compile(finalists):
            if verbose:
                print(f"compiling {method_text(options)}, which takes up to a minute for the first time", flush=True)
            row = self._try_compiled(options)
            self.rows.append(row)
            if row.failed:
                if loud:
                    warnings.warn(f"`compile=True`: {row.note}; `tune` chooses among eager solves", stacklevel=3)
                break
            contestants.append(len(self.rows) - 1)
        if len(contestants) > 1:
            self.time(contestants)

    def _to_compile(self, finalists: Sequence[int]) -> list[dict[str, Any]]:
        rows = [self.rows[i] for i in finalists if _compilable(self.rows[i])]
        rows.sort(key=lambda row: (row.nfe + row.nfe_backward, or_infinity(row.seconds)))
        different = {cells(row)[:2]: {**row.options, "compile": True} for row in reversed(rows)}
        return list(reversed(different.values()))[:_COMPILED]

    def _try_compiled(self, options: dict[str, Any]) -> Row:
        """The same for a compiled solve; a failed row where `f` cannot be compiled, which `solve` warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row = self._try(options)
        reasons = [str(w.message).partition("The reason: ")[2] for w in caught]
        for warning, reason in zip(caught, reasons):
            if not reason:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if compiler() is None:
            return Row(options, note="this torch's compiler is not known: see the warning")
        if not told.cannot(self.lab.block.field):
            return row
        return Row(options, note=f"`f` cannot be compiled: {next(filter(None, reasons), 'see the earlier warning')}")

    def choice(self, compile: bool | None) -> Row:
        """The fastest admissible row, or else the most accurate; compiled or not, where there are such."""
        finished = [row for row in self.rows if not row.failed]
        rows = [row for row in finished if compile is None or row.compiled == compile] or finished
        admissible = [row for row in rows if row.admissible]
        if not admissible:
            return self._most_accurate(rows)
        return min(admissible, key=lambda row: or_infinity(row.seconds))


def _compilable(row: Row) -> bool:
    return not row.compiled and goes({**row.options, "compile": True})
