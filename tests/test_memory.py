"""The memory experiment: bytes that can be counted by hand, closed forms, and a run that goes on."""

import math

import pytest
import torch

from odenets import SolveError, solve
from odenets.experiments import memory, reversal
from odenets.experiments.memory import Config, growth, run
from odenets.experiments.reversal import Decay, PeakBytes, Settling, memory_row, starts, way_back


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return folder, run(Config(**memory.SMALL), folder, progress=False)


def test_peak_bytes_are_those_alive_at_once():
    with PeakBytes() as found:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        c = b * 2  # 8,000 again
        d = c[:10]  # a view
        del b, c, d
        torch.zeros(10)
    assert found.peak == 8000
    assert found.now == 0


def test_what_an_adjoint_keeps():
    """Direct keeps Euler's states and the activations of f; Backsolve the ends alone."""
    state = 4 * reversal.BATCH * reversal.WIDTH
    direct, more = (memory_row("Direct", n)["kept"] for n in (4, 16))
    assert more - direct == pytest.approx(12 * state, rel=0.01)
    backsolve, later = (memory_row("Backsolve", n) for n in (4, 16))
    assert backsolve["kept"] == later["kept"]
    assert backsolve["peak"] == later["peak"]


def test_growth_is_beside_the_fewest_evaluations():
    ways = (*reversal.ADJOINTS, reversal.RESNET)
    rows = [
        {"adjoint": name, "evaluations": n, "peak": n * (i + 1), "seconds": i + 1.0}
        for i, name in enumerate(ways)
        for n in (4, 64)
    ]
    table = growth(rows)
    assert [row["growth"] for row in table] == [16.0] * 7
    assert [row["slower"] for row in table] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("kind", [Decay, Settling])
def test_closed_forms_are_the_solutions(kind):
    field, y0 = kind(5.0), starts()
    with torch.no_grad():
        solved = solve(field, y0, (0.0, 1.0), rtol=1e-10, atol=1e-10).ys[-1]
        torch.testing.assert_close(field.exact(y0), solved, rtol=1e-7, atol=1e-9)


def test_a_contraction_loses_its_start(monkeypatch):
    monkeypatch.setattr(reversal, "TOLERANCES", (1e-6,))
    monkeypatch.setattr(reversal, "_MOST_STEPS", 150)
    easy, hard = (way_back("settling", rate, 0) for rate in (1.0, 50.0))
    assert easy["back"][0] < 1e-3
    assert hard["back"] == [None]
    for name in ("Backsolve", "Reversible"):
        assert hard[f"gradient {name}"] == [None]
        assert easy[f"gradient {name}"][0] < 1e-3
    assert hard["gradient Checkpointed"][0] < 1e-4


def test_the_error_of_decay_grows_as_distances_shrink(monkeypatch):
    monkeypatch.setattr(reversal, "TOLERANCES", (1e-8,))
    mild, strong = (way_back("decay", rate, 0)["back"][0] for rate in (5.0, 20.0))
    assert strong / mild > math.exp(10)


def test_the_lead_says_what_the_rows_say(small):
    result = small[1]
    constant = [row["adjoint"] for row in result.summary["table"] if row["growth"] < 1.1]
    assert {"Backsolve", "Reversible"} <= set(constant)
    assert "holds for Backsolve and Reversible" in result.lead
    assert "trained on digits can be solved backward up to a tolerance of" in result.lead


def test_a_second_run_takes_the_rows_of_the_first(small, monkeypatch):
    folder, first = small
    monkeypatch.setattr(memory, "memory_row", lambda *arguments: pytest.fail("measured again"))
    monkeypatch.setattr(memory, "way_back", lambda *arguments: pytest.fail("measured again"))
    again = run(Config(**memory.SMALL), folder, resume=True, progress=False)
    assert again.summary == first.summary
    assert again.lead == first.lead


def test_a_failed_solve_is_no_number(monkeypatch):
    def fail(*arguments, **options):
        result = solve(lambda t, y: y**2, torch.ones(1), (0.0, 2.0), on_failure="status")
        raise SolveError(result.failure, result.stats)

    monkeypatch.setattr(reversal, "solve", fail)
    field, y0 = Settling(1.0), starts().requires_grad_()
    assert reversal._gradient_error(field, y0, [y0], torch.ones(16), "Direct", 1e-3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"most": 4}, "`most` must be at least 16, got 4"), ({"epochs": 0}, "`epochs` must be at least 1, got 0")],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
