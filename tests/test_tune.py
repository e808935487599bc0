"""`tune`: what it chooses, by counts and never by the clock; and that it leaves everything as it was."""

import copy
import warnings

import pytest
import torch
from torch import nn

from odenets import METHODS, Backsolve, Checkpointed, Direct, Fixed, SolveError, Tuning, solve, tune
from odenets.engine.compile import told
from odenets.nn import MLPField, ODEBlock


class Counted(nn.Module):
    """z follows W (sin ωt + z / 10) at some rate; evaluations drive a clock, so that time is what f costs alone."""

    def __init__(self, rate=1.0, frequency=8.0):
        super().__init__()
        torch.manual_seed(0)
        self.rate, self.frequency, self.linear, self.calls = rate, frequency, nn.Linear(3, 3), 0

    def forward(self, t, z):
        self.calls += 1
        return self.rate * (self.linear(torch.sin(self.frequency * t) + z / 10) - z)

    def clock(self):
        return float(self.calls)


def loss_and_gradient(block, x):
    loss = block(x).square().mean()
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(block.parameters()))])


@pytest.fixture
def batch():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def found(batch):
    """tune() with a clock that counts and no compiler."""

    def found(block, x=batch, **options):
        clock = next(m.clock for m in block.modules() if isinstance(m, Counted))
        return tune(
            block, x, **{"compile": False, "timer": clock, "seconds": 1e9, "rounds": 4, "verbose": False, **options}
        )

    return found


def test_a_stiffer_field_gets_a_tighter_tolerance(found):
    """With the same method: the smooth field is accurate at the loosest tolerance already."""
    fields = Counted(rate=0.3, frequency=0.5), Counted(rate=20.0)
    smooth, stiff = (found(ODEBlock(field, rtol=1e-8), methods=["dopri5"]).options for field in fields)
    assert smooth["rtol"] == smooth["atol"] == 0.1
    assert stiff["rtol"] == stiff["atol"] < 0.01


def test_the_chosen_settings_are_as_accurate_as_asked(found, batch):
    """Against a solve made here, of the block with the options that were chosen."""
    block = ODEBlock(Counted(5.0))
    tuning = found(block, tolerance=1e-3)
    tuning.apply(block)
    exact = ODEBlock(block.field, method="dopri5", rtol=1e-6, atol=1e-6)
    (loss, gradient), (exact_loss, exact_gradient) = (loss_and_gradient(b, batch) for b in (block, exact))
    assert abs(loss - exact_loss) <= 1.01e-3 * exact_loss
    assert (gradient - exact_gradient).norm() <= 1.01e-2 * exact_gradient.norm()


def test_the_fastest_admissible_row_is_chosen(found):
    tuning = found(ODEBlock(Counted()))
    timed = [row for row in tuning.rows if row.seconds == row.seconds]
    assert timed
    assert all(row.admissible and row.seconds == row.nfe + row.nfe_backward for row in timed)
    assert tuning.chosen.seconds == min(row.seconds for row in timed)
    assert tuning.chosen.nfe_backward == 0


def test_a_method_is_tightened_up_to_the_first_admissible_rung_and_not_beyond(found):
    rows = found(ODEBlock(Counted(3.0)), methods=["bosh3", "rk4"], adjoints=[Checkpointed()]).rows[1:]
    for method in ("bosh3", "rk4"):
        verdicts = [row.admissible for row in rows if row.options["method"] == method]
        assert len(verdicts) > 1
        assert verdicts == [False] * (len(verdicts) - 1) + [True]
    steps = [row.options["controller"].steps for row in rows if row.options["method"] == "rk4"]
    assert steps == [2**i for i in range(len(steps))]


def test_the_next_adjoint_goes_on_where_the_first_was_admissible(found):
    adjoints = [Checkpointed(), Direct(), Backsolve()]
    rows = found(ODEBlock(Counted(3.0)), methods=["tsit5"], adjoints=adjoints).rows[1:]
    enough = next(row for row in rows if row.admissible)
    direct = [row for row in rows if isinstance(row.options["adjoint"], Direct)]
    assert [row.options["rtol"] for row in direct] == [enough.options["rtol"]]
    assert (direct[0].loss_error, direct[0].nfe, direct[0].nfe_backward) == (enough.loss_error, enough.nfe, 0)
    assert any(isinstance(row.options["adjoint"], Backsolve) for row in rows)


def test_what_needs_far_more_evaluations_is_given_up(found):
    tuning = found(ODEBlock(Counted()), methods=["tsit5", "euler"], steps=[64, 256])
    rows = [row for row in tuning.rows[1:] if row.options["method"] == "euler"]
    assert len(rows) == 1  # more steps would need even more
    assert rows[0].note.startswith("given up at nfe")
    assert rows[0].failed
    assert rows[0].options["controller"].steps == 64


def test_slow_candidates_are_timed_three_times_only(found):
    """The evaluations of ten more rounds are those of ten more steps of the candidates that are left."""
    calls = []
    for rounds in (10, 20):
        field, seen = Counted(), []
        field.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        tuning = found(ODEBlock(field), methods=["rk4", "bosh3"], rounds=rounds)
        calls.append(len(seen))
    timed = [row.seconds for row in tuning.rows if row.admissible]
    kept = [seconds for seconds in timed if seconds <= 1.5 * min(timed)]
    assert len(kept) < len(timed)
    assert calls[1] - calls[0] == 10 * sum(kept)


def test_no_round_begins_after_the_time_given(found):
    calls = []
    for rounds in (3, 50):
        field = Counted()
        found(ODEBlock(field), methods=["rk4"], rounds=rounds, seconds=0.0)
        calls.append(field.calls)
    assert calls[0] == calls[1]


def test_a_failing_candidate_is_a_row(batch):
    """Euler's step leads to infinity, where the solution decays."""
    block = ODEBlock(lambda t, z: -(z**5), rtol=1e-4)
    tuning = tune(block, 5 * batch, methods=["euler", "bosh3"], steps=[4], compile=False, rounds=1, verbose=False)
    row = next(row for row in tuning.rows if row.options.get("method") == "euler")
    assert row.note.startswith("NON_FINITE_")
    assert row.failed
    assert not row.admissible
    assert "NON_FINITE_" in str(tuning)
    assert tuning.chosen.admissible


def test_nothing_admissible_gives_the_most_accurate_and_says_so(found):
    tuning = found(ODEBlock(Counted(9.0), rtol=1.0), methods=["heun"], tolerances=[1e-1, 1e-2], tolerance=1e-9)
    assert not any(row.admissible for row in tuning.rows)
    assert tuning.options["rtol"] == 1e-2
    assert "No candidate is admissible; marked is the most accurate" in str(tuning)


def test_the_present_settings_are_a_candidate(found):
    block = ODEBlock(Counted(), method="rk4", controller=Fixed(steps=3), adjoint=Direct())
    tuning = found(block, methods=["dopri5"])
    assert tuning.chosen is tuning.rows[0]
    assert tuning.chosen.present
    assert tuning.options == block.solve_options


def test_apply_sets_the_tuned_options_and_keeps_the_others(found, batch):
    block = ODEBlock(Counted(), controller=Fixed(steps=50), method="euler", max_steps=70, on_failure="status")
    tuning = found(block, methods=["dopri5"], adjoints=[Checkpointed()])
    tuning.apply(nn.Sequential(block))
    rtol = tuning.options["rtol"]
    tuned = {"method": "dopri5", "rtol": rtol, "atol": rtol, "adjoint": Checkpointed()}
    assert block.solve_options == {"max_steps": 70, "on_failure": "status", **tuned}
    block(batch)
    ODEBlock(block.field, **tuning.options)(batch)


def test_per_sample_steps_stay(found):
    tuning = found(ODEBlock(Counted(), per_sample=True))
    assert not any("controller" in row.options for row in tuning.rows)
    assert {type(row.options.get("adjoint", Checkpointed())) for row in tuning.rows} == {Checkpointed}


def test_a_tableau_of_ones_own(found):
    tuning = found(ODEBlock(Counted(), rtol=1e-9), methods=[METHODS["midpoint"]])
    assert tuning.options["method"] is METHODS["midpoint"]
    assert "midpoint" in str(tuning)


def test_an_implicit_method_is_a_candidate_that_is_not_compiled(found, pretended):
    options = {"methods": ["radauIIA3"], "adjoints": [Direct()], "steps": [8], "seconds": 1.0}
    tuning = found(ODEBlock(Counted(0.3, 0.5)), compile=None, **options)
    rows = [row for row in tuning.rows if row.options.get("method") == "radauIIA3"]
    assert any(row.admissible for row in rows)
    assert not any(row.compiled for row in rows)


class Restless(nn.Module):
    """A model that draws random numbers, changes a buffer in place, and replaces another."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.ode = ODEBlock(Counted(), method="heun", rtol=1e-2, max_steps=300)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, shift):
        self.count = self.count + 1
        return self.ode(self.head(x)) + shift


def test_leaves_the_module_as_it_was(found, batch):
    model = Restless()
    model.head[0].bias.requires_grad_(False)
    model(batch, 1.0).sum().backward()
    pending = model(batch, 1.0)
    torch.manual_seed(7)
    before = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    options, stats, buffers = model.ode.solve_options, model.ode.stats, dict(model.named_buffers())
    draws = torch.get_rng_state()
    x = batch.clone().requires_grad_()
    calls = model.ode.field.calls
    tuning = found(model, (x, 1.0), methods=["tsit5", "rk4"])
    assert model.ode.field.calls == calls

    assert "float32" in tuning.reference  # another dtype might draw other numbers
    assert tuning.chosen.admissible  # so all candidates saw the same numbers
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    for parameter, grad in zip(model.parameters(), grads):
        assert (parameter.grad is None) if grad is None else torch.equal(parameter.grad, grad)
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert model.training
    assert model.head.training
    assert model.ode.solve_options is options
    assert options == {"method": "heun", "rtol": 1e-2, "max_steps": 300}
    assert model.ode.stats is stats
    assert torch.equal(torch.get_rng_state(), draws)
    assert x.grad is None
    assert torch.is_grad_enabled()
    model.eval()
    pending.sum().backward()  # a graph made before still holds


def test_leaves_the_module_as_it_was_after_an_error(found, batch):
    block = ODEBlock(Counted())
    draws, options = torch.get_rng_state(), block.solve_options
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        found(block, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert block.solve_options is options
    assert torch.equal(torch.get_rng_state(), draws)


def test_in_float64_where_that_works(found, batch):
    assert found(ODEBlock(Counted())).reference == "tsit5 at 1e-08 in float64"
    weight = torch.eye(3)
    own = ODEBlock(lambda t, z: torch.tanh(z @ weight))  # a tensor that no copy in float64 reaches
    tuning = tune(own, batch, compile=False, rounds=1, verbose=False)
    assert "in float32" in tuning.reference
    assert tuning.chosen.admissible


def test_a_closure_over_a_parameter_is_measured_in_its_own_dtype(batch):
    """The copy's parameter would not be the one that f closes over: its gradient would be missing."""
    model = nn.Module()
    model.rate = nn.Parameter(torch.tensor(1.5))
    model.ode = ODEBlock(lambda t, z: -model.rate * z)
    model.forward = model.ode.forward
    tuning = tune(model, batch, compile=False, rounds=1, verbose=False)
    assert "in float32" in tuning.reference
    assert tuning.chosen.gradient_error < 1e-2


def test_the_loss_is_the_users_and_sees_the_modules_dtype(found, batch):
    target = torch.zeros(5, 3)
    seen = []

    def loss(out):
        seen.append(out.dtype)
        return nn.functional.mse_loss(out, target)

    tuning = found(ODEBlock(Counted()), loss=loss)
    assert set(seen) == {torch.float32}
    assert "in float64" in tuning.reference


def test_works_where_gradients_are_switched_off(found):
    with torch.no_grad():
        assert found(ODEBlock(Counted())).chosen.admissible


def test_complex_states(batch):
    block = ODEBlock(lambda t, z: 1j * z)
    tuning = tune(block, batch.to(torch.complex64), methods=["dopri5"], compile=False, rounds=1, verbose=False)
    assert tuning.chosen.admissible


def test_prints_an_aligned_table_with_the_chosen_row_marked(found, capsys):
    tuning = found(ODEBlock(Counted(), rtol=1e-6), methods=["tsit5", "rk4"], verbose=True)
    printed = capsys.readouterr().out
    assert printed == f"{tuning}\n"
    head, names, *lines = printed.splitlines()
    assert head.startswith("errors relative to tsit5 at 1e-08 in float64; admissible: loss error ≤ 0.001")
    table = lines[: len(tuning.rows)]
    (marked,) = (line for line in table if line.startswith("→"))
    assert marked == table[0]
    assert all(line[names.index("adjoint") :].startswith(("Checkpointed", "Direct")) for line in table)
    assert sum("as it is now" in line for line in table) == 1
    assert "× as fast as now" in lines[len(tuning.rows)]
    assert lines[-1].startswith("Fixed steps do not follow") == ("controller" in tuning.options)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"block": nn.Linear(3, 3)}, ValueError, "`block` must be an ODEBlock or contain exactly one; Linear has none"),
        (
            {"block": nn.Sequential(ODEBlock(MLPField(3)), ODEBlock(MLPField(3)))},
            ValueError,
            "has 2 of them, `0`, `1`: tune one at a time, with the input that it gets",
        ),
        ({"batch": [torch.ones(2, 3)]}, TypeError, "`batch` must be a tensor or a tuple of arguments, got list"),
        ({"loss": lambda out: out}, ValueError, "`loss` must return a scalar"),
        ({"loss": lambda out: float(out.detach().sum())}, ValueError, "`loss` must return a scalar"),
        ({"loss": lambda out: out.sum() * float("nan")}, ValueError, "not finite even with tsit5"),
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be above 0, got 0.0"),
        ({"gradient_tolerance": -1.0}, ValueError, "`gradient_tolerance` must be above 0, got -1.0"),
        ({"methods": "tsit5"}, TypeError, "`methods` must be a sequence with at least one entry, got 'tsit5'"),
        ({"methods": ["rk5"]}, ValueError, "`methods` must be among euler, .*got 'rk5'"),
        ({"adjoints": []}, TypeError, "`adjoints` must be a sequence with at least one entry"),
        ({"rounds": 0}, ValueError, "`rounds` must be an integer ≥ 1, got 0"),
        ({"compile": True, "adjoints": [Backsolve()]}, TypeError, r"`compile=True` needs `Checkpointed\(\)` or"),
    ],
)
def test_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        tune(**{"block": ODEBlock(MLPField(3)), "batch": torch.ones(2, 3), "compile": False, **kwargs})


def test_refuses_a_loss_that_must_be_given():
    class Pair(ODEBlock):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="`loss` is needed for a module that returns tuple"):
        tune(Pair(MLPField(3)), torch.ones(2, 3), compile=False)


def test_refuses_a_block_that_the_module_does_not_call():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.ode = ODEBlock(MLPField(3))

    with pytest.raises(ValueError, match="`block` does not call its ODEBlock"):
        tune(Idle(), torch.ones(2, 3), compile=False)


def test_a_field_that_cannot_be_solved_says_that_it_was_the_reference():
    block = ODEBlock(lambda t, z: z**2, t=(0.0, 2.0))  # 1 / (1 − t)
    with pytest.raises(SolveError, match="DIVERGED") as caught:
        tune(block, torch.ones(2, 3), compile=False)
    assert "the reference of `odenets.tune`" in caught.value.__notes__[0]


# Compiled candidates. The compiler itself is not run here: a solve that claims to be compiled is one that is not.


@pytest.fixture
def pretended(monkeypatch):
    """The options of the solves that were asked to compile; run eagerly."""
    asked = []

    def pretend(*arguments, compile=False, **options):
        if compile:
            asked.append(options)
        return solve(*arguments, **options)

    monkeypatch.setattr("odenets.nn.block.solve", pretend)
    return asked


def test_the_two_with_the_fewest_evaluations_are_compiled(found, pretended, capsys):
    tuning = found(ODEBlock(Counted()), compile=None, verbose=True)
    eager = [row for row in tuning.rows if row.admissible and not row.compiled]
    fast = [row for row in tuning.rows if row.compiled]
    assert len(fast) == 2
    methods = {row.options["method"]: row.nfe + row.nfe_backward for row in eager[1:]}
    assert sorted(row.nfe for row in fast) == sorted(methods.values())[:2]
    assert len({row.options["method"] for row in fast}) == 2
    assert capsys.readouterr().out.count("compiling ") == 2
    assert ", compiled" in str(tuning)


def test_without_direct_among_the_adjoints_checkpointed_is_compiled(found, pretended):
    tuning = found(ODEBlock(Counted()), compile=None, adjoints=[Checkpointed()])
    fast = [row for row in tuning.rows if row.compiled]
    assert len(fast) == 2
    assert all(isinstance(row.options["adjoint"], Checkpointed) for row in fast)


@pytest.mark.parametrize("compile", [True, False, None])
def test_compiled_or_not_can_be_forced(compile, found, pretended):
    """By the clock of this file a compiled solve is as fast as an eager one, which then stands first."""
    tuning = found(ODEBlock(Counted()), compile=compile)
    assert tuning.options.get("compile", False) is (compile is True)
    assert bool(pretended) is (compile is not False)


class Untraceable(Counted):
    """Asks for the value of a tensor, which no trace knows."""

    def forward(self, t, z):
        z = z if float(z.detach().sum()) < 1e9 else -z
        return super().forward(t, z)


@pytest.mark.parametrize(("compile", "warned"), [(None, 0), (True, 1)])
def test_a_field_that_cannot_be_traced_runs_eagerly(compile, warned, found):
    """And the warning of the solve, of which there would be one for each candidate, is a note in the table."""
    told.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tunings = [found(ODEBlock(Untraceable()), compile=compile, methods=["rk4", "tsit5"]) for _ in range(2)]
    for tuning in tunings:  # the second finds a field that is known not to be traced
        (refused,) = (row for row in tuning.rows if row.compiled)
        assert refused.note.startswith("`f` cannot be compiled: ")
        assert refused.failed
        assert tuning.chosen.admissible
        assert not tuning.chosen.compiled
    assert [str(w.message) for w in caught].count("") == 0
    assert len(caught) == 2 * warned
    told.forget()


@pytest.mark.slow
def test_compiles(batch):
    block = ODEBlock(MLPField(3, (4,)))
    tuning = tune(block, batch, methods=["bosh3"], compile=True, rounds=3, verbose=False)
    assert tuning.options["compile"] is True
    assert tuning.chosen.admissible
    tuning.apply(block)
    block(batch).sum().backward()


def test_is_public():
    assert callable(tune)
    assert Tuning.__doc__
