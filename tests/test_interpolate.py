"""Dense output."""

import math
from dataclasses import dataclass

import pytest
import torch

from odenets import PID, Checkpointed, Direct, Fixed, solve
from odenets.methods import Method, Step, stage_times
from odenets.nn import MLPField
from problems import FORCED, OSCILLATOR, Net


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_accurate_everywhere(method):
    sol = solve(OSCILLATOR.f, OSCILLATOR.y0, [0.0, 6.0], method=method, rtol=1e-7, atol=1e-9, dense=True)
    t = torch.linspace(0, 6, 301, dtype=torch.float64)
    torch.testing.assert_close(sol(t), OSCILLATOR.exact(t), rtol=0, atol=1e-5)


def test_backward_in_time():
    sol = solve(OSCILLATOR.f, OSCILLATOR.y0, [0.0, -2.0], rtol=1e-8, atol=1e-9, dense=True)
    torch.testing.assert_close(
        sol(-1.3), OSCILLATOR.exact(torch.tensor([-1.3], dtype=torch.float64))[0], rtol=0, atol=1e-6
    )


def test_a_number_is_taken_at_its_own_precision():
    """And not at that of the default dtype: the slope there is 1e9."""
    sol = solve(lambda t, y: torch.full_like(y, 1e9), torch.zeros(1, dtype=torch.float64), [0.0, 1.0], dense=True)
    for t in (0.3, [0.3], torch.tensor(0.3, dtype=torch.float64)):
        assert float(sol(t)) == pytest.approx(3e8, rel=1e-14)


def test_shapes_follow_t_and_the_state():
    y0 = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    sol = solve(lambda t, y: {"a": -y["a"], "b": y["b"]}, y0, [0.0, 1.0], dense=True)
    assert sol(0.5)["a"].shape == (2, 3)
    assert sol(torch.rand(5, 7))["b"].shape == (5, 7, 4)
    assert sol(torch.rand(0))["a"].shape == (0, 2, 3)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
def test_differentiable_in_parameters_state_and_time(adjoint):
    net = Net()
    y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    at = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    tight = {"rtol": 1e-9, "atol": 1e-10}
    values = solve(net, y0, [0.0, 1.0], dense=True, adjoint=adjoint, **tight)(at)
    times = torch.cat([torch.zeros(1, dtype=torch.float64), at])
    reference = solve(net, y0, times, adjoint=Direct(), **tight).ys[1:]
    wrt = [y0, at, *net.parameters()]
    grads = (torch.autograd.grad(v.sin().sum(), wrt) for v in (values, reference))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_outputs_and_dense_output_agree():
    t = torch.linspace(0, FORCED.t1, 7, dtype=torch.float64)
    sol = solve(FORCED.f, FORCED.y0, t, rtol=1e-4, dense=True)
    torch.testing.assert_close(sol(t), sol.ys, rtol=0, atol=1e-14)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()])
@pytest.mark.parametrize("controller", [PID(), PID(dt_max=0.3), Fixed(dt=0.17), Fixed(steps=7)])
def test_gradients_to_the_times_change_no_number(adjoint, controller):
    times = torch.tensor([0.1, FORCED.t1], dtype=torch.float64)
    plain, timed = (
        solve(FORCED.f, FORCED.y0, t, controller=controller, adjoint=adjoint, dense=True)
        for t in (times, times.clone().requires_grad_())
    )
    at = torch.linspace(0.1, FORCED.t1, 23, dtype=torch.float64)
    torch.testing.assert_close(timed(at), plain(at), rtol=1e-14, atol=1e-14)
    for t in at.tolist():
        torch.testing.assert_close(timed(t), plain(t), rtol=1e-14, atol=1e-14)


def test_bad_input():
    y0 = torch.ones(2)
    with pytest.raises(TypeError, match="no dense output: pass `dense=True`"):
        solve(MLPField(2), y0, [0.0, 1.0])(0.5)
    sol = solve(MLPField(2), y0, [1.0, 0.0], dense=True)
    with pytest.raises(ValueError, match=r"`t` must lie in the solved interval \[0.0, 1.0\], got 1.5"):
        sol(1.5)
    with pytest.raises(TypeError, match="`t` must be real numbers"):
        sol(torch.tensor(1j))


@dataclass(frozen=True)
class Taylor(Method):
    """For f(t, y) = A y: its parts are dtⁿ⁻¹ Aⁿ y, so the weight of part n in the extension is θⁿ / n!."""

    adaptive = error_needs_all = False
    parts = property(lambda self: self.order)

    def step(self, f, t, y, dt, carry):
        (t1,) = stage_times(t, dt, (1.0,), y)
        parts = [f(t1, y)]
        while len(parts) < self.order:
            parts.append(f(t1, dt * parts[-1]))
        weights = [1 / math.factorial(n + 1) for n in range(self.order)]
        return Step(y + dt * sum(w * part for w, part in zip(weights, parts)), tuple(parts), t1, complete=True)

    def complete(self, f, step):
        return step

    def carry(self, step):
        return ()

    def _dense(self):
        return [[0.0] * n + [1 / math.factorial(n + 1)] for n in range(self.order)]


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=repr)
def test_any_method_may_have_an_extension_of_any_degree(adjoint):
    matrix = torch.tensor([[0.3, 1.0], [-2.0, -0.1]], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.1, 0.37, 0.9], dtype=torch.float64, requires_grad=True)
    method = Taylor("taylor", order=11)
    how = {"method": method, "controller": Fixed(dt=0.25), "adjoint": adjoint, "dense": True}
    sol = solve(lambda t, y: matrix @ y, y0, t, **how)
    at = torch.tensor([0.2, 0.88], dtype=torch.float64)
    exact = [torch.stack([torch.linalg.matrix_exp((x - t[0]) * matrix) @ y0 for x in times]) for times in (t, at)]
    torch.testing.assert_close(sol.ys, exact[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(sol(at), exact[1], rtol=0, atol=1e-9)
    wrt = (matrix, y0, t)
    losses = ((ys.sin().sum() + dense.square().sum()) for ys, dense in ((sol.ys, sol(at)), exact))
    for found, expected in zip(*(torch.autograd.grad(loss, wrt) for loss in losses)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    slope = method.slope(1.0, method.step(lambda t, y: matrix @ y, 0.0, y0, 1.0, ()).parts, 0.6)
    torch.testing.assert_close(slope, matrix @ torch.linalg.matrix_exp(0.6 * matrix) @ y0, rtol=0, atol=1e-6)
