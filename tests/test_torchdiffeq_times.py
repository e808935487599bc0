"""Derivatives by the times of the drop-in: backward, forward, beside torchdiffeq and beside finite differences."""

import pytest
import torch
import torchdiffeq as theirs
from torch.func import grad, jacfwd

import odenets.torchdiffeq as ours

DOUBLE = torch.float64
INTERFACES = pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
DIRECTION = pytest.mark.parametrize("sign", [1, -1])
WEIGHTS = torch.tensor([[0.3, -1.0], [0.7, 0.2], [-0.5, 0.4], [0.9, 0.6]], dtype=DOUBLE)
# torch's own: forward mode compiles formulas by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")


def f(t, y):
    return torch.tanh(y.flip(-1)) * torch.cos(3 * t) - 0.5 * y * t


def loss(module, interface, t, **options):
    y0 = torch.tensor([0.8, -0.4], dtype=DOUBLE)
    given = {"adjoint_params": ()} if interface == "odeint_adjoint" else {}
    return (WEIGHTS * getattr(module, interface)(f, y0, t, **options, **given)).sum()


def points(sign):
    return sign * torch.tensor([0.1, 0.4, 0.75, 1.3], dtype=DOUBLE)


def by_differences(of, t, step=1e-6):
    return torch.stack([(of(t + move) - of(t - move)) / (2 * step) for move in step * torch.eye(len(t), dtype=DOUBLE)])


FIXED = {
    "on the outputs": {"method": "rk4"},
    "implicit": {"method": "gl4"},
    "of a size": {"method": "rk4", "options": {"step_size": 0.22}},
    "cubic": {"method": "rk4", "options": {"step_size": 0.22, "interp": "cubic"}},
    "adaptive": {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10},
}


@INTERFACES
@DIRECTION
@pytest.mark.parametrize("steps", FIXED)
def test_forward_mode_backward_mode_and_differences_agree(steps, sign, interface):
    def of(t):
        return loss(ours, interface, t, **FIXED[steps])

    t = points(sign)
    (backward,) = torch.autograd.grad(of(t.requires_grad_()), t)
    t = t.detach()
    torch.testing.assert_close(backward, by_differences(of, t), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(jacfwd(of)(t), backward, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad(of)(t), backward, rtol=1e-9, atol=1e-9)


def curved(func, y0, t):
    """Points that depend on the first and the last time, and on one between."""
    share = torch.linspace(0, 1, 8, dtype=t.dtype) ** 1.3
    through = t[0] + (t[-1] - t[0]) * share
    return torch.cat([through[:4], through[3:4] + 0.1 * (t[1] - t[0]), through[4:]])


MOVING = {
    "a grid": {"grid_constructor": curved},
    "a grid, cubic": {"grid_constructor": curved, "interp": "cubic"},
    "a grid, perturbed": {"grid_constructor": curved, "perturb": True},
    "a size, perturbed": {"step_size": 0.22, "perturb": True},
    "the outputs, perturbed": {"perturb": True},
}


@INTERFACES
@DIRECTION
@pytest.mark.parametrize("options", MOVING)
def test_the_points_of_a_grid_have_their_part_in_the_gradient(options, sign, interface):
    t, given = points(sign).requires_grad_(), {"method": "rk4", "options": MOVING[options]}
    (expected,) = torch.autograd.grad(loss(theirs, "odeint", t, **given), t)
    (found,) = torch.autograd.grad(loss(ours, interface, t, **given), t)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    t = t.detach()
    torch.testing.assert_close(jacfwd(lambda t: loss(ours, interface, t, **given))(t), expected, rtol=1e-9, atol=1e-9)
    differences = by_differences(lambda t: loss(ours, interface, t, **given), t)
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-7)


def test_jumps_of_the_backward_solve_are_stops_too():
    """The field jumps at 0.5, so only a backward solve that begins anew there is exact at this tolerance."""
    rate = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)

    def field(t, y):
        return -torch.where(t < 0.5, rate[0], rate[1]) * y

    y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"rtol": 1e-10, "atol": 1e-12, "adjoint_options": {"jump_t": torch.tensor([0.5])}}
    y = ours.odeint_adjoint(field, y0, t, **options)[-1]
    (grad,) = torch.autograd.grad(y.sum(), rate)
    torch.testing.assert_close(grad, -0.5 * y.detach().expand(2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{"method": "dopri5"}, {"method": "rk4", "options": {"step_size": 0.23}}])
def test_a_second_backward_pass_is_like_the_first(options):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    ys = ours.odeint_adjoint(lambda t, y: -(y**2) * t.cos(), y0, t, adjoint_rtol=1e-4, adjoint_atol=1e-5, **options)
    first, second = (torch.autograd.grad(ys.sum(), y0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_dense_output_at_no_time_and_outside(ends):
    at = ours.odeint_dense(lambda t, y: -y, torch.ones(3, dtype=torch.float64), *ends)
    assert at(torch.empty(0, 2)).shape == (0, 2, 3)
    with pytest.raises(ValueError, match=r"`t` must lie in the solved interval \[0\.0, 1\.0\], got 1\.5"):
        at(1.5)
    assert at(torch.tensor([0.25, 1.0])).shape == (2, 3)


# Times that no number tells apart.

METHODS = {
    "dopri5": {},
    "rk4": {},
    "gl4": {"step_size": 1.0},
    "midpoint": {"step_size": 1.0},
    "fixed_adams": {"step_size": 1.0},
    "scipy_solver": {},
}
FAR = torch.tensor(1.7e9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("ahead", [1.0, 1000.0])
def test_times_that_their_dtype_cannot_tell_apart_are_refused(method, moving, ahead):
    call = {"method": method, "options": METHODS[method]}
    t = torch.stack([FAR, FAR + ahead]).requires_grad_(moving)
    for interface in (ours.odeint, ours.odeint_adjoint):
        with pytest.raises(ValueError, match=r"`t` is in torch.float32, which near .* give the times in float64"):
            interface(lambda t, y: -y, torch.ones(1), t, **call)
        with pytest.raises(ValueError, match=r"`t` is in torch.float32, which near .* give the times in float64"):
            interface(lambda t, y: -y, torch.ones(1), t, event_fn=lambda t, y: y - 0.5, **call)
    with pytest.raises(ValueError, match=r"`t0` is in torch.float32, which near .* give the times in float64"):
        ours.odeint_event(lambda t, y: -y, torch.ones(1), t[0], event_fn=lambda t, y: y - 0.5, **call)


@pytest.mark.parametrize("method", METHODS)
def test_a_field_of_times_that_the_states_dtype_cannot_resolve_is_refused(method):
    call = {"method": method, "options": METHODS[method]}
    t = FAR.double() + torch.tensor([0.0, 9.0], dtype=torch.float64)
    words = r"`func` depends on t, which it gets in y's dtype torch.float32"
    with pytest.raises(ValueError, match=words):
        ours.odeint(lambda t, y: -y * t.cos(), torch.ones(1), t, **call)
    with pytest.raises(ValueError, match=words):
        ours.odeint_event(lambda t, y: -y * t.cos(), torch.ones(1), t[0], event_fn=lambda t, y: y - 0.5, **call)
    assert float(ours.odeint(lambda t, y: -y / 9, torch.ones(1), t, **call)[-1]) == pytest.approx(0.3679, abs=0.02)


def test_a_step_size_that_the_dtype_of_the_times_cannot_tell_is_refused():
    t = torch.stack([FAR, FAR + 1e5])
    with pytest.raises(ValueError, match=r"'step_size' 1 is less than what torch.float32 tells apart near t = 1.7"):
        ours.odeint(lambda t, y: -y, torch.ones(1), t, method="rk4", options={"step_size": 1.0})


@pytest.mark.parametrize("options", [{}, {"perturb": True}])
def test_the_pieces_of_a_solve_are_not_judged_alone(options):
    """Each step is far too short for the dtype of y, but the whole is not; both ways make the same steps."""
    t = torch.linspace(1000, 1010, 501, dtype=torch.float64)
    ends = [
        ours.odeint(lambda t, y: -y * t.cos(), torch.ones(1), times, method="euler", options=options)[-1]
        for times in (t, t.clone().requires_grad_())
    ]
    assert torch.allclose(*ends)
