"""Events of the drop-in: found to rounding in any unit, whatever the slope of the event function; Adams methods too."""

import math
import re
import warnings

import pytest
import torch
import torchdiffeq as theirs
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import odenets.torchdiffeq as ours
from odenets import SolveError, Status
from odenets.engine.roots import locate
from odenets.torchdiffeq import adaptive, grid, schemes, solvers

DOUBLE = torch.float64
ZERO = torch.zeros((), dtype=DOUBLE)
INTERFACES = pytest.mark.parametrize("interface", [ours.odeint, ours.odeint_adjoint], ids=["odeint", "odeint_adjoint"])
METHODS = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {}),
        ("rk4", {"step_size": 0.07, "interp": "cubic"}),
        ("radauIIA5", {"step_size": 0.07, "interp": "cubic"}),
        ("implicit_adams", {"step_size": 0.02, "interp": "cubic"}),
        ("explicit_adams", {"step_size": 0.02, "interp": "cubic", "max_order": 5}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)


# Event functions without a slope at the event, y = e^(−t) at t = 1: with the answer's own tolerance.

FLAT = {
    "jump in time": lambda t, y: torch.where(t < 1, 1.0, -1.0),
    "jump in the state": lambda t, y: torch.where(y > math.exp(-1), 1.0, -1.0),
    "jump from a constant of its own graph": lambda t, y: torch.where(t < 1, 0 * y + 1.0, 0 * y - 1.0),
    "no slope in time": lambda t, y: (1 - t) ** 3,
    "no slope in the state": lambda t, y: (y - math.exp(-1)) ** 3,
    "infinite slope": lambda t, y: torch.sign(1 - t) * (1 - t).abs().sqrt() + 0 * y,
    "several, one of them constant": lambda t, y: torch.stack([(1 - t) ** 3 + 0 * y[0], 3 + 0 * y[0]]),
    "several, all jump": lambda t, y: torch.stack([torch.where(t < 1, 2.0, -1.0), torch.where(t < 2, -1.0, 1.0)]),
    "an integer": lambda t, y: torch.where(t < 1, 1, -1),
}


@INTERFACES
@METHODS
@pytest.mark.parametrize("event", FLAT)
def test_an_event_function_that_is_flat_where_it_is(event, method, options, interface):
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    arguments = {"event_fn": FLAT[event], "method": method, "options": options}
    t, y = ours.odeint_event(lambda t, y: -y, y0, ZERO, odeint_interface=interface, **arguments)
    assert t.item() == pytest.approx(1.0, abs=1e-4)  # a cube root of the state's error
    assert y.flatten().tolist() == pytest.approx([1.0, math.exp(-t.item())], abs=1e-6)
    t_alone, ys = interface(lambda t, y: -y, y0, torch.tensor([0.0, 1.0], dtype=DOUBLE), **arguments)
    assert t_alone.item() == t.item()
    assert torch.equal(y, ys)  # the forward value never depends on the slope
    for wanted in (y[-1].sum(), t):
        if wanted.requires_grad:
            (grad,) = gradient(wanted, y0)
            assert bool(torch.isfinite(grad).all())


def gradient(wanted, *tensors):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`event_fn` has the slope")
        return torch.autograd.grad(wanted, tensors, retain_graph=True, materialize_grads=True)


def test_the_gradient_of_a_state_where_time_is_the_event():
    """y(1) = y0 e^(−1), and nothing moves the time: so this is the whole of it, and a warning says what was done."""
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    t, y = ours.odeint_event(lambda t, y: -y, y0, ZERO, event_fn=FLAT["jump in time"])
    assert (t.item(), y[-1].item()) == pytest.approx((1.0, 0.3679), abs=1e-4)
    with pytest.warns(UserWarning, match="`event_fn` has the slope 0 at the event, so the gradient takes"):
        (grad,) = torch.autograd.grad(y[-1].sum(), y0)
    assert float(grad) == pytest.approx(math.exp(-1), abs=1e-6)


def test_a_flat_event_warns_of_nothing_where_nobody_asks_for_the_time():
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    with torch.no_grad():
        t, _ = ours.odeint_event(lambda t, y: -y, y0, ZERO, event_fn=FLAT["jump in time"])
    assert not t.requires_grad
    t, y = ours.odeint_event(lambda t, y: 0 * y, y0, ZERO, event_fn=FLAT["jump in time"])
    assert float(torch.autograd.grad(y[-1].sum(), y0)[0]) == 1.0  # the state stands still: the time moves nothing


@pytest.mark.parametrize("slope", [1e-30, 1e-3, 1.0, 1e30])
def test_the_gradient_of_the_time_whatever_the_scale_of_the_event_function(slope):
    c = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    t, _ = ours.odeint_event(lambda t, y: -y, torch.ones(1, dtype=DOUBLE), ZERO, event_fn=lambda t, y: slope * (y - c))
    assert float(torch.autograd.grad(t, c)[0]) == pytest.approx(-2.0, rel=1e-6)


def test_an_event_function_that_is_no_number_and_second_derivatives_raise():
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(ValueError, match=r"`event_fn` returned nan at t = "):
        ours.odeint_event(lambda t, y: -y, y0, ZERO, event_fn=lambda t, y: torch.where(t > 0.5, math.nan, y))
    t, _ = ours.odeint_event(lambda t, y: -y, y0, ZERO, event_fn=lambda t, y: y - 0.5)
    with pytest.raises(NotImplementedError, match="`odeint_event` has no second derivative"):
        torch.autograd.grad(t, y0, create_graph=True)


@INTERFACES
def test_a_field_that_differentiates_by_its_state(interface):
    """As energies do; the field of an event is evaluated once more than the steps need."""

    def f(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            return -torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)[0]

    def strict(t, y):  # takes it for granted that its state requires grad, as torchdiffeq's `odeint` lets it
        with torch.enable_grad():
            return -torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)[0]

    y0 = torch.tensor([1.0, 0.5], dtype=DOUBLE, requires_grad=True)
    for field in (f, strict) if interface is ours.odeint else (f,):
        t, y = ours.odeint_event(field, y0, ZERO, event_fn=lambda t, y: y[0] - 0.25, odeint_interface=interface)
        assert t.item() == pytest.approx(math.log(4), abs=1e-6)
        assert y[-1].tolist() == pytest.approx([0.25, 0.125], abs=1e-6)
        assert torch.autograd.grad(t, y0)[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


# Where in time.


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("sign", [1, -1])
@INTERFACES
def test_the_time_of_an_event_in_any_unit(unit, sign, interface):
    """A fall in units of its own: the solution is a polynomial, so the time is found to rounding."""
    state = (torch.tensor([2.0], dtype=DOUBLE, requires_grad=True), torch.zeros(1, dtype=DOUBLE))
    f = lambda t, y: (sign * y[1] / unit, -sign * torch.ones_like(y[1]) / unit)  # noqa: E731
    t, (height, speed) = ours.odeint_event(
        f, state, ZERO, event_fn=lambda t, y: y[0], reverse_time=sign < 0, odeint_interface=interface
    )
    assert t.item() == pytest.approx(2 * sign * unit, rel=1e-9)
    assert abs(height[-1].item()) < 1e-9
    assert speed[-1].item() == pytest.approx(-2.0, rel=1e-9)
    assert float(torch.autograd.grad(t, state[0])[0]) == pytest.approx(sign * unit / 2, rel=1e-6)


@pytest.mark.parametrize("when", [1.0664e-13, 3e-7, 0.5, 7.0, 2.5e11])
@pytest.mark.parametrize("sign", [1, -1])
@METHODS
def test_a_known_time_is_found_to_rounding(when, sign, method, options):
    if "step_size" in options:
        options = {**options, "step_size": 0.7 * when}
    t = torch.tensor([0.0, sign], dtype=DOUBLE)
    for event in (lambda t, y: when - sign * t, lambda t, y: torch.where(sign * t < when, 1.0, -1.0)):
        found, _ = ours.odeint(
            lambda t, y: 0 * y, torch.ones(1, dtype=DOUBLE), t, event_fn=event, method=method, options=options
        )
        assert float(found) == pytest.approx(sign * when, rel=1e-14)


@pytest.mark.parametrize("start", [1.7e9, -1.7e9, 1e12])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_event_far_from_zero(start, sign):
    t0 = torch.tensor(start, dtype=DOUBLE, requires_grad=True)
    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    for interface in (ours.odeint, ours.odeint_adjoint):
        t, y = ours.odeint_event(
            lambda t, y: -sign * y,
            y0,
            t0,
            event_fn=lambda t, y: y - 0.5,
            reverse_time=sign < 0,
            odeint_interface=interface,
        )
        resolved = 4 * math.ulp(start)
        assert (t - t0).item() == pytest.approx(sign * math.log(2), abs=resolved + 1e-7)
        assert y[-1].item() == pytest.approx(0.5, abs=resolved + 1e-7)
        grads = torch.autograd.grad(t, [t0, y0])
        assert [float(g) for g in grads] == pytest.approx([1.0, float(sign)], rel=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "fixed_adams"])
def test_a_time_that_the_dtype_of_the_state_cannot_tell(method):
    start = torch.tensor(1.7e9, dtype=DOUBLE)
    call = {"method": method, "options": {} if method == "dopri5" else {"step_size": 0.4}}
    t, _ = ours.odeint_event(lambda t, y: -y, torch.ones(1), start, event_fn=lambda t, y: 1.7e9 + 0.5 - t, **call)
    assert (t - start).item() == pytest.approx(0.5, abs=1e-6)


# Finding the place.


@given(st.floats(min_value=1e-9, max_value=1.0), st.sampled_from([1, 3, 5]), st.floats(min_value=1e-9, max_value=1e9))
def test_a_root_is_found_to_its_own_rounding(root, power, scale):
    seen = []

    def value(theta):
        seen.append(theta)
        return scale * (root - theta) ** power

    assert locate(value, value(1.0)) == pytest.approx(root, rel=1e-9 if power > 1 else 1e-14)
    assert len(seen) <= (16 if power == 1 else 130)


@given(st.floats(min_value=1e-12, max_value=1.0, exclude_max=True), st.floats(min_value=1e-3, max_value=1e3))
def test_a_jump_is_found_to_its_own_rounding(place, height):
    seen = []

    def value(theta):
        seen.append(theta)
        return 1.0 if theta < place else -height

    found = locate(value, -height)
    assert found == pytest.approx(place, rel=1e-14)
    assert found >= place  # the event has been
    assert len(seen) <= 150


def test_a_search_ends_at_an_end_and_at_infinite_values():
    assert locate(lambda theta: 1.0, 0.0) == 1.0
    assert locate(lambda theta: 1.0 if theta == 0 else -1.0, -1.0) < 1e-29
    assert locate(lambda theta: math.inf if theta < 0.25 else -math.inf, -math.inf) == pytest.approx(0.25, rel=1e-14)


# Adams methods.


class Pendulum(nn.Module):
    def __init__(self):
        super().__init__()
        self.pull = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

    def forward(self, t, y):
        return torch.stack([y[1], -self.pull * y[0].sin() * (1 + 0.1 * t)])


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("reverse", [False, True])
def test_events_with_adams_methods_are_theirs(method, interp, reverse):
    f, answers = Pendulum(), []
    options = {"step_size": 0.03, "interp": interp, "max_order": 6}
    for module, interface in ((theirs, theirs.odeint), (ours, ours.odeint), (ours, ours.odeint_adjoint)):
        y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE, requires_grad=True)
        t0 = torch.tensor(0.5, dtype=DOUBLE)
        t, y = module.odeint_event(
            f,
            y0,
            t0,
            event_fn=lambda t, y: y[0] + 0.2,
            reverse_time=reverse,
            odeint_interface=interface,
            method=method,
            options=options,
            rtol=1e-10,  # theirs takes it for the tolerance of the time too
        )
        answers.append((t, y, *torch.autograd.grad(t + y[-1].square().sum(), [y0, *f.parameters()])))
    for known, *mine in zip(*answers):
        assert all(torch.allclose(x, known, rtol=1e-6, atol=1e-8) for x in mine)


@pytest.mark.parametrize(
    "event",
    [
        lambda t, y: torch.relu(y[0] - 0.3),
        lambda t, y: (y[0] > 0.3).double(),
        lambda t, y: y[0].clamp(min=0.3) - 0.3,
    ],
)
@pytest.mark.parametrize("options", [{"method": "dopri5"}, {"method": "rk4", "options": {"step_size": 0.01}}])
def test_an_event_function_that_is_zero_from_the_event_on(event, options):
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    t0 = torch.tensor(0.0, dtype=torch.float64)
    with torch.no_grad():
        t, y = ours.odeint_event(
            lambda t, y: torch.stack([y[1], -y[0]]), y0, t0, rtol=1e-8, atol=1e-10, event_fn=event, **options
        )
    assert t.item() == pytest.approx(math.acos(0.3), abs=1e-5)
    assert y[-1, 0].item() == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("min_step", [0.1, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun"])
def test_steps_as_short_as_allowed_are_taken(min_step, method):
    y0, t = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)

    def f(t, y):
        return -y + torch.cos(30 * t)

    options = {"rtol": 1e-9, "atol": 1e-11, "method": method, "options": {"min_step": min_step}}
    found = ours.odeint(f, y0, t, **options)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[-1], theirs.odeint(f, y0, t, **options)[-1], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("interface", "options"),
    [(ours.odeint, {}), (ours.odeint_adjoint, {}), (ours.odeint_adjoint, {"adjoint_rtol": 1e-6})],
)
def test_callbacks_see_each_step_to_an_event_once(interface, options):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
            self.seen = []

        def forward(self, t, y):
            return -self.rate * y

        def callback_accept_step(self, t, y, dt):
            self.seen.append(float(t))

    f, start = Field(), torch.zeros((), dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    ours.odeint_event(f, y0, start, event_fn=lambda t, y: y[0] - 0.5, odeint_interface=interface, **options)
    assert f.seen == sorted(set(f.seen))


@pytest.mark.parametrize("event_fn", [None, 0.5, torch.zeros(())])
def test_an_event_function_is_a_function(event_fn):
    with pytest.raises(TypeError, match=r"`event_fn` must be a function of t and y, got"):
        ours.odeint_event(lambda t, y: -y, torch.ones(1), torch.zeros(()), event_fn=event_fn)


def test_a_start_of_several_elements():
    with pytest.raises(TypeError, match=r"`t0` must be a tensor with one element, got 2 elements: write `t0\[0\]`"):
        ours.odeint_event(lambda t, y: -y, torch.ones(1), torch.zeros(2), event_fn=lambda t, y: y[0] - 0.5)


@pytest.mark.parametrize(
    ("transform", "interface", "options"),
    [
        (torch.func.jacfwd, ours.odeint, {}),
        (torch.func.grad, ours.odeint_adjoint, {}),
        *((torch.func.grad, ours.odeint, {"method": m, "options": {"step_size": 0.1}}) for m in ("rk4", "fixed_adams")),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")
def test_transforms_of_functions_differentiate_the_time(transform, interface, options):
    def time(y):
        call = {"event_fn": lambda t, y: y[0] - 0.5, "odeint_interface": interface, **options}
        return ours.odeint_event(lambda t, y: -y, y[None], ZERO, **call)[0]

    assert float(transform(time)(torch.tensor(2.0, dtype=DOUBLE))) == pytest.approx(0.5, rel=1e-3)  # log(2 y)' = 1/y


def test_a_sign_that_changes_and_changes_back_within_one_step():
    t, y = ours.odeint_event(
        lambda t, y: torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        ZERO,
        event_fn=lambda t, y: (y[0] - 1) ** 2 - 1e-4,
    )
    assert (t.item(), y[-1].item()) == pytest.approx((0.99, 0.99), abs=1e-9)


# Events that never come.

NEVER = {
    "dopri5": ("dopri5", {"max_num_steps": 40}, "as far as times have numbers|'max_num_steps' in `options` allows"),
    "bosh3": ("bosh3", {}, "as far as times have numbers|'max_num_steps' in `options` allows"),
    "rk4": ("rk4", {"step_size": 0.5}, "a larger 'step_size' in `options` goes further"),
    "implicit_euler": ("implicit_euler", {"step_size": 0.5}, "a larger 'step_size' in `options` goes further"),
    "explicit_adams": (
        "explicit_adams",
        {"step_size": 0.5, "max_order": 5},
        "a larger 'step_size' in `options` goes further",
    ),
}


@pytest.mark.parametrize("case", NEVER)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("f", [lambda t, y: torch.ones_like(y), lambda t, y: 0 * y, lambda t, y: t.cos() * y])
def test_an_event_that_never_comes_ends_with_its_reason(case, dtype, reverse, f, monkeypatch):
    for module in (adaptive, grid, solvers):
        monkeypatch.setattr(module, "MOST_STEPS", 40)
    method, options, words = NEVER[case]
    start = torch.tensor(1.0, dtype=dtype)
    with pytest.raises(SolveError, match=r"`event_fn` has not changed sign; .*" + words) as caught:
        ours.odeint_event(
            f,
            torch.ones(2, dtype=dtype),
            start,
            event_fn=lambda t, y: 1.0 + 0 * t,
            reverse_time=reverse,
            method=method,
            options=options,
        )
    error = caught.value
    assert error.status is Status.NO_EVENT
    assert (error.t < start, error.dt < 0) == (reverse, reverse)
    assert not re.search("max_steps|max_num_steps" if "step_size" in options else "max_steps|step_size", str(error))


def test_how_long_an_event_is_waited_for():
    assert {adaptive.MOST_STEPS, grid.MOST_STEPS, solvers.MOST_STEPS} == {20_000}
    scheme = adaptive.Adaptive(schemes.ADAPTIVE["dopri5"], 1e-3, 1e-6)
    assert scheme.most_steps(torch.zeros(2), event=True) == 20_000
    assert scheme.most_steps(torch.zeros(3)) == 2 * (2**31 - 1)


@pytest.mark.parametrize("event", [lambda t, y: y[0] - y[0] + 1, lambda t, y: 20.0 - t, lambda t, y: 1 + 0 * t])
@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_a_state_that_is_infinite_before_the_event_says_so(event, method, monkeypatch):
    for module in (grid, solvers):
        monkeypatch.setattr(module, "MOST_STEPS", 60)
    options = {"method": method, "options": {"step_size": 0.5}}
    with pytest.raises(SolveError, match="NON_FINITE_STATE"):
        ours.odeint_event(lambda t, y: y**3, torch.full((1,), 3.0), torch.zeros(()), event_fn=event, **options)


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "options": {"step_size": 0.05}}])
@INTERFACES
def test_an_event_function_that_differentiates_by_its_state(options, interface):
    def steep(t, y):
        (slope,) = torch.autograd.grad(y.square().sum(), y, create_graph=True)
        return slope[0] - 1.0

    y0 = torch.tensor([1.0, 0.5], dtype=DOUBLE, requires_grad=True)
    t, _ = ours.odeint_event(lambda t, y: -y, y0, ZERO, event_fn=steep, odeint_interface=interface, **options)
    assert t.item() == pytest.approx(math.log(2), abs=1e-3)
    assert torch.autograd.grad(t, y0)[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
