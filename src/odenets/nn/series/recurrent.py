"""Networks that go through the rows of a series: a GRU that is told the gaps, GRU-D, ODE-RNN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from odenets.adjoint import Direct
from odenets.arguments import count, number, one_of
from odenets.controller import PID, Fixed
from odenets.methods import find
from odenets.nn.series.inputs import (
    FIELD,
    check_options,
    check_series,
    field_of,
    gaps,
    last_values,
    questions,
    rows_before,
    since_seen,
    sizes,
    solved,
    static_of,
)
from odenets.series import Series
from odenets.solution import Stats


class Readout(nn.Sequential):
    """From the state to the outputs: dropout, then one linear layer, or two with a ReLU between them."""

    def __init__(self, width: int, outputs: int, hidden: int = 0, dropout: float = 0.0) -> None:
        dropout = number("dropout", dropout, "a probability below 1", lambda p: 0 <= p < 1)
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        if hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden or width, outputs))


class Pooled(nn.Module):
    """The state that an answer is read from: the last one, or it beside the mean of those behind the rows so far."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = one_of("pool", pool, ("last", "mean"))

    def width(self, hidden: int) -> int:
        return hidden if self.pool == "last" else 2 * hidden

    def forward(self, h: Tensor, states: Tensor, base: Tensor) -> Tensor:
        """(N, K, width), of states h (N, K, hidden) at the questions and (N, L, hidden) behind the rows."""
        if self.pool == "last":
            return h
        rows = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)
        return torch.cat([h, at_rows(states.cumsum(1) / rows[:, None], base)], dim=-1)


class SeriesModel(nn.Module):
    """What the models of this package share: `model(series)` and `model(series, at)`.

    Args (of `forward`):
        series: N samples, scaled (`Scaling`): models take times and values for numbers of about 1.
        at: Times of questions, (K,) for all samples or (N, K) for each its own, not before a sample's first row; None:
            at its last row.

    Returns:
        (N, outputs), or (N, K, outputs) with `at`. What is answered at a time depends on rows up to that time alone.

    Raises:
        TypeError, ValueError: If series or times do not fit the model.
    """

    def __init__(self, channels: int, outputs: int, hidden: int, static: int) -> None:
        super().__init__()
        sizes(channels=channels, outputs=outputs, hidden=hidden, static=static)
        self.channels, self.outputs, self.hidden, self.static = channels, outputs, hidden, static
        self.begin = nn.Linear(static, hidden) if static else None

    def forward(self, series: Series, at: Tensor | None = None) -> Tensor:
        check_series(series, self, self.channels, self.static)
        out = self.answers(series, questions(series, at))
        return out[:, 0] if at is None else out

    def answers(self, series: Series, asked: Tensor) -> Tensor:
        """(N, K, outputs), at the times asked, (N, K), none before a sample's first row."""
        raise NotImplementedError

    def first_state(self, series: Series) -> Tensor:
        """(N, hidden), from what is static."""
        known = static_of(series)
        if self.begin is None or known is None:
            return series.values.new_zeros(len(series), self.hidden)
        return torch.tanh(self.begin(known))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, outputs={self.outputs}, hidden={self.hidden}, static={self.static}"


class GapGRU(SeriesModel):
    """A GRU whose input says what was seen and how long ago the last row was: the plain baseline.

    Each row's input is the last observed value of each channel, which ones are new, and the gap since the row before;
    an answer between rows is read from the state at the last one, and the time since.

    When to use: first, and beside every other model. It is the fastest on long series, since its loop is PyTorch's own.

    Args:
        channels: C of the series.
        outputs: Numbers of an answer: classes, or channels to predict.
        hidden: Width of the state.
        static: S of the series.
        dropout: Of the readout's input.
        pool: "last", an answer is read from the state; or "mean", from it and the mean of the states behind all rows so
            far, for labels that are about the whole sample.
        layers: Of the GRU.

    Shapes: see `SeriesModel`. Source: Che et al. (2018), "Recurrent neural networks for multivariate time series with
    missing values", where it is GRU-simple.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int = 64,
        *,
        static: int = 0,
        dropout: float = 0.0,
        pool: str = "last",
        layers: int = 1,
    ) -> None:
        super().__init__(channels, outputs, hidden, static)
        self.pooled = Pooled(pool)
        self.gru = nn.GRU(2 * channels + 1, hidden, num_layers=count("layers", layers), batch_first=True)
        self.readout = Readout(self.pooled.width(hidden) + 1, outputs, dropout=dropout)

    def answers(self, series: Series, asked: Tensor) -> Tensor:
        values, times = series.values, series.times
        last, _ = last_values(values)
        x = torch.cat([last, (~values.isnan()).to(values), gaps(times)[..., None].to(values)], dim=-1)
        states = self._states(x, series) if len(series) else x.new_zeros(0, x.shape[1], self.hidden)
        h, since, base = from_last_row(states, series, asked)
        return self.readout(torch.cat([self.pooled(h, states, base), since], dim=-1))

    def _states(self, x: Tensor, series: Series) -> Tensor:
        """(N, L, hidden), behind each row."""
        packed = pack_padded_sequence(x, series.lengths.cpu(), batch_first=True, enforce_sorted=False)
        first = self.first_state(series)
        first = torch.stack([first, *[torch.zeros_like(first)] * (self.gru.num_layers - 1)])
        return pad_packed_sequence(self.gru(packed, first)[0], batch_first=True)[0]


Last = tuple[Tensor, Tensor]  # of `last_values`


class Recurrent(SeriesModel):
    """A loop over the rows, in which the state moves from row to row and takes in what is new.

    Samples that have no row left are in the loop no longer, so its cost is that of all rows, and not of the longest
    sample times the batch. Answers are given from the last row before them, all in one move, so what else is asked
    does not change them.
    """

    def __init__(
        self, channels: int, outputs: int, hidden: int, inputs: int, static: int, dropout: float, pool: str
    ) -> None:
        super().__init__(channels, outputs, hidden, static)
        self.pooled = Pooled(pool)
        self.cell_input = nn.Linear(inputs, 3 * hidden)
        self.cell_state = nn.Linear(hidden, 3 * hidden)
        self.readout = Readout(self.pooled.width(hidden), outputs, dropout=dropout)

    def inputs(self, series: Series, last: Last) -> Tensor:
        """(N, L, inputs), what the cell is given in each row."""
        raise NotImplementedError

    def moving(self, series: Series, last: Last, base: Tensor, at: Tensor) -> Tensor:
        """(N, K, …), what `move` is given to get from the rows `base`, (N, K), to the times `at`, (N, K)."""
        raise NotImplementedError

    def move(self, h: Tensor, by: Tensor) -> Tensor:
        """The state (n, hidden) later, from that behind a row."""
        raise NotImplementedError

    def answers(self, series: Series, asked: Tensor) -> Tensor:
        base, last = rows_before(series, asked), last_values(series.values)
        states = self.states(series, last)
        h, by = at_rows(states, base), self.moving(series, last, base, asked)
        moved = self.move(h.flatten(0, 1), by.flatten(0, 1)).unflatten(0, base.shape)
        return self.readout(self.pooled(moved, states, base))

    def states(self, series: Series, last: Last) -> Tensor:
        """(N, L, hidden), behind each row; 0 behind a sample's end."""
        order = series.lengths.argsort(descending=True, stable=True)
        rows = torch.arange(series.times.shape[1], device=series.device)
        inside = rows < series.lengths[:, None]
        active = inside.sum(0).tolist()
        given = self.cell_input(self.inputs(series, last))[order].unbind(1)
        before = (rows - 1).clamp(min=0).expand_as(inside)
        by = self.moving(series, last, before, series.times)[order].unbind(1)
        h, found = self.first_state(series)[order], []
        for i, n in enumerate(active):
            h = h[:n] if i == 0 else self.move(h[:n], by[i][:n])
            h = self._updated(h, given[i][:n])
            found.append(h)
        flat = torch.cat([*found, h.new_zeros(1, self.hidden)])
        starts = torch.tensor([0, *active], device=series.device).cumsum(0)[:-1]
        return flat[(starts + order.argsort()[:, None]).where(inside, len(flat) - 1)]

    def _updated(self, h: Tensor, given: Tensor) -> Tensor:
        """The state after a row, by the equations of the GRU (Cho et al. 2014, as in `torch.nn.GRUCell`)."""
        x_r, x_z, x_n = given.chunk(3, dim=1)
        h_r, h_z, h_n = self.cell_state(h).chunk(3, dim=1)
        reset, keep = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        new = torch.tanh(x_n + reset * h_n)
        return new + keep * (h - new)


class GRUD(Recurrent):
    """GRU-D: missing values decay from the last observed one to the mean, the state decays to zero, both learnt.

    When to use: as the strongest plain baseline on medical series, where whether a value was measured says much. When
    not: on long series with hundreds of channels, where `GapGRU` is faster.

    Args:
        channels, outputs, hidden, static, dropout, pool: As for `GapGRU`.

    Shapes: see `SeriesModel`; the mean that values decay to is 0, that of scaled values.
    Source: Che et al. (2018), equations (4) to (12).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int = 64,
        *,
        static: int = 0,
        dropout: float = 0.0,
        pool: str = "last",
    ) -> None:
        super().__init__(channels, outputs, hidden, 2 * channels, static, dropout, pool)
        # Weight and bias of one number a channel. A weight of 0 would stay: the ReLU behind it has no slope there.
        self.decay_values = nn.Parameter(torch.stack([torch.ones(channels), torch.zeros(channels)]))
        self.decay_state = nn.Linear(channels, hidden)

    def inputs(self, series: Series, last: Last) -> Tensor:
        values, times = series.values, series.times
        known, seen = last
        rows = torch.arange(times.shape[1], device=times.device).expand_as(times)
        since = since_seen(times, seen, (rows - 1).clamp(min=0), times).to(values)
        before = torch.cat([torch.zeros_like(known[:, :1]), known[:, :-1]], dim=1)
        weight, bias = self.decay_values
        decayed = torch.exp(-torch.relu(weight * since + bias)) * before
        mask = ~values.isnan()
        return torch.cat([values.nan_to_num().where(mask, decayed), mask.to(values)], dim=-1)

    def moving(self, series: Series, last: Last, base: Tensor, at: Tensor) -> Tensor:
        since = since_seen(series.times, last[1], base, at).to(series.values)
        return torch.exp(-torch.relu(self.decay_state(since)))

    def move(self, h: Tensor, by: Tensor) -> Tensor:
        return by * h


class ODERNN(Recurrent):
    """A GRU whose state follows an ODE from row to row: dh/dt = f(t, h) between rows, a GRU's update at each.

    Every sample has its own gaps, and all go through one solve a row, on the time that has passed since the row before
    as a share of the gap.

    When to use: for irregular series, where the gaps matter and answers are wanted between and after rows. When not:
    for long regular series, where a GRU does the same in a tenth of the time.

    Args:
        channels, outputs, hidden, static, dropout, pool: As for `GapGRU`.
        field: The vector field f(t, h), an `nn.Module`; None: an `MLPField` with hidden layers `field_hidden`.
        field_hidden: The sizes of these layers.
        solve_options: Options of `odenets.solve`: `method`, `rtol`, `adjoint`, …. By default one step of the midpoint
            rule a gap, `method="midpoint", controller=Fixed(steps=1)`, differentiated by `Direct()`; with
            tolerances the first step that is tried is the whole gap.

    Attributes:
        stats: `Stats` of the newest forward pass, of all rows together.

    Shapes: see `SeriesModel`. Source: Rubanova, Chen and Duvenaud (2019), "Latent ODEs for irregularly-sampled time
    series", algorithm 1.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int = 64,
        *,
        static: int = 0,
        dropout: float = 0.0,
        pool: str = "last",
        field: nn.Module | None = None,
        field_hidden: int | Sequence[int] = FIELD,
        **solve_options: Any,
    ) -> None:
        super().__init__(channels, outputs, hidden, 2 * channels, static, dropout, pool)
        self.field = field_of(field, hidden, field_hidden, "the ODERNN")
        check_options(solve_options, "stops", "jumps")
        self.solve_options = {"adjoint": Direct(), **_on_gaps(solve_options)}
        self.stats: Stats | None = None

    def inputs(self, series: Series, last: Last) -> Tensor:
        """The last observed values and which are new: a row that lacks a channel does not say that it is 0."""
        return torch.cat([last[0], (~series.values.isnan()).to(series.values)], dim=-1)

    def moving(self, series: Series, last: Last, base: Tensor, at: Tensor) -> Tensor:
        """When the rows `base` were, since the first, and the gaps."""
        then = series.times.gather(1, base)
        return torch.stack([then - series.start[:, None], at - then], dim=-1).to(series.values.dtype)

    def move(self, h: Tensor, by: Tensor) -> Tensor:
        # PyTorch's compiler takes no two tensors of one storage into a loop.
        begun, gap = by[:, :1].clone(), by[:, 1:].clone()
        solution = solved(self.field, self._on_gap, h, (0.0, 1.0), (begun, gap), self.solve_options)
        stats = solution.stats
        if isinstance(stats.accepted, Tensor):  # each sample's own, and a later row has fewer of them
            stats.accepted, stats.rejected = stats.accepted.sum(), stats.rejected.sum()
        if self.stats is not None:
            stats.add(self.stats)
        self.stats = stats
        return solution.ys[-1]

    def _on_gap(self, share: Tensor, h: Tensor, begun: Tensor, gap: Tensor) -> Tensor:
        return gap * self.field(begun + share * gap, h)

    def forward(self, series: Series, at: Tensor | None = None) -> Tensor:
        self.stats = None
        return super().forward(series, at)


def _on_gaps(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a solve over a gap, in which the first step that is tried goes all the way.

    Choosing it takes two evaluations of f, as many as the midpoint rule takes in all.
    """
    if not {"method", "rtol", "atol", "controller"} & set(options):
        return {"method": "midpoint", "controller": Fixed(steps=1), **options}
    if "controller" in options or not find(options.get("method", "tsit5")).adaptive:
        return options
    tolerances = {name: options[name] for name in ("rtol", "atol") if name in options}
    others = {name: value for name, value in options.items() if name not in tolerances}
    return {**others, "controller": PID(**tolerances, dt0=1.0)}


def from_last_row(states: Tensor, series: Series, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each question, (N, K): the state behind the last row up to it, the time since, (N, K, 1), and that row."""
    base = rows_before(series, asked)
    since = (asked - series.times.gather(1, base)).to(series.values)
    return at_rows(states, base), since[..., None], base


def at_rows(states: Tensor, base: Tensor) -> Tensor:
    """(N, K, hidden), of states (N, L, hidden) those of the rows `base`, (N, K)."""
    return states.gather(1, base[..., None].expand(-1, -1, states.shape[2]))
