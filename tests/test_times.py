"""Times far from zero, in other units, and their gradients."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from odenets import PID, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, solve

D = torch.float64
TIGHT = PID(rtol=1e-8, atol=1e-10)
ALL = (Checkpointed(), Checkpointed(memory=2), Direct(), Backsolve(), Interpolated(), Reversible())
EXACT = (Checkpointed(), Checkpointed(memory=2), Direct(), Reversible())
ONE = torch.ones(1, dtype=D)


def name(value):
    return repr(value)[:30] if not isinstance(value, str) else value


def decay(t, y):
    return -y


def gradient(f, times, loss=lambda sol: sol.ys.sum(), y0=ONE, **options):
    t = torch.tensor(times, dtype=D, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(solve(f, y0, t, **options)), t)
    return grad


def differences(f, times, y0=ONE, **options):
    """∂(Σ ys)/∂t by central differences."""
    grad, h = [], 1e-6
    for i in range(len(times)):
        moved = [[*times[:i], times[i] + step, *times[i + 1 :]] for step in (h, -h)]
        up, down = (solve(f, y0, t, **options).ys.sum().item() for t in moved)
        grad.append((up - down) / (2 * h))
    return torch.tensor(grad, dtype=D)


# Gradients.


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(memory=2), Direct()], ids=name)
@pytest.mark.parametrize("origin", [0.0, 1.0, -3.0])
def test_dense_output_depends_on_the_times_of_the_solve(adjoint, origin):
    grad = gradient(
        decay, [origin, origin + 1], lambda sol: sol(origin + 0.5).sum(), dense=True, controller=TIGHT, adjoint=adjoint
    )
    torch.testing.assert_close(grad, torch.tensor([math.exp(-0.5), 0.0], dtype=D), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["tsit5", "dopri5", "rk4", "euler", "radauIIA5", "trapezoid", "gl4"])
@pytest.mark.parametrize("adjoint", ALL, ids=name)
@pytest.mark.parametrize("sign", [1, -1])
def test_repeated_first_times(method, adjoint, sign):
    adaptive = method in ("tsit5", "dopri5")
    controller = TIGHT if adaptive else Fixed(steps=200 if method == "euler" else 20)
    grad = gradient(decay, [0.0, 0.0, sign * 1.0], method=method, controller=controller, adjoint=adjoint)
    end = math.exp(-sign)
    tolerance = 2e-2 if method == "euler" else 2e-3
    if method == "euler" and isinstance(adjoint, Reversible):
        tolerance = 6e-2
    torch.testing.assert_close(grad, torch.tensor([1 + end, -1.0, -end], dtype=D), rtol=tolerance, atol=0)


def test_repeated_first_times_with_a_step_size_for_each_sample():
    grad = gradient(decay, [0.0, 0.0, 1.0], per_sample=True, controller=TIGHT)
    end = math.exp(-1)
    torch.testing.assert_close(grad, torch.tensor([1 + end, -1.0, -end], dtype=D), rtol=1e-6, atol=0)


def quadratic(t, y):
    return -(y**2)


def halved(t, y):
    return -(y**2) / 2


def forced(t, y):
    return -(y**2) * torch.cos(3 * t) / 2


@pytest.mark.parametrize("adjoint", EXACT, ids=name)
@pytest.mark.parametrize(("method", "steps"), [("euler", 2), ("heun", 3), ("rk4", 5), ("implicit_midpoint", 3)])
@pytest.mark.parametrize("times", [[0.0, 1.0], [0.3, 0.95, 2.0], [1.0, 0.63, 0.2]])
@pytest.mark.parametrize("f", [halved, forced])
def test_equal_steps_take_their_share_of_a_longer_interval(adjoint, method, steps, times, f):
    options = {"method": method, "controller": Fixed(steps=steps), "adjoint": adjoint}
    expected = differences(f, times, **options)
    torch.testing.assert_close(gradient(f, times, **options), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", EXACT, ids=name)
@pytest.mark.parametrize("controller", [Fixed(steps=4), Fixed(dt=0.3), PID(rtol=1e-2)])
@pytest.mark.parametrize("times", [[0.3, 0.9, 1.7], [5.3, 5.3, 5.9, 6.7]])
@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")  # from torch.func.jvp, when it is first called
def test_forward_mode_gives_the_same(adjoint, controller, times):
    def total(t):
        return solve(forced, ONE, t, method="heun", controller=controller, adjoint=adjoint).ys.sum()

    t = torch.tensor(times, dtype=D)
    along = torch.stack([torch.func.jvp(total, (t,), (e,))[1] for e in torch.eye(len(times), dtype=D)])
    torch.testing.assert_close(along, gradient(forced, times, method="heun", controller=controller, adjoint=adjoint))


def test_the_value_of_that_gradient():
    grad = gradient(quadratic, [0.0, 1.0], lambda sol: sol.ys[-1].sum(), method="euler", controller=Fixed(steps=2))
    torch.testing.assert_close(grad, torch.tensor([0.375, -0.375], dtype=D))


@pytest.mark.parametrize("adjoint", [Backsolve(), Interpolated()], ids=name)
@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
def test_an_output_inside_a_step_moves_along_the_interpolation(adjoint, method):
    options = {"method": method, "controller": Fixed(steps=4)}
    expected = differences(forced, [0.3, 0.9, 2.0], **options)
    grad = gradient(forced, [0.3, 0.9, 2.0], adjoint=adjoint, **options)
    torch.testing.assert_close(grad[1], expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [lambda t: (0.0, t), lambda t: [torch.zeros(()), t], lambda t: (0, 0.5, t)])
@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_times_that_are_tensors_in_a_sequence(make, adjoint):
    end = torch.ones((), dtype=D, requires_grad=True)
    sol = solve(decay, ONE, make(end), controller=TIGHT, adjoint=adjoint)
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), end)
    assert grad.item() == pytest.approx(-math.exp(-1), rel=1e-4)


# Far from zero.


@pytest.mark.parametrize("origin", [1.7e9, -1.7e9, 1e5])
@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_is_lost_far_from_zero(origin, sign):
    tight = PID(rtol=1e-12, atol=1e-12)
    sol = solve(lambda t, y: -sign * y, ONE, [origin, origin + sign * 1.0], controller=tight)
    assert abs(sol.ys[-1].item() - math.exp(-1)) < 1e-12
    for method in ("rk4", "euler"):
        fixed = solve(decay, ONE, [origin, origin + sign * 1.0], method=method, controller=Fixed(steps=1000))
        near = solve(decay, ONE, [0.0, sign * 1.0], method=method, controller=Fixed(steps=1000))
        assert fixed.stats.steps == 1000
        torch.testing.assert_close(fixed.ys, near.ys, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [7, 1000, 9999, 30_000])
def test_as_many_equal_steps_as_were_asked_for(steps):
    controller = Fixed(steps=steps)
    assert solve(decay, ONE, [0.1, 0.8], method="euler", controller=controller, max_steps=40_000).stats.steps == steps


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_gradients_far_from_zero(adjoint):
    def from_the_start(t0):
        field, times = (lambda t, y: -y * torch.cos(t - t0)), [t0, t0 + 0.5, t0 + 1]
        return gradient(field, times, adjoint=adjoint, controller=TIGHT)

    near, far = from_the_start(0.0), from_the_start(2.0**20)
    torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adjoint", ALL, ids=name)
@pytest.mark.parametrize("controller", [Fixed(steps=7), PID(rtol=1e-6)])
@pytest.mark.parametrize("origin", [1.7e9, -1e6 - 0.1])
def test_a_replay_far_from_zero_gets_the_same_times(adjoint, controller, origin):
    times = torch.linspace(0, 2, 5, dtype=D) + origin
    y0 = torch.tensor([0.3, -1.2], dtype=D, requires_grad=True)
    solve(lambda t, y: -y + torch.cos(10 * t), y0, times, controller=controller, adjoint=adjoint).ys.sum().backward()


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_unit_of_time_changes_nothing(unit, start):
    def problem(unit):
        return solve(lambda t, y: -y / unit * torch.cos(t / unit), start * ONE + ONE * 0.5, [0.0, 3 * unit])

    ours, other = problem(1.0), problem(unit)
    assert other.stats.nfe == ours.stats.nfe
    torch.testing.assert_close(other.ys, ours.ys, rtol=1e-9, atol=0)


def test_a_long_interval_is_no_reason_to_fail():
    sol = solve(quadratic, ONE, [0.0, 1e15], rtol=1e-6, atol=1e-24)
    assert sol.ys[-1].item() == pytest.approx(1e-15, rel=1e-3)


# What the numbers cannot carry is said.


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_f_of_a_time_that_the_state_cannot_resolve(dtype):
    far = {torch.float16: 1e5, torch.float32: 1e7}[dtype]
    y0 = torch.zeros(1, dtype=dtype)
    options = {"rtol": 1e-2, "atol": 1e-2}
    with pytest.raises(ValueError, match=r"`f` depends on t, which it gets in y's dtype .*count time from the start"):
        solve(lambda t, y: torch.cos(t - far).reshape(1), y0, [far, far + 1], **options)
    assert solve(lambda t, y: 1 - y, y0, [far, far + 1], **options).ys[-1].item() == pytest.approx(0.632, abs=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, D])
@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
def test_ordinary_times_are_fine_in_every_dtype(dtype, times):
    y0 = torch.ones(1, dtype=dtype)
    assert solve(lambda t, y: -y * t, y0, times, rtol=0.1, atol=0.1).ys.dtype == dtype


@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([1.7e9, 1.7e9 + 1]),
        torch.tensor([1.7e9, 1.7e9 + 1000]),
        1e4 + torch.linspace(0, 1, 2000),
        np.array([1.7e9, 1.7e9 + 1], dtype=np.float32),
        [1.7e9, 1.7e9 + 1e-6],
    ],
)
def test_times_whose_dtype_cannot_tell_them_apart(times):
    with pytest.raises(ValueError, match=r"`t` is in torch.float\d\d, which near .* tells apart only"):
        solve(decay, ONE, times)


@pytest.mark.parametrize("times", [[2.0**52, 2.0**52 + 4], torch.tensor([1.5e7, 1.5e7 + 1]), [1.8e14, 1.8e14]])
def test_whole_numbers_are_exact(times):
    assert solve(decay, ONE, times).ys.shape == (2, 1)


@pytest.mark.parametrize("times", [[1.0, 1.0], [1.0], [0.1, 0.1, 1.0], [0.0, 0.0]])
def test_equal_times_are_fine(times):
    ys: Tensor = solve(decay, ONE, torch.tensor(times)).ys
    assert ys.shape == (len(times), 1)


# Rounding.


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "dopri5", "tsit5"])
def test_a_step_is_added_to_the_state_once(method):
    def oscillator(t, y):
        return torch.stack([y[1], -y[0]])

    def error(dtype):
        y0 = torch.tensor([1.0, 0.0], dtype=dtype)
        return solve(oscillator, y0, [0.0, 1.0], method=method, controller=Fixed(steps=400)).ys[-1].double()

    assert (error(torch.float32) - error(D)).abs().max() < 2e-6


@pytest.mark.slow
def test_compiled_solves_count_time_from_the_start_too():
    def field(t, y):
        return -y * torch.cos(3 * t) * y

    def result(origin, compile, f=field):
        t = torch.tensor([0.3, 0.9, 2.0], dtype=D).add(origin).requires_grad_()
        y0 = torch.linspace(0.1, 0.4, 3, dtype=D)[:, None]
        ys = solve(f, y0, t, method="heun", controller=Fixed(steps=4), compile=compile).ys
        return ys.detach(), *torch.autograd.grad(ys.sum(), t)

    for origin in (0.0, 1e6):  # one program
        for ours, expected in zip(result(origin, True), result(origin, False)):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
