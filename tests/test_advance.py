"""How far a solve is, while it runs."""

import io
import sys

import pytest
import torch

from odenets import Backsolve, Checkpointed, Direct, Event, Fixed, Interpolated, Reversible, solve

D = torch.float64
ADJOINTS = [Checkpointed(), Direct(), Interpolated(), Backsolve(), Reversible()]


def decay(t, y):
    return -y


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_each_accepted_step_of_the_solve_is_told_in_the_callers_time(adjoint):
    told = []
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    sol = solve(decay, y0, (3.0, 2.5, 1.0), adjoint=adjoint, progress=told.append)
    assert len(told) == told[-1].accepted == sol.stats.accepted
    assert told[-1].rejected == sol.stats.rejected
    assert told[-1].t == 1.0
    assert told[-1].nfe <= sol.stats.nfe
    assert all(one.dt < 0 for one in told)
    assert sum(one.dt for one in told) == pytest.approx(-2.0)
    sol.ys.sum().backward()
    assert len(told) == sol.stats.accepted  # no step of the backward pass
    assert torch.equal(sol.ys, solve(decay, y0, (3.0, 2.5, 1.0), adjoint=adjoint).ys)


def test_fixed_steps_and_events():
    told = []
    solve(decay, torch.ones(2), (0.0, 1.0), method="euler", controller=Fixed(steps=4), progress=told.append)
    assert [one.t for one in told] == [0.25, 0.5, 0.75, 1.0]
    told.clear()
    half = Event(lambda t, y: y[0] - 0.5, jump=lambda t, y: 2 * y)
    solve(decay, torch.ones(1, dtype=D), (10.0, 10.9), event=half, progress=told.append, rtol=1e-6)
    assert [one.t for one in told] == sorted(one.t for one in told)
    assert told[-1].t == pytest.approx(10.9)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_what_the_function_raises_ends_the_solve_and_breaks_nothing(kind):
    rate = torch.tensor(2.0, dtype=D, requires_grad=True)

    def stop(advance):
        if advance.accepted == 2:
            raise kind("enough")

    options = {"rtol": 1e-8}
    with pytest.raises(kind, match="enough"):
        solve(lambda t, y: -rate * y, torch.ones(2, dtype=D), (0.0, 1.0), progress=stop, **options)
    assert torch.is_grad_enabled()
    ys = solve(lambda t, y: -rate * y, torch.ones(1, dtype=D), (0.0, 1.0), **options).ys
    (bar,) = torch.autograd.grad(ys[-1].sum(), rate)
    assert float(bar) == pytest.approx(-float(torch.exp(torch.tensor(-2.0))), rel=1e-5)


def test_a_line_on_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    solve(decay, torch.ones(2), (0.0, 1.0), progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    solve(decay, torch.ones(2), (0.0, 1.0), progress=True)
    *_, line = sys.stderr.getvalue().split("\r")
    assert line.startswith("100%  t = 1 of 1, dt = ")
    assert line.endswith("\n")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError):
        solve(lambda t, y: -y / (t < 0.5 or 1 // 0), torch.ones(2, dtype=D), (0.0, 1.0), progress=True, rtol=1e-9)
    assert sys.stderr.getvalue().startswith("\r  ")
    assert sys.stderr.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": "bar"}, "`progress` must be True, False or a function of an `Advance`, got 'bar'"),
        ({"progress": 1}, "`progress` must be True, False or a function"),
        ({"progress": True, "per_sample": True}, "`per_sample=True` does not go with `progress`: leave one out"),
        ({"progress": print, "compile": True}, "`compile=True` does not go with `progress`: leave one out"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        solve(decay, torch.ones(2, 1), (0.0, 1.0), **options)
