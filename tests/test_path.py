"""Inputs u(t): right values, exact gradients, every transform, and f gets them in every way that it gets anything."""

import copy
import itertools
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline, CubicSpline, interp1d

from odenets import Backsolve, Checkpointed, Direct, Fixed, Interpolated, path, solve

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from torch.func.jvp's first call
D = torch.float64
KINDS = [path.Constant, path.Linear, path.Rectilinear, path.CubicHermite, path.NaturalCubic]
EVERY = pytest.mark.parametrize("kind", KINDS)
PLAIN = pytest.mark.parametrize("kind", [k for k in KINDS if k is not path.Rectilinear])
T = torch.tensor([0.0, 0.5, 0.8, 2.0, 2.1, 3.0], dtype=D)
BETWEEN = torch.tensor([0.1, 0.5, 0.79, 1.3, 2.05, 2.1, 2.9], dtype=D)
NAN = float("nan")


def signal(*shape, seed=0):
    torch.manual_seed(seed)
    return torch.randn(*shape, dtype=D)


def channels(kind, value):
    """The channels of u alone."""
    return value[..., 1:] if kind is path.Rectilinear else value


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("knots", "seed"), [(2, 0), (3, 1), (4, 2), (7, 3), (65, 4), (300, 5)])
def test_natural_cubic_is_that_of_scipy(knots, seed):
    u = signal(2, knots, 3, seed=seed)
    t = 0.01 + torch.rand(knots, dtype=D).pow(4).cumsum(0)  # intervals of very unequal lengths
    t = t + torch.arange(knots) * 1e-3
    at = torch.cat([t, torch.linspace(t[0], t[-1], 101, dtype=D)])
    ours, theirs = path.NaturalCubic(t, u), CubicSpline(t, u, axis=1, bc_type="natural")
    for order, values in enumerate((ours(at), ours.derivative(at))):
        expected = torch.from_numpy(theirs(at.numpy(), order)).movedim(1, 0)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(("kind", "name"), [(path.Constant, "previous"), (path.Linear, "linear")])
def test_constant_and_linear_are_those_of_scipy(kind, name):
    u = signal(2, 6, 3)
    expected = interp1d(T.numpy(), u.numpy(), kind=name, axis=1)(BETWEEN.numpy())
    torch.testing.assert_close(kind(T, u)(BETWEEN), torch.from_numpy(expected).movedim(1, 0))


def test_cubic_hermite_has_the_slope_of_the_interval_before():
    u = signal(6, 2)
    slopes = u.diff(dim=0) / T.diff()[:, None]
    theirs = CubicHermiteSpline(T, u, torch.cat([slopes[:1], slopes]))
    ours = path.CubicHermite(T, u)
    torch.testing.assert_close(ours(BETWEEN), torch.from_numpy(theirs(BETWEEN)))
    torch.testing.assert_close(ours.derivative(BETWEEN), torch.from_numpy(theirs(BETWEEN, 1)))
    torch.testing.assert_close(ours.derivative(T)[1:], slopes)


def test_rectilinear_moves_time_and_then_the_value():
    ours = path.Rectilinear([10.0, 12.0, 13.0], torch.tensor([[1.0], [3.0], [7.0]], dtype=D))
    at = torch.tensor([10.0, 10.5, 11.0, 11.5, 12.0, 12.25, 12.5, 12.75, 13.0], dtype=D)
    expected = [[0, 1], [1, 1], [2, 1], [2, 2], [2, 3], [2.5, 3], [3, 3], [3, 5], [3, 7]]
    torch.testing.assert_close(ours(at), torch.tensor(expected, dtype=D))
    torch.testing.assert_close(ours.derivative(10.5), torch.tensor([2.0, 0.0], dtype=D))
    torch.testing.assert_close(ours.derivative(11.5), torch.tensor([0.0, 2.0], dtype=D))
    assert ours.knots.tolist() == [11.0, 12.0, 12.5]


@pytest.mark.parametrize("kind", [path.Constant, path.Linear, path.Rectilinear, path.CubicHermite])
def test_up_to_a_knot_nothing_depends_on_what_comes_after(kind):
    u = signal(6, 2)
    later = u.clone()
    later[4:] = 99.0
    at = torch.tensor([0.2, 0.9, 2.0], dtype=D)
    torch.testing.assert_close(kind(T, u)(at), kind(T, later)(at), rtol=0, atol=0)


@EVERY
def test_the_derivative_is_that_of_the_value(kind):
    ours = kind(T, signal(2, 6, 3))
    at = torch.tensor([0.1, 0.3, 0.7, 1.3, 2.02, 2.07, 2.9], dtype=D)  # no kinks
    _, slope = torch.func.jvp(ours, (at,), (torch.ones_like(at),))
    torch.testing.assert_close(ours.derivative(at), slope)
    step = 1e-6
    torch.testing.assert_close(ours.derivative(at), (ours(at + step) - ours(at - step)) / (2 * step), rtol=0, atol=1e-6)


@EVERY
def test_at_the_ends_the_derivative_is_that_inside(kind):
    ours = kind(T, signal(6, 3))
    for end, inside in ((0.0, 1e-9), (3.0, 3.0 - 1e-9)):
        torch.testing.assert_close(ours.derivative(end), ours.derivative(inside), rtol=0, atol=1e-6)


@EVERY
def test_one_knot_and_two(kind):
    u = torch.tensor([[1.0, 5.0], [2.0, 3.0]], dtype=D)
    one = kind([4.0], u[:1], outside="hold")
    torch.testing.assert_close(channels(kind, one(7.0)), u[0])
    assert not one.derivative(4.0).any()
    assert len(one.knots) == 0
    two = kind([4.0, 6.0], u)
    torch.testing.assert_close(channels(kind, two(torch.tensor([4.0, 6.0]))), u)
    if kind in (path.Linear, path.CubicHermite, path.NaturalCubic):
        torch.testing.assert_close(two(4.5), torch.tensor([1.25, 4.5], dtype=D))


def test_knots_are_where_it_is_not_smooth():
    inner, ends = T[1:-1].tolist(), [T[0].item(), T[-1].item()]
    for kind, expected in (
        (path.Constant, T[1:].tolist()),
        (path.Linear, inner),
        (path.CubicHermite, inner),
        (path.NaturalCubic, []),
    ):
        assert kind(T, signal(6, 2)).knots.tolist() == expected
        held = kind(T, signal(6, 2), outside="hold")
        assert held.knots.tolist() == (expected if kind is path.Constant else [ends[0], *expected, ends[1]])
        assert held.jumps.tolist() == (expected if kind is path.Constant else [])


@EVERY
def test_times_far_from_zero_lose_nothing(kind):
    """In seconds since 1970, with u in float32."""
    t = 1.7e9 + torch.arange(6, dtype=D) / 64
    u, at = signal(6, 2).float(), torch.arange(21, dtype=D) / 256
    torch.testing.assert_close(kind(t, u)(1.7e9 + at), kind(t - 1.7e9, u)(at), rtol=0, atol=0)
    assert kind(t, u).t.dtype == D
    assert kind(t.numpy(), u)(1.7e9).dtype == torch.float32


@EVERY
def test_the_unit_of_time_changes_nothing(kind):
    """Down to where the square of an interval is no number of float32."""
    u, at = signal(6, 2).float(), BETWEEN
    for unit in (2.0**-100, 2.0**100):
        value = channels(kind, kind(T * unit, u)(at * unit))
        torch.testing.assert_close(value, channels(kind, kind(T, u)(at)), rtol=1e-6, atol=1e-6)


increasing = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=8).map(lambda d: list(itertools.accumulate(d)))
seeds = st.integers(0, 2**16)


@EVERY
@settings(max_examples=25, deadline=None)
@given(t=increasing, seed=seeds)
def test_at_its_knots_it_has_the_values_given(kind, t, seed):
    u = signal(3, len(t), 2, seed=seed)
    torch.testing.assert_close(channels(kind, kind(t, u)(torch.tensor(t, dtype=D))), u.movedim(1, 0))


@EVERY
@settings(max_examples=25, deadline=None)
@given(t=increasing, seed=seeds, share=st.floats(0, 1))
def test_it_is_linear_in_u(kind, t, seed, share):
    u, v = signal(len(t), 2, seed=seed), signal(len(t), 2, seed=seed + 1)
    at = t[0] + share * (t[-1] - t[0])
    mixed = channels(kind, kind(t, 2 * u - 3 * v)(at))
    torch.testing.assert_close(mixed, channels(kind, 2 * kind(t, u)(at) - 3 * kind(t, v)(at)), rtol=1e-9, atol=1e-9)


@EVERY
@settings(max_examples=25, deadline=None)
@given(t=increasing, seed=seeds, share=st.floats(0, 1), shift=st.integers(-1000, 1000))
def test_a_shift_of_time_changes_nothing(kind, t, seed, share, shift):
    u, moved = signal(len(t), 2, seed=seed), [x + shift for x in t]
    i = min(int(share * (len(t) - 1)), max(len(t) - 2, 0))
    at, then = (x[i] + 0.3 * (x[-1] - x[i] if len(t) < i + 2 else x[i + 1] - x[i]) for x in (t, moved))
    torch.testing.assert_close(kind(moved, u)(then), kind(t, u)(at), rtol=1e-6, atol=1e-6)


def test_ten_thousand_knots_take_a_moment():
    """A loop over the knots, or a matrix of them, would take many times as long; and the values are still right."""
    t, u = torch.linspace(0, 100, 10_000, dtype=D), signal(8, 10_000, 3)
    start = time.process_time()
    ours = path.NaturalCubic(t, u)
    assert time.process_time() - start < 5
    theirs = CubicSpline(t, u[0], bc_type="natural")(37.123)
    torch.testing.assert_close(ours(37.123)[0], torch.from_numpy(theirs))


@EVERY
def test_complex_and_half_precision(kind):
    u = torch.complex(signal(6, 2), signal(6, 2, seed=1))
    value = channels(kind, kind(T, u)(BETWEEN))
    torch.testing.assert_close(value.real, channels(kind, kind(T, u.real)(BETWEEN)))
    torch.testing.assert_close(value.imag, channels(kind, kind(T, u.imag)(BETWEEN)))
    half = channels(kind, kind(T, u.real.bfloat16())(BETWEEN))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), value.real, rtol=0.1, atol=0.1)


# --- shapes ----------------------------------------------------------------------------------------------------------


@PLAIN
def test_many_times_come_first(kind):
    ours = kind(T, signal(2, 6, 3))
    at = torch.tensor([[0.1, 2.2, 1.0], [0.4, 2.9, 3.0]], dtype=D)
    assert ours(at).shape == (2, 3, 2, 3)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(ours(at)[i, j], ours(at[i, j].item()), rtol=0, atol=0)
    assert ours(torch.empty(0, dtype=D)).shape == (0, 2, 3)
    for one in (1.0, 1, np.float64(1.0), torch.tensor(1), torch.tensor(1.0, dtype=D)):
        torch.testing.assert_close(ours(one), ours(at)[0, 2], rtol=0, atol=0)


@PLAIN
def test_a_signal_without_channels(kind):
    u = signal(6)
    ours, same = kind(T, u), kind(T, u[:, None])
    assert ours(0.3).shape == ()
    torch.testing.assert_close(ours(BETWEEN), same(BETWEEN)[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(ours(BETWEEN[:, None]), same(BETWEEN[:, None]), rtol=0, atol=0)


@PLAIN
def test_a_time_for_each_sample(kind):
    """As f gets it with `per_sample=True`: it goes with the state by broadcasting."""
    at = torch.tensor([0.1, 2.2, 1.0, 0.1], dtype=D)
    shared, own, wide = (kind(T, signal(*shape)) for shape in ((6, 3), (4, 6, 3), (4, 5, 6, 3)))
    assert shared(at[:, None]).shape == own(at[:, None]).shape == (4, 3)
    assert shared(at[:, None, None]).shape == own(at[:, None, None]).shape == (4, 1, 3)
    assert wide(at[:, None]).shape == wide(at[:, None, None]).shape == (4, 5, 3)
    for i in range(4):
        torch.testing.assert_close(shared(at[:, None])[i], shared(at[i]), rtol=0, atol=0)
        torch.testing.assert_close(own.derivative(at[:, None])[i], own.derivative(at[i])[i], rtol=0, atol=0)
        torch.testing.assert_close(wide(at[:, None])[i], wide(at[i])[i], rtol=0, atol=0)


# --- missing values --------------------------------------------------------------------------------------------------

GAPS = torch.tensor([[NAN, 1.0, NAN, NAN, 2.0, NAN], [3.0, NAN, 4.0, 5.0, 6.0, 7.0]], dtype=D).T


@PLAIN
def test_missing_values_lie_between_the_observed_ones(kind):
    filled = GAPS.clone()
    filled[:, 0] = torch.from_numpy(np.interp(T, T[[1, 4]], [1.0, 2.0]))
    filled[1, 1] = np.interp(0.5, [0.0, 0.8], [3.0, 4.0])
    if kind is path.Constant:
        filled = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 5.0, 6.0, 7.0]], dtype=D).T
    torch.testing.assert_close(kind(T, GAPS)(BETWEEN), kind(T, filled)(BETWEEN))
    assert GAPS.isnan().sum() == 5


def test_rectilinear_takes_missing_values_from_the_past():
    value = path.Rectilinear(T, GAPS)(T)
    assert value[:, 1].tolist() == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]


@EVERY
def test_gradients_go_to_what_was_observed(kind):
    u = GAPS.clone().requires_grad_()
    kind(T, u)(BETWEEN).sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert not u.grad[GAPS.isnan()].any()
    observed = GAPS.nan_to_num(0.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: kind(T, torch.where(GAPS.isnan(), NAN, x))(BETWEEN), (observed,), check_undefined_grad=False
    )


@EVERY
def test_a_channel_without_an_observation(kind):
    u = torch.stack([signal(6), torch.full((6,), NAN, dtype=D)], dim=1)
    with pytest.raises(ValueError, match=r"`u` must have an observation in every channel, u\[:, 1\] is NaN throughout"):
        kind(T, u)
    with pytest.raises(ValueError, match=r"u\[1, :, 1\] is NaN throughout: .* write unobserved=\"zeros\""):
        kind(T, torch.stack([signal(6, 2), u]))
    ours = kind(T, u.requires_grad_(), unobserved="zeros")
    assert not ours(BETWEEN)[:, -1].any()
    ours(BETWEEN).sum().backward()
    assert u.grad is not None
    assert not u.grad[:, 1].any()


# --- outside of the knots --------------------------------------------------------------------------------------------


@PLAIN
def test_outside_of_the_knots(kind):
    u = signal(6, 2)
    ours = kind(T, u)
    for bad in (-0.1, 3.1, np.array([1.0, 3.1]), torch.tensor(-7), NAN):
        with pytest.raises(ValueError, match=r"`t` must lie within the knots, \[0.0, 3.0\], got .*outside=\"hold\" or"):
            ours(bad)
    at = torch.tensor([-1.0, 4.0], dtype=D)
    held = kind(T, u, outside="hold")
    torch.testing.assert_close(held(at), u[[0, -1]])
    assert not held.derivative(at).any()
    torch.testing.assert_close(held.derivative(T), ours.derivative(T), rtol=0, atol=0)
    extended = kind(T, u, outside="extend")
    torch.testing.assert_close(extended(BETWEEN), ours(BETWEEN), rtol=0, atol=0)
    if kind is path.Linear:
        torch.testing.assert_close(extended(4.0), u[-1] + (u[-1] - u[-2]) / 0.9)
    if kind is path.NaturalCubic:
        theirs = CubicSpline(T, u, bc_type="natural")(at)
        torch.testing.assert_close(extended(at), torch.from_numpy(theirs))


@EVERY
@pytest.mark.parametrize("outside", ["error", "hold"])
def test_a_time_in_float32_may_be_rounded_over_the_end(kind, outside):
    t = torch.tensor([0.1, 0.5, 10.1], dtype=D)
    ours, end = kind(t, signal(3, 2), outside=outside), torch.tensor(10.1)
    assert end.double() > t[-1]
    torch.testing.assert_close(ours(end), ours(t[-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.derivative(end), ours.derivative(t[-1]), rtol=0, atol=1e-5)


@EVERY
def test_where_nobody_can_look_outside_is_nan(kind):
    ours = kind(T, signal(6, 2))
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: ours(t), fullgraph=True, backend="eager")
    value = compiled(torch.tensor([-1.0, 0.3, 3.5], dtype=D))
    assert value.isnan().all(-1).tolist() == [True, False, True]
    torch.testing.assert_close(value[1], ours(0.3))


# --- derivatives, transforms, copies ---------------------------------------------------------------------------------


@EVERY
def test_gradients_are_exact(kind):
    u, at = signal(2, 6, 2).requires_grad_(), torch.tensor([0.1, 1.3, 2.9], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: kind(T, u)(at.detach()), (u,))
    assert torch.autograd.gradcheck(lambda u: kind(T, u).derivative(at.detach()), (u,))
    if kind is not path.Constant:
        assert torch.autograd.gradcheck(kind(T, u.detach()), (at,))
        assert torch.autograd.gradgradcheck(lambda u: kind(T, u)(at), (u,))


@EVERY
def test_function_transforms(kind):
    u, at = signal(2, 6, 2), BETWEEN
    ours = kind(T, u)
    torch.testing.assert_close(torch.vmap(ours)(at), ours(at))
    torch.testing.assert_close(torch.vmap(lambda u: kind(T, u)(at), out_dims=1)(u), ours(at))
    torch.testing.assert_close(torch.vmap(lambda u, t: kind(T, u)(t))(u, at[:2]), ours(at[:2, None]))
    tangent = signal(2, 6, 2, seed=3)
    _, moved = torch.func.jvp(lambda u: kind(T, u)(at), (u,), (tangent,))
    torch.testing.assert_close(channels(kind, moved), channels(kind, kind(T, tangent)(at)))
    jacobian = torch.func.jacrev(lambda u: kind(T, u)(at))(u)
    torch.testing.assert_close(torch.einsum("...bkc,bkc->...", jacobian, tangent), moved)
    slopes = torch.func.vmap(torch.func.jacrev(ours))(at)
    torch.testing.assert_close(slopes, ours.derivative(at))
    with pytest.raises(ValueError, match="must lie within the knots"):
        torch.vmap(ours)(at + 1)
    with pytest.raises(ValueError, match="observation in every channel"):
        torch.vmap(lambda u: kind(T, u)(0.3))(u * NAN)


@EVERY
def test_it_can_be_made_and_called_in_a_graph(kind):
    u = torch.where(torch.rand(2, 6, 2) < 0.3, NAN, signal(2, 6, 2))
    u[:, 2] = 1.0
    torch._dynamo.reset()  # which remembers few graphs of one line of code
    compiled = torch.compile(lambda u, t: kind(T, u)(t), fullgraph=True, backend="eager")
    for at in (BETWEEN, BETWEEN[:2, None]):
        ours, theirs = u.clone().requires_grad_(), u.clone().requires_grad_()
        value, expected = compiled(ours, at), kind(T, theirs)(at)
        torch.testing.assert_close(value, expected)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@EVERY
def test_copies(kind):
    u = GAPS.clone().requires_grad_()
    ours = kind(T, u, outside="hold")
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours.to("cpu")):
        torch.testing.assert_close(other(BETWEEN), ours(BETWEEN), rtol=0, atol=0)
        assert other.outside == "hold"
        assert other.u is u or other.u.is_leaf  # a copy of the leaf, to which its own gradients go
        other(BETWEEN).sum().backward()
        assert other.u.grad is not None
    narrow = ours.to(torch.float32)
    assert narrow(0.3).dtype == torch.float32
    assert narrow.t.dtype == D
    assert kind(T, signal(6, 2)).to("meta")._table.is_meta
    assert "6 knots in [0.0, 3.0]" in repr(ours)


@EVERY
def test_nothing_changes_it(kind):
    t, u = T.clone(), signal(6, 2)
    ours = kind(t, u)
    before = ours(BETWEEN)
    t.zero_()
    u.zero_()
    assert torch.equal(ours(BETWEEN), before)
    parts = [x.untyped_storage().data_ptr() for x in vars(ours).values() if isinstance(x, torch.Tensor)]
    assert len(set(parts)) == len(parts)  # the compiler takes no two views of one tensor into a loop
    with pytest.raises(AttributeError, match="cannot assign to field 'outside'"):
        ours.outside = "hold"


# --- f gets it -------------------------------------------------------------------------------------------------------


def driven(t, y, u, w):
    return w * y + u(t)[..., -2:]


def by_args(u, w):
    return driven, (u, w)


def by_nest(u, w):
    return lambda t, y, a: driven(t, y, a["u"][0], a["w"]), ({"u": [u], "w": w},)


def by_closure(u, w):
    return lambda t, y: driven(t, y, u, w), ()


def by_module(u, w):
    class Driven(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.w = u, torch.nn.Parameter(w.detach()) if w.is_leaf else w

        def forward(self, t, y):
            return driven(t, y, self.u, w)

    return Driven(), ()


def gradients(kind, way, encoded=False, **options):
    """Of a driven solve, to u and to a weight; with `encoded` u is the result of an earlier computation."""
    u, w = signal(3, 6, 2).requires_grad_(), torch.tensor([0.5, -1.0], dtype=D, requires_grad=True)
    f, args = way(kind(T, (2 * u).tanh() if encoded else u), w)
    sol = solve(f, torch.ones(3, 2, dtype=D), [0.0, 3.0], args, **options)
    return torch.autograd.grad(sol.ys[-1].square().sum(), (u, w))


WAYS = [*((k, by_args) for k in KINDS), *((path.CubicHermite, way) for way in (by_nest, by_closure, by_module))]


@pytest.mark.parametrize(("kind", "way"), WAYS)
@pytest.mark.parametrize("encoded", [False, True])
def test_the_gradient_to_u_arrives(kind, way, encoded):
    fine = {"method": "rk4", "controller": Fixed(dt=0.1)}
    exact = gradients(kind, way, encoded, adjoint=Direct(), **fine)
    assert all(g.abs().max() > 1e-3 for g in exact)
    for adjoint in (Checkpointed(), Checkpointed(memory=3)):
        torch.testing.assert_close(gradients(kind, way, encoded, adjoint=adjoint, **fine), exact)
    off = 0.1 if kind is path.Constant else 1e-2  # their backward solves meet a jump from the other side
    for adjoint in (Backsolve(), Interpolated()):
        found = gradients(kind, way, encoded, adjoint=adjoint, **fine)
        torch.testing.assert_close(found, exact, rtol=off, atol=off)


@EVERY
def test_each_sample_at_its_own_time(kind):
    steps = {"rtol": 1e-6, "atol": 1e-8}
    each = gradients(kind, by_args, per_sample=True, **steps)
    torch.testing.assert_close(each, gradients(kind, by_args, **steps), rtol=1e-2, atol=1e-2)


def test_a_closed_form():
    """y' = −y + u for a ramp: y = t − 1 + 2 e⁻ᵗ from 1."""
    ramp = path.Linear([0.0, 1.0, 3.0], torch.tensor([[0.0], [1.0], [3.0]], dtype=D))
    sol = solve(lambda t, y, u: u(t) - y, torch.ones(1, dtype=D), [0.0, 3.0], (ramp,), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sol.ys[-1], torch.tensor([2.0], dtype=D) + 2 * torch.exp(torch.tensor(-3.0, dtype=D)))


def test_a_solve_beyond_the_path_says_so():
    ours = path.Linear(T, signal(6, 1))
    with pytest.raises(ValueError, match="`t` must lie within the knots"):
        solve(lambda t, y: ours(t) - y, torch.ones(1, dtype=D), [0.0, 4.0])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "per_sample"), [(path.Constant, False), (path.CubicHermite, True)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the tracer's, of a result
def test_a_compiled_solve(kind, per_sample):
    options = {"rtol": 1e-6, "atol": 1e-8, "per_sample": per_sample}
    for _ in range(2):
        compiled = gradients(kind, by_args, compile=True, **options)  # where it could not be, a warning: an error here
        torch.testing.assert_close(compiled, gradients(kind, by_args, **options), rtol=1e-6, atol=1e-8)


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = signal(6, 2)


@pytest.mark.parametrize(
    ("t", "u", "error", "text"),
    [
        (
            T.flip(0),
            GOOD,
            ValueError,
            r"`t` must increase from knot to knot, t\[0\] = 3.0 is followed by 2.1: sort both",
        ),
        ([0, 1, 1, 2], GOOD[:4], ValueError, r"t\[1\] = 1.0 is followed by 1.0: keep one value a time"),
        ([0, 1, NAN], GOOD[:3], ValueError, "`t` must be finite, got nan: leave those knots out"),
        ([], GOOD[:0], ValueError, "`t` must be 1-D with at least one time, got none"),
        (torch.ones(2, 2), GOOD, ValueError, r"`t` must be 1-D with at least one time, got shape \(2, 2\)"),
        (T.clone().requires_grad_(), GOOD, TypeError, r"`t` must be times without a gradient .*: write t.detach\(\)"),
        (T, GOOD.long(), TypeError, r"`u` must be floating-point or complex, got torch.int64: write u.float\(\)"),
        (T, GOOD.numpy(), TypeError, r"`u` must be a tensor, got ndarray .*: write torch.as_tensor\(u\)"),
        (T, torch.tensor(1.0), ValueError, r"`u` must be \(T,\) or \(..., T, channels\), got shape \(\)"),
        (T, GOOD[:5], ValueError, r"one value a knot, T = 6, got shape \(5, 2\)"),
        (T, GOOD[:5, 0], ValueError, r"T = 6, got shape \(5,\): give t and u one length"),
        (T, GOOD.T, ValueError, r"T = 6, got shape \(2, 6\): write u\[..., None\] for one channel, or u.mT"),
        (T, signal(6, 4, 2), ValueError, r"T = 6, got shape \(6, 4, 2\): write u.movedim\(0, -2\)"),
        (T, GOOD / 0, ValueError, r"`u` must be finite, or NaN where a value is missing, got an infinity"),
    ],
)
@EVERY
def test_bad_input(kind, t, u, error, text):
    with pytest.raises(error, match=text):
        kind(t, u)


def test_bad_options_and_times():
    with pytest.raises(ValueError, match='`outside` must be "error" or "hold" or "extend", got \'nearest\''):
        path.Linear(T, GOOD, outside="nearest")
    with pytest.raises(ValueError, match='`unobserved` must be "error" or "zeros", got None'):
        path.Linear(T, GOOD, unobserved=None)
    with pytest.raises(TypeError, match=r"`Path` is what all paths share: write Linear\(t, u\)"):
        path.Path(T, GOOD)
    with pytest.raises(ValueError, match=r"`u` must be \(..., T, channels\), got shape \(6,\): write u\[:, None\]"):
        path.Rectilinear(T, GOOD[:, 0])
    with pytest.raises(TypeError, match="`t` must be times without a gradient and outside of transforms"):
        torch.vmap(lambda t: path.Linear(t, GOOD)(0.3))(T.expand(2, 6))
    with pytest.raises(TypeError, match=r"`t` must be real numbers, got dtype torch\.bool"):
        path.Linear(T, GOOD)(torch.tensor(True))
    with pytest.raises(TypeError, match="`t` must be a number or a tensor of times, got 'now'"):
        path.Linear(T, GOOD)("now")
    with pytest.raises(ValueError, match=r"one time for each of 3 samples, and `u` of shape \(2, 6, 2\) has 2: write"):
        path.Linear(T, signal(2, 6, 2))(torch.ones(3, 1))


def test_the_solver_stops_where_a_path_among_the_arguments_says():
    t = torch.tensor([0.0, 5.0, 5.001, 9.0], dtype=torch.float64)
    u = torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(1, dtype=torch.float64)
    pulse = path.Constant(t, u, outside="hold")
    sol = solve(lambda t, y, u: u["force"][0](t) + 0 * y, y0, [0.0, 10.0], args=({"force": [pulse]},))
    torch.testing.assert_close(sol.ys[-1], torch.full((1,), 0.001, dtype=torch.float64), rtol=1e-9, atol=0)
    (grad,) = torch.autograd.grad(sol.ys[-1], u)
    torch.testing.assert_close(
        grad[:, 0], torch.tensor([5.0, 0.001, 3.999, 1.0], dtype=torch.float64), rtol=1e-9, atol=0
    )
    by_name = solve(lambda t, y: pulse(t) + 0 * y, y0, [0.0, 10.0], stops=pulse.knots, jumps=pulse.jumps)
    assert torch.equal(by_name.ys, sol.ys)
    kinked = path.Linear(t[:2], u.detach()[:2], outside="hold")
    backward = solve(lambda t, y, u: u(t) + 0 * y, y0, [10.0, 0.0], args=(kinked,))
    torch.testing.assert_close(backward.ys[-1], torch.full((1,), -7.5, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "controller": Fixed(dt=0.5)}])
def test_the_last_value_of_constant_is_not_felt_before_its_knot(options):
    force = path.Constant([0.1, 1.1, 2.3], torch.tensor([1.0, 2.0, 1000.0], dtype=torch.float64))
    for t in ([0.1, 2.3], [2.3, 0.1]):
        end = solve(lambda t, y, force: force(t) + 0 * y, torch.zeros(1, dtype=torch.float64), t, (force,), **options)
        assert abs(end.ys[-1].abs().item() - 3.4) < 1e-12


def test_knots_made_inside_of_a_transform():
    def end(u):
        t = torch.linspace(0, 1, 5, dtype=u.dtype)
        zero = torch.zeros(1, dtype=u.dtype)
        return solve(lambda t, y, force: force(t) - y, zero, t, args=(path.Linear(t, u),)).ys[-1].sum()

    u = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(end(u), u)
    torch.testing.assert_close(torch.func.grad(end)(u.detach()), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(end))(u.detach()[None])[0], expected)
    with pytest.raises(TypeError, match=r"write t.detach\(\)"):
        torch.func.grad(lambda t: path.Linear(t, u.detach())(0.5).sum())(torch.linspace(0, 1, 5, dtype=u.dtype))
