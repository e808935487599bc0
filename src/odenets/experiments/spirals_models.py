"""The networks of the spirals experiment, each trained by its `loss` and asked by `predict`, in units of `SCALE`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from odenets.adjoint import Direct
from odenets.controller import Fixed
from odenets.experiments import spirals_shown as shown
from odenets.experiments.spirals_data import AHEAD, BEFORE, GAP, NOISE, POINTS, SCALE, SEEN, curve, grid, places
from odenets.nn import LatentODE, MLPField
from odenets.nn.models import MLP
from odenets.nn.series.latent import backward_in_time
from odenets.series import Series
from odenets.solve import solve

LATENT, FIELD, RNN = 4, 20, 25
SOLVER: dict[str, Any] = {"method": "rk4", "controller": Fixed(dt=25 * GAP), "adjoint": Direct()}  # 4 steps for SEEN
TOLD = 0.7  # of the rows: states of the encoder further on rest on too few rows to be a target
LATER = 6  # random points behind those seen, and as many among them, at which a step looks for z
STAYS = 3.0  # weight of the term that keeps z where spirals begin


class Latent(nn.Module):
    """The latent ODE, trained by the evidence lower bound and by what makes its flow right behind the points seen.

    The bound says nothing of z at later times than those seen. But the field is autonomous, and where one spiral is not
    seen any more, others begin. So two terms are added, both of points seen alone. The encoder reads backward, and its
    state behind row j tells a distribution of z there, from the rows from j on: the flow from the first row has to meet
    that (`_meets`). And z has to stay, for twice as long as is seen, where the encoder puts spirals that begin
    (`_stays`): there the field has been trained.
    """

    def __init__(self) -> None:
        super().__init__()
        hidden = {"field_hidden": (FIELD,), "decoder_hidden": (FIELD,)}
        self.model = LatentODE(2, LATENT, RNN, sigma=NOISE / SCALE, **hidden, **SOLVER)
        with torch.no_grad():  # begin with draws close to the mean: a deviation of 1 hides every spiral
            self.model.encoder.readout[-1].bias[LATENT:] -= 3.0

    def loss(self, series: Series, share: float) -> Tensor:
        """() at that share of the training: the bound from the first row and from another, and the two terms."""
        at, last = places(series), max(2, round(TOLD * series.times.shape[1]))
        mean, log_sd = self.states(series, last)
        begun = [0, int(torch.randint(1, last, ()))]
        sd = log_sd[:, begun].exp()
        drawn = mean[:, begun] + sd * torch.randn_like(sd)
        later = torch.randint(SEEN, SEEN + AHEAD, (LATER,)).unique()
        asked = torch.cat([grid(0, SEEN), GAP * later.double()])
        z = flow(self.model.field, drawn.flatten(0, 1), asked).unflatten(0, sd.shape[:2])  # (N, 2, SEEN + …, LATENT)
        off = [
            (self.model.decoder(_at(z[:, i], at[:, row:] - at[:, row : row + 1])) - series.values[:, row:]).square()
            for i, row in enumerate(begun)
        ]
        misfit = sum(part.sum((1, 2)).mean() for part in off) / (2 * self.model.sigma**2 * len(begun))
        kl = 0.5 * (mean[:, begun].square() + sd.square() - 1 - 2 * log_sd[:, begun]).sum(-1).mean()
        meets = _meets(_at(z[:, 0], at[:, 1:last]), mean[:, 1:], log_sd[:, 1:])
        looked = torch.cat([torch.randint(1, SEEN, (LATER,)), torch.arange(SEEN, len(asked))])
        begins = mean[:, begun].detach().flatten(0, 1)
        stays = _stays(z[:, 0, looked].flatten(0, 1), begins, sd[:, 0].detach().mean())
        return (misfit + min(1.0, 4 * share) * kl + meets + STAYS * stays) / at.shape[1]

    def states(self, series: Series, last: int) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation of z at the rows before `last`, (N, last, LATENT), each from there on.

        The encoder is told gaps in units of ten points: of 0.02 for each point it would learn little.
        """
        told = backward_in_time(replace(series, times=series.times / (10 * GAP)))
        return self.model.encoder(told, told.times.flip(1)[:, :last]).chunk(2, dim=-1)

    def predict(self, series: Series, first: int, last: int) -> Tensor:
        """(N, last − first, 2), at the points from `first` on; they may lie before the first one seen."""
        return self.model.decode(self.states(series, 1)[0][:, 0], series, grid(first, last))


def flow(field: nn.Module, z0: Tensor, times: Tensor) -> Tensor:
    """(N, T, LATENT), from z0, (N, LATENT), at times that begin with 0."""
    return solve(field, z0, times, **SOLVER).ys.movedim(0, 1)


def _at(path: Tensor, index: Tensor) -> Tensor:
    """(N, K, LATENT), of (N, T, LATENT) the states at (N, K)."""
    return path.gather(1, index[..., None].expand(-1, -1, path.shape[-1]))


def _meets(z: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """() −log N(z; mean, sd²) without its constant, of all entries of a row together, the mean of rows and samples."""
    return (0.5 * ((z - mean) / log_sd.exp()).square() + log_sd).sum(-1).mean()


def _stays(z: Tensor, begun: Tensor, sd: Tensor) -> Tensor:
    """() how far z, (M, LATENT), is from all of `begun`, (K, LATENT): −log of a sum of kernels, the mean of M.

    The kernel falls as a power of the distance: of a normal one nothing would pull from further away.
    """
    square = z.square().sum(1)[:, None] + begun.square().sum(1) - 2 * z @ begun.T
    return -torch.logsumexp(-2 * torch.log1p(square.clamp(min=0) / (2 * sd**2)), 1).mean()


class AsPublished(nn.Module):
    """The latent ODE of torchdiffeq's example: a plain RNN that reads backward, the bound alone, one learning rate.

    The RNN is given the gaps too, for which the example, where all of 100 points are seen, has no need. Coordinates are
    not scaled.
    """

    falling = False

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, RNN, batch_first=True)
        self.readout = nn.Linear(RNN, 2 * LATENT)
        self.field = MLPField(LATENT, (FIELD, FIELD), "elu", time="none")
        self.decoder = MLP((LATENT, FIELD, 2), "relu")

    def loss(self, series: Series, share: float) -> Tensor:
        """() the negative bound, at any `share`."""
        mean, log_var = self._encoded(series)
        z0 = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        made = self.decoder(_at(flow(self.field, z0, grid(0, SEEN)), places(series)))
        misfit = 0.5 * ((made - SCALE * series.values) / NOISE).square().sum((1, 2))
        return (misfit + 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)).mean()

    def _encoded(self, series: Series) -> tuple[Tensor, Tensor]:
        gaps = torch.nn.functional.pad(places(series).diff(dim=1), (0, 1))  # to the row that was read before
        _, h = self.rnn(with_gap(SCALE * series.values, gaps).flip(1))
        return self.readout(h[0]).chunk(2, dim=-1)

    def predict(self, series: Series, first: int, last: int) -> Tensor:
        """(N, last − first, 2), at the points from `first` ≥ 0 on, from the mean of z(t₀)."""
        return self.decoder(flow(self.field, self._encoded(series)[0], grid(0, last))[:, first:]) / SCALE


class Rolled(nn.Module):
    """A GRU that is given a point and the gap to the next one, and says where that is; then it goes on by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, RNN, batch_first=True)
        self.readout = nn.Linear(RNN, 2)

    def loss(self, series: Series, share: float) -> Tensor:
        """() the mean squared error of the next points; `share` is for others."""
        states, _ = self.gru(with_gap(series.values[:, :-1], places(series).diff(dim=1)))
        return (self.readout(states) - series.values[:, 1:]).square().mean()

    def predict(self, series: Series, first: int, last: int) -> Tensor:
        """(N, last − first, 2), from the point `SEEN`, which is `first`, on.

        It goes on in strides as long as the mean gap that it was trained with, and looks at the points between from the
        beginning of each stride: in strides of one point its errors grow far more.
        """
        length, at_rows = series.times.shape[1], places(series)
        stride = round(SEEN / length)
        _, h = self.gru(with_gap(series.values[:, :-1], at_rows.diff(dim=1)))
        point, at, found = series.values[:, -1:], at_rows[:, -1:], []
        for place in range(first, last):
            states, after = self.gru(with_gap(point, place - at), h)
            found.append(self.readout(states))
            if (place - first + 1) % stride == 0:
                h, point, at = after, found[-1], torch.full_like(at, place)
        return torch.cat(found, dim=1)


def with_gap(values: Tensor, gaps: Tensor) -> Tensor:
    """(N, L, 3), with gaps, (N, L) in points, in units of ten."""
    return torch.cat([values, (gaps / 10)[..., None].to(values)], dim=-1)


class Held:
    """The last point seen, for ever."""

    def predict(self, series: Series, first: int, last: int) -> Tensor:
        """(N, last − first, 2)."""
        return series.values[:, -1:].expand(-1, last - first, -1)


class Known:
    """Who knows both curves: the place on them, in quarters of a point, whose points are nearest to those seen."""

    def predict(self, series: Series, first: int, last: int) -> Tensor:
        """(N, last − first, 2)."""
        begin = torch.arange(BEFORE, POINTS - SEEN, 0.25, dtype=torch.float64)
        along = begin[:, None] + torch.arange(last)
        made = torch.cat([curve(clockwise, along) for clockwise in (True, False)]) / SCALE  # (C, last, 2)
        seen_at, values = places(series), series.values.double()
        there = made.new_zeros(len(values), SEEN).scatter(1, seen_at, 1.0)
        held = made.new_zeros(len(values), SEEN, 2).scatter(1, seen_at[..., None].expand_as(values), values)
        known = made[:, :SEEN]
        off = there @ known.square().sum(-1).T - 2 * held.flatten(1) @ known.flatten(1).T  # squares, less those of held
        return made[off.argmin(1), first:].to(series.values)


MODELS: dict[str, Callable[[], Any]] = {shown.ODE: Latent, shown.THEIRS: AsPublished, shown.RNN: Rolled}
UNTRAINED: dict[str, Callable[[], Any]] = {shown.HELD: Held, shown.KNOWN: Known}
