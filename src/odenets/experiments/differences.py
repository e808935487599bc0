"""Which of two is better? Differences between rows of equal seeds, and what they settle.

Use it where several things are run with the same seeds: the luck that a seed brings to both (data, weights) cancels,
so that a paired difference settles more than two means with their deviations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from odenets.experiments.driver import Row, groups, interval, spread
from odenets.experiments.result import Table

UNSETTLED = "not settled"


class Measure(NamedTuple):
    """A number that is compared: the key of the rows, its heading, and which way is better."""

    key: str
    heading: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Comparison:
    """What is compared with what, and by which numbers.

    Args:
        reference: The entry `by` of the rows that all others are compared with.
        measures: The numbers.
        by: The key whose entries are compared.
        within: Keys of which rows must agree to be compared.
        collapsed: Whether a row is that of a failure whose number would hide all others; its seeds are also left out.
    """

    reference: str
    measures: Sequence[Measure]
    by: str = "network"
    within: tuple[str, ...] = ()
    collapsed: Callable[[Row], bool] | None = None

    def differences(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Each thing minus the reference, paired by seed: mean and 95 % confidence interval of each measure.

        `values` are the differences of `seeds`, those that both have, in order; `without_collapsed` is the estimate
        without the `collapsed` seeds, None where there is none.
        """
        return [
            {**dict(zip(self.within, place)), self.by: name, "quantity": measure.key, **paired}
            for place, here in groups(rows, self.within).items()
            for (name,), mine in groups(here, [self.by]).items()
            if name != self.reference
            for measure in self.measures
            if (paired := self._paired(mine, [row for row in here if row[self.by] == self.reference], measure.key))
        ]

    def _paired(self, mine: Sequence[Row], others: Sequence[Row], key: str) -> dict[str, Any]:
        ours, theirs = ({r["seed"]: r for r in rows if r.get(key) is not None} for rows in (mine, others))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return {}
        values = {seed: ours[seed][key] - theirs[seed][key] for seed in seeds}
        failed = self.collapsed or (lambda row: False)
        lost = [seed for seed in seeds if failed(ours[seed]) or failed(theirs[seed])]
        kept = [values[seed] for seed in seeds if seed not in lost]
        return {
            **estimate([*values.values()]),
            "values": [*values.values()],
            "seeds": seeds,
            "collapsed": lost,
            "without_collapsed": estimate(kept) if lost and kept else None,
        }

    def verdict(self, difference: Row) -> str:
        """The name of the better of the two, or that this is not settled."""
        low, high = difference["low"], difference["high"]
        if low is None or not (low > 0 or high < 0):  # NaN settles nothing either
            return UNSETTLED
        return difference[self.by] if (low > 0) == self._measure(difference).higher_is_better else self.reference

    def other(self, difference: Row) -> str:
        """The name of the worse of the two, where one is."""
        return self.reference if self.verdict(difference) == difference[self.by] else difference[self.by]

    def _measure(self, difference: Row) -> Measure:
        return next(measure for measure in self.measures if measure.key == difference["quantity"])

    def table(self, paired: Sequence[Row], note: str = "") -> Table:
        """The differences, each with its interval and what that settles."""
        rows = []
        for d in paired:
            rows.append((f"{d[self.by]} − {self.reference}", *self._cells(d)))
            if d["without_collapsed"]:
                rows.append((f"the same without seeds {d['collapsed']}", *self._cells({**d, **d["without_collapsed"]})))
        return Table(
            "Paired differences over the seeds, with 95 % confidence interval",
            ("pair", "quantity", "better", "mean", "low", "high"),
            tuple(rows),
            note="Student's t on the differences of equal seeds. An interval that holds zero settles nothing."
            + f" {note}".rstrip(),
        )

    def _cells(self, d: Row) -> tuple[str | float | None, ...]:
        return self._measure(d).heading, self.verdict(d), d["mean"], d["low"], d["high"]


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % confidence interval, which one value alone does not have."""
    (low, high), found = interval(values), spread(values)
    return {"mean": None if found is None else found["mean"], "low": low, "high": high}
