"""Irregular time series: the batch, what it is made of, and what is refused."""

import datetime
import math
import warnings
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from odenets.series import (
    Scaling,
    Series,
    collate,
    from_arrays,
    from_long,
    from_pypots,
    from_torchcde,
    gaussian_nll,
    masked_mse,
    to_pypots,
    to_torchcde,
)
from odenets.series.forms import SortedRows

NAN = math.nan


def ragged(n=6, channels=3, seed=0, longest=9, origin=0.0):
    g = torch.Generator().manual_seed(seed)
    times, values = [], []
    for _ in range(n):
        length = int(torch.randint(1, longest + 1, (), generator=g))
        times.append(origin + torch.rand(length, generator=g, dtype=torch.float64).sort().values)
        x = torch.randn(length, channels, generator=g)
        values.append(x.where(torch.rand(x.shape, generator=g) < 0.7, NAN))
    return from_arrays(times, values)


def same(a, b):
    assert torch.equal(a.lengths, b.lengths)
    assert torch.equal(a.times, b.times)
    torch.testing.assert_close(a.values, b.values, rtol=0, atol=0, equal_nan=True)


def test_a_batch_of_samples_is_what_its_samples_are():
    series = ragged()
    assert len(series) == 6
    assert series.values.shape == (6, int(series.lengths.max()), 3)
    back = collate([one for one in series])  # noqa: C416 — by iteration
    same(back, series)
    same(series[[4, 1]], collate([series[4], series[1]]))
    same(series[1:3], series[torch.tensor([1, 2])])
    same(series[-1], series.index_select(0, torch.tensor([5])))
    assert series[[]].values.shape[0] == 0
    assert (series.rows.sum(1) == series.lengths).all()
    assert not series.mask[~series.rows].any()


@pytest.mark.parametrize(
    "which", ["p", ["p"], None, 1.5, torch.tensor(1.0), torch.zeros(2, 2).long(), [True], object()]
)
def test_an_index_that_is_none_says_what_is(which):
    series = ragged()
    with pytest.raises(TypeError, match=r"whole number, a slice.*each of the 6 samples, got"):
        series[which]
    same(series[{1, 3}], series[np.array([1, 3])])
    same(series[torch.tensor(-2)], series[4])
    with pytest.raises(IndexError, match="there are 6 samples, got index -7"):
        series[[0, -7]]


def test_an_index_by_name_says_what_to_write():
    series = from_arrays([[0.0]], [[[1.0, 2.0]]], ids=["ann"], channels=["p", "q"])
    with pytest.raises(TypeError, match=r"write series\[series\.ids\.index\('ann'\)\]"):
        series["ann"]
    with pytest.raises(TypeError, match=r"write series\.values\[\.\.\., 1\]"):
        series["q"]


def test_a_loader_collects_series_and_targets():
    series = ragged()
    pairs = [(one, float(i)) for i, one in enumerate(series)]
    batch, y = next(iter(DataLoader(pairs, batch_size=4, collate_fn=collate)))
    same(batch, series[:4])
    assert y.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_epoch_seconds_and_dates_lose_nothing():
    origin = 1_700_000_000
    series = from_arrays([[origin, origin + 1, origin + 2]], [[1.0, 2.0, 3.0]])
    assert series.times.diff().tolist() == [[1.0, 1.0]]
    start = datetime.datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=ZoneInfo("Europe/Brussels"))
    dates = [start + datetime.timedelta(milliseconds=k) for k in range(3)]
    series = from_arrays([dates], [[1.0, 2.0, 3.0]])
    assert (series.times.diff() * 3_600_000).round(decimals=2).tolist() == [[1.0, 1.0]]
    stamps = np.array(["2026-01-01T11:00:00.250", "2026-01-01T11:00:01.250"], dtype="datetime64[ms]")
    assert from_arrays([stamps], [[1.0, 2.0]]).times[0, 0] == series.times[0, 0]


def test_unsorted_rows_are_sorted_and_that_is_said_and_equal_times_stay():
    with pytest.warns(SortedRows, match="1 samples were not in the order of time, the first 'b'"):
        series = from_arrays([[0.0, 0.0, 1.0], [2.0, 1.0]], [[1.0, 2.0, 3.0], [5.0, 4.0]], ids=["a", "b"])
    assert series.values[..., 0].nan_to_num(-1).tolist() == [[1, 2, 3], [4, 5, -1]]
    assert series.times.tolist() == [[0, 0, 1], [1, 2, 2]]


def test_a_table_becomes_series_in_wide_and_in_long_form():
    frame = pd.DataFrame(
        {"who": ["b", "a", "b", "b"], "h": [0.5, 1.0, 2.0, 2.0], "x": [1.0, 2.0, NAN, 3.0], "age": [NAN, 40, 61, 61]}
    )
    series = from_long(frame, id="who", time="h", values=["x"], static=["age"])
    assert series.ids == ("b", "a")
    assert series.channels == ("x",)
    assert series.static is not None
    assert series.static[:, 0].tolist() == [61, 40]
    assert series.lengths.tolist() == [3, 1]
    long = pd.DataFrame(
        {"who": [1, 1, 1, 2], "h": [0, 0, 1, 3], "what": ["x", "y", "x", "y"], "v": [1.0, 2.0, 3.0, 4.0], "s": 7.0}
    )
    series = from_long(long, id="who", time="h", values="v", variable="what", static=["s"])
    assert series.channels == ("x", "y")
    assert series.lengths.tolist() == [2, 1]
    assert series.values.nan_to_num(-1).tolist() == [[[1, 2], [3, -1]], [[-1, 4], [-1, -1]]]
    dates = frame.assign(h=["2026-01-01 00:00", "2026-01-01 06:00", "2026-01-01 12:00", "2026-01-01 18:00"])
    assert from_long(dates, id="who", time="h", values=["x"], unit="d").times.diff()[0].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.assign(x=["1", "oops", "2"]), ["line 1", "'x'", "'oops' is not a number", "leave it empty"]),
        (lambda f: f.assign(x=[1.0, math.inf, 2.0]), ["line 1", "'x'", "infinite"]),
        (lambda f: f.assign(t=[0.0, NAN, 1.0]), ["line 1", "'t'", "time is missing"]),
        (
            lambda f: f.assign(t=["2026-01-01", "soon", "2026-01-03"]),
            ["line 1", "'soon'", "neither a number nor a date"],
        ),
        (
            lambda f: f.assign(t=["2026-01-01T00:00+01:00", "2026-01-01T00:00+02:00", "2026-01-02T00:00+01:00"]),
            ["'t'", "mixes time zones", "utc=True"],
        ),
        (lambda f: f.assign(who=[1, None, 1]), ["line 1", "'who'", "no sample is named"]),
        (lambda f: f.iloc[:0], ["at least one line"]),
        (lambda f: f.drop(columns="x"), ["no column 'x'", "who, t"]),
    ],
)
def test_a_table_that_is_wrong_says_where(change, words):
    frame = pd.DataFrame({"who": [1, 1, 2], "t": [0.0, 1.0, 0.0], "x": [1.0, 2.0, 3.0]})
    with pytest.raises((ValueError, KeyError)) as caught:
        from_long(change(frame), id="who", time="t", values=["x"])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        ([[]], [[]], ["sample 0 has no row"]),
        ([[0.0, NAN]], [[1.0, 2.0]], ["sample 0, row 1", "nan"]),
        ([[0.0]], [[math.inf]], ["sample 0, row 0, channel '0'", "inf"]),
        ([[0.0]], [[1.0], [2.0]], ["1 and 2"]),
        ([[0.0, 1.0]], [[1.0]], ["(1, 1) for 2 times"]),
        ([[0.0], [0.0]], [[[1.0]], [[1.0, 2.0]]], ["[1, 2]"]),
        ([], [], ["at least one sample"]),
    ],
)
def test_arrays_that_are_wrong_say_where(times, values, words):
    with pytest.raises(ValueError, match=r"`|sample") as caught:
        from_arrays(times, values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_series_made_by_hand_is_checked_on_request():
    times = torch.tensor([[0.0, 2.0, 1.0]])
    with pytest.raises(ValueError, match=r"sample 0, row 2: 1\.0 is before the row above it"):
        Series(times, torch.zeros(1, 3, 1)).checked()
    with pytest.raises(ValueError, match=r"behind the sample.s length"):
        Series(times.sort().values, torch.zeros(1, 3, 1), torch.tensor([2])).checked()
    with pytest.raises(ValueError, match="from 1 to 3, got 0"):
        Series(times, torch.zeros(1, 3, 1), torch.tensor([0])).checked()
    with pytest.raises(TypeError, match=r"tensor \(1, 3\)"):
        Series(times[:, :2], torch.zeros(1, 3, 1))


def test_what_was_seen_until_a_time_and_a_share_of_the_rows():
    series = ragged(n=8, longest=20)
    middle = (series.start + series.end) / 2
    before = series.until(middle)
    assert (before.end <= middle).all()
    assert torch.equal(before.lengths, ((series.times <= middle[:, None]) & series.rows).sum(1))
    same(series.until(series.end), series)
    same(series.until(series.end.numpy()), series)
    thin = series.thinned(0.5, seed=3)
    same(thin, series.thinned(0.5, seed=3))
    assert torch.equal(thin.start, series.start)
    assert torch.equal(thin.lengths, (0.5 * series.lengths).round().clamp(min=1).long())
    thin.checked()
    with pytest.raises(ValueError, match="sample 2 does not have a row up to that time"):
        series.until(torch.cat([series.end[:2], series.start[2:] - 1]))


def test_scaling_is_fitted_on_one_part_and_undone():
    series = ragged(origin=1e9)
    scaled = Scaling.fit(series)(series)
    flat = scaled.values.flatten(0, 1).double()
    assert flat.nanmean(0).abs().max() < 1e-6
    assert ((flat**2).nanmean(0) - 1).abs().max() < 1e-5
    assert scaled.start.abs().max() == 0
    assert scaled.end.max() == 1
    back = Scaling.fit(series).values(scaled.values)
    torch.testing.assert_close(back, series.values, equal_nan=True)
    constant = from_arrays([[0.0, 1.0]], [[5.0, 5.0]])
    assert Scaling.fit(constant)(constant).values.flatten().tolist() == [0.0, 0.0]
    never = from_arrays([[0.0, 1.0]], [[[5.0, NAN], [5.0, NAN]]], channels=["a", "b"])
    with pytest.raises(ValueError, match="channel 'b' was never observed"):
        Scaling.fit(never)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_scaling_holds_at_every_size(size):
    series = ragged()
    large = Series(series.times * size, series.values * size, series.lengths)
    torch.testing.assert_close(Scaling.fit(large)(large).values, Scaling.fit(series)(series).values, equal_nan=True)


def test_losses_count_each_observed_value_once():
    values = torch.tensor([[[1.0, NAN], [NAN, NAN], [3.0, 5.0]]])
    predicted = torch.tensor([[[0.0, 9.0], [9.0, 9.0], [3.0, 3.0]]], requires_grad=True)
    loss = masked_mse(predicted, values)
    assert loss.item() == pytest.approx((1 + 0 + 4) / 3)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 1].tolist() == [0, 0]
    assert masked_mse(torch.stack([predicted, predicted + 1]), values).item() == pytest.approx(
        (5 / 3 + (0 + 1 + 1) / 3) / 2
    )
    nll = gaussian_nll(predicted, values, 2.0)
    normal = torch.distributions.Normal(torch.tensor([0.0, 3.0, 3.0]), 2.0)
    assert nll.item() == pytest.approx(-normal.log_prob(torch.tensor([1.0, 3.0, 5.0])).sum().item())
    with pytest.raises(ValueError, match="no observation"):
        masked_mse(predicted, values * NAN)


def test_other_libraries_forms_go_there_and_back():
    series = ragged()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = from_torchcde(to_torchcde(series), lengths=series.lengths)
        lengths = (~series.values.isnan()).any(2).flip(1).int().argmax(1)
        pots = from_pypots(to_pypots(series[(lengths < series.times.shape[1]).nonzero()[:, 0]]))
    torch.testing.assert_close(back.values, series.values, equal_nan=True)
    torch.testing.assert_close(back.times, series.times - series.start[:, None], rtol=1e-6, atol=1e-7)
    assert pots.values.shape[2] == 3
    x = torch.tensor([[[0.0, 1.0], [2.0, 5.0], [NAN, NAN]]])
    assert from_torchcde(x).times.tolist() == [[0.0, 2.0]]
    with pytest.raises(ValueError, match="sample 1 has no observation"):
        from_pypots({"X": torch.tensor([[[1.0]], [[NAN]]])})


def test_pypots_times_are_those_of_every_other_form():
    x = torch.randn(2, 3, 1)
    dates = [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=2 * i) for i in range(3)]
    for times in (dates, [dates, dates], np.array(dates, dtype="datetime64[s]"), torch.tensor([[0, 2, 4]] * 2)):
        assert (from_pypots({"X": x}, times=times).times.diff() == 2).all()
    for times in ([0, 1], [[0, 1, 2]], [[0, 1, 2], [0, 1]], range(4)):
        with pytest.raises(ValueError, match=r"`times` must be \(3,\) or \(2, 3\), got"):
            from_pypots({"X": x}, times=times)
    for data, times, words in (
        ("abc", None, r'`data\["X"\]` must be'),
        (x, 3.0, "a sequence of times"),
        (x, "abc", "numbers"),
    ):
        with pytest.raises(TypeError, match=words):
            from_pypots({"X": data}, times=times)


def table(**columns):
    frame = pd.DataFrame({"who": ["a", "a", "b"], "t": [0.0, 1.0, 0.0], "x": [1.0, NAN, 3.0]})
    return frame.assign(**columns)


H = datetime.timedelta(hours=1)
DAY = datetime.datetime(1600, 1, 1)


@pytest.mark.parametrize(
    ("times", "hours"),
    [
        ([0 * H, 2 * H], 2),
        (np.array([0, 120], dtype="timedelta64[m]"), 2),
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], 24),
        ([np.datetime64("2020-01-01"), np.datetime64("2020-01-02")], 24),
        (
            np.array(["1600-01-01", "2500-01-01"], dtype="datetime64[s]"),
            24 * (datetime.datetime(2500, 1, 1) - DAY).days,
        ),
        (pd.date_range("2020-03-29", periods=2, freq="2h", tz="Europe/Berlin"), 2),
        (pd.Series([0.0, 2.0], index=[7, 9]), 2),
    ],
)
def test_times_of_every_kind_are_hours(times, hours):
    assert from_arrays([times], [[1.0, 2.0]]).times.diff().item() == pytest.approx(hours, rel=1e-15)
    if not isinstance(times, pd.Series):
        frame = table(t=[*times, times[0]])
        assert from_long(frame, id="who", time="t").times[0].diff().item() == pytest.approx(hours, rel=1e-15)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([DAY, DAY.replace(tzinfo=datetime.UTC)], "mixes dates with and without a time zone"),
        ([5.0, DAY], "throughout, got 5.0"),
        (0.0, "a sequence of times, got 0.0"),
        (torch.tensor([0, 1j]), "complex numbers"),
    ],
)
def test_times_of_two_kinds_are_refused(times, words):
    with pytest.raises((TypeError, ValueError), match=words):
        from_arrays([times], [[1.0, 2.0]])


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "string"])
def test_pandas_own_dtypes_and_missing_values(dtype):
    series = from_long(table(x=pd.array([1, None, 0], dtype=dtype)), id="who", time="t", values="x")
    assert series.values.nan_to_num(-1).flatten().tolist() == [1, -1, 0, -1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"t": ["0", "1", "2"]}, r"numbers as text: write frame\['t'\]"),
        ({"t": ["00:07", "00:37", "01:37"]}, "'00:07' is neither a number nor a date.*to_timedelta"),
        ({"t": ["2020-01-01 01:00+01:00", "2020-01-01 03:00", "2020-01-02"]}, "mixes time zones"),
        ({"x": pd.to_datetime(["2020-01-01"] * 3)}, "holds datetime64.*no real numbers"),
        ({"x": ["low", "high", "low"]}, r"'low' is not a number.*map\("),
    ],
)
def test_text_and_dates_are_not_taken_for_numbers(change, words):
    with pytest.raises(ValueError, match=words):
        from_long(table(**change), id="who", time="t")


def test_what_is_no_table_says_what_to_write():
    for frame, words in (({}, "pandas.DataFrame"), (table().set_index(["who", "t"]), "reset_index")):
        with pytest.raises((TypeError, KeyError), match=words):
            from_long(frame, id="who", time="t")
    long = pd.DataFrame({"who": [1, 1, 2], "t": [0, 1, 2], "what": ["x", "y", "x"], "v": [1.0, 2.0, NAN]})
    series = from_long(long, id="who", time="t", values="v", variable="what")
    assert series.ids == (1, 2)  # a sample without a value is still one
    assert series.mask.sum() == 2
    with pytest.raises(ValueError, match=r"line 1.*no channel is named"):
        from_long(long.assign(what=["x", None, "x"]), id="who", time="t", values="v", variable="what")


def test_numbers_that_are_none_are_refused():
    one, x = from_arrays([[0.0]], [[1.0]]), torch.zeros(2, 3, 2)
    for call, words in (
        (lambda: one.until("noon"), "`time` must be a number"),
        (lambda: one.thinned("half"), "`share` must be from 0 to 1, got 'half'"),
        (lambda: one.thinned(0.5, "a"), "`seed` must be an integer"),
        (lambda: gaussian_nll(one.values, one.values, 0.0), "`sigma` must be a positive number, got 0.0"),
        (lambda: Scaling.fit(x), r"`series` must be an `odenets\.Series`"),
        (lambda: Scaling.fit(one)(x), r"`series` must be an `odenets\.Series`"),
        *(
            (lambda n=n: from_torchcde(x, lengths=n), r"`lengths` must be \(2,\)")
            for n in ([1], [1, 4], [0, 1], [1.0, 2.0])
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_what_does_not_belong_together_is_refused():
    one = from_arrays([[0.0]], [[1.0]], static=[[1.0]])
    two = from_arrays([[0.0]], [[[1.0, 2.0]]])
    with pytest.raises(ValueError, match=r"\(1, 1\), and these have \(2, None\)"):
        Scaling.fit(one)(two)
    with pytest.raises(ValueError, match="same static numbers: 1 and None"):
        collate([one, from_arrays([[0.0]], [[1.0]])])
    with pytest.raises(ValueError, match=r"shape of `values`, \(3, 1\)"):
        masked_mse(torch.zeros(3), torch.ones(3, 1))
    with pytest.raises(TypeError, match="`dtype` must be floating-point"):
        from_arrays([[0.0]], [[1.0]], dtype=torch.int64)
    with pytest.raises(ValueError, match="`ids` must name the 1 samples, got 2"):
        from_arrays([[0.0]], [[1.0]], ids=["a", "b"])
    with pytest.raises(ValueError, match="`static` of sample 0, column 0: inf"):
        from_arrays([[0.0]], [[1.0]], static=[[math.inf]])
    assert ragged()[::-1].ids == tuple(reversed(ragged().ids))
