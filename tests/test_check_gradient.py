"""`check_gradient`: what it measures, what it advises, and what it leaves as it was."""

import math
from dataclasses import replace

import pytest
import torch

from odenets import Backsolve, Checkpointed, Direct, Fixed, Interpolated, Reversible, SolveError, check_gradient, solve
from odenets.tuning.check_gradient import Row, _recommend
from problems import Net


def state(batch=4, width=3):
    torch.manual_seed(1)
    return torch.randn(batch, width, dtype=torch.float64)


def test_every_adjoint_gets_a_row_with_its_errors_counts_time_and_memory(capsys):
    check = check_gradient(Net(), state(), [0.0, 0.5, 2.0], method="dopri5", rtol=1e-7, atol=1e-9)
    rows = {type(row.adjoint).__name__ + str(getattr(row.adjoint, "memory", None) or ""): row for row in check.rows}
    assert set(rows) == {"Direct", "Checkpointed", "Checkpointed8", "Interpolated", "Backsolve", "Reversible"}
    assert rows["Direct"].error == 0
    for name in ("Checkpointed", "Checkpointed8"):
        assert rows[name].error < 1e-12
    for name in ("Interpolated", "Backsolve", "Reversible"):
        assert 1e-12 < rows[name].error < 1e-4
    assert all(set(row.errors) == {"y0", "tensors", "t"} for row in check.rows)
    assert all(row.seconds > 0 and row.nfe > 0 for row in check.rows)
    assert rows["Direct"].nfe_backward == 0 < rows["Checkpointed"].nfe_backward
    assert rows["Backsolve"].kept < rows["Checkpointed"].kept < rows["Interpolated"].kept < rows["Direct"].kept
    assert 0 < check.discretisation < 1e-4
    assert check.finite_differences < 1e-3
    assert not check.warning
    text = capsys.readouterr().out
    assert text.strip() == str(check)
    assert isinstance(check.recommended, Direct | Checkpointed)  # which of the exact ones, their times decide
    assert "recommended: " in text


def test_the_advice_follows_from_errors_time_and_memory():
    def row(adjoint, error, seconds, kept):
        return Row(adjoint, {"y0": error}, 1, 1, seconds, kept)

    def advise(*rows):
        return _recommend(rows, rounding=1e-10)

    big = 2**30
    direct, kept = row(Direct(), 0.0, 1.0, big), row(Checkpointed(), 1e-15, 2.0, 2**20)
    close = row(Backsolve(), 1e-5, 0.5, 0)
    assert advise(direct, kept, close) == (Checkpointed(), "exact, the fastest that keeps no more than 64.0 MiB")
    small = replace(direct, kept=2**22)
    adjoint, reason = advise(small, kept, close)
    assert adjoint == Direct()
    assert reason.endswith("Checkpointed() keeps 4 times less in 2.0 times the time")
    assert advise(close) == (Backsolve(), "the most accurate here, with a difference of 1.0e-05")


def test_a_low_order_shows_in_the_continuous_adjoints():
    """As a user's own Euler steps do: 8 % in torchdiffeq's adjoint at step 0.1."""
    check = check_gradient(Net(), state(), [0.0, 2.0], method="euler", controller=Fixed(dt=0.1), verbose=False)
    errors = {type(row.adjoint): row.error for row in check.rows}
    assert errors[Checkpointed] < 1e-12
    assert errors[Backsolve] > 1e-3
    assert check.discretisation > 1e-3


@pytest.mark.parametrize("cut", [lambda y: y.detach(), lambda y: torch.as_tensor(y.data)], ids=["detach", "data"])
def test_a_gradient_that_f_cuts_off_is_seen(cut):
    """By finite differences: all adjoints agree on what is wrong."""
    net = Net()
    check = check_gradient(lambda t, y: net(t, cut(y)) * 3, state(), [0.0, 2.0], rtol=1e-8, verbose=False)
    assert check.rows[0].error == check.rows[0].errors["y0"] == 0
    assert check.finite_differences > 0.05
    assert "detach" in str(check)


def test_a_failure_is_a_row_with_its_reason():
    def f(t, y):  # tame forward, blows up backward
        return -(y**3)

    y0 = torch.full((1,), 100.0, dtype=torch.float64)
    adjoints = (Checkpointed(), Backsolve())
    check = check_gradient(f, y0, [0.0, 5.0], rtol=1e-2, atol=1e-2, adjoints=adjoints, verbose=False)
    assert not check.rows[0].failure
    assert "SolveError" in check.rows[1].failure
    assert math.isnan(check.rows[1].error)
    assert "SolveError: DIVERGED" in str(check)
    assert check.recommended == Checkpointed()


def test_a_tensor_that_only_direct_can_serve_is_said():
    hidden = iter(lambda: weight, None)  # through which no walk over Python objects finds it
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True) * 2
    check = check_gradient(lambda t, y: -next(hidden) * y, state(), [0.0, 1.0], verbose=False)
    assert check.rows[0].error == 0
    assert all("LostGradientError" in row.failure for row in check.rows[1:])
    assert check.recommended == Direct()


def test_nothing_is_changed():
    net, y0 = Net(), state().requires_grad_()
    before = [p.clone() for p in net.parameters()]
    generator = torch.get_rng_state()
    check_gradient(net, y0, torch.tensor([1.0, 0.2]), verbose=False)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before))
    assert all(p.grad is None for p in (*net.parameters(), y0))
    assert torch.equal(torch.get_rng_state(), generator)


def test_nests_arguments_and_a_loss_of_the_users_own():
    net = Net()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def f(t, y, scale):
        return {"a": net(t, y["a"]) * scale, "b": -y["b"]}

    def loss(ys):
        return ys["a"][-1].square().sum() + ys["b"].sin().sum()

    y0 = {"a": state(), "b": torch.ones(2, dtype=torch.float64)}
    adjoints = (Checkpointed(), Interpolated(), Reversible())
    check = check_gradient(f, y0, [0.0, 1.0], (scale,), loss=loss, adjoints=adjoints, rtol=1e-7, verbose=False)
    assert [row.failure for row in check.rows] == ["", "", ""]
    assert check.rows[0].error < 1e-10
    assert check.finite_differences < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"adjoint": Direct()}, "give `adjoints`"), ({"compile": True}, "leave it out"), ({"methd": "rk4"}, "methd")],
)
def test_options_that_do_not_belong_here_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        check_gradient(Net(), state(), [0.0, 1.0], **options)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match="`loss` must return a scalar"):
        check_gradient(Net(), state(), [0.0, 1.0], loss=lambda ys: ys)


def test_a_solve_that_fails_raises():
    with pytest.raises(SolveError):
        check_gradient(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0])


def test_the_recommended_adjoint_solves():
    check = check_gradient(Net(), state(), [0.0, 1.0], verbose=False)
    assert solve(Net(), state(), [0.0, 1.0], adjoint=check.recommended).ys.requires_grad
