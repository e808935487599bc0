"""Neural controlled differential equations: dz = F(z) dX, driven by a path through the data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.adjoint import Direct
from odenets.arguments import one_of
from odenets.controller import Fixed
from odenets.nn.field import layer_sizes
from odenets.nn.models import MLP
from odenets.nn.series.inputs import check_options, last_values, static_of
from odenets.nn.series.recurrent import Readout, SeriesModel, from_last_row
from odenets.path import CubicHermite, Linear, NaturalCubic, Path
from odenets.series import Series
from odenets.solution import Stats
from odenets.solve import solve

PATHS: dict[str, type[Path]] = {
    "linear": Linear,
    "rectilinear": Linear,
    "hermite": CubicHermite,
    "natural": NaturalCubic,
}


class NeuralCDE(SeriesModel):
    """A state driven by the data themselves: dz/ds = F(z) dX/ds with a path X through time, values and counts.

    The channels of X are the time since the first row, the last observed value of each channel, and log(1 + n) of the
    number n of its observations so far (whether something is measured says much, in medicine). A solution does not
    depend on how fast its path is run through, so X is run through with one unit of s for each row: samples with
    different times are one solve, repeated times are no special case, and a sample's end is where it is.

    When to use: where the order and the shape of what happens matter, at few channels (up to about 20): F has
    hidden × channels outputs. When not: with hundreds of channels; for fast training, which `GapGRU` and `ODERNN` have.

    Args:
        channels, outputs, hidden, static, dropout: As for `GapGRU`.
        path: "linear", "rectilinear" (first time moves, then the values), "hermite" (a cubic with backward
            differences, once differentiable) or "natural" (a spline, twice differentiable, which looks ahead: not for
            answers while data are still coming in). One step of the midpoint rule a row is exact in X on the first two
            alone; the curved ones want smaller errors: `rtol=...`.
        field_hidden: Sizes of the hidden layers of F: SiLU between them, so that solvers keep their order, tanh at the
            end.
        solve_options: Options of `odenets.solve`; by default one step of the midpoint rule a row, differentiated by
            `Direct()`.

    Attributes:
        stats: `Stats` of the newest forward pass.

    Shapes: see `SeriesModel`; between rows an answer is read from the state at the last one, and the time since.
    Source: Kidger, Morrill, Foster and Lyons (2020), "Neural controlled differential equations for irregular time
    series", equations (4) to (6); the paths, Morrill et al. (2021), "Neural controlled differential equations for
    online prediction tasks".
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int = 32,
        *,
        static: int = 0,
        dropout: float = 0.0,
        path: str = "linear",
        field_hidden: int | Sequence[int] = (64,),
        **solve_options: Any,
    ) -> None:
        super().__init__(channels, outputs, hidden, static)
        self.path, self.width = one_of("path", path, PATHS), 1 + 2 * channels
        self.start = nn.Linear(self.width + static, hidden)
        self.field = MLP((hidden, *layer_sizes("field_hidden", field_hidden), hidden * self.width), "silu")
        self.readout = Readout(hidden + 1, outputs, dropout=dropout)
        self.begin = None
        check_options(solve_options, "jumps")
        chosen = {"method", "rtol", "atol", "controller"} & set(solve_options)
        steps = {} if chosen else {"method": "midpoint", "controller": Fixed(dt=1.0)}
        self.solve_options = {"adjoint": Direct(), **steps, **solve_options}
        self.stats: Stats | None = None

    def answers(self, series: Series, asked: Tensor) -> Tensor:
        x, each = self._knots(series)
        known = static_of(series)
        z0 = self.start(x[:, 0] if known is None else torch.cat([x[:, 0], known], dim=1))
        h, since, _ = from_last_row(self._solved(z0, x)[:, ::each], series, asked)
        return self.readout(torch.cat([h, since], dim=-1))

    def _knots(self, series: Series) -> tuple[Tensor, int]:
        """The knots of X, (N, K, width), and how many there are for a row."""
        values = series.values
        time = (series.times - series.start[:, None]).to(values)[..., None]
        counts = (~values.isnan()).to(values).cumsum(1).log1p()
        x = torch.cat([time, last_values(values)[0], counts], dim=-1)
        if self.path != "rectilinear":
            return x, 1
        moved = torch.cat([x[:, 1:, :1], x[:, :-1, 1:]], dim=-1)  # time has moved, the values not yet
        return torch.cat([torch.stack([x[:, :-1], moved], dim=2).flatten(1, 2), x[:, -1:]], dim=1), 2

    def _solved(self, z0: Tensor, x: Tensor) -> Tensor:
        """(N, K, hidden), z at every knot."""
        count = x.shape[1]
        if count == 1:
            self.stats = Stats()
            return z0[:, None]
        knots = torch.arange(count, dtype=torch.float64)
        path = PATHS[self.path](knots, x)
        kinks = range(1, count - 1) if PATHS[self.path] is Linear else ()
        solution = solve(self._driven, z0, knots, args=(path,), jumps=kinks, **self.solve_options)
        self.stats = solution.stats
        return solution.ys.movedim(0, 1)

    def _driven(self, s: Tensor, z: Tensor, path: Path) -> Tensor:
        matrix = torch.tanh(self.field(z)).unflatten(-1, (self.hidden, self.width))
        return (matrix @ path.derivative(s)[..., None])[..., 0]
