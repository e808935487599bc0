"""`diagnose`: its numbers against closed forms, its words by its numbers, and that it leaves everything as it was."""

import copy
import math

import pytest
import torch
from torch import nn

from odenets import Fixed, Reversible, Status, diagnose
from odenets.nn import MLPField, ODEBlock

ROTATION = [[0.0, -5.0], [5.0, 0.0]]


def linear(a):
    return lambda t, z: z @ torch.as_tensor(a, dtype=z.dtype).T


def found(field, x=None, **options):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) if x is None else x
    whole = isinstance(field, nn.Module) and any(isinstance(part, ODEBlock) for part in field.modules())
    block = field if whole else ODEBlock(field, **options)
    return diagnose(block, x, points=3, verbose=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("a", "lipschitz", "log_norm", "stiffness"),
    [
        ([[-2.0, 1.0], [1.0, -2.0]], 3.0, -1.0, 6.0),
        (ROTATION, 5.0, 0.0, 0.0),
        ([[-1.0, 0.0], [0.0, -100.0]], 100.0, -1.0, 200.0),
        ([[1.0, 0.0], [0.0, 3.0]], 3.0, 3.0, 0.0),
        ([[-1.0, 4.0], [0.0, -1.0]], math.sqrt(9 + 4 * math.sqrt(5)), 1.0, 2.0),  # not normal
        ([[0.0, 0.0], [0.0, 0.0]], 0.0, 0.0, 0.0),
    ],
)
def test_linear_fields(a, lipschitz, log_norm, stiffness, batch, dtype):
    x = torch.randn(batch, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    diagnosis = found(linear(a), x, t=(0.0, 2.0))
    assert diagnosis.lipschitz == pytest.approx(lipschitz, rel=1e-5)
    assert diagnosis.log_norm == pytest.approx(log_norm, abs=1e-5 * max(1.0, lipschitz))
    assert diagnosis.stiffness == pytest.approx(stiffness, abs=1e-5 * max(1.0, lipschitz))
    assert diagnosis.interval == 2.0
    assert "the whole Jacobian" in diagnosis.estimate


def test_an_untrained_tanh_field():
    """At the start and at the end, against the Jacobian by torch.func."""
    torch.manual_seed(1)
    field, x = MLPField(3, (8,)).double(), torch.randn(4, 3, dtype=torch.float64)
    block = ODEBlock(field, rtol=1e-7, atol=1e-9)
    diagnosis = found(block, x)
    for point, y in zip((diagnosis.points[0], diagnosis.points[-1]), (x, block(x).detach())):
        t = torch.tensor(point.t, dtype=torch.float64)
        jacobians = torch.stack([torch.func.jacrev(lambda z, t=t: field(t, z))(z) for z in y]).detach()
        assert point.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(jacobians, 2).max()), rel=1e-6)
        symmetric = torch.linalg.eigvalsh((jacobians + jacobians.mT) / 2)
        assert point.log_norm == pytest.approx(float(symmetric.max()), rel=1e-6)
        assert point.decay == pytest.approx(-float(torch.linalg.eigvals(jacobians).real.min()), rel=1e-6)
    assert diagnosis.resolved
    assert diagnosis.recommendation.startswith("An ODE, resolved")
    assert "can be solved backward" in diagnosis.recommendation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_states_by_products(dtype):
    """Images of 108 numbers, one matrix each: eigenvalues −7, 4 and between −1 and 1, in a random basis."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(108, 108, dtype=torch.float64))[0]
    values = torch.cat([torch.tensor([-7.0, 4.0]), torch.linspace(-1, 1, 106)]).double()
    a = (basis @ torch.diag(values) @ basis.T).to(dtype)
    diagnosis = found(lambda t, z: (z.flatten(1) @ a).reshape(z.shape), torch.randn(3, 3, 6, 6, dtype=dtype))
    assert diagnosis.lipschitz == pytest.approx(7.0, rel=1e-3)
    assert diagnosis.log_norm == pytest.approx(4.0, rel=1e-3)
    assert diagnosis.stiffness == pytest.approx(7.0, rel=1e-3)
    assert "Lanczos" in diagnosis.estimate


# Is it an ODE?


def test_eulers_eight_steps_are_a_residual_network_and_tsit5_is_an_ode():
    coarse = found(linear(ROTATION), method="euler", controller=Fixed(steps=8))
    fine = found(linear(ROTATION), rtol=1e-5)
    assert coarse.finer.solver == "euler, steps 16"
    assert coarse.other.solver == "rk4, steps 8"
    z = complex(1, 5 / 8) ** 8, complex(1, 5 / 16) ** 16
    assert coarse.finer.value == pytest.approx(abs(z[1] - z[0]) / abs(z[0]), rel=1e-4)
    assert not coarse.resolved
    assert coarse.recommendation.startswith("A residual network in the guise of an ODE: under euler, steps 16")
    assert f"changes by {coarse.finer.value:.1%}" in coarse.recommendation
    assert fine.resolved
    assert fine.finer.value < 1e-3
    assert fine.recommendation.startswith("An ODE, resolved")
    assert coarse.steps == tuple((i / 8, 0.125) for i in range(8))


def test_what_the_other_solvers_are():
    def names(**options):
        diagnosis = found(linear(ROTATION), **options)
        return diagnosis.finer.solver, diagnosis.other.solver

    assert names(rtol=1e-3, atol=1e-4) == ("tsit5, tol 1e-05, 1e-06", "bosh3, tol 0.001, 0.0001")
    assert names(method="bosh3", rtol=1e-5, atol=1e-5)[0] == "bosh3, tol 1.90735e-06, 1e-07"  # what float32 can tell
    assert names(method="rk4", controller=Fixed(dt=0.5)) == ("rk4, dt 0.25", "dopri5, dt 0.5")
    assert names(method="gl4", controller=Fixed(steps=3)) == ("gl4, steps 6", "radauIIA5, steps 3")


def test_the_output_is_that_of_the_whole_module():
    """Behind a layer that squares, what the solver changes is twice as large."""

    class Square(nn.Module):
        def forward(self, x):
            return x**2

    options = {"method": "midpoint", "controller": Fixed(steps=20)}
    alone = found(linear([[1.0, 0.0], [0.0, 1.0]]), **options)
    whole = found(nn.Sequential(ODEBlock(linear([[1.0, 0.0], [0.0, 1.0]]), **options), Square()))
    assert whole.finer.value == pytest.approx(2 * alone.finer.value, rel=1e-2)


def test_a_controller_of_ones_own_has_no_finer_one():
    class Own:
        adaptive, share, tunable, chooses_first_step, start = False, 0.0, (), False, ()

        def given_step(self, t0, t1):
            return 0.1

        def decide(self, ratio, dt, memory, order):
            return Fixed(dt=0.1).decide(ratio, dt, memory, order)

    diagnosis = found(linear(ROTATION), method="rk4", controller=Own())
    assert not diagnosis.resolved
    assert diagnosis.recommendation.startswith("Whether it is an ODE is open: under a finer solver")


# The words


def test_stiffness_is_told_where_it_holds_the_steps():
    stiff = [[-1.0, 0.0], [0.0, -200.0]]
    assert "Stiff: decay × step" in found(linear(stiff)).recommendation
    implicit = found(linear(stiff), method="radauIIA5", controller=Fixed(steps=40))
    assert not implicit.explicit
    assert "Stiff" not in implicit.recommendation
    assert "Stiff" not in found(linear([[-2.0, 0.0], [0.0, -1.0]])).recommendation


@pytest.mark.parametrize(("rate", "reversible"), [(1.0, True), (30.0, False)])
def test_what_contracts_cannot_be_solved_backward(rate, reversible):
    diagnosis = found(lambda t, z: -rate * z)
    assert (diagnosis.reconstruction < 1e-2) is reversible
    assert ("do not take `Backsolve`" in diagnosis.recommendation) is not reversible


def test_rejections_growth_and_idle_accuracy_are_told():
    jumps = found(lambda t, z: torch.where(torch.sin(40 * t) > 0, 5.0, -5.0) + 0 * z)
    assert jumps.rejected > 0.2 * (jumps.accepted + jumps.rejected)
    assert f"{jumps.rejected} of {jumps.accepted + jumps.rejected} steps are rejected" in jumps.recommendation
    growing = found(lambda t, z: 9 * z)
    assert "Expanding: a difference between two inputs may grow by a factor of up to e^9" in growing.recommendation
    easy = found(lambda t, z: 0.1 * z, method="rk4", controller=Fixed(steps=50))
    assert "`odenets.tune` finds" in easy.recommendation
    assert "Expanding" not in easy.recommendation
    wild = found(lambda t, z: torch.sin(60 * t) * torch.ones_like(z), rtol=1e-6, atol=1e-6)
    assert wild.nfe > 100
    assert f"Expensive: {wild.nfe} evaluations" in wild.recommendation


# Where the solve fails


@pytest.mark.parametrize(
    ("field", "x", "options", "status"),
    [
        (lambda t, z: z**2, torch.ones(2, 3), {"t": (0.0, 2.0)}, Status.DIVERGED),
        (lambda t, z: -z, torch.full((2, 3), math.nan), {}, Status.NON_FINITE_START),
        (lambda t, z: -1e4 * z, torch.ones(2, 3), {"max_steps": 50}, Status.MAX_STEPS),
        (lambda t, z: -(z**5), 5 * torch.ones(2, 3), {"method": "euler", "controller": Fixed(steps=8)}, None),
    ],
)
def test_a_solve_that_fails_is_diagnosed_up_to_there(field, x, options, status):
    diagnosis = found(nn.Sequential(nn.Identity(), ODEBlock(field, **options)), x)
    assert diagnosis.failure is not None
    if status is not None:
        assert diagnosis.failure.status is status
    assert diagnosis.failure.status.value in diagnosis.recommendation
    assert not diagnosis.resolved
    assert math.isnan(diagnosis.reconstruction)
    assert "the solve fails" in str(diagnosis)
    if status in (Status.DIVERGED, Status.MAX_STEPS):
        assert len(diagnosis.points) == 3
        assert diagnosis.points[-1].t <= diagnosis.failure.t
    if status is Status.MAX_STEPS:
        assert "Stiff" in diagnosis.recommendation


# The layer in all its forms


class Convolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, t, z):
        assert t.dim() in (0, 4)
        return torch.tanh(self.layer(z) + t)


@pytest.mark.parametrize("per_sample", [False, True])
def test_images_with_extra_channels(per_sample):
    torch.manual_seed(0)
    block = ODEBlock(Convolution(4), augment=2, augment_dim=1, per_sample=per_sample)
    diagnosis = found(block, torch.rand(3, 2, 5, 5))
    assert "state 3 × 4 × 5 × 5, float32" in diagnosis.layer
    assert diagnosis.resolved
    assert diagnosis.nfe > 0
    assert 0 < diagnosis.lipschitz < math.inf


@pytest.mark.parametrize("t", [(1.0, 0.0), (0.0, 0.5, 1.0), torch.tensor([0.0, 1.0])])
def test_any_times(t):
    diagnosis = found(linear([[-2.0, 1.0], [1.0, -2.0]]), t=t)
    assert diagnosis.interval == 1.0
    assert [point.t for point in diagnosis.points] == pytest.approx(torch.linspace(float(t[0]), float(t[-1]), 3))
    assert sum(size for _, size in diagnosis.steps) == pytest.approx(1.0)
    assert diagnosis.resolved
    assert diagnosis.reconstruction < 1e-2


def test_one_sample_without_an_axis_and_arguments_of_the_field():
    rate = torch.tensor(2.0, requires_grad=True)
    diagnosis = found(lambda t, z, k: -k * z, torch.ones(3), args=(rate,), adjoint=Reversible())
    assert diagnosis.lipschitz == pytest.approx(2.0)


def test_leaves_everything_as_it_was():
    torch.manual_seed(0)
    layer = ODEBlock(Counted(), regularise="kinetic")
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3), layer)
    x = torch.randn(6, 3)
    model(x).sum().backward()
    pending = model(x)
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    seen = (layer.field.calls, layer.stats, layer.solve_options, layer.regularisation)
    draws = torch.get_rng_state()
    diagnosis = diagnose(model, x, verbose=False)
    assert diagnosis.resolved  # so the dropout was the same in all runs
    assert seen == (layer.field.calls, layer.stats, layer.solve_options, layer.regularisation)
    assert not layer._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads))
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    pending.sum().backward()


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.linear = 0, nn.Linear(3, 3)

    def forward(self, t, z):
        self.calls += 1
        return torch.tanh(self.linear(z))


def test_prints_a_table(capsys):
    diagnosis = diagnose(ODEBlock(linear([[-2.0, 1.0], [1.0, -2.0]])), torch.ones(4, 2), points=5)
    printed = capsys.readouterr().out
    assert printed == f"{diagnosis}\n"
    head, names, *lines = printed.splitlines()
    assert head == "tsit5, tol 0.001, 1e-06, from t = 0 to 1; state 4 × 2, float32"
    assert names.split() == ["t", "step", "Lipschitz", "one-sided", "decay"]
    assert [line.split()[2:] for line in lines[:5]] == [["3", "-1", "3"]] * 5
    assert f"nfe {diagnosis.nfe}, {diagnosis.accepted} steps, {diagnosis.rejected} rejected" in printed
    assert lines[-1] == diagnosis.recommendation.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(3, 3), torch.ones(2, 3)), ValueError, "`block` must be an ODEBlock or contain exactly one"),
        ((linear(ROTATION), torch.ones(2, 2)), TypeError, "must be an ODEBlock or contain exactly one, got <function"),
        (
            (nn.Sequential(ODEBlock(MLPField(3)), ODEBlock(MLPField(3))), torch.ones(2, 3)),
            ValueError,
            "has 2 of them, `0`, `1`: diagnose one at a time",
        ),
        ((ODEBlock(MLPField(3)), [torch.ones(2, 3)]), TypeError, "`batch` must be a tensor or a tuple of arguments"),
        ((ODEBlock(MLPField(3)), torch.ones(2, 3), 1), ValueError, "`points` must be an integer ≥ 2, got 1"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        diagnose(*arguments[:2], points=arguments[2] if len(arguments) > 2 else 9)
