"""The drop-in beside torchdiffeq 0.2.5 itself: solutions, counts, gradients, options, callbacks, events, messages."""

import inspect
import itertools
import math
import sys
import warnings

import pytest
import torch
import torchdiffeq as theirs
from torch import nn

import odenets.torchdiffeq as ours
from odenets import LostGradientError, SolveError, Status
from problems import Net

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
BOTH = (theirs, ours)
DOUBLE = torch.float64

STATES = {
    "scalar": lambda dtype: torch.tensor(0.7, dtype=dtype),
    "vector": lambda dtype: torch.linspace(-1, 1, 3).to(dtype),
    "matrix": lambda dtype: torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype),
    "tuple": lambda dtype: (torch.linspace(-1, 1, 4).reshape(2, 2).to(dtype), torch.tensor(0.3, dtype=dtype)),
}
STATE = pytest.mark.parametrize("state", STATES)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex64, torch.complex128], ids=str)
DIRECTION = pytest.mark.parametrize("sign", [1, -1], ids=["forward", "backward"])


class Counted:
    """A smooth field for any state, which counts its evaluations; it turns complex states round."""

    def __init__(self):
        self.nfe = 0

    def __call__(self, t, y):
        self.nfe += 1
        if isinstance(y, tuple):
            return tuple(self.one(t, part) + 0.1 * y[-1] for part in y)
        return self.one(t, y)

    def one(self, t, y):
        turned = 1j * y if y.is_complex() else y
        return torch.sin(2 * t) * y - 0.4 * turned * torch.cos(t) + 0.2


def run(module, f, y0, t, **options):
    """The states as one flat tensor (T, n), and the evaluations."""
    f.nfe = 0
    ys = module.odeint(f, y0, t, **options)
    assert isinstance(ys, tuple) == isinstance(y0, tuple)
    flat = torch.cat([part.reshape(len(t), -1) for part in ys], 1) if isinstance(ys, tuple) else ys.reshape(len(t), -1)
    return flat, f.nfe


def times(dtype, sign, n=6, end=2.0):
    return sign * torch.linspace(0.1, end, n, dtype=dtype.to_real() if dtype.is_complex else dtype)


# Solutions.


def test_the_signatures_are_theirs():
    for name in ("odeint", "odeint_adjoint", "odeint_event", "odeint_dense"):
        mine, known = (inspect.signature(getattr(module, name)).parameters.values() for module in (ours, theirs))
        assert [(p.name, p.kind) for p in mine] == [(p.name, p.kind) for p in known]
        assert all(p.default == q.default for p, q in zip(mine, known) if p.name != "odeint_interface")


@pytest.mark.parametrize("method", FIXED)
@STATE
@DTYPE
@DIRECTION
def test_fixed_steps_agree_to_rounding(method, state, dtype, sign):
    y0, t = STATES[state](dtype), times(dtype, sign)
    (expected, nfe), (found, count) = (run(module, Counted(), y0, t, method=method) for module in BOTH)
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, rtol=0, atol=20 * torch.finfo(dtype).eps)
    assert count == nfe


@pytest.mark.parametrize("method", ADAPTIVE)
@STATE
@DTYPE
@DIRECTION
def test_adaptive_steps_agree_within_the_tolerance(method, state, dtype, sign):
    """The error is compared, not the answers: with bosh3 and fehlberg2 theirs is the larger one by far."""
    y0, t = STATES[state](dtype), times(dtype, sign)
    tolerance = 1e-3 if method == "adaptive_heun" else 1e-4
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    (expected, nfe), (found, count) = (run(module, Counted(), y0, t, **options) for module in BOTH)
    exact, _ = run(theirs, Counted(), y0, t, rtol=1e-6, atol=1e-6)
    error, their_error = (float((x - exact).abs().max()) for x in (found, expected))
    assert found.dtype == expected.dtype
    assert error <= max(4 * their_error, 8 * tolerance)
    # Their last step goes past the end; a method without f at the end of its step costs them one evaluation less.
    reused = method in ("adaptive_heun", "fehlberg2")
    assert count <= 2 * nfe if reused else abs(count - nfe) <= 0.5 * nfe


class Recorded(Counted):
    """With callbacks that write down what they are called with."""

    def __init__(self):
        super().__init__()
        self.steps, self.accepted, self.rejected = [], [], []

    def callback_step(self, t, y, dt):
        self.steps.append((float(t), y, float(dt)))

    def callback_accept_step(self, t, y, dt):
        self.accepted.append((float(t), y, float(dt)))

    def callback_reject_step(self, t, y, dt):
        self.rejected.append((float(t), y, float(dt)))


@pytest.mark.parametrize("method", ["dopri8", "dopri5", "bosh3"])
@STATE
@DIRECTION
def test_adaptive_steps_are_theirs_up_to_the_last(method, state, sign):
    """So are the evaluations: the last step, which theirs makes past the end, is what they may differ by."""
    y0, t = STATES[state](DOUBLE), times(DOUBLE, sign, end=9.0)
    fields = []
    for module in BOTH:
        fields.append(Recorded())
        module.odeint(fields[-1], y0, t, method=method, rtol=1e-5, atol=1e-6)
    known, mine = fields
    common = min(len(known.accepted), len(mine.accepted)) - 2
    assert common >= 4
    for (t0, y, dt), (t1, z, d) in zip(known.accepted[:common], mine.accepted):
        assert (t1, d) == pytest.approx((t0, dt), rel=1e-4)
        for part, other in zip(y, z) if isinstance(y, tuple) else [(y, z)]:
            assert torch.allclose(part, other, rtol=1e-4, atol=1e-4)
    stages = {"dopri8": 13, "dopri5": 6, "bosh3": 3}[method]
    # dopri8 judges a step without f at its end, which is then spared after a rejection and at the last time.
    spared = len(mine.rejected) + 1 if method == "dopri8" else 0
    assert 0 <= 2 + stages * len(mine.steps) - mine.nfe <= spared
    assert abs(mine.nfe - known.nfe) <= 2 * stages + spared


def test_callbacks_are_called_in_their_order_with_the_state_in_its_structure():
    for state, sign in itertools.product(("matrix", "tuple"), (1, -1)):
        f, y0 = Recorded(), STATES[state](DOUBLE)
        ours.odeint(f, y0, times(DOUBLE, sign), rtol=1e-6, options={"first_step": 1.0})
        assert len(f.rejected) >= 1
        assert len(f.steps) == len(f.accepted) + len(f.rejected)
        assert [t for t, _, _ in f.accepted] == sorted((t for t, _, _ in f.accepted), reverse=sign < 0)
        assert all(dt > 0 for _, _, dt in f.steps)
        assert f.accepted[0][0] == sign * 0.1
        y = f.steps[0][1]
        assert isinstance(y, tuple) == (state == "tuple")
        assert all(torch.equal(a, b) for a, b in zip(y, y0))


def test_fixed_steps_call_back_before_each_step_and_warn_of_the_other_callbacks():
    for module in BOTH:
        f = Recorded()
        with pytest.warns(UserWarning, match="callback_accept_step"):
            module.odeint(f, STATES["vector"](DOUBLE), times(DOUBLE, 1), method="euler", options={"step_size": 0.25})
        assert [t for t, _, _ in f.steps] == pytest.approx([0.1 + 0.25 * k for k in range(8)])
        assert f.accepted == []


@pytest.mark.parametrize("method", ["rk4", "implicit_midpoint", "gl4"])
def test_steps_that_the_backward_pass_makes_again_are_none_of_the_solve(method):
    f, y0 = Recorded(), torch.ones(3, dtype=DOUBLE, requires_grad=True)
    with pytest.warns(UserWarning, match="callback_accept_step"):
        y = ours.odeint_adjoint(f, y0, times(DOUBLE, 1, n=3), method=method, options={"step_size": 0.5})
    made = len(f.steps)
    y[-1].sum().backward()
    assert len(f.steps) == made == 4


def test_callbacks_of_the_backward_solve():
    class Module(Net):
        def callback_step_adjoint(self, t, y, dt):
            calls.append((float(t), len(y), float(dt)))
            assert y[1].shape == y[2].shape == (3,)

    for module in BOTH:
        calls = []
        y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        y = module.odeint_adjoint(Module(), y0, times(DOUBLE, 1, n=3), method="rk4", options={"step_size": 0.5})
        assert calls == []
        y[-1].sum().backward()
        assert [t for t, _, _ in calls] == pytest.approx([2.0, 1.5, 1.05, 0.55])


def test_tsit5_which_a_later_torchdiffeq_has():
    y0, t = STATES["matrix"](DOUBLE), times(DOUBLE, 1)
    exact, _ = run(theirs, Counted(), y0, t, rtol=1e-10, atol=1e-10)
    assert torch.allclose(run(ours, Counted(), y0, t, method="tsit5", rtol=1e-7, atol=1e-8)[0], exact, atol=1e-5)


# Options.

SMOOTH = {
    "first_step": {"first_step": 0.01},
    "safety": {"safety": 0.5},
    "ifactor": {"ifactor": 1.5},
    "dfactor": {"dfactor": 0.5, "first_step": 1.5},
    "min_step": {"min_step": 0.3},
    "max_step": {"max_step": 0.05},
    "step_t": {"step_t": torch.tensor([0.33, 0.77, 1.9, 5.0])},
    "norm": {"norm": lambda y: y.abs().max() if isinstance(y, torch.Tensor) else max(p.abs().max() for p in y)},
    "dtype": {"dtype": DOUBLE},
    "max_num_steps": {"max_num_steps": 1000},
}


@pytest.mark.parametrize("option", SMOOTH)
@pytest.mark.parametrize("state", ["vector", "tuple"])
@DIRECTION
def test_options_of_adaptive_methods_choose_the_same_steps(option, state, sign):
    options = dict(SMOOTH[option])
    if "step_t" in options:
        options["step_t"] = sign * options["step_t"]
    fields, answers = [], []
    for module in BOTH:
        fields.append(Recorded())
        y0, t = STATES[state](DOUBLE), times(DOUBLE, sign, end=4.0)
        answers.append(run(module, fields[-1], y0, t, rtol=1e-5, atol=1e-6, options=options)[0])
    known, mine = fields
    common = min(len(known.accepted), len(mine.accepted)) - 1
    assert common >= 4
    assert [t for t, _, _ in mine.accepted[:common]] == pytest.approx(
        [t for t, _, _ in known.accepted[:common]],
        rel=1e-3 if option == "step_t" else 1e-4,  # behind a stop theirs goes on with the step that was cut
    )
    assert abs(len(mine.steps) - len(known.steps)) <= 2
    assert torch.allclose(*answers, rtol=1e-2 if option == "min_step" else 1e-3)
    if option == "max_step":
        assert max(dt for _, _, dt in mine.steps) <= 0.05 * (1 + 1e-12)  # as the time resolves it
    if option == "step_t":
        assert {0.33, 0.77, 1.9} <= {round(sign * t, 6) for t, _, _ in mine.accepted}
    if option == "min_step":
        assert min(dt for _, _, dt in mine.steps[:-1]) >= 0.3 * (1 - 1e-12)


@DIRECTION
def test_a_jump_is_seen_from_the_left_before_it_and_from_the_right_after_it(sign):
    """The exact solution of |y'| = 1 up to the jump and 10 after it: a step over the jump could not give it."""
    seen = []

    def f(t, y):
        seen.append(float(t))
        return (1.0 if sign * t < 0.5 else 10.0) * torch.ones_like(y)

    t, y0 = sign * torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
    nfe = []
    for module in BOTH:
        seen.clear()
        y = module.odeint(f, y0, t, options={"jump_t": sign * torch.tensor([0.5, 7.0], dtype=DOUBLE)})
        assert torch.allclose(y.flatten(), sign * torch.tensor([0.0, 0.25, 0.5, 5.5], dtype=DOUBLE), atol=1e-12)
        assert sign * 0.5 not in seen
        nfe.append(len(seen))
    assert nfe[1] <= nfe[0] + 6


def test_jumps_keep_the_gradients():
    f, grads = Net(), []
    for module, name in itertools.product(BOTH, ("odeint", "odeint_adjoint")):
        y0, t = torch.ones(3, dtype=DOUBLE, requires_grad=True), times(DOUBLE, 1).requires_grad_()
        y = getattr(module, name)(f, y0, t, rtol=1e-9, atol=1e-9, options={"jump_t": torch.tensor([0.3, 0.48, 1.7])})
        grads.append(torch.autograd.grad(y.square().sum(), [y0, t, *f.parameters()]))
    for other in grads[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(grads[0], other))


def test_step_t_and_jump_t_must_not_share_a_time():
    options = {"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}
    for module in BOTH:
        with pytest.raises(ValueError, match=r"step_t.*jump_t"):
            module.odeint(Counted(), torch.ones(1), torch.tensor([0.0, 1.0]), options=options)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("state", ["vector", "tuple"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@DIRECTION
def test_step_size_and_interpolation_agree_to_rounding(interp, method, state, dtype, sign):
    y0, t = STATES[state](dtype), times(dtype, sign)
    options = {"step_size": 0.13, "interp": interp}
    (expected, nfe), (found, count) = (run(module, Counted(), y0, t, method=method, options=options) for module in BOTH)
    assert torch.allclose(found, expected, rtol=0, atol=30 * torch.finfo(dtype).eps)
    assert count <= nfe  # f at the end of a step is kept for the next


@pytest.mark.parametrize("perturb", [False, True])
@DIRECTION
def test_a_grid_of_ones_own(perturb, sign):
    def grid(func, y0, t):
        assert func is f
        assert torch.equal(y0, start)
        assert sign * (t[-1] - t[0]) > 0
        return t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 14, dtype=DOUBLE) ** 2

    start, answers = STATES["vector"](DOUBLE), []
    for module in BOTH:
        f = Counted()
        if module is theirs:
            reference = grid
            theirs_grid = lambda func, y0, t: reference(f, y0, t)  # noqa: B023, E731 — they pass a wrapped func
        options = {"grid_constructor": theirs_grid if module is theirs else grid, "perturb": perturb}
        answers.append(run(module, f, start, times(DOUBLE, sign), method="heun3", options=options))
    (expected, nfe), (found, count) = answers
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    assert nfe <= count <= nfe + (4 if perturb else 0)  # f at the end of steps that hold outputs is not kept there


def test_perturb_never_evaluates_at_the_ends_of_a_step():
    t = torch.linspace(0, 1, 5, dtype=DOUBLE)
    for module in BOTH:
        seen = []

        def f(s, y):
            seen.append(float(s))  # noqa: B023
            return -y

        module.odeint(f, torch.ones(1, dtype=DOUBLE), t, method="rk4", options={"perturb": True})
        assert len(seen) == 16
        assert not set(seen) & set(t.tolist())
        assert all(min(abs(s - x) for s in seen) < 1e-15 for x in t.tolist())


@pytest.mark.parametrize(
    ("rtol", "atol"),
    [
        (torch.tensor(1e-5), torch.tensor(1e-6)),
        (1e-5, (1e-3, 1e-7)),
        ((1e-2, torch.tensor(1e-7)), (torch.full((4,), 1e-3), 1e-7)),
        (torch.tensor([1e-3, 1e-6]), 1e-6),
    ],
)
def test_tolerances_for_each_tensor_of_the_state(rtol, atol):
    y0, t = STATES["tuple"](DOUBLE), times(DOUBLE, 1, end=9.0)
    (_, nfe), (found, count) = (run(module, Counted(), y0, t, rtol=rtol, atol=atol) for module in BOTH)
    exact, _ = run(theirs, Counted(), y0, t, rtol=1e-9, atol=1e-10)
    assert torch.allclose(found, exact, atol=2e-2)
    assert abs(count - nfe) <= 12


def test_a_tolerance_for_each_component():
    y0, t = STATES["matrix"](DOUBLE), times(DOUBLE, 1, end=9.0)
    atol = torch.tensor([1e-7, 1e-2, 1.0], dtype=DOUBLE)
    (_, nfe), (_, count) = (run(module, Counted(), y0, t, rtol=0.0, atol=atol) for module in BOTH)
    loose = run(ours, Counted(), y0, t, rtol=0.0, atol=1.0)[1]
    assert abs(count - nfe) <= 12
    assert count > 2 * loose


def test_unknown_options_warn_as_theirs_do():
    for module in BOTH:
        for method, option in (("dopri5", "step_size"), ("euler", "max_step")):
            with pytest.warns(UserWarning, match=option):
                module.odeint(Counted(), torch.ones(1), torch.tensor([0.0, 0.1]), method=method, options={option: 0.1})


def test_options_are_not_changed_in_place():
    options, t = {"norm": lambda y: y.abs().max(), "step_t": torch.tensor([0.5])}, torch.tensor([1.0, 0.0])
    before = dict(options)
    ours.odeint(Counted(), torch.ones(1), t, options=options)
    assert options == before


# Gradients.


def gradients(module, name, f, sign=1, tolerance=1e-9, **options):
    y0 = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()
    t = times(DOUBLE, sign, n=5).requires_grad_()
    y = getattr(module, name)(f, y0, t, rtol=tolerance, atol=tolerance, **options)
    weights = torch.linspace(-1, 1, 5, dtype=DOUBLE)[:, None, None]
    return torch.autograd.grad((weights * y.sin()).sum(), [y0, t, *f.parameters()])


CLOSE = {"dopri5": 1e-5, "dopri8": 3e-4, "bosh3": 3e-3, "euler": 1e-12, "heun3": 1e-12, "rk4": 1e-12}


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", CLOSE)
@DIRECTION
def test_gradients_to_state_times_and_parameters(name, method, sign):
    """Ours are exact for both functions; theirs are with `odeint`."""
    f = Net()
    expected = gradients(theirs, "odeint", f, sign, method=method)
    found = gradients(ours, name, f, sign, method=method)
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, rtol=CLOSE[method], atol=CLOSE[method])


@pytest.mark.parametrize("method", CLOSE)
@pytest.mark.parametrize(
    "asked",
    [
        {"adjoint_rtol": 1e-9},
        {"adjoint_atol": 1e-9},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"norm": lambda parts: max(part.abs().max() for part in parts)}},
    ],
    ids=["rtol", "atol", "seminorm", "norm"],
)
def test_a_backward_solve_that_is_asked_for(method, asked):
    f = Net()
    if method not in ("dopri5", "dopri8", "bosh3") and "adjoint_options" in asked:
        asked = {"adjoint_options": {}}
    options = {"method": method, "tolerance": 1e-6 if method == "bosh3" else 1e-9, **asked}
    expected, found = (gradients(module, "odeint_adjoint", f, **options) for module in BOTH)
    for i, (a, b) in enumerate(zip(found, expected)):
        if i != 1 or method in ("dopri5", "rk4"):  # their ∂L/∂t is a quadrature of the method's order, ours is exact
            close = max(CLOSE[method], 2e-2 if i == 1 else 0)
            assert torch.allclose(a, b, rtol=close, atol=close)


def test_the_backward_solve_has_its_own_method_and_options():
    f = Net()
    exact = gradients(ours, "odeint", f)
    grid = {"adjoint_options": {"grid_constructor": lambda f, y0, t: torch.linspace(t[0], t[-1], 30, dtype=DOUBLE)}}
    steps = {"adjoint_options": {"step_size": 0.02}}
    for options in (grid, steps, {"adjoint_options": {"step_size": 0.02, "interp": "cubic"}}):
        found = gradients(ours, "odeint_adjoint", f, adjoint_method="rk4", **options)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, exact))
    tuned = {"first_step": 0.01, "max_step": 0.1, "step_t": torch.tensor([0.4]), "jump_t": torch.tensor([0.7])}
    found = gradients(ours, "odeint_adjoint", f, options=tuned, adjoint_rtol=1e-9)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, exact))


def test_the_gradient_of_a_tuple_state_by_a_backward_solve():
    net, grads = Net(), []

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(t, y[0]), y[0].sum(-1) * y[1]

    for module, norm in itertools.product(BOTH, (None, "seminorm", lambda parts: max(p.abs().max() for p in parts))):
        y0 = (torch.ones(2, 3, dtype=DOUBLE, requires_grad=True), torch.ones(2, dtype=DOUBLE, requires_grad=True))
        options = {} if norm is None else {"norm": norm}
        y = module.odeint_adjoint(Pair(), y0, times(DOUBLE, 1), adjoint_options=options, rtol=1e-9, atol=1e-9)
        grads.append(torch.autograd.grad(y[0].sum() + y[1].square().sum(), [*y0, *net.parameters()]))
    for other in grads[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(grads[0], other))


def test_second_derivatives_through_odeint():
    f, found = Net(), []
    for module in BOTH:
        y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        y = module.odeint(f, y0, times(DOUBLE, 1, n=2), rtol=1e-9, atol=1e-9)[-1]
        (first,) = torch.autograd.grad(y.square().sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y0, *f.parameters()], allow_unused=True))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found) if a is not None)


def test_gradients_that_theirs_loses_are_found():
    """A closure variable that is no parameter of func: theirs leaves its gradient None, or refuses such a func."""
    scale = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    class Scaled(nn.Module):
        def forward(self, t, y):
            return -scale * y

    y0, t = torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    assert not theirs.odeint_adjoint(Scaled(), y0, t).requires_grad
    for f in (Scaled(), lambda t, y: -scale * y):
        (found,) = torch.autograd.grad(ours.odeint_adjoint(f, y0, t)[-1].sum(), scale)
        assert float(found) == pytest.approx(-math.exp(-0.5), rel=1e-6)


class Unused(nn.Module):
    """A field with parameters that it does not use, or only at the start of the solve."""

    def __init__(self, uses):
        super().__init__()
        self.uses, self.rate = uses, nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))
        self.spare, self.frozen = nn.Linear(3, 2), nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, t, y):
        return tuple(-self.rate * part for part in y) if isinstance(y, tuple) else -(self.rate if self.uses else 1) * y


@pytest.mark.parametrize("state", ["vector", "tuple"])
@pytest.mark.parametrize("method", ["dopri5", "euler", "implicit_adams"])
@pytest.mark.parametrize("asked", [{}, {"adjoint_rtol": 1e-6}])
def test_parameters_without_influence_get_zeros_as_theirs_do(state, method, asked):
    for uses in (True, False) if state == "vector" else (True,):
        found = []
        for module in BOTH:
            f = Unused(uses)
            y = module.odeint_adjoint(
                f, STATES[state](DOUBLE), times(DOUBLE, 1, n=9), method=method, rtol=1e-4, **asked
            )
            assert all(part.requires_grad for part in (y if isinstance(y, tuple) else (y,)))
            (y[0].sum() if isinstance(y, tuple) else y.sum()).backward()
            found.append([p.grad for p in f.parameters() if p.requires_grad])
            assert f.frozen.grad is None
        for known, mine in zip(*found):
            assert torch.allclose(mine, known, rtol=1e-2)
            assert mine.dtype == known.dtype


def test_zeros_for_given_parameters_and_in_events_and_none_without_grad():
    spare, y0 = torch.ones(2, requires_grad=True), torch.ones(1, dtype=DOUBLE)
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    for module in BOTH:
        y = module.odeint_adjoint(lambda t, y: -y, y0, t, adjoint_params=(spare,))
        assert torch.equal(torch.autograd.grad(y.sum(), spare)[0], torch.zeros(2))
        when, y = module.odeint_adjoint(
            lambda t, y: -y, y0, t, adjoint_params=(spare,), event_fn=lambda t, y: y.sum() - 0.5
        )
        assert module is theirs or not when.requires_grad
        assert torch.equal(torch.autograd.grad(y.sum(), spare)[0], torch.zeros(2))
        with torch.no_grad():
            assert not module.odeint_adjoint(lambda t, y: -y, y0, t, adjoint_params=(spare,)).requires_grad
    (grad,) = torch.autograd.grad(
        ours.odeint(Unused(False), y0, t).sum() + spare.sum(), spare
    )  # `odeint` alone is plain autograd, as theirs
    assert torch.equal(grad, torch.ones(2))


@pytest.mark.parametrize("method", ["dopri5", "euler", "gl4", "explicit_adams", "scipy_solver"])
def test_tolerances_that_are_none_are_the_defaults(method):
    y0, t = STATES["matrix"](DOUBLE), times(DOUBLE, 1)
    known = run(ours, Counted(), y0, t, method=method)
    assert torch.equal(run(ours, Counted(), y0, t, method=method, rtol=None, atol=None)[0], known[0])
    if method == "euler":  # where theirs does without tolerances too
        assert torch.allclose(run(theirs, Counted(), y0, t, method=method, rtol=None, atol=None)[0], known[0])


@pytest.mark.parametrize("method", ["dopri5", "euler", "gl4", "fixed_adams", "scipy_solver"])
@pytest.mark.parametrize("number", [2.0, 2, True, 2 + 0j])
def test_a_field_that_returns_a_number(method, number):
    t = torch.tensor([0.0, 1.0, 2.0])
    states = {"vector": torch.zeros(3), "scalar": torch.zeros(()), "tuple": (torch.zeros(2, 1), torch.zeros(()))}
    for y0 in states.values():
        if isinstance(number, complex):
            y0 = tuple(p.cfloat() for p in y0) if isinstance(y0, tuple) else y0.cfloat()
            if method == "scipy_solver":
                continue
        f = lambda t, y: (number, number) if isinstance(y, tuple) else number  # noqa: E731
        y = ours.odeint(f, y0, t, method=method)
        for part in y if isinstance(y, tuple) else (y,):
            assert torch.allclose(part[-1], torch.full_like(part[-1], 2 * number), atol=1e-5)


def test_adjoint_params_are_found_where_they_are_given():
    hidden = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    tensors = {"scale": hidden}

    def f(t, y):
        return -(tensors["scale"] if t > 0.5 else 1.0) * y

    y0, t = torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    y = ours.odeint_adjoint(f, y0, t, adjoint_params=(p for p in [hidden]), rtol=1e-5)
    (found,) = torch.autograd.grad(y[-1].sum(), hidden)
    assert float(found) == pytest.approx(-0.5 * math.exp(-0.75), rel=1e-2)


# Events.


class Ball(nn.Module):
    """torchdiffeq's bouncing ball: position, velocity, and the radius as a state that does not change."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor([9.8], dtype=DOUBLE))
        self.position = nn.Parameter(torch.tensor([10.0], dtype=DOUBLE))
        self.velocity = nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
        self.radius = nn.Parameter(torch.tensor(0.2, dtype=DOUBLE))
        self.t0 = nn.Parameter(torch.tensor([0.0], dtype=DOUBLE))
        self.nfe = 0

    def forward(self, t, state):
        self.nfe += 1
        _, velocity, radius = state
        return velocity, -self.gravity - 0.05 * velocity, torch.zeros_like(radius)

    def touches(self, t, state):
        return state[0] - state[2]

    def bounce(self, module, interface, bounces=3, **options):
        t, state, found = self.t0, (self.position, self.velocity, self.radius), []
        for _ in range(bounces):
            t, states = module.odeint_event(
                self, state, t, event_fn=self.touches, odeint_interface=getattr(module, interface), **options
            )
            position, velocity, radius = (part[-1] for part in states)
            state = (position + 1e-7, -0.9 * velocity, radius)
            found.append(t.reshape(()))
        return torch.stack(found), torch.cat([part.reshape(1) for part in state])


@pytest.mark.parametrize(
    ("interface", "options", "close"),
    [
        ("odeint", {"rtol": 1e-9, "atol": 1e-9}, 1e-6),
        ("odeint_adjoint", {"rtol": 1e-9, "atol": 1e-9}, 1e-6),
        ("odeint_adjoint", {"rtol": 1e-9, "atol": 1e-9, "adjoint_rtol": 1e-9}, 1e-6),
        ("odeint", {"method": "rk4", "options": {"step_size": 0.05}, "atol": 1e-8}, 1e-7),  # theirs is to atol
        ("odeint_adjoint", {"method": "rk4", "options": {"step_size": 0.05, "interp": "cubic"}, "atol": 1e-8}, 1e-5),
    ],
)
def test_bouncing_ball(interface, options, close):
    ball, results, nfe = Ball(), [], []
    for module in BOTH:
        ball.nfe = 0
        t, state = ball.bounce(module, interface, **options)
        nfe.append(ball.nfe)
        results.append((t, state, *torch.autograd.grad(t.sum() + state.square().sum(), list(ball.parameters()))))
    for found, expected in zip(*results[::-1]):
        assert torch.allclose(found, expected, rtol=close, atol=close)
    # A second solve, up to the event, is what the gradient of odeint_adjoint costs.
    assert nfe[1] <= nfe[0] * (1 if interface == "odeint" else 2) + 24


@DIRECTION
def test_an_event_in_either_direction_with_its_gradients(sign):
    """y = y0 e^(−(t−t0)) reaches c at t = t0 + log(y0/c): ∂t/∂t0 = 1, ∂t/∂y0 = 1/y0, ∂t/∂c = −1/c (theirs loses it)."""
    c = torch.tensor(2.0 if sign < 0 else 0.5, dtype=DOUBLE, requires_grad=True)
    y0, t0 = torch.ones(1, dtype=DOUBLE, requires_grad=True), torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    for interface in (ours.odeint, ours.odeint_adjoint):
        t, y = ours.odeint_event(
            lambda t, y: -y, y0, t0, event_fn=lambda t, y: y - c, reverse_time=sign < 0, odeint_interface=interface
        )
        assert t.item() == pytest.approx(1 - math.log(c.item()), abs=1e-7)
        assert y.flatten().tolist() == pytest.approx([1.0, c.item()], abs=1e-7)
        found = torch.autograd.grad(t, [t0, y0, c], retain_graph=True)
        assert [float(g) for g in found] == pytest.approx([1.0, 1.0, -1 / c.item()], rel=1e-5)
        assert [float(g) for g in torch.autograd.grad(y[-1].sum(), [y0, c])] == pytest.approx([0.0, 1.0], abs=1e-6)
    known, _ = theirs.odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y - c.detach(), reverse_time=sign < 0)
    assert t.item() == pytest.approx(known.item(), abs=1e-7)


def test_the_first_of_several_events_counts_and_the_event_may_depend_on_time():
    y0, t = torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    event = lambda t, y: torch.stack([y[0] - 0.2, 0.7 - t, y[1] + 5])  # noqa: E731
    for module in BOTH:
        t_event, y = module.odeint(lambda t, y: -y, y0, t, event_fn=event)
        assert float(t_event) == pytest.approx(0.7, abs=1e-8)
        assert not t_event.requires_grad
        assert y.shape == (2, 2)
        assert torch.allclose(y[-1], torch.exp(-t_event) * y0)


def test_an_event_behind_a_jump():
    f = lambda t, y: torch.where(t < 0.5, 1.0, 10.0) * torch.ones_like(y)  # noqa: E731
    y0, t = torch.zeros(1, dtype=DOUBLE, requires_grad=True), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    options = {"jump_t": torch.tensor([0.25, 0.5])}
    for interface in (theirs.odeint, ours.odeint, ours.odeint_adjoint):
        t_event, y = interface(f, y0, t, event_fn=lambda t, y: y - 2.0, options=options)
        assert float(t_event) == pytest.approx(0.65, abs=1e-8)
        assert float(torch.autograd.grad(y[-1].sum(), y0)[0]) == pytest.approx(1.0)


def test_an_event_at_the_start_is_found_there():
    for method, options in (("dopri5", {}), ("rk4", {"step_size": 0.1})):
        t_event, y = ours.odeint(
            lambda t, y: -y,
            torch.ones(1),
            torch.tensor([2.0, 3.0]),
            event_fn=lambda t, y: y - 1.0,
            method=method,
            options=options,
        )
        assert float(t_event) == 2.0
        assert y.tolist() == [[1.0], [1.0]]


def test_a_solve_that_never_meets_its_event_says_so():
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(SolveError, match="max_num_steps") as caught:
        ours.odeint(lambda t, y: -y, torch.ones(1), t, event_fn=lambda t, y: y + 1, options={"max_num_steps": 30})
    assert caught.value.status is Status.NO_EVENT


# Dense output.


@DIRECTION
def test_dense_output(sign):
    f, y0 = Counted(), STATES["matrix"](DOUBLE)
    t0, t1 = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(2.0 * sign, dtype=DOUBLE)
    dense = ours.odeint_dense(f, y0, t0, t1, rtol=1e-8, atol=1e-9)
    points = sign * torch.linspace(0, 2, 7, dtype=DOUBLE)
    exact = theirs.odeint(f, y0, points, rtol=1e-11, atol=1e-11)
    assert torch.allclose(torch.stack([dense(point) for point in points]), exact, atol=1e-6)
    assert torch.allclose(dense(points), exact, atol=1e-6)
    assert torch.equal(dense(0.5 * sign), dense(torch.tensor(0.5 * sign)))
    if sign > 0:
        known = theirs.odeint_dense(f, y0, t0, t1, rtol=1e-8, atol=1e-9)
        assert torch.allclose(dense(points[3]), known(points[3]), atol=1e-6)
    with pytest.raises(ValueError, match=r"must lie in the solved interval"):
        dense(2.5 * sign)


def test_dense_output_has_gradients_and_stops_at_jumps():
    y0 = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    f = lambda t, y: torch.where(t < 0.5, 1.0, 10.0) * torch.ones_like(y)  # noqa: E731
    dense = ours.odeint_dense(f, y0, 0.0, 1.0, options={"jump_t": [0.5]})
    t = torch.tensor([[0.25], [0.75]], dtype=DOUBLE, requires_grad=True)
    y = dense(t)
    assert torch.allclose(y.flatten(), torch.tensor([0.25, 3.0], dtype=DOUBLE), atol=1e-12)
    assert torch.autograd.grad(y.sum(), t, retain_graph=True)[0].flatten().tolist() == pytest.approx([1.0, 10.0])
    assert float(torch.autograd.grad(y.sum(), y0)[0]) == 2.0


# Adams methods.

ADAMS = [
    ("explicit_adams", {}),
    ("explicit_adams", {"max_order": 5, "step_size": 0.03}),
    ("implicit_adams", {}),
    ("implicit_adams", {"step_size": 0.03, "max_order": 4}),
    ("implicit_adams", {"step_size": 0.03, "interp": "cubic", "perturb": True}),
    ("fixed_adams", {"max_iters": 2, "max_order": 8}),
    ("fixed_adams", {"implicit": False}),
]


@pytest.mark.parametrize(("method", "options"), ADAMS)
@pytest.mark.parametrize("state", ["scalar", "matrix", "tuple"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.complex128], ids=str)
@DIRECTION
def test_adams_methods_agree_to_rounding(method, options, state, dtype, sign):
    """Explicit ones of high order magnify rounding errors, of single precision visibly."""
    y0, t = STATES[state](dtype), times(dtype, sign, n=25, end=1.3)
    call = {"method": method, "options": options, "rtol": 1e-4, "atol": 1e-5}
    (expected, nfe), (found, count) = (run(module, Counted(), y0, t, **call) for module in BOTH)
    close = 500 if method == "implicit_adams" else 1e4
    assert torch.allclose(found, expected, rtol=0, atol=close * torch.finfo(dtype).eps)
    assert count <= nfe
    assert nfe - count <= (24 if "interp" in options else 0)  # at an output that ends a step, theirs interpolates too


@pytest.mark.parametrize(("method", "options"), ADAMS)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_gradients_through_adams_methods(method, options, name):
    f, grads = Net(), []
    for module, function in ((theirs, "odeint"), (ours, name)):
        y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        t = times(DOUBLE, 1, n=15, end=1.3).requires_grad_()
        y = getattr(module, function)(f, y0, t, method=method, options=options, rtol=1e-4, atol=1e-5)
        grads.append(torch.autograd.grad(y.square().sum(), [y0, t, *f.parameters()]))
    assert all(float(grad.abs().max()) > 0.01 for grad in grads[0])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*grads))


def test_adams_methods_are_of_their_order_on_an_uneven_grid():
    """There theirs take the weights of an even grid and lose it."""
    t = torch.linspace(0, 1.5, 40, dtype=DOUBLE)
    t = t + 0.01 * torch.sin(20 * t) - 0.01 * torch.sin(20 * t[-1]) * t / t[-1]
    y0, errors = torch.ones(2, dtype=DOUBLE), []
    for module in BOTH:
        y = module.odeint(lambda t, y: -y, y0, t, method="implicit_adams", options={"max_order": 6})
        errors.append(float((y[-1] - torch.exp(-t[-1])).abs().max()))
    assert errors[1] < 1e-7
    assert errors[0] > 1e3 * errors[1]


def test_adams_methods_warn_as_theirs_do_and_call_back():
    f, t = Recorded(), torch.linspace(0, 3, 11, dtype=DOUBLE)
    for module in BOTH:
        with pytest.warns(UserWarning, match="converge"):
            module.odeint(lambda t, y: -5 * y, torch.ones(1, dtype=DOUBLE), t, method="implicit_adams")
        with pytest.warns(UserWarning, match="below 4"):
            module.odeint(Counted(), torch.ones(1, dtype=DOUBLE), t, method="fixed_adams", options={"max_order": 3})
        f.steps.clear()
        with pytest.warns(UserWarning, match="callback_accept_step"):
            module.odeint(f, torch.ones(1, dtype=DOUBLE), t, method="explicit_adams")
        assert [s for s, _, _ in f.steps] == pytest.approx(t[:-1].tolist())
    with pytest.raises(SolveError, match=r"NON_FINITE_STATE at t = -0\.3"):
        ours.odeint(lambda t, y: -(y**3) / t, torch.ones(1), -t.float() - 1e-3, method="explicit_adams")


# SciPy.


@STATE
@DIRECTION
def test_scipy_solver(state, sign):
    y0, t = STATES[state](DOUBLE), times(DOUBLE, sign)
    for options in ({}, {"solver": "RK45", "max_step": 0.1}, {"solver": "LSODA", "min_step": 1e-6}):
        # They pass min_step to every solver of SciPy, which warns.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, nfe = run(theirs, Counted(), y0, t, method="scipy_solver", options=options, rtol=1e-6, atol=1e-6)
        found, count = run(ours, Counted(), y0, t, method="scipy_solver", options=options, rtol=1e-6, atol=1e-6)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
        assert count == nfe + 1  # whether f reaches a tensor that requires grad


def test_scipy_solver_runs_and_refuses_to_lose_a_gradient_in_the_backward_pass():
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    y0 = torch.ones(3, dtype=DOUBLE)
    with torch.no_grad():
        expected = ours.odeint(Net(), y0, t, method="scipy_solver")
        assert torch.equal(ours.odeint(Net(), y0, t[:1], method="scipy_solver"), y0[None])
    for name, start, lost in (
        ("odeint", y0, "a tensor that `func` reaches requires grad"),
        ("odeint_adjoint", y0.clone().requires_grad_(), "`y0` and a tensor"),
    ):
        y = getattr(ours, name)(Net(), start, t, method="scipy_solver")
        assert torch.equal(y, expected)
        with pytest.raises(LostGradientError, match=lost):
            y.sum().backward()
    assert not ours.odeint(lambda t, y: -y, y0, t, method="scipy_solver").requires_grad
    with pytest.raises(RuntimeError, match="SciPy's RK45 failed"):
        ours.odeint(lambda t, y: y**2, y0, 3 * t, method="scipy_solver", options={"solver": "RK45"})


def test_scipy_is_needed_for_scipy_solver_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(ImportError, match='`method` "scipy_solver" needs SciPy: pip install scipy'):
        ours.odeint(Counted(), torch.ones(1), torch.tensor([0.0, 1.0]), method="scipy_solver")


# Programs written for torchdiffeq.


def test_the_spiral_demo():
    """torchdiffeq's ode_demo: a field fitted to a spiral, with odeint and with odeint_adjoint."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])

    class Spiral(nn.Module):
        def forward(self, t, y):
            return torch.mm(y**3, matrix)

    class Fit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

        def forward(self, t, y):
            return self.net(y**3)

    t = torch.linspace(0.0, 25.0, 100)
    with torch.no_grad():
        true_y = ours.odeint(Spiral(), torch.tensor([[2.0, 0.0]]), t, method="dopri5")
        known = theirs.odeint(Spiral(), torch.tensor([[2.0, 0.0]]), t, method="dopri5")
    assert torch.allclose(true_y, known, atol=2e-3)
    for odeint in (ours.odeint, ours.odeint_adjoint):
        torch.manual_seed(0)
        func = Fit()
        optimizer, losses = torch.optim.RMSprop(func.parameters(), lr=1e-2), []
        start = torch.arange(20)
        for _ in range(5):
            optimizer.zero_grad()
            predicted = odeint(func, true_y[start], t[:10])
            target = torch.stack([true_y[start + i] for i in range(10)])
            loss = (predicted - target).abs().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]


def test_the_block_of_the_mnist_example():
    """A field of convolutions that counts its evaluations, an `integration_time` buffer moved to x, tol options."""

    class ODEFunc(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv, self.nfe = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1), 0

        def forward(self, t, x):
            self.nfe += 1
            return self.conv(torch.relu(self.norm(x))) * (1 + t)

    class ODEBlock(nn.Module):
        def __init__(self, odeint_adjoint, odefunc):
            super().__init__()
            self.odefunc, self.integration_time = odefunc, torch.tensor([0, 1]).float()
            self.odeint = odeint_adjoint

        def forward(self, x):
            self.integration_time = self.integration_time.type_as(x)
            return self.odeint(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)[1]

    torch.manual_seed(0)
    odefunc, x, found = ODEFunc(), torch.randn(3, 4, 5, 5), []
    for module in BOTH:
        block = ODEBlock(module.odeint_adjoint, odefunc)
        odefunc.nfe = 0
        out = block(x)
        forward, odefunc.nfe = odefunc.nfe, 0
        out.square().mean().backward()
        found.append((forward, odefunc.nfe, out, [p.grad.clone() for p in odefunc.parameters()]))
        odefunc.zero_grad()
    (known, known_backward, expected, _), (nfe, backward, out, grads) = found
    assert (nfe, backward <= known_backward) == (known, True)
    assert torch.allclose(out, expected, rtol=1e-3, atol=5e-3)
    loss = theirs.odeint(odefunc, x, torch.tensor([0.0, 1.0]), rtol=1e-6, atol=1e-6)[1].square().mean()
    for a, b in zip(grads, torch.autograd.grad(loss, list(odefunc.parameters()))):
        assert float((a - b).norm()) <= 0.05 * float(b.norm())


def test_a_latent_ode():
    """An encoder backward in time, a decoder of what odeint returns, permuted; one loss through both."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.nfe = nn.Sequential(nn.Linear(4, 20), nn.ELU(inplace=True), nn.Linear(20, 4)), 0

        def forward(self, t, x):
            self.nfe += 1
            return self.net(x)

    torch.manual_seed(0)
    field, decoder, encoder = Field(), nn.Linear(4, 2), nn.GRUCell(2, 8)
    samples, grads = torch.randn(6, 7, 2), []
    for module in BOTH:
        h = torch.zeros(6, 8)
        for i in reversed(range(7)):
            h = encoder(samples[:, i], h)
        mean, log_variance = h[:, :4], h[:, 4:]
        z0 = mean + 0.1 * torch.exp(0.5 * log_variance)
        z = module.odeint(field, z0, torch.linspace(0, 1, 7), rtol=1e-5, atol=1e-5).permute(1, 0, 2)
        loss = (decoder(z) - samples).square().mean()
        grads.append(torch.autograd.grad(loss, [*field.parameters(), *encoder.parameters()]))
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(*grads))


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_a_continuous_normalizing_flow(name):
    """A tuple state; the divergence by autograd inside of func, under set_grad_enabled, in either direction of time."""

    class CNF(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

        def forward(self, t, states):
            z = states[0]
            with torch.set_grad_enabled(True):
                z.requires_grad_(True)
                dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
                trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, -trace.view(-1, 1)

    torch.manual_seed(0)
    func, x = CNF(), torch.randn(5, 2, dtype=DOUBLE)
    for t in (torch.tensor([10.0, 0.0]), torch.tensor([0.0, 2.0])):
        grads = []
        for module in BOTH:
            state = (x, torch.zeros(5, 1, dtype=DOUBLE))
            z, log_p = getattr(module, name)(func, state, t, atol=1e-7, rtol=1e-7, method="dopri5")
            loss = z[-1].square().mean() - log_p[-1].mean()
            grads.append((loss, *torch.autograd.grad(loss, list(func.parameters()), allow_unused=True)))
        for a, b in zip(*grads):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_state_and_derivative_that_are_broadcast_or_of_another_precision():
    t = torch.tensor([0.0, 1.0])
    for f, y0 in (
        (lambda t, y: torch.tensor(2.0), torch.zeros(3)),
        (lambda t, y: torch.full((1,), 2.0), torch.zeros(())),
        (lambda t, y: torch.full((3,), 2.0, dtype=DOUBLE), torch.zeros(3)),
        (lambda t, y: [torch.full((1,), 2.0), torch.full((1, 2), 2.0)], (torch.zeros(()), torch.zeros(2))),
    ):
        y = ours.odeint(f, y0, t)
        for part in y if isinstance(y, tuple) else (y,):
            assert torch.allclose(part[-1], torch.full_like(part[-1], 2.0))
    y0 = (torch.zeros(2), torch.zeros(1, dtype=DOUBLE))  # promoted, as theirs are
    for module in BOTH:
        assert [part.dtype for part in module.odeint(lambda t, y: y, y0, t)] == [DOUBLE, DOUBLE]


def test_one_time_is_the_start():
    for module in BOTH:
        assert torch.equal(module.odeint(Counted(), torch.ones(2), torch.tensor([1.0])), torch.ones(1, 2))


# Implicit methods: of torchdiffeq after 0.2.5, so not side by side. Their stages are fixed by the tableau, so a few
# lines that iterate on them, for a problem that is not stiff, say what has to come out.

IMPLICIT = {
    "implicit_euler": ([[1.0]], [1.0], [1.0]),
    "implicit_midpoint": ([[0.5]], [1.0], [0.5]),
    "trapezoid": ([[0, 0], [0.5, 0.5]], [0.5, 0.5], [0, 1]),
    "radauIIA3": ([[5 / 12, -1 / 12], [3 / 4, 1 / 4]], [3 / 4, 1 / 4], [1 / 3, 1]),
    "sdirk2": ([[1 - 0.5**0.5, 0], [0.5**0.5, 1 - 0.5**0.5]], [0.5**0.5, 1 - 0.5**0.5], [1 - 0.5**0.5, 1]),
    "gl4": (
        [[1 / 4, 1 / 4 - 3**0.5 / 6], [1 / 4 + 3**0.5 / 6, 1 / 4]],
        [0.5, 0.5],
        [0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6],
    ),
}
LATER = (*IMPLICIT, "trbdf2", "radauIIA5", "gl6")


@pytest.mark.parametrize("method", IMPLICIT)
@DIRECTION
def test_implicit_steps_are_those_of_the_tableau(method, sign):
    a, b, c = (torch.tensor(x, dtype=DOUBLE) for x in IMPLICIT[method])
    f, y, t = Counted(), torch.tensor([0.5, -0.2], dtype=DOUBLE), times(DOUBLE, sign)
    found = ours.odeint(f, y, t, method=method)
    for i, (t0, t1) in enumerate(itertools.pairwise(t)):
        dt, k = t1 - t0, torch.zeros(len(b), 2, dtype=DOUBLE)
        for _ in range(200):
            k = torch.stack([f(t0 + c_i * dt, y + dt * (row @ k)) for c_i, row in zip(c, a)])
        y = y + dt * (b @ k)
        assert torch.allclose(found[i + 1], y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", LATER)
@pytest.mark.parametrize("state", ["matrix", "tuple"])
def test_implicit_methods_take_the_options_of_fixed_steps(method, state):
    """Against an accurate solve; every option that a grid has, and every gradient."""
    y0, t = STATES[state](DOUBLE), torch.tensor([0.1, 0.65, 1.3], dtype=DOUBLE)
    exact, _ = run(ours, Counted(), y0, t, rtol=1e-9, atol=1e-11)
    error = {"implicit_euler": 0.2}.get(method, 1e-2)
    f, begun = Counted(), []
    f.callback_step = lambda t, y, dt: begun.append(dt)
    for options in (
        {"step_size": 0.1},
        {"step_size": 0.1, "interp": "cubic", "perturb": True},
        {"grid_constructor": lambda f, y0, t: torch.linspace(0.1, 1.3, 14, dtype=DOUBLE), "max_iters": 30},
    ):
        found, _ = run(ours, f, y0, t, method=method, options=options)
        assert float((found - exact).abs().max()) < error
    assert len(begun) == 12 + 12 + 13
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(ours, Counted(), y0, t, method=method, options={"step": 0.1})
    assert "known are grid_constructor, interp, max_iters, perturb, step_size" in str(caught[0].message)


@pytest.mark.parametrize("method", LATER)
def test_gradients_of_implicit_methods(method):
    net, t = Net(), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    options = {"method": method, "options": {"step_size": 0.05}}
    grads = []
    for solve in (
        lambda y0: ours.odeint(net, y0, t, **options),
        lambda y0: ours.odeint_adjoint(net, y0, t, **options),
        lambda y0: ours.odeint_adjoint(net, y0, t, **options, adjoint_method=method),
    ):
        y0 = torch.ones(1, 3, dtype=DOUBLE, requires_grad=True)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(solve(y0).sum(), [y0, *net.parameters()])]))
    assert torch.allclose(grads[1], grads[0], rtol=1e-9, atol=1e-12)
    assert float((grads[2] - grads[0]).norm() / grads[0].norm()) < (0.05 if method == "implicit_euler" else 2e-3)


def test_an_event_with_an_implicit_method():
    rate = torch.tensor(50.0, dtype=DOUBLE, requires_grad=True)
    t0, y0 = torch.tensor(0.0, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    t, _ = ours.odeint_event(
        lambda t, y: -rate * y,
        y0,
        t0,
        event_fn=lambda t, y: y - 0.5,
        method="radauIIA5",
        options={"step_size": 0.002, "interp": "cubic"},
    )
    assert t.item() == pytest.approx(math.log(2) / 50, rel=1e-6)
    (slope,) = torch.autograd.grad(t, rate)
    assert slope.item() == pytest.approx(-math.log(2) / 50**2, rel=1e-4)


def test_a_stiff_problem_that_has_no_step():
    with pytest.raises(SolveError, match="NOT_CONVERGED at t = 0"):
        ours.odeint(lambda t, y: y**2, torch.ones(1), torch.tensor([0.0, 0.5]), method="implicit_euler")


# Messages.

Y, T = torch.ones(2), torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "dopri9"}, ValueError, r"`method` must be one of dopri8, .*scipy_solver.*; got 'dopri9'"),
        (
            {"method": "gl4", "options": {"max_iters": 0}},
            ValueError,
            r"'max_iters' must be an integer ≥ 1, got 0",
        ),
        ({"y0": [Y]}, TypeError, r"`y0` must be a tensor or a tuple of tensors.*write tuple\(y0\)"),
        ({"y0": ()}, TypeError, r"`y0` must be a tensor or a tuple of tensors"),
        ({"t": [0.0, 1.0]}, TypeError, r"`t` must be a tensor, got list: write torch.tensor\(t\)"),
        ({"t": torch.tensor([0, 1])}, TypeError, r"`t` must be floating point, got torch.int64: write t.double\(\)"),
        ({"t": T[None]}, ValueError, r"`t` must be 1-D.*\(1, 2\)"),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, ValueError, r"`t` must be strictly increasing or decreasing"),
        ({"t": torch.tensor([0.0, 1.0, 0.5])}, ValueError, r"`t` must be strictly increasing or decreasing"),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, TypeError, r"`rtol`.* requires grad, .*write rtol.item\(\)"),
        ({"atol": -1.0}, ValueError, r"`atol` must be a number ≥ 0, got -1.0"),
        ({"y0": (Y, Y), "rtol": (1e-3,)}, ValueError, r"`rtol` must have one entry for each tensor of `y0`, 2, got 1"),
        ({"options": {"safety": -1}}, ValueError, r"'safety' must be a number ≥ 0, got -1.0"),
        ({"options": {"dtype": torch.int64}}, TypeError, r"'dtype' must be a floating-point dtype, got torch.int64"),
        (
            {"method": "euler", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}},
            ValueError,
            r"'step_size' and 'grid_constructor' exclude each other",
        ),
        ({"method": "euler", "options": {"step_size": -0.1}}, ValueError, r"'step_size' must be above 0.*got -0.1"),
        ({"method": "euler", "options": {"interp": "cubc"}}, ValueError, r"'interp' must be \"linear\" or \"cubic\""),
        (
            {"method": "euler", "options": {"grid_constructor": lambda f, y, t: t[:1]}},
            ValueError,
            r"'grid_constructor' must return monotone times from 0 to 1, got 1 from 0 to 0",
        ),
        ({"func": lambda t, y: "1"}, TypeError, r"`func` must return a tensor for each tensor of y, returned str"),
        (
            {"func": lambda t, y: None},
            TypeError,
            r"`func` must return a tensor for each tensor of y, returned NoneType",
        ),
        ({"func": lambda t, y: y[None].expand(2, 2)}, ValueError, r"of y's shape \(2,\), returned \(2, 2\)"),
        ({"func": lambda t, y: 1j * y}, TypeError, r"`func` returned torch.complex64 for a y of torch.float32"),
        ({"y0": (Y, Y), "func": lambda t, y: y[0]}, ValueError, r"tuple of 2 tensors as y is, returned Tensor"),
        ({"y0": (Y, Y), "func": lambda t, y: y[:1]}, ValueError, r"tuple of 2 tensors as y is, returned tuple of 1"),
        ({"t": torch.ones(1), "event_fn": lambda t, y: y}, ValueError, r"`t` must have two times with `event_fn`"),
        ({"method": "rk4", "event_fn": lambda t, y: y}, ValueError, r"`event_fn` with `method` 'rk4' needs `options="),
        (
            {"method": "rk4", "event_fn": lambda t, y: y, "options": {"step_size": 0.1, "perturb": True}},
            ValueError,
            r"`event_fn` does not go with the option 'perturb'",
        ),
        ({"method": "scipy_solver", "event_fn": lambda t, y: y}, ValueError, r"`event_fn` does not go with `method`"),
        (
            {"method": "fixed_adams", "event_fn": lambda t, y: y},
            ValueError,
            r"`event_fn` with fixed steps needs `options=",
        ),
        (
            {"method": "fixed_adams", "options": {"max_order": 13}},
            ValueError,
            r"'max_order' must be from 1 to 12, got 13",
        ),
        (
            {"rtol": (1e-3,) * 3},
            ValueError,
            r"`rtol` must be a number, or a tensor that broadcasts against `y0` of shape",
        ),
    ],
)
def test_messages(arguments, error, message):
    call = {"func": lambda t, y: -y if isinstance(y, torch.Tensor) else y, "y0": Y, "t": T, **arguments}
    with pytest.raises(error, match=message):
        ours.odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"adjoint_method": "rk4", "options": {"safety": 0.8}}, ValueError, r"pass `adjoint_options` too"),
        ({"adjoint_method": "rk5"}, ValueError, r"`adjoint_method` must be one of"),
        ({"adjoint_method": "scipy_solver"}, ValueError, r"`adjoint_method` must be a Runge–Kutta method: write"),
        ({"adjoint_method": "fixed_adams"}, ValueError, r"`adjoint_method` must be a Runge–Kutta method: write"),
        ({"adjoint_params": (1,)}, TypeError, r"`adjoint_params` must hold tensors, got tuple of 1 \(int\)"),
        ({"adjoint_options": {"norm": "max"}}, ValueError, r"'norm' must be a function or \"seminorm\", got 'max'"),
        ({"adjoint_rtol": -1.0}, ValueError, r"`adjoint_rtol` must be a number ≥ 0"),
    ],
)
def test_messages_of_the_adjoint(arguments, error, message):
    with pytest.raises(error, match=message):
        ours.odeint_adjoint(lambda t, y: -y, Y, T, **arguments)


def test_messages_of_events_and_dense_output():
    with pytest.raises(TypeError, match=r"`t0` must be a tensor with one element, got 0.0: write torch.tensor\(0.0\)"):
        ours.odeint_event(lambda t, y: -y, Y, 0.0, event_fn=lambda t, y: y)
    with pytest.raises(TypeError, match=r"`y0` must be a tensor for `odeint_dense`, got tuple"):
        ours.odeint_dense(lambda t, y: y, (Y,), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"`method` of `odeint_dense` must be a Runge–Kutta method, got 'fixed_adams'"):
        ours.odeint_dense(lambda t, y: y, Y, 0.0, 1.0, method="fixed_adams")


def test_failures_say_what_happened_in_the_callers_time():
    """Theirs: AssertionError, "underflow in dt"."""
    blow_up = lambda t, y: y**2  # noqa: E731
    with pytest.raises(SolveError, match="blows up") as caught:
        ours.odeint(blow_up, torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, 2.0], dtype=DOUBLE))
    assert caught.value.t == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(SolveError, match="blows up") as caught:
        ours.odeint(lambda t, y: -(y**2), torch.ones(1, dtype=DOUBLE), torch.tensor([0.0, -2.0], dtype=DOUBLE))
    assert caught.value.t == pytest.approx(-1.0, abs=1e-3)
    with pytest.raises(SolveError, match=r"the option 'max_num_steps' allows"):
        ours.odeint(Counted(), Y, 9 * T, options={"max_num_steps": 2})
    with pytest.raises(SolveError, match="NON_FINITE_FIELD"):
        ours.odeint(lambda t, y: y / 0, Y, T, options={"min_step": 0.1, "first_step": 0.1})
    with pytest.raises(SolveError, match="NON_FINITE_FIELD"):
        ours.odeint(lambda t, y: y / 0, Y, T, event_fn=lambda t, y: y + 1)
    with pytest.raises(SolveError, match="NON_FINITE"):
        ours.odeint(lambda t, y: torch.where(t > 0.55, math.nan, y), Y, T, options={"min_step": 0.1})
