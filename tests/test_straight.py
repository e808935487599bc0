"""Fixed steps of which nothing is kept take a loop of their own: the same numbers, counts and failures."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from odenets import METHODS, Direct, ExplicitRungeKutta, Fixed, SolveError, solve
from odenets.engine.straight import goes_straight

FIXED = [m.name for m in METHODS.values() if isinstance(m, ExplicitRungeKutta)]


def both(f, y0, times, **options):
    """By the loop of its own, and by the usual one, which tells how far it is."""
    straight = solve(f, y0, times, **options)
    usual = solve(f, y0, times, progress=lambda _: None, **options)
    return straight, usual


@pytest.fixture
def asked(monkeypatch):
    answers = []

    def noted(*arguments):
        answers.append(goes_straight(*arguments))
        return answers[-1]

    monkeypatch.setattr("odenets.engine.eager.goes_straight", noted)
    return answers


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("times", [[0.0, 1.0], [1e6 + 2.0, 1e6 - 1.0], [0.0, 0.0, 0.7]])
def test_the_same_numbers_and_counts(method, times, asked):
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    for controller in (Fixed(steps=7), Fixed(dt=0.3), Fixed(dt=10.0)):
        straight, usual = both(lambda t, y: -y * (t * 1e-3).cos(), y0, times, method=method, controller=controller)
        assert torch.equal(straight.ys, usual.ys)
        assert straight.stats == usual.stats
    assert asked == [True, False] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 1, 3)])
def test_states_of_any_kind(dtype, shape, asked):
    y0 = torch.ones(shape, dtype=dtype)
    straight, usual = both(lambda t, y: -y * t, y0, [0.0, 2.0], method="rk4", controller=Fixed(steps=5))
    assert torch.equal(straight.ys, usual.ys)
    assert asked[0]


def test_a_nested_state_and_memory_of_the_fields_own(asked):
    buffer = torch.zeros(2)

    def refilled(t, state):
        buffer.copy_(-state["y"])
        return {"y": buffer}

    straight, usual = both(refilled, {"y": torch.ones(2)}, [0.0, 1.0], method="midpoint", controller=Fixed(steps=5))
    assert torch.equal(straight.ys["y"], usual.ys["y"])
    assert asked == [True, False]


def test_failures_are_the_same():
    for f, options in ((lambda t, y: y.sqrt() - 20, {"method": "euler"}), (lambda t, y: y**3, {"method": "rk4"})):
        said = []
        for more in ({}, {"progress": lambda _: None}):
            with pytest.raises(SolveError) as error:
                solve(f, torch.full((2,), 40.0), [0.0, 9.0], controller=Fixed(steps=30), **options, **more)
            said.append(str(error.value))
        assert said[0] == said[1]
    with pytest.raises(SolveError, match="MAX_STEPS"):
        solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], method="euler", controller=Fixed(steps=30), max_steps=20)


def test_direct_differentiates_it(asked):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    options = {"method": "rk4", "controller": Fixed(steps=4), "adjoint": Direct()}
    grads = [
        torch.autograd.grad(sol.ys[-1].sum(), y0)[0] for sol in both(lambda t, y: y.sin(), y0, [0, 1.0], **options)
    ]
    assert torch.equal(*grads)
    assert asked == [True, False]


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_euler_step_is_an_addition_beside_f():
    """And its two times, which are parts of one tensor."""
    counts = []
    for steps in (16, 32):
        with _Operations() as operations, torch.no_grad():
            solve(lambda t, y: y.neg(), torch.ones(2), [0.0, 1.0], method="euler", controller=Fixed(steps=steps))
        counts.append(operations.count)
    assert counts[1] - counts[0] <= 16 * 2


class _Looking(ExplicitRungeKutta):
    """A method of one's own, which looks at its time."""

    def step(self, f, t, y, dt, carry):
        assert float(getattr(t, "absolute", t)) >= 0.0
        return super().step(f, t, y, dt, carry)


def test_a_method_of_ones_own_takes_the_usual_loop(asked):
    rk4 = METHODS["rk4"]
    own = _Looking("own", rk4.order, rk4.a, rk4.b, rk4.c)
    ys = solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], method=own, controller=Fixed(steps=3)).ys
    assert torch.equal(
        ys, solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], method="rk4", controller=Fixed(steps=3)).ys
    )
    assert asked == [False, True]
