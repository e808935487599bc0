"""Options of experiments: what they carry, and what they refuse."""

from dataclasses import dataclass, fields

import pytest

from odenets.adjoint import Backsolve, Checkpointed, Direct
from odenets.controller import PID, Fixed
from odenets.experiments.option import ADJOINTS, check_at_least, check_choices, option, solver_options


@dataclass(frozen=True)
class Config:
    method: str = option("dopri5", "The solver.", ("dopri5", "rk4"))
    rtol: float = option(1e-3, "Relative.")
    atol: float = option(1e-4, "Absolute.")
    dt: float | None = option(None, "The step.")
    adjoint: str = option("direct", "How.", tuple(ADJOINTS))
    compile: bool = option(False, "Whether.")


def test_an_option_carries_its_sentence_and_its_choices():
    method, rtol, *_ = fields(Config)
    assert (method.default, method.metadata["help"]) == ("dopri5", "The solver.")
    assert (method.metadata["choices"], rtol.metadata["choices"]) == (("dopri5", "rk4"), ())


def test_a_value_that_is_no_choice_is_refused():
    check_choices(Config())
    with pytest.raises(
        ValueError, match=r"`adjoint` must be one of direct, checkpointed, interpolated, .*; got 'forward'"
    ):
        check_choices(Config(adjoint="forward"))


@pytest.mark.parametrize("value", [1e-5, float("nan")])
def test_a_number_below_its_lowest_value_is_refused(value):
    with pytest.raises(ValueError, match=rf"`rtol` must be at least 0.001, got {value}"):
        check_at_least(Config(rtol=value), rtol=1e-3)


def test_the_lowest_value_itself_and_none_pass():
    check_at_least(Config(rtol=1e-3), rtol=1e-3, dt=1)


def test_solver_options_are_tolerances_or_a_step():
    adaptive = solver_options(Config(adjoint="backsolve"))
    controller = PID(rtol=1e-3, atol=1e-4)
    assert adaptive == {"method": "dopri5", "adjoint": Backsolve(), "compile": False, "controller": controller}
    assert solver_options(Config(method="rk4", dt=0.5))["controller"] == Fixed(dt=0.5)


def test_the_adjoints_that_compile():
    assert solver_options(Config())["adjoint"] == Direct()
    assert solver_options(Config(compile=True))["adjoint"] == Direct()
    assert solver_options(Config(compile=True, adjoint="checkpointed"))["adjoint"] == Checkpointed()
    with pytest.raises(ValueError, match=r"`compile` goes with `adjoint` direct or checkpointed, got 'backsolve'"):
        solver_options(Config(compile=True, adjoint="backsolve"))
    with pytest.raises(ValueError, match=r"`compile` goes with explicit Runge–Kutta methods, got `method` 'trbdf2'"):
        solver_options(Config(compile=True, method="trbdf2", dt=0.5))


def test_a_method_without_an_error_estimate_needs_a_step():
    with pytest.raises(ValueError, match=r"`method` 'rk4' cannot adapt its steps: give their size, `dt`, for example"):
        solver_options(Config(method="rk4"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rtol": -1.0}, "`rtol` must be a number ≥ 0, got -1.0"),
        ({"atol": float("nan")}, "`atol` must be a number ≥ 0, got nan"),
        ({"rtol": 0.0, "atol": 0.0}, "`rtol` must be above 0 where `atol` is 0, got 0.0"),
        ({"dt": 0.0}, "`dt` must be a number above 0"),
    ],
)
def test_tolerances_and_steps_that_no_solve_could_have_are_refused_before_any_training(wrong, message):
    with pytest.raises(ValueError, match=message):
        solver_options(Config(**wrong))
