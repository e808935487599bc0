"""Multi-time attention: a series is looked at from reference points in time, and a GRU goes over these."""

import math

import torch
from torch import Tensor, nn

from odenets.arguments import count
from odenets.nn.series.inputs import rows_before, static_of
from odenets.nn.series.recurrent import Readout, SeriesModel
from odenets.series import Series


class MTAN(SeriesModel):
    """Multi-time attention: at each of a few reference points, means of the values seen, weighted by learned times.

    A time t becomes features φ(t), of which one is linear and the others are sines, and each head h has its own. The
    reference points r are equally spaced over one unit of time from a sample's first row (`Scaling` takes the longest
    sample to that). For channel c, with values x at the times at which it was seen,

        α(r, t) = softmax over these t of  ⟨φ(r) W, φ(t) V⟩ / √d,        x̂(r) = Σ α(r, t) x(t),

    beside the share of the attention to all rows that falls on those in which c was seen. A linear layer mixes channels
    and heads, a GRU goes both ways over the reference points, and an answer is read from its ends.

    When to use: for labels, where what happened matters more than how it moved on, and where training time counts:
    there is no loop over rows, so it is the fastest on long series. When not: for answers at many times (each costs
    a forward pass of its own, since it may look at earlier rows alone), so not for `SeriesForecaster`.

    Args:
        channels, outputs, hidden, static, dropout: As for `GapGRU`.
        points: The number of reference points.
        features: Of a time, in all heads together.
        heads: How many ways of looking; `features` must be a multiple.

    Shapes: see `SeriesModel`. Where a channel was never seen, or its attention is below what the dtype holds, x̂ is 0.
    Source: Shukla and Marlin (2021), "Multi-time attention networks for irregularly sampled time series", equations
    (1) to (4), mTAND-Enc. Its code averages the mask as it does the values, over the rows in which a channel was seen,
    which gives 1; the share above is over all rows.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        hidden: int = 64,
        *,
        static: int = 0,
        dropout: float = 0.0,
        points: int = 32,
        features: int = 32,
        heads: int = 1,
    ) -> None:
        super().__init__(channels, outputs, hidden, static)
        self.points, self.heads = count("points", points), count("heads", heads)
        if count("features", features) % heads:
            raise ValueError(f"`features` must be a multiple of `heads={heads}`, got {features}")
        self.begin = None
        self.rate = nn.Parameter(torch.cat([torch.ones(1), math.pi * torch.arange(1.0, features)]))
        self.phase = nn.Parameter(torch.zeros(features))
        self.query, self.key = (nn.Linear(features, features) for _ in range(2))
        self.mix = nn.Linear(2 * heads * channels, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.readout = Readout(2 * hidden + 1 + static, outputs, hidden, dropout)

    def answers(self, series: Series, asked: Tensor) -> Tensor:
        # Each question has a sample of its own, with the rows up to it.
        n, k = asked.shape
        base = rows_before(series, asked)
        since = (asked - series.times.gather(1, base)).to(series.values)
        each = series[torch.arange(n, device=series.device).repeat_interleave(k)]
        inside = torch.arange(each.times.shape[1], device=series.device) <= base.reshape(-1, 1)
        read = [self.state(each, inside), since.reshape(-1, 1)]
        known = static_of(each)
        return self.readout(torch.cat(read if known is None else [*read, known], dim=1)).unflatten(0, (n, k))

    def state(self, series: Series, inside: Tensor) -> Tensor:
        """(N, 2 hidden), of the rows inside, (N, L)."""
        looked = self.mix(self.attended(series, inside))
        ends = self.gru(looked)[1] if len(series) else looked.new_zeros(2, 0, self.hidden)
        return torch.cat([ends[0], ends[1]], dim=1)

    def attended(self, series: Series, inside: Tensor) -> Tensor:
        """(N, points, 2 · heads · C), for each channel and head x̂ and the share of the attention."""
        values, seen = series.values.nan_to_num(), (series.mask & inside[..., None]).to(series.values)
        times = (series.times - series.start[:, None]).to(values)
        points = torch.linspace(0.0, 1.0, self.points, dtype=values.dtype, device=values.device)
        query, key = self._split(self.query(self.embedded(points))), self._split(self.key(self.embedded(times)))
        score = torch.einsum("phd,nlhd->nphl", query, key) / math.sqrt(query.shape[-1])
        attention = score.masked_fill(~inside[:, None, None], -torch.inf).softmax(-1)  # (N, points, heads, L)
        # By channel: what is left of it where the channel was seen, made to sum to 1.
        share = torch.einsum("nphl,nlc->nphc", attention, seen)
        total = torch.einsum("nphl,nlc->nphc", attention, seen * values)
        mean = torch.where(share > 0, total / share.where(share > 0, 1.0), 0.0)
        return torch.cat([mean, share], dim=-1).flatten(2)

    def embedded(self, times: Tensor) -> Tensor:
        """(..., features), of times of any shape: one is linear, the others are sines, of learned rates and phases."""
        angle = times[..., None] * self.rate + self.phase
        return torch.cat([angle[..., :1], angle[..., 1:].sin()], dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))
