"""Forward mode and `torch.func`: every transform, adjoint, engine and kind of method is right, or refused by name."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, linearize, vmap

from odenets import PID, Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, SolveError, solve
from odenets.torchdiffeq import odeint, odeint_adjoint
from problems import Net

D = torch.float64
ADJOINTS = [Direct(), Checkpointed(), Checkpointed(memory=2), Backsolve(), Interpolated(), Reversible()]
EVERY = pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
FIXED = {"method": "rk4", "controller": Fixed(dt=0.21)}
KINDS = {
    "fixed": FIXED,
    "adaptive": {"method": "tsit5", "controller": PID(rtol=1e-8, atol=1e-8)},
    "implicit": {"method": "sdirk2", "controller": Fixed(dt=0.6)},
    "coupled": {"method": "radauIIA3", "controller": Fixed(dt=0.6)},
    "per_sample": {"method": "tsit5", "controller": PID(rtol=1e-8, atol=1e-8), "per_sample": True},
}
RATES = torch.tensor([[0.3, -0.5], [0.2, 0.8]], dtype=D)
POINT = (
    torch.tensor([[1.0, 2.0], [0.5, 0.3]], dtype=D),  # y0
    RATES,  # closed over
    torch.tensor(0.7, dtype=D),  # an argument
    torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=D),  # the times
)
TIMES = POINT[3]
# torch's own: forward mode compiles formulas by a deprecated function, and says where vmap goes one by one.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated", "ignore:There is a performance drop")


def states(adjoint, options):
    def run(y0, rates, scale, t=TIMES):
        f = lambda t, y, scale: -torch.tanh(y @ rates) * scale + torch.sin(t) * y  # noqa: E731
        return solve(f, y0, t, (scale,), adjoint=adjoint, **options).ys

    return run


def directions(count):
    torch.manual_seed(0)
    found = [torch.randn_like(x) for x in POINT]
    found[3][2] = found[3][1]  # the two equal times stay equal
    return tuple(found[:count])


def by_differences(run, point, along, step=1e-6):
    ahead, behind = (run(*(x + sign * step * v for x, v in zip(point, along))) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def along_of(jacobians, along):
    """J v of a Jacobian for each argument."""
    return sum((j * v).flatten(3).sum(-1) if v.dim() else j * v for j, v in zip(jacobians, along))


def by_dual_numbers(run, point, along):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(point, along)]
        return forward_ad.unpack_dual(run(*duals)).tangent


def by_gradients(run, point, along):
    """J v, one entry after the other."""
    entry = lambda i: grad(lambda *x: run(*x).flatten()[i], everything(len(point)))(*point)  # noqa: E731
    out = run(*point)
    return torch.stack([sum((g * v).sum() for g, v in zip(entry(i), along)) for i in range(out.numel())]).reshape(
        out.shape
    )


def everything(count):
    return tuple(range(count))


TRANSFORMS = {
    "jvp": lambda run, point, along: jvp(run, point, along)[1],
    "dual numbers": by_dual_numbers,
    "jacfwd": lambda run, point, along: along_of(jacfwd(run, everything(len(point)))(*point), along),
    "jacrev": lambda run, point, along: along_of(jacrev(run, everything(len(point)))(*point), along),
    "grad": by_gradients,
}


def applies(adjoint, kind):
    """All adjoints run one loop under a transform, but for `Reversible`: the others take up each kind once."""
    if kind == "per_sample":
        return adjoint == Checkpointed()
    return kind == "fixed" or adjoint in (Direct(), Reversible()) or (adjoint, kind) == (Checkpointed(), "adaptive")


CELLS = [(a, k) for a, k in itertools.product(ADJOINTS, KINDS) if applies(a, k)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("adjoint", "kind"), CELLS, ids=str)
def test_a_transform_gives_the_derivative_of_what_is_computed(adjoint, kind, transform):
    """For y0, a closure, an argument and every time at once, against differences of the solve itself."""
    count = 3 if kind == "per_sample" else 4
    run, point, along = states(adjoint, KINDS[kind]), POINT[:count], directions(count)
    expected = by_differences(run, point, along)
    torch.testing.assert_close(TRANSFORMS[transform](run, point, along), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=repr)
@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_compiled_solves_run_eagerly_under_a_transform(adjoint, kind):
    run = states(adjoint, {**KINDS[kind], "compile": True})
    along = directions(4)
    expected = by_differences(states(adjoint, KINDS[kind]), POINT, along)
    for transform in ("jvp", "dual numbers", "jacrev"):
        torch.testing.assert_close(TRANSFORMS[transform](run, POINT, along), expected, rtol=1e-6, atol=1e-7)


@EVERY
def test_one_euler_step_in_forward_mode(adjoint):
    """y1 = y0 − y0 = 0, whatever y0 is; `Reversible` has numbers of its own."""
    run = lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], method="euler", controller=Fixed(steps=1), adjoint=adjoint)  # noqa: E731
    y = torch.tensor([2.0], dtype=D)
    _, tangent = jvp(lambda y: run(y).ys[-1], (y,), (torch.ones_like(y),))
    assert float(tangent) == pytest.approx(0.0, abs=1e-15)


def test_dual_weights_of_a_closure_and_dual_times():
    w, t = torch.tensor([1.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D)
    one = torch.ones(1, dtype=D)

    def end(w, t):
        return solve(lambda t, y: -w * y, torch.ones(1, dtype=D), t, rtol=1e-8, atol=1e-10).ys[-1]

    for point, along in (
        ((w, t), (one, torch.zeros(2, dtype=D))),
        ((w, t), (0 * one, torch.tensor([0.0, 1.0], dtype=D))),
    ):
        assert float(by_dual_numbers(end, point, along)) == pytest.approx(-0.3678794, rel=1e-6)


@EVERY
@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.enable_grad])
def test_forward_mode_does_not_depend_on_grad_mode(adjoint, no_grad):
    run, along = states(adjoint, KINDS["coupled"]), directions(4)
    expected = by_differences(run, POINT, along)
    with no_grad():
        torch.testing.assert_close(by_dual_numbers(run, POINT, along), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("adjoint", "kind"), [(Checkpointed(), "fixed"), (Checkpointed(), "implicit"), (Reversible(), "fixed")], ids=str
)
def test_hessians_of_every_mixture(adjoint, kind):
    run, rates = states(adjoint, KINDS[kind]), POINT[1]
    loss = lambda rates: run(POINT[0], rates, POINT[2]).sin().sum()  # noqa: E731
    step = 1e-5
    units = torch.eye(4, dtype=D).reshape(4, 2, 2) * step
    expected = torch.stack([(grad(loss)(rates + e) - grad(loss)(rates - e)) / (2 * step) for e in units])
    for outer, inner in itertools.product((jacfwd, jacrev), (jacfwd, jacrev)):
        found = outer(inner(loss))(rates).reshape(2, 2, 4).movedim(-1, 0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_tangent_of_an_outer_level_reaches_the_times():
    t, v = TIMES, directions(4)[3]

    def inner(t):
        along = torch.ones_like(POINT[0])
        return jvp(lambda y0: states(Direct(), FIXED)(y0, *POINT[1:3], t), (POINT[0],), (along,))[1]

    _, tangent = jvp(inner, (t,), (v,))
    torch.testing.assert_close(tangent, by_differences(inner, (t,), (v,)), rtol=1e-6, atol=1e-7)


def test_reverse_mode_over_dual_numbers():
    along = torch.ones_like(RATES)
    rates = RATES.clone().requires_grad_()
    loss = lambda rates: states(Checkpointed(), FIXED)(POINT[0], rates, POINT[2]).square().sum()  # noqa: E731
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(rates, along))).tangent
        (found,) = torch.autograd.grad(tangent, rates)
    expected = by_differences(grad(loss), (RATES,), (along,))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


# --- vmap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adjoint", "kind"), [c for c in CELLS if c[1] in ("fixed", "adaptive")], ids=str)
def test_vmap_maps_over_starts_weights_and_arguments(adjoint, kind):
    run = states(adjoint, KINDS[kind])
    many = [torch.stack([x, 1.3 * x, 0.6 * x]) for x in POINT[:3]]
    one_by_one = torch.stack([run(*(x[i] for x in many)) for i in range(3)])
    torch.testing.assert_close(vmap(run)(*many), one_by_one, rtol=1e-7, atol=1e-9)
    over_weights = torch.stack([run(POINT[0], rates, POINT[2]) for rates in many[1]])
    torch.testing.assert_close(
        vmap(run, (None, 0, None))(POINT[0], many[1], POINT[2]), over_weights, rtol=1e-7, atol=1e-9
    )
    each = vmap(grad(lambda *x: run(*x).square().sum()))(*many)
    one_each = torch.stack([grad(lambda *x: run(*x).square().sum())(*(x[i] for x in many)) for i in range(3)])
    torch.testing.assert_close(each, one_each, rtol=1e-6, atol=1e-8)


def test_steps_under_vmap_are_those_that_the_hardest_entry_needs():
    rates = torch.tensor([1.0, 100.0], dtype=D)
    end = vmap(
        lambda rate: solve(lambda t, y: -rate * y, torch.ones(1, dtype=D), [0.0, 1.0], rtol=1e-7, atol=1e-9).ys[-1]
    )
    torch.testing.assert_close(end(rates)[:, 0], torch.exp(-rates), rtol=1e-6, atol=1e-8)


def test_a_failure_under_vmap_is_diagnosed():
    with pytest.raises(SolveError, match=r"The largest \|y\| is"):
        vmap(lambda y: solve(lambda t, y: y**2, y, [0.0, 2.0]).ys)(torch.tensor([[0.1], [1.0]], dtype=D))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("implicit", "an implicit `method` iterates"), ("per_sample", "`per_sample=True` ends its loop by values")],
)
def test_what_vmap_cannot_map_over(kind, message):
    run = states(Checkpointed(), KINDS[kind])
    for axes in ((0, None, None), (None, 0, None)):
        point = [x if axis is None else torch.stack([x, 2 * x]) for x, axis in zip(POINT, axes)]
        with pytest.raises(NotImplementedError, match=message):
            vmap(run, axes)(*point)


def test_times_cannot_be_mapped_over():
    with pytest.raises(TypeError, match="`t` cannot be mapped over by `vmap`"):
        vmap(lambda t: solve(lambda t, y: -y, torch.ones(1), t).ys)(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))


def test_per_sample_has_no_derivative_to_times_under_a_transform():
    run = states(Checkpointed(), KINDS["per_sample"])
    with pytest.raises(NotImplementedError, match="no derivative to `t`"):
        jvp(lambda t: run(*POINT[:3], t), (TIMES,), (torch.ones_like(TIMES),))


def test_an_implicit_method_refuses_a_large_state_under_a_transform():
    y0 = torch.ones(3000, dtype=D)
    with pytest.raises(NotImplementedError, match=r"forms a matrix of its stages, here of 3000 numbers"):
        jvp(lambda y: solve(lambda t, y: -y, y, [0.0, 1.0], **KINDS["implicit"]).ys, (y0,), (y0,))


# --- linearize, functional_call -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("adjoint", [Checkpointed(), Reversible()], ids=repr)
def test_linearize_records_fixed_steps(adjoint):
    run, along = states(adjoint, {"method": "heun", "controller": Fixed(dt=0.6)}), directions(3)
    torch.testing.assert_close(linearize(run, *POINT[:3])[1](*along), jvp(run, POINT[:3], along)[1])


@pytest.mark.parametrize("kind", ["adaptive", "implicit", "per_sample"])
def test_linearize_of_a_loop_that_ends_by_values_is_refused(kind):
    with pytest.raises(NotImplementedError, match=r"`linearize` or `make_fx`, which record no loop.*`controller=Fixed"):
        linearize(states(Checkpointed(), KINDS[kind]), *POINT[:3])


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("options", [{}, {"method": "trbdf2"}, {"method": "gl4", "controller": Fixed(steps=2)}])
def test_linearize_of_a_solve_of_no_length_which_has_no_loop(options):
    y0 = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
    value, along = linearize(lambda y: solve(lambda t, y: y.square(), y, [1.0, 1.0], **options).ys[-1], y0)
    assert torch.equal(value, y0)
    assert torch.equal(along(torch.ones_like(y0)), torch.ones_like(y0))


# --- a backward pass under a transform that began after the solve -------------------------------------------------


def batched(ys, wrt, bars):
    return torch.autograd.grad(ys, wrt, bars, is_grads_batched=True, retain_graph=True)


def mapped(ys, wrt, bars):
    return vmap(lambda bar: torch.autograd.grad(ys, wrt, bar, retain_graph=True))(bars)


@pytest.mark.parametrize("way", [batched, mapped])
@pytest.mark.parametrize(("adjoint", "kind"), CELLS, ids=str)
def test_many_cotangents_at_once(adjoint, kind, way):
    y0, rates, scale = (x.clone().requires_grad_() for x in POINT[:3])
    ys = states(adjoint, KINDS[kind])(y0, rates, scale)
    bars = torch.eye(ys.numel(), dtype=D).reshape(-1, *ys.shape)[:3]
    if adjoint == Direct() and kind in ("fixed", "adaptive"):
        found = way(ys, (y0, rates), bars)
        expected = [torch.autograd.grad(ys, (y0, rates), bar, retain_graph=True) for bar in bars]
        for rows, *each in zip(found, *expected):
            torch.testing.assert_close(rows, torch.stack(each))
        return
    with pytest.raises(
        NotImplementedError, match=r"is_grads_batched=True.*use `adjoint=Direct|pass an explicit `method`"
    ):
        way(ys, (y0, rates), bars)


@pytest.mark.parametrize(("adjoint", "kind"), [cell for cell in CELLS if cell[0] != Direct()], ids=str)
def test_a_dual_cotangent_of_an_earlier_solve_is_refused(adjoint, kind):
    y0 = POINT[0].clone().requires_grad_()
    ys = states(adjoint, KINDS[kind])(y0, *POINT[1:3])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode that began after the solve"):
        torch.autograd.grad(ys, y0, forward_ad.make_dual(torch.ones_like(ys), torch.ones_like(ys)))


def test_vectorized_jacobians_of_autograd():
    run = lambda y0: states(Direct(), FIXED)(y0, *POINT[1:3])  # noqa: E731
    expected = torch.autograd.functional.jacobian(run, POINT[0])
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(run, POINT[0], vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, expected)


# --- the drop-in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "explicit_adams", "rk4"])
def test_the_drop_in_under_transforms(solver, method):
    net, times = Net(2), torch.linspace(0.0, 1.0, 5, dtype=D)
    end = lambda y: solver(net, y, times, method=method)[-1]  # noqa: E731
    starts, along = POINT[0], torch.ones(2, dtype=D)
    torch.testing.assert_close(vmap(end)(starts), torch.stack([end(y) for y in starts]), rtol=1e-6, atol=1e-7)
    expected = by_differences(end, (starts[0],), (along,))
    torch.testing.assert_close(jvp(end, (starts[0],), (along,))[1], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(jacrev(end)(starts[0]) @ along, expected, rtol=1e-6, atol=1e-7)
