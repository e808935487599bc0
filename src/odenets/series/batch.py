"""`Series`: a batch of irregular time series, each with times of its own, some of its values missing."""

import contextlib
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from odenets.arguments import count, number, shown


@dataclass(frozen=True, eq=False)
class Series:
    """A batch of N irregular time series of C channels, of which the longest has L rows.

    Each row of a sample is a time and the values seen there, NaN where a channel was not. Samples are as long as they
    are: behind its own length a sample repeats its last time, with values that are NaN, and nothing takes those rows
    for observations. Make one by `odenets.series.from_long` (a table with a line for each row) or `from_arrays` (a list
    with an array for each sample), which sort and check; batches by `series[indices]`; of a list, such as a
    `DataLoader` collects, by `collate`.

    Args:
        times: (N, L), kept in float64, so seconds since 1970 lose nothing; finite, never decreasing along a row.
            Repeated times are allowed. The unit is yours.
        values: (N, L, C), floating-point; NaN where a value is missing. Infinite values are refused.
        lengths: (N,), the number of rows of each sample, from 1 to L; None: all L.
        static: (N, S), what is known of each sample at any time; NaN where it is missing; None: nothing.
        channels: The names of the C channels; by default "0", "1", ….
        ids: What the samples are called, in errors and tables; by default 0, 1, ….

    Attributes:
        mask: (N, L, C), True where a value was observed.

    Raises:
        TypeError, ValueError: If a tensor is not as described, naming the sample, the row and the channel.
    """

    times: Tensor
    values: Tensor
    lengths: Tensor = None  # pyright: ignore[reportAssignmentType] — a tensor once it is made
    static: Tensor | None = None
    channels: tuple[str, ...] = ()
    ids: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        times, values = self.times, self.values
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() != 3:
            raise TypeError(f"`values` must be a floating-point tensor (N, L, C), got {_described(values)}")
        if not isinstance(times, Tensor) or times.shape != values.shape[:2]:
            raise TypeError(f"`times` must be a tensor {tuple(values.shape[:2])} as `values`, got {_described(times)}")
        n, longest, channels = values.shape
        keep = {"times": times.detach().to(values.device, torch.float64)}
        lengths = torch.full((n,), longest) if self.lengths is None else torch.as_tensor(self.lengths)
        keep["lengths"] = lengths.to(values.device, torch.int64)
        if keep["lengths"].shape != (n,) or lengths.is_floating_point():
            raise ValueError(f"`lengths` must be ({n},), a whole number for each sample, got {_described(lengths)}")
        if self.static is not None and not _is_table(self.static, n):
            raise ValueError(f"`static` must be ({n}, S), a row for each sample, got {_described(self.static)}")
        given = (self.channels,) if isinstance(self.channels, str) else tuple(self.channels)
        names = given or tuple(map(str, range(channels)))
        if len(names) != channels:
            raise ValueError(f"`channels` must name the {channels} channels of `values`, got {len(names)} names")
        ids = tuple(self.ids) or tuple(range(n))
        if len(ids) != n:
            raise ValueError(f"`ids` must name the {n} samples, got {len(ids)}")
        for name, value in {**keep, "channels": names, "ids": ids}.items():
            object.__setattr__(self, name, value)

    def checked(self) -> "Series":
        """Itself, once the numbers are looked at: for series that were not made by `from_long` or `from_arrays`.

        Raises:
            ValueError: A length that is none, a time that is not finite or goes backward, an infinite value, an
                observation behind a sample's length; with the sample, the row and the channel.
        """
        n, longest = self.times.shape
        wrong = (self.lengths < 1) | (self.lengths > longest)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"`lengths` must be from 1 to {longest}, got {int(self.lengths[i])} for sample {self.ids[i]!r}"
            )
        self._refuse_first("times", ~self.times.isfinite(), "is not finite: leave the row out")
        back = torch.cat([self.times.new_zeros(n, 1), self.times.diff(dim=1)], dim=1) < 0
        self._refuse_first("times", back, "is before the row above it: sort the rows, as `from_arrays` does")
        self._refuse_first("values", self.values.isinf(), "is infinite: write NaN where a value is missing")
        if self.static is not None:
            self._refuse_first("static", self.static.isinf(), "is infinite: write NaN where it is missing")
        self._refuse_first("values", ~self.rows[..., None] & self.mask, "lies behind the sample's length")
        return self

    def _refuse_first(self, name: str, wrong: Tensor, text: str) -> None:
        if wrong.any():
            i, j, *k = wrong.nonzero()[0].tolist()
            channel = f", channel {self.channels[k[0]]!r}" if k else ""
            value = getattr(self, name)[(i, j, *k)].item()
            what = "column" if name == "static" else "row"
            raise ValueError(f"`{name}` of sample {self.ids[i]!r}, {what} {j}{channel}: {value!r} {text}")

    @property
    def mask(self) -> Tensor:
        return ~self.values.isnan()

    @property
    def rows(self) -> Tensor:
        """(N, L), True where a sample has a row."""
        return torch.arange(self.times.shape[1], device=self.times.device) < self.lengths[:, None]

    @property
    def start(self) -> Tensor:
        """(N,), the first time of each sample."""
        return self.times[:, 0]

    @property
    def end(self) -> Tensor:
        """(N,), the last time of each sample."""
        return self.times[:, -1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator["Series"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, which: SupportsIndex | slice | Iterable[Any] | Tensor) -> "Series":
        """Those samples, as a batch that is as long as the longest of them; of one number a batch of one."""
        index = self._places(which)
        lengths = self.lengths[index]
        most = int(lengths.max()) if len(index) else 1
        return replace(
            self,
            times=self.times[index, :most],
            values=self.values[index, :most],
            lengths=lengths,
            static=None if self.static is None else self.static[index],
            ids=tuple(self.ids[i] for i in index.tolist()),
        )

    def _places(self, which: Any) -> Tensor:
        """(n,), the whole numbers from 0 of the samples that an index means.

        Raises:
            TypeError, IndexError: If it means none.
        """
        if isinstance(which, slice):  # torch takes none that runs backward
            which = range(*which.indices(len(self)))
        if hasattr(which, "__index__") and not getattr(which, "ndim", 0):  # NumPy's integers, too
            with contextlib.suppress(TypeError):  # of a tensor that is no whole number
                which = [operator.index(which)]
        try:
            given = which if isinstance(which, Tensor) else torch.tensor([*which])
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(self._no_index(which)) from None
        if given.dtype == torch.bool and given.shape == (len(self),):
            return given.to(self.device).nonzero()[:, 0]
        whole = not (given.dtype == torch.bool or given.is_floating_point() or given.is_complex())
        if given.dim() != 1 or not (whole or given.numel() == 0):
            raise TypeError(self._no_index(which))
        given = given.to(self.device, torch.int64)
        wrong = (given < -len(self)) | (given >= len(self))
        if wrong.any():
            raise IndexError(f"there are {len(self)} samples, got index {int(given[wrong][0])}")
        return given % max(len(self), 1)

    def _no_index(self, which: Any) -> str:
        name = which if isinstance(which, str) else None
        remedy = ""
        if name in self.ids:
            remedy = f": for the sample of that name write series[series.ids.index({name!r})]"
        elif name in self.channels:
            remedy = f": for the channel of that name write series.values[..., {self.channels.index(name)}]"
        return (
            "series take a whole number, a slice, whole numbers (n,), or one True or False for each of the "
            f"{len(self)} samples, got {shown(which)}{remedy}"
        )

    def index_select(self, dim: int, index: Tensor) -> "Series":
        """The samples `index`, as `Tensor.index_select` with dim 0: so `odenets.train.fit` takes series for tensors."""
        if dim != 0:
            raise ValueError(f"`dim` must be 0, the axis of the samples, got {shown(dim)}")
        return self[index]

    def to(self, *args: Any, **options: Any) -> "Series":
        """On another device, or with values of another dtype, as `Tensor.to`; times stay in float64."""
        values = self.values.to(*args, **options)
        static = None if self.static is None else self.static.to(values.device, values.dtype)
        return replace(self, values=values, static=static)

    def until(self, time: float | Tensor) -> "Series":
        """What has been seen up to a time, one for all or (N,) one each.

        Raises:
            ValueError: If a sample has no row up to then.
        """
        try:
            at = torch.as_tensor(time, dtype=torch.float64, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"`time` must be a number, or ({len(self)},), one each, got {shown(time)}") from None
        if at.shape not in ((), (1,), (len(self),)):
            raise ValueError(f"`time` must be a number, or ({len(self)},), one each, got shape {tuple(at.shape)}")
        at = at.expand(len(self))
        seen = (self.times <= at[:, None]) & self.rows
        return self.kept(seen, "a row up to that time")

    def thinned(self, share: float, seed: int = 0) -> "Series":
        """A random part of each sample's rows: that share of them, at least one; the first one stays.

        Args:
            share: From 0 to 1.
            seed: Of the choice: equal seeds choose equal rows of an equal batch.
        """
        return self.kept(self.drawn(share, seed), "a row")

    def drawn(self, share: float, seed: int = 0) -> Tensor:
        """(N, L), True in the rows that `thinned` keeps."""
        share = number("share", share, "from 0 to 1", lambda x: 0 <= x <= 1)
        generator = torch.Generator().manual_seed(count("seed", seed, least=0))
        draw = torch.rand(self.times.shape, generator=generator).to(self.device)
        draw[:, 0] = -1.0
        draw = draw.where(self.rows, math.inf)
        rank = draw.argsort(1).argsort(1)
        wanted = (share * self.lengths).round().clamp(min=1)
        return (rank < wanted[:, None]) & self.rows

    def kept(self, keep: Tensor, what: str) -> "Series":
        """The rows marked in `keep`, in order."""
        lengths = keep.sum(1)
        if (lengths == 0).any():
            raise ValueError(
                f"sample {self.ids[int((lengths == 0).nonzero()[0])]!r} does not have {what}: leave it out"
            )
        most = int(lengths.max()) if len(lengths) else 1
        order = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        inside = torch.arange(most, device=self.device) < lengths[:, None]
        times = self.times.gather(1, order)
        times = times.where(inside, times.gather(1, lengths[:, None] - 1))
        values = self.values.gather(1, order[..., None].expand(-1, -1, self.values.shape[2]))
        return replace(self, times=times, values=values.where(inside[..., None], math.nan), lengths=lengths)

    def __repr__(self) -> str:
        seen = int(self.mask.sum())
        places = int(self.lengths.sum()) * self.values.shape[2]
        return (
            f"Series({len(self)} samples, {self.values.shape[2]} channels, up to {self.times.shape[1]} rows, "
            f"{100 * seen / max(places, 1):.0f} % of values observed)"
        )


def collate(samples: Sequence[Any]) -> Any:
    """One batch of many, of samples alone or of (samples, targets) pairs: `DataLoader(..., collate_fn=collate)`.

    Args:
        samples: `Series` of one or more samples each; or tuples that begin with one, the rest tensors or numbers,
            which are stacked.

    Raises:
        ValueError: If they have not the same channels.
    """
    samples = list(samples)
    if not samples:
        raise ValueError("`samples` must not be empty")
    if isinstance(samples[0], tuple | list):
        series, *others = zip(*samples)
        return (collate(series), *(torch.stack([torch.as_tensor(x) for x in column]) for column in others))
    return _together(samples)


def _together(samples: Sequence[Series]) -> Series:
    first = samples[0]
    for other in samples:
        if not isinstance(other, Series):
            raise TypeError(f"`samples` must be series, or tuples that begin with one, got {shown(other)}")
        if other.channels != first.channels:
            raise ValueError(f"`samples` must have the same channels: {first.channels} and {other.channels} differ")
        if _width(other) != _width(first):
            raise ValueError(f"`samples` must have the same static numbers: {_width(first)} and {_width(other)} differ")
    longest = max(s.times.shape[1] for s in samples)
    return replace(
        first,
        times=torch.cat([_longer(s.times[..., None], longest, repeat=True)[..., 0] for s in samples]),
        values=torch.cat([_longer(s.values, longest, repeat=False) for s in samples]),
        lengths=torch.cat([s.lengths for s in samples]),
        static=None if first.static is None else torch.cat([s.static for s in samples if s.static is not None]),
        ids=tuple(i for s in samples for i in s.ids),
    )


def _longer(x: Tensor, longest: int, repeat: bool) -> Tensor:
    """(N, L, C) with rows behind it, the last again or NaN, up to `longest`."""
    n, have, c = x.shape
    more = x[:, -1:].expand(n, longest - have, c) if repeat else x.new_full((n, longest - have, c), math.nan)
    return torch.cat([x, more], dim=1)


def _width(series: Series) -> int | None:
    """How many static numbers a sample has."""
    return None if series.static is None else series.static.shape[1]


def _is_table(x: Any, rows: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 2 and len(x) == rows


def _described(x: Any) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else shown(x)
