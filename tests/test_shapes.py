"""Every shape of a state, the empty ones and () included, with every kind of times: values, gradients, stats, dense."""

import itertools

import pytest
import torch

from odenets import Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, SolveError, Status, solve

SHAPES = [(), (0,), (0, 3), (1,), (3, 0), (2, 3), (2, 1, 3), (2, 1, 3, 1), (2, 2, 2, 2, 2)]
TIMES = {"t": [0.5], "t t": [0.5, 0.5], "t t t1": [0.5, 0.5, 1.5], "t t1": [0.5, 1.5], "t t1 t1": [0.5, 1.5, 1.5]}
BACK = {f"{name} back": [1 - t for t in times] for name, times in TIMES.items() if "t1" in name}
ADJOINTS = [Checkpointed(), Checkpointed(memory=4), Direct(), Interpolated(), Backsolve(), Reversible()]
TIGHT = {"rtol": 1e-7, "atol": 1e-9}


def case(shape, times):
    torch.manual_seed(0)
    y0 = torch.rand(shape, dtype=torch.float64).requires_grad_()
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return y0, torch.tensor(times, dtype=torch.float64, requires_grad=True), rate


def decay(t, y, rate):
    return -rate * y


def exact(y0, t, rate):
    """The solution of y' = −rate · y."""
    return y0 * torch.exp(-rate * (t - t[0])).reshape(-1, *(1,) * y0.dim())


def check(y0, t, rate, ys, again=None):
    """Values and gradients beside those of the closed form."""
    right = exact(y0, t, rate)
    weights = torch.linspace(1, 2, right.numel(), dtype=torch.float64).reshape(right.shape)
    wrt = [x for x in (y0, t, rate) if x.requires_grad]
    wanted = torch.autograd.grad((right * weights).sum(), wrt)
    for states in (ys,) if again is None else (ys, again):
        torch.testing.assert_close(states, right, rtol=1e-4, atol=1e-6)
        grads = torch.autograd.grad((states * weights).sum(), wrt, retain_graph=True)
        for grad, right_grad in zip(grads, wanted):
            torch.testing.assert_close(grad, right_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("times", [*TIMES, *BACK])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_step_size(shape, times):
    for adjoint in ADJOINTS:
        y0, t, rate = case(shape, (TIMES | BACK)[times])
        dense = isinstance(adjoint, Checkpointed | Direct)
        sol = solve(decay, y0, t, (rate,), adjoint=adjoint, dense=dense, **TIGHT)
        assert sol.ys.shape == (len(t), *shape)
        assert (sol.stats.steps == 0) == ("t1" not in times)
        check(y0, t, rate, sol.ys)
        if dense:
            at = t.detach()
            torch.testing.assert_close(sol(at), sol.ys, rtol=0, atol=1e-13)
            assert sol(float(at[0])).shape == shape
            for ours, theirs in zip(
                torch.autograd.grad(sol(at).sum(), (y0, rate), retain_graph=True),
                torch.autograd.grad(exact(y0, at, rate).sum(), (y0, rate)),
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("times", [*TIMES, *BACK])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape], ids=str)
def test_a_step_size_for_each_sample(shape, times):
    y0, t, rate = case(shape, (TIMES | BACK)[times])
    sol = solve(decay, y0, t, (rate,), per_sample=True, **TIGHT)
    assert sol.ys.shape == (len(t), *shape)
    assert sol.stats.steps.shape == (shape[0],)
    assert sol.statuses == (Status.SUCCESS,) * shape[0]
    if "t1" not in times:
        assert sol.stats.steps.tolist() == [0] * shape[0]
    check(y0, t, rate, sol.ys)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("shape", "times"), [((2, 3), "t t"), ((2, 3), "t"), ((0, 3), "t t1"), ((3, 0), "t t1 t1")])
def test_where_there_is_nothing_to_step_nothing_is_compiled(shape, times, per_sample):
    y0, t, rate = case(shape, TIMES[times])
    sol = solve(decay, y0, t, (rate,), per_sample=per_sample, compile=True, **TIGHT)
    check(y0, t, rate, sol.ys)


@pytest.mark.parametrize("options", [{"method": "rk4", "controller": Fixed(steps=2)}, {}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    "shapes", [((), ()), ((0, 3), (0, 2)), ((3,), (0, 2)), ((2, 3), (2, 0)), ((2, 1), (2, 5))], ids=str
)
def test_nests(shapes, options):
    for times, per_sample in itertools.product(TIMES, (False, True)):
        if per_sample and (options or shapes[0] == () or shapes == ((3,), (0, 2))):
            continue
        y0 = tuple(torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        sol = solve(lambda t, y: tuple(-x for x in y), y0, TIMES[times], per_sample=per_sample, **options)
        assert [ys.shape for ys in sol.ys] == [(len(TIMES[times]), *shape) for shape in shapes]
        sum(ys.sum() for ys in sol.ys).backward()
        assert [x.grad.shape for x in y0] == [*shapes]


@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"method": "rk4", "controller": Fixed(dt=0.1)}], ids=str)
@pytest.mark.parametrize(
    ("f", "y0", "status"),
    [
        (lambda t, y: -y, torch.tensor([[1.0], [torch.nan]]), Status.NON_FINITE_START),
        (lambda t, y: y / 0, torch.ones(2, 1), Status.NON_FINITE_FIELD),
    ],
)
def test_a_start_that_is_not_finite_fails_without_a_length_too(f, y0, status, options):
    with pytest.raises(SolveError) as caught:
        solve(f, y0, [1.0, 1.0], **options)
    assert caught.value.status is status
