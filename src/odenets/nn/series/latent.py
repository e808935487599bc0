"""Latent ODEs: a distribution of the state at a sample's first row, and an ODE that makes the series from it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import count, number, one_of
from odenets.nn.field import layer_sizes
from odenets.nn.models import MLP
from odenets.nn.series.inputs import FIELD, check_options, check_series, field_of, questions, sizes, solved
from odenets.nn.series.recurrent import ODERNN, GapGRU
from odenets.series import Series, gaussian_nll
from odenets.solution import Stats

ENCODERS = {"gru": GapGRU, "ode_rnn": ODERNN}


class LatentODE(nn.Module):
    """A variational autoencoder of series: an encoder that goes backward through the rows gives z(t₀), an ODE the rest.

    `model(series, at)` predicts values at any times, before, between and behind the rows, from the mean of z(t₀);
    `model.elbo(series, target)` is what to train with.

    When to use: to fill gaps, to extrapolate, and for series that are a deterministic motion seen with noise; it says
    how sure it is (draw z(t₀) several times). When not: where only a label is wanted, which `ODERNN` learns faster; for
    series that get surprises on the way (an ICU patient), since everything has to be in z(t₀).

    Args:
        channels: C of the series, predicted too.
        latent: Dimension of z.
        hidden: Width of the encoder's state.
        static: S of the series.
        sigma: The standard deviation of an observation, in units of the scaled values.
        encoder: "gru" or "ode_rnn".
        field: dz/dt = field(t, z), t from a sample's first row; None: an `MLPField` with hidden layers `field_hidden`.
        decoder_hidden: Hidden layers from z to the values.
        solve_options: Options of `odenets.solve` for the decoder; `rtol=1e-3, atol=1e-4` where nothing is
            given. All samples take the same steps, and are there at all times that any of them is asked at; with
            `per_sample=True` each has its own times and steps, for samples that need very different ones.

    Attributes:
        stats: `Stats` of the newest decoding.

    Shapes: series as for `SeriesModel`, predictions (N, K, C).
    Source: Chen et al. (2018), "Neural ordinary differential equations", section 5; Rubanova, Chen and Duvenaud (2019),
    section 3.2. There the likelihood of a channel that was never observed counts as 0 in a mean; here each observed
    value counts once.
    """

    def __init__(
        self,
        channels: int,
        latent: int = 8,
        hidden: int = 40,
        *,
        static: int = 0,
        sigma: float = 0.1,
        encoder: str = "gru",
        field: nn.Module | None = None,
        field_hidden: int | Sequence[int] = FIELD,
        decoder_hidden: int | Sequence[int] = (50,),
        **solve_options: Any,
    ) -> None:
        super().__init__()
        sizes(channels=channels, latent=latent, hidden=hidden, static=static)
        self.channels, self.latent, self.static = channels, latent, static
        self.sigma = number("sigma", sigma, "a positive number", lambda x: 0 < x < math.inf)
        self.encoder = ENCODERS[one_of("encoder", encoder, ENCODERS)](channels, 2 * latent, hidden, static=static)
        self.field = field_of(field, latent, field_hidden, "the LatentODE")
        self.decoder = MLP((latent, *layer_sizes("decoder_hidden", decoder_hidden), channels), "relu")
        check_options(solve_options)
        tolerances = {} if "controller" in solve_options else {"rtol": 1e-3, "atol": 1e-4}
        self.solve_options = {**tolerances, **solve_options}
        self.stats: Stats | None = None

    def encode(self, series: Series) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of z at the first row, (N, latent) each."""
        check_series(series, self, self.channels, self.static)
        return self.encoder(backward_in_time(series)).chunk(2, dim=-1)

    def decode(self, z0: Tensor, series: Series, at: Tensor | None = None) -> Tensor:
        """The values that follow from z0.

        Args:
            z0: (N, latent), or (draws, N, latent): states at each sample's first row.
            series: Whose samples; only their times are looked at.
            at: (K,) or (N, K), any times; None: the rows of the series.

        Returns:
            (N, K, C), or (draws, N, K, C).
        """
        at = series.times if at is None else questions(series, at, causal=False)
        lags = at - series.start[:, None]
        draws = z0.shape[:-2]
        lags = lags.expand(*draws, *lags.shape).flatten(0, -2)
        z = self._trajectory(z0.reshape(-1, self.latent), lags)
        return self.decoder(z).reshape(*draws, *at.shape, self.channels)

    def forward(self, series: Series, at: Tensor | None = None) -> Tensor:
        """(N, K, C), the values at the times `at` (None: the rows of the series), from the mean of z(t₀)."""
        return self.decode(self.encode(series)[0], series, at)

    def sample(self, series: Series, at: Tensor | None = None, draws: int = 10) -> Tensor:
        """(draws, N, K, C), values for draws of z(t₀): their spread says how sure the model is."""
        mean, log_sd = self.encode(series)
        z0 = mean + log_sd.exp() * torch.randn(count("draws", draws), *mean.shape, dtype=mean.dtype, device=mean.device)
        return self.decode(z0, series, at)

    def elbo(self, series: Series, target: Series | None = None, *, draws: int = 1, kl_weight: float = 1.0) -> Tensor:
        """(N,), the evidence lower bound of each sample: E log p(target | z) − KL(q(z | series) ‖ N(0, 1)).

        Args:
            series: What the encoder sees.
            target: What is to be explained; None: the series. Its samples must be those of `series`.
            draws: Of z for each sample. One suffices for training.
            kl_weight: Below 1 while the training begins, so that the encoder is not ignored.
        """
        target = series if target is None else target
        mean, log_sd = self.encode(series)
        noise = torch.randn(count("draws", draws), *mean.shape, dtype=mean.dtype, device=mean.device)
        predicted = self.decode(mean + log_sd.exp() * noise, series, target.times)
        nll = gaussian_nll(predicted, target.values, self.sigma).mean(0)
        kl = 0.5 * (mean.square() + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(-1)
        return -nll - kl_weight * kl

    def _trajectory(self, z0: Tensor, lags: Tensor) -> Tensor:
        """(N, K, latent), z at times since the first row, of any sign and order."""
        if lags.numel() == 0:
            self.stats = Stats()
            return z0.new_zeros(*lags.shape, self.latent)
        ordered, order = lags.sort(dim=1, stable=True)
        parts, self.stats = [], Stats()
        for side in (-1.0, 1.0):
            inside = (side * ordered).clamp(min=0.0)
            if side < 0:
                inside = inside.flip(1)
            if not bool((inside > 0).any()) and side < 0:
                continue
            z = self._one_way(z0, side * torch.cat([torch.zeros_like(inside[:, :1]), inside], dim=1))[:, 1:]
            parts.append(z.flip(1) if side < 0 else z)
        z = parts[-1] if len(parts) == 1 else torch.where((ordered < 0)[..., None], *parts)
        return z.gather(1, order.argsort(1)[..., None].expand_as(z))

    def _one_way(self, z0: Tensor, times: Tensor) -> Tensor:
        """(N, T, latent), for times (N, T) that begin with 0 and go one way."""
        if self.solve_options.get("per_sample"):
            return self._states(z0, times).movedim(0, 1)
        every, place = times.unique(return_inverse=True)
        if bool((times < 0).any()):
            every, place = every.flip(0), len(every) - 1 - place
        return self._states(z0, every)[place, torch.arange(len(z0), device=z0.device)[:, None]]

    def _states(self, z0: Tensor, times: Tensor) -> Tensor:
        """(T, N, latent), z at the times."""
        solution = solved(self.field, self.field, z0, times, (), self.solve_options)
        solution.stats.add(self.stats or Stats())
        self.stats = solution.stats
        return solution.ys


def backward_in_time(series: Series) -> Series:
    """The series seen from each sample's last row: its rows the other way round, times since that one."""
    rows = torch.arange(series.times.shape[1], device=series.device)
    index = (series.lengths[:, None] - 1 - rows).clamp(min=0)
    times = series.end[:, None] - series.times.gather(1, index)
    values = series.values.gather(1, index[..., None].expand_as(series.values))
    return replace(series, times=times, values=values.where(series.rows[..., None], math.nan))
