"""What may be given for a number, a count and the times, and what an error shows of the rest."""

import datetime
import math
import re
import warnings
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odenets import METHODS, PID, Backsolve, Checkpointed, Fixed, Reversible, check_gradient, solve
from odenets.arguments import shown
from odenets.nn import MLPField, ODEBlock, activation

Y0 = torch.ones(2, dtype=torch.float64)


def decay(t, y):
    return -y


# --- numbers ----------------------------------------------------------------------------------------------------------

SAME = [np.float64, np.float32, lambda x: torch.tensor(x, dtype=torch.float64), Fraction]


@pytest.mark.parametrize("kind", SAME, ids=["float64", "float32", "tensor", "Fraction"])
def test_numbers_of_every_kind(kind):
    assert PID(rtol=kind(0.25), atol=kind(0.5), dt0=kind(1.5)) == PID(rtol=0.25, atol=0.5, dt0=1.5)
    assert Fixed(dt=kind(0.25)) == Fixed(dt=0.25)
    assert type(Fixed(dt=kind(0.25)).dt) is float
    assert torch.equal(solve(decay, Y0, (0.0, 1.0), rtol=kind(0.25)).ys, solve(decay, Y0, (0.0, 1.0), rtol=0.25).ys)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "tensor"])
def test_counts_of_every_kind(kind):
    assert Fixed(steps=kind(4)) == Fixed(steps=4)
    assert type(Fixed(steps=kind(4)).steps) is int
    assert solve(decay, Y0, (0.0, 1.0), max_steps=kind(99)).stats.accepted > 0
    assert ODEBlock(MLPField(3), augment=kind(1)).augment == 1


NO_NUMBER = ["1e-3", b"1", [1e-6, 1e-6], (1e-6,), True, np.True_, torch.tensor(True), np.ones(2), torch.ones(2), 1j]
NO_NUMBER += [
    torch.tensor(1j),
    np.complex64(1j),
    datetime.timedelta(1),
    NotImplemented,
    torch.tensor(1.0, requires_grad=True),
]


@pytest.mark.parametrize("value", [x for x in NO_NUMBER if not hasattr(x, "__len__") or isinstance(x, str)], ids=shown)
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_what_is_no_tolerance_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"^`{name}` must be .*, got "):
        PID(**{name: value})


@pytest.mark.parametrize("value", NO_NUMBER, ids=shown)
@pytest.mark.parametrize("name", ["safety", "factor_min", "factor_max", "dt0", "dt_max", "dt_min", "p", "i", "d"])
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"^`{name}` must be .*, got "):
        PID(**{name: value})


@pytest.mark.parametrize("value", [*NO_NUMBER, None, {}, set()], ids=shown)
def test_fixed_refuses_them_too(value):
    for name in ("dt", "steps"):
        with pytest.raises(TypeError, match=f"^(`{name}` must be .*, got |Fixed takes either)"):
            Fixed(**{name: value})
    with pytest.raises(TypeError, match=r"^`max_steps` must be an integer ≥ 1, got "):
        solve(decay, Y0, (0.0, 1.0), max_steps=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(dt=math.inf), "`dt` must be a number above 0 .*got inf"),
        (lambda: Fixed(dt=math.nan), "`dt` must be a number above 0 .*got nan"),
        (lambda: Fixed(steps=np.int64(0)), "`steps` must be an integer ≥ 1, got 0"),
        (lambda: PID(rtol=math.inf), "`rtol` must be a number ≥ 0, got inf"),
        (lambda: PID(p=math.nan), "`p` must be a finite number, got nan"),
        (lambda: solve(decay, Y0, (0.0, 1.0), method=["tsit5"]), "`method` must be one of .*got \\['tsit5'\\]"),
        (lambda: Checkpointed(memory="1 " * 40_000), "`memory` must be bytes"),
        (lambda: activation("x" * 90_000), "`activation` must be one of"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(steps=2.5), "`steps` must be an integer ≥ 1, got 2.5$"),
        (lambda: Fixed(steps=3.0), "`steps` must be an integer ≥ 1, got 3.0: write 3"),
        (lambda: PID(rtol="1e-3"), "`rtol` must be a number ≥ 0, got '1e-3': write it without the quotes"),
        (lambda: PID(safety=[0.9, 0.8]), r"`safety` must be in \(0, 1\], got \[0.9, 0.8\]: give one number"),
        (lambda: PID(rtol=torch.ones((), requires_grad=True)), r"`rtol`.* requires grad.*write rtol.item\(\)"),
        (
            lambda: solve(Y0, decay, (0.0, 1.0)),
            r"`f` must be a function f\(t, y\), got Tensor of shape.*solve\(f, y0, t\)",
        ),
    ],
)
def test_what_to_write_instead(make, message):
    with pytest.raises(TypeError, match=message):
        make()


# --- times ------------------------------------------------------------------------------------------------------------

RIGHT = solve(decay, Y0, (0.0, 1.0, 2.0)).ys
TIMES = [
    [0, 1, 2],
    (0.0, 1, 2.0),
    range(3),
    torch.arange(3),
    torch.arange(3, dtype=torch.uint8),
    torch.arange(3.0),
    np.arange(3),
    np.arange(3.0, dtype=np.float32),
    pd.Series([0.0, 1.0, 2.0], index=[5, 6, 7]),
    pd.Index([0, 1, 2]),
    [torch.tensor(0.0), torch.tensor(1), np.float32(2)],
]


@pytest.mark.parametrize("t", TIMES, ids=shown)
def test_times_of_every_kind(t):
    assert torch.equal(solve(decay, Y0, t).ys, RIGHT)


@given(st.integers(-(2**53) + 8, 2**53 - 8))
def test_integer_times_are_exact(start):
    """As floats of half the digits, these would collapse or be reversed."""
    y0 = torch.zeros(1, dtype=torch.float64)
    for t in (torch.tensor([start, start + 1, start + 4]), [start, start + 1, start + 4]):
        sol = solve(lambda t, y: torch.ones_like(y), y0, t, method="euler", controller=Fixed(steps=4))
        assert sol.ys.flatten().tolist() == [0.0, 1.0, 4.0]


def seconds(n):
    return [datetime.datetime(2024, 1, 1, second=i) for i in range(n)]


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (1.0, r"`t` must be the times in order.*got 1.0: write \(0.0, 1.0\)"),
        (np.float64(1.0), r"write \(0.0, 1.0\), the start and the end"),
        (torch.tensor(1.0), r"got shape \(\): write \(0.0, t\)"),
        (None, r"got None: write t=\(0.0, 1.0\)"),
        ("01", "got '01'"),
        ({0.0, 1.0}, r"has no order: write sorted\(t\)"),
        ({"a": 0.0, "b": 1.0}, r"write list\(t.values\(\)\)"),
        (iter([0.0, 1.0]), r"write list\(t\)"),
        ((x for x in (0.0, 1.0)), r"write list\(t\)"),
        (seconds(2), r"`t` must be numbers.*\[\(x - t\[0\]\).total_seconds\(\) for x in t\]"),
        (np.array(seconds(2), dtype="datetime64[s]"), r"\(t - t\[0\]\) / np.timedelta64\(1, 's'\)"),
        (pd.Series(seconds(2)), r"\(t - t.iloc\[0\]\).dt.total_seconds\(\)"),
        (pd.to_datetime(seconds(2)), "`t` must be numbers"),
        ([pd.Timestamp(x) for x in seconds(2)], "`t` must be numbers"),
        (pd.DataFrame({"t": [0.0, 1.0]}), "`t` must be 1-D, got DataFrame of shape .*take one column"),
        (np.zeros((2, 2)), "`t` must be 1-D"),
        ([[0.0, 1.0]], r"`t` must be 1-D, got \[0.0, 1.0\] as t\[0\]"),
        ([0.0, "1"], r"`t\[1\]` must be a number, got '1'"),
        ([0.0, None], r"`t\[1\]` must be a number, got None"),
        ([0.0, 1j], r"`t\[1\]` must be a number, got 1j"),
        ([False, True], r"`t\[0\]` must be a number, got False"),
        ([0.0, torch.ones(1)], r"`t\[1\]` must be a number, got Tensor of shape \(1,\)"),
        (torch.tensor([False, True]), "`t` must be real numbers, got dtype torch.bool"),
        (torch.zeros(2, 2), r"`t` must be 1-D.*got shape \(2, 2\)"),
        (torch.tensor([2**53, 2**53 + 2]), r"integers up to 2\*\*53.*t - t\[0\]"),
        ([2**53, 2**53 + 2], r"integers up to 2\*\*53"),
        ([0.0, math.inf], "`t` must be finite, got inf"),
        ([1.7e9, 1.7e9 + 0.001, 1.7e9], r"t\[1\] = 1700000000.001 is followed by 1700000000.0"),
    ],
    ids=lambda x: re.sub(r"at 0x\w+", "", shown(x)) if not isinstance(x, str) else None,  # the same in each process
)
def test_what_is_no_times_is_refused(t, message):
    for use in (lambda: solve(decay, Y0, t), lambda: check_gradient(decay, Y0, t, verbose=False)):
        with pytest.raises((TypeError, ValueError), match=message):
            use()
    if not isinstance(t, str):
        with pytest.raises((TypeError, ValueError)):
            ODEBlock(decay, t=t)(Y0)


# --- how a value is shown ---------------------------------------------------------------------------------------------

HUGE = [
    "x" * 90_000,
    list(range(90_000)),
    {i: torch.ones(3) for i in range(90_000)},
    torch.ones(300, 300),
    np.ones((300, 300)),
    pd.DataFrame(np.ones((300, 300))),
    OrderedDict((str(i), i) for i in range(9_000)),
    type("X", (), {"__repr__": lambda self: "line\n" * 9_000})(),
    type("Y", (), {"__repr__": lambda self: 1 / 0})(),
]


@pytest.mark.parametrize("value", HUGE, ids=lambda value: type(value).__name__)
def test_no_error_is_long(value):
    assert len(shown(value)) <= 120
    assert "\n" not in shown(value)
    calls = [
        lambda: PID(safety=value),
        lambda: solve(decay, Y0, (0.0, 1.0), rtol=value),
        lambda: solve(decay, {"a": Y0}, (0.0, 1.0), atol=value),
        lambda: Fixed(steps=value),
        lambda: Backsolve(method=value).integrate(None),
        lambda: solve(value, Y0, (0.0, 1.0)),
        lambda: solve(decay, {"a": "b" * 90_000}, (0.0, 1.0)),
        lambda: solve(decay, Y0, {"t": value}),
        lambda: solve(decay, Y0, (0.0, 1.0), method=value),
        lambda: solve(decay, Y0, (0.0, 1.0), adjoint=value),
        lambda: solve(decay, Y0, (0.0, 1.0), controller=value),
        lambda: solve(decay, Y0, (0.0, 1.0), on_failure=value),
        lambda: Reversible(coupling=value),
        lambda: MLPField(3, time=value),
        lambda: ODEBlock(decay, augment=value),
    ]
    for call in calls:
        with warnings.catch_warnings(), pytest.raises((TypeError, ValueError, AttributeError)) as caught:
            call()
        assert len(str(caught.value)) < 600


def test_what_is_short_is_shown_whole():
    assert shown("rk45") == "'rk45'"
    assert shown(Checkpointed()) == "Checkpointed(memory=None, activations=None)"
    assert shown(torch.ones(2, 3)) == "Tensor of shape (2, 3), torch.float32"
    assert shown(METHODS) != ""
