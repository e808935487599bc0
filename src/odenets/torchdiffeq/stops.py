"""Times at which steps have to end, found one after another."""

import math
from collections.abc import Iterable

_ROUNDING = 4 * 2.0**-52

Place = tuple[float, float]  # the time since the start, and the index of the next stop


class Stops:
    """Times at which steps end, in a solve that begins at `start`; counted from there, as the solver counts.

    They are asked for in their order, so each is found at once, however many there are.
    """

    begin: Place = (0.0, 0.0)

    def __init__(self, times: Iterable[float], start: float) -> None:
        self.times = sorted({time - start for time in times if time > start})

    def ahead(self, place: Place) -> float:
        """The size of a step that ends on the next stop, as the solver adds it to the time; infinite after the last."""
        t, index = place
        if index >= len(self.times):
            return math.inf
        stop = self.times[int(index)]
        dt = stop - t
        return dt if t + dt == stop else math.nextafter(dt, math.inf if t + dt < stop else -math.inf)

    def after(self, place: Place, dt: float) -> Place:
        """The place after a step of size dt, which passes no stop by more than a rounding error."""
        t, index = place[0] + dt, place[1]
        # A step that the solver ended on a time of its own may be a rounding error short of a stop.
        slack = 0.0 if dt == self.ahead(place) else 1e-12 * dt + _ROUNDING * t
        while index < len(self.times) and self.times[int(index)] <= t + slack:
            index += 1
        return t, index
