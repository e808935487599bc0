"""`stops` and `jumps` in rows: each sample ends its steps on its own."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from odenets import Checkpointed, Event, Fixed, path, solve

D = torch.float64
NAN, INF = math.nan, math.inf
OPTIONS = {"rtol": 1e-3, "atol": 1e-6, "per_sample": True}
# Doses of each patient: in any order, repeated, outside of the interval, none at all.
DOSES = torch.tensor([[1.0, 2.5, NAN], [3.0, 0.25, 0.25], [NAN, INF, -1.0], [0.5, 9.0, 0.0]], dtype=D)


def given(doses, t0=0.0, t1=4.0):
    inside = (doses > t0) & (doses < t1)
    return [sorted(set(row[kept].tolist())) for row, kept in zip(doses, inside)]


def infused(t, y, rate, doses, width=1e-3):
    """One compartment, eliminated at `rate`; each dose is an infusion of 1 over a moment."""
    on = (t[..., None] >= doses[:, None]) & (t[..., None] < doses[:, None] + width)
    return -rate * y + on.any(-1) / width


def exact(y0, rate, doses, t, width=1e-3):
    """The state at t, by superposition."""
    y = y0 * torch.exp(-rate * t)
    for i, row in enumerate(given(doses)):
        for dose in row:
            if t >= dose + width:
                y[i] = y[i] + (torch.exp(rate * width) - 1) / (rate * width) * torch.exp(-rate * (t - dose))
    return y


def dosed(rate, y0, t, doses=DOSES, **options):
    jumps = torch.cat([doses, doses + 1e-3], dim=1)
    kept = torch.where(doses.isfinite(), doses, 99.0)
    return solve(infused, y0, t, (rate, kept), jumps=jumps, **(OPTIONS | {"rtol": 1e-6, "atol": 1e-9} | options))


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(memory=30)], ids=str)
def test_dosing_at_each_patients_own_times_and_its_gradients(adjoint):
    rate, y0 = (torch.tensor(x, dtype=D).requires_grad_() for x in (0.7, [[0.3], [1.0], [0.2], [2.0]]))
    doses = DOSES.clone()
    doses[3, 2] = NAN  # at the start, where it is no stop, but a dose
    sol = dosed(rate, y0, [0.0, 2.0, 3.5, 4.0], doses, adjoint=adjoint)
    right = torch.stack([exact(y0, rate, doses, t) for t in (0.0, 2.0, 3.5, 4.0)])
    torch.testing.assert_close(sol.ys, right, rtol=1e-5, atol=1e-8)
    grads = [torch.autograd.grad(ys.square().sum(), (y0, rate)) for ys in (sol.ys, right)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def steps(t, y, times):
    """Piecewise constant: as many as the times behind."""
    return (t[..., None] >= times[:, None]).sum(-1).to(y.dtype) + 0 * y


@pytest.mark.parametrize(("sign", "origin"), [(1, 0.0), (-1, 0.0), (1, 1e6)])
def test_a_piecewise_constant_derivative_is_integrated_exactly(sign, origin):
    times = origin + sign * torch.tensor([[0.125, 1.75, 1.75 + 2**-20], [0.5, 99.0, -5.0]], dtype=D)
    seen = []

    def f(t, y):
        seen.append(t.flatten())
        return steps(sign * (t - origin), y, sign * (times - origin))

    start, end = origin, origin + sign * 2.0
    sol = solve(f, torch.zeros(2, 1, dtype=D), [start, end], jumps=times, **OPTIONS)
    here = sign * (times - origin)
    expected = sign * ((2.0 - here).clamp(0, 2.0)).sum(1, keepdim=True)
    torch.testing.assert_close(sol.ys[-1], expected, rtol=1e-9, atol=0)
    for i, row in enumerate([[0.125, 1.75], [0.5]]):  # each sample's steps end on its own stops
        ends = {round(float(sign * (t[i] - origin)), 6) for t in seen}
        assert set(row) <= ends


@pytest.mark.parametrize("times", [[0.0, 4.0], [0.0, 0.0, 1.0, 3.9, 4.0]], ids=["end", "outputs"])
@pytest.mark.parametrize("rows", [False, True], ids=["shared", "rows"])
def test_each_row_is_bit_for_bit_that_of_a_batch_of_one(times, rows):
    y0 = torch.linspace(0.1, 2, 4, dtype=D)[:, None]
    t = torch.tensor(times, dtype=D)
    t = t + torch.tensor([[0.0], [-0.5], [0.25], [0.0]], dtype=D) if rows else t

    def solved(one, doses):
        y, at = y0[one].clone().requires_grad_(), (t[one] if rows else t).clone().requires_grad_()
        jumps = torch.cat([doses[one], doses[one] + 1e-3], dim=1)
        kept = torch.where(doses[one].isfinite(), doses[one], 99.0)
        sol = solve(infused, y, at, (0.7, kept), jumps=jumps, stops=[0.3], **OPTIONS)
        (of_y, of_t) = torch.autograd.grad(sol.ys.square().sum(), (y, at))
        return sol, of_y, of_t

    together, of_y, of_t = solved(slice(None), DOSES)
    total = torch.zeros_like(of_t)
    for i in range(4):
        alone, own, times_ = solved(slice(i, i + 1), DOSES)
        assert torch.equal(together.ys[:, i], alone.ys[:, 0])
        assert torch.equal(of_y[i], own[0])
        assert together.stats.steps[i] == alone.stats.steps[0]
        total[i if rows else slice(None)] += times_[0] if rows else times_
    torch.testing.assert_close(of_t, total, rtol=1e-12, atol=1e-12)
    assert together.ts.shape == t.shape


def test_no_operation_of_a_step_takes_all_the_stops():
    """They are searched when a chunk of steps begins; each step asks for the next one."""
    taken = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            taken.append(
                any(x.numel() > 1000 for x in args if isinstance(x, torch.Tensor)) and "gather" not in str(func)
            )
            return func(*args, **(kwargs or {}))

    many = torch.linspace(2.0, 3.0, 999, dtype=D).expand(2, -1)
    counts = []
    for near in (0, 9):
        taken.clear()
        options = OPTIONS | {"max_steps": 20 + near, "on_failure": "status"}
        with Sizes(), torch.no_grad():
            solve(lambda t, y: -y, torch.ones(2, 3, dtype=D), [0.0, 3.1], jumps=many, **options)
        counts.append((sum(taken), len(taken)))
    assert counts[0][0] == counts[1][0]
    assert counts[0][1] < counts[1][1]


def test_lists_of_any_length_paths_dense_output_and_events():
    u = path.Constant(torch.tensor([0.0, 1.0], dtype=D), torch.tensor([1.0, 3.0], dtype=D), outside="hold")

    def f(t, y, u):
        return u(t) + (t >= torch.tensor([[0.5], [1.5]], dtype=D)) + 0 * y

    options = {"jumps": [[0.5], [1.5, 7.0]], **OPTIONS}
    sol = solve(f, torch.zeros(2, 1, dtype=D), [0.0, 2.0], (u,), dense=True, **options)
    torch.testing.assert_close(sol.ys[-1], torch.tensor([[5.5], [4.5]], dtype=D), rtol=1e-9, atol=0)
    torch.testing.assert_close(sol(1.5), torch.tensor([[3.5], [2.5]], dtype=D), rtol=1e-9, atol=0)
    event = Event(lambda t, y, u: y[:, 0] - 2.0)
    ended = solve(f, torch.zeros(2, 1, dtype=D), [0.0, 2.0], (u,), event=event, **options)
    torch.testing.assert_close(ended.events[0].t, torch.tensor([1.125, 4 / 3], dtype=D), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_no_samples_or_no_stops(shape):
    y0 = torch.ones(shape[0], 1, dtype=D)
    sol = solve(lambda t, y: -y, y0, [0.0, 1.0], stops=torch.zeros(shape, dtype=D), **OPTIONS)
    assert torch.equal(sol.ys, solve(lambda t, y: -y, y0, [0.0, 1.0], **OPTIONS).ys)


@pytest.mark.slow
def test_compiled():
    rate, y0 = (torch.tensor(x, dtype=D).requires_grad_() for x in (0.7, [[0.3], [1.0], [0.2], [2.0]]))
    for doses in (DOSES, torch.cat([DOSES, DOSES + 0.01], dim=1)):  # of another K, which compiles nothing
        runs = [dosed(rate, y0, [0.0, 2.0, 4.0], doses, compile=c) for c in (False, True)]
        grads = [torch.autograd.grad(sol.ys.square().sum(), (y0, rate)) for sol in runs]
        assert torch.equal(runs[0].stats.steps, runs[1].stats.steps)
        for a, b in zip((runs[1].ys, *grads[1]), (runs[0].ys, *grads[0])):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stops": [[0.1], [0.2]]}, TypeError, "`stops` in rows are of each sample its own: pass `per_sample=True`"),
        (
            {"jumps": torch.zeros(3, 1), **OPTIONS},
            ValueError,
            "`jumps` in rows must have one for each of the 2 samples",
        ),
        ({"jumps": torch.zeros(2, 1, requires_grad=True), **OPTIONS}, ValueError, r"write jumps.detach\(\)"),
        ({"stops": [[0.1], ["x"]], **OPTIONS}, TypeError, "`stops` must be rows of times, got 'x'"),
        ({"stops": [[0.1], [0.2]], "method": "rk4", "controller": Fixed(steps=2)}, TypeError, "pass `per_sample=True`"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], **options)
