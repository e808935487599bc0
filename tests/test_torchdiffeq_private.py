"""`install()`, and the private names of torchdiffeq that programs use."""

import importlib
import re
import subprocess
import sys
import warnings

import pytest
import torch
import torchdiffeq as theirs
from torch import nn

import odenets.torchdiffeq as ours
from odenets import SolveError
from odenets.torchdiffeq.watch import CALLBACKS

DOUBLE = torch.float64
BOTH = pytest.mark.parametrize("package", ["torchdiffeq", "odenets.torchdiffeq"])


def private(package, name):
    return importlib.import_module(f"{package}._impl.{name}")


def run(code):
    """The output of a Python of its own."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_install_serves_every_import_of_torchdiffeq():
    code = """
import importlib.util, sys
import odenets.torchdiffeq
odenets.torchdiffeq.install()
odenets.torchdiffeq.install()
import torchdiffeq
from torchdiffeq import odeint, odeint_adjoint as solve, odeint_event, odeint_dense
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl import odeint as inner
import torchdiffeq._impl.misc as misc
assert odeint is inner is odenets.torchdiffeq.odeint and solve is odenets.torchdiffeq.odeint_adjoint
assert torchdiffeq._impl.misc is misc and misc._linf_norm.__module__.startswith("odenets.")
assert importlib.util.find_spec("torchdiffeq") is not None
for absent in ("torchdiffeq.odeint_file", "torchdiffeq._impl.absent", "torchdiffeq.grid"):
    try:
        importlib.import_module(absent)
    except ModuleNotFoundError:
        continue
    raise SystemExit(absent)
print(torchdiffeq.__version__, *SOLVERS)
"""
    version, *solvers = run(code)
    assert version == theirs.__version__ == ours.__version__
    assert set(private("torchdiffeq", "odeint").SOLVERS) <= set(solvers)


def test_install_after_torchdiffeq_itself_is_refused():
    code = """
import torchdiffeq, odenets.torchdiffeq
try:
    odenets.torchdiffeq.install()
except RuntimeError as error:
    assert "torchdiffeq has been imported already" in str(error) and torchdiffeq.__file__ in str(error)
else:
    raise SystemExit("no error")
assert sys.modules["torchdiffeq"] is torchdiffeq
""".replace("import torchdiffeq,", "import sys, torchdiffeq,")
    run(code)


def test_private_names_in_use():
    """Those that public programs import; each is there under both names."""
    names = {
        "odeint": ("SOLVERS", "odeint", "odeint_dense", "odeint_event", "_check_inputs", "_flat_to_shape"),
        "adjoint": ("odeint_adjoint", "find_parameters", "SOLVERS", "odeint"),
        "misc": (
            "Perturb",
            "_linf_norm",
            "_rms_norm",
            "_zero_norm",
            "_mixed_norm",
            "_check_inputs",
            "_flat_to_shape",
            "_handle_unused_kwargs",
            "_null_callback",
            "_all_callback_names",
            "_all_adjoint_callback_names",
            "_TupleFunc",
            "_ReverseFunc",
            "_PerturbFunc",
        ),
        "solvers": ("FixedGridODESolver",),
        "fixed_grid": ("Euler", "Midpoint", "Heun2", "Heun3", "RK4"),
        "fixed_adams": ("AdamsBashforth", "AdamsBashforthMoulton"),
        "rk_common": ("rk4_alt_step_func",),
        "event_handling": ("find_event", "combine_event_functions"),
    }
    for module, wanted in names.items():
        for package in ("torchdiffeq", "odenets.torchdiffeq"):
            assert [name for name in wanted if not hasattr(private(package, module), name)] == []


def test_norms_and_shapes_are_theirs():
    x = torch.linspace(-2, 1, 6, dtype=DOUBLE)
    mine, known = (private(package, "misc") for package in ("odenets.torchdiffeq", "torchdiffeq"))
    for name in ("_linf_norm", "_rms_norm", "_zero_norm"):
        assert float(getattr(mine, name)(x)) == pytest.approx(float(getattr(known, name)(x)))
    assert float(mine._mixed_norm((x, 3 * x))) == pytest.approx(float(known._mixed_norm((x, 3 * x))))
    assert mine._mixed_norm(()) == known._mixed_norm(()) == 0
    shapes = [torch.Size((2, 2)), torch.Size(()), torch.Size((1,))]
    for length in ((), (4,)):
        y = torch.arange(6.0).expand(*length, 6)
        for a, b in zip(mine._flat_to_shape(y, length, shapes), known._flat_to_shape(y, length, shapes)):
            assert torch.equal(a, b)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for package in ("odenets.torchdiffeq", "torchdiffeq"):
        assert [p is q for p, q in zip(private(package, "adjoint").find_parameters(net), net.parameters())] == [
            True
        ] * 4


@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "implicit_adams"])
def test_solver_objects_of_the_table(state, sign, method):
    """The way of programs that copy `odeint`: arguments in normal form, then the solver's `integrate`."""
    y0 = torch.linspace(-1, 1, 4, dtype=DOUBLE).reshape(2, 2)
    y0 = y0 if state == "tensor" else (y0, torch.ones((), dtype=DOUBLE))
    f = lambda t, y: torch.cos(t) * y if state == "tensor" else (y[0] * y[1], -torch.cos(t) * y[1])  # noqa: E731
    t = sign * torch.linspace(0, 1, 12, dtype=DOUBLE)
    answers = []
    for package in ("torchdiffeq", "odenets.torchdiffeq"):
        module, misc = private(package, "odeint"), private(package, "misc")
        found = misc._check_inputs(f, y0, t, 1e-6, 1e-8, method, None, None, module.SOLVERS)
        shapes, func, flat, times, rtol, atol, name, options, event_fn, reversed_time = found
        assert (event_fn, reversed_time, name) == (None, sign < 0, method)
        solution = module.SOLVERS[name](func=func, y0=flat, rtol=rtol, atol=atol, **options).integrate(times)
        answers.append(solution if shapes is None else misc._flat_to_shape(solution, (len(t),), shapes))
    for a, b in zip(*answers):
        for x, y in zip(a, b) if isinstance(a, tuple) else [(a, b)]:
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)


def symplectic(package):
    """A method of one's own, as programs write it: on `FixedGridODESolver`, registered in `SOLVERS`."""
    perturb = private(package, "misc").Perturb

    class Symplectic(private(package, "solvers").FixedGridODESolver):
        order = 1

        def _step_func(self, func, t0, dt, t1, y0):
            f0 = func(t0, y0, perturb=perturb.NEXT if self.perturb else perturb.NONE)
            q, p = y0.chunk(2, -1)
            p = dt * f0.chunk(2, -1)[1]
            moved = func(t1, torch.cat([q, y0.chunk(2, -1)[1] + p], -1), perturb=perturb.PREV)
            return torch.cat([dt * moved.chunk(2, -1)[0], p], -1), f0

    return Symplectic


@pytest.fixture(params=["odeint", "odeint_adjoint"])
def interface(request):
    return request.param


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.07}, {"step_size": 0.07, "interp": "cubic", "perturb": True}])
def test_a_method_of_ones_own(interface, options, sign):
    class Spring(nn.Module):
        def __init__(self):
            super().__init__()
            self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))

        def forward(self, t, y):
            q, p = y.chunk(2, -1)
            return torch.cat([p, -self.stiffness * q * (1 + 0.1 * t)], -1)

    f, answers = Spring(), []
    for package, module in (("torchdiffeq", theirs), ("odenets.torchdiffeq", ours)):
        table = private(package, "odeint").SOLVERS
        table["symplectic"] = symplectic(package)
        try:
            y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE, requires_grad=True)
            t = sign * torch.linspace(0, 1, 6, dtype=DOUBLE)
            function = module.odeint if module is theirs else getattr(module, interface)
            y = function(f, y0, t, method="symplectic", options=options)
            answers.append((y, *torch.autograd.grad(y.square().sum(), [y0, *f.parameters()])))
        finally:
            del table["symplectic"]
    for a, b in zip(*answers):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="`method` must be one of dopri8"):
        ours.odeint(f, torch.ones(2), torch.tensor([0.0, 1.0]), method="symplectic")


@BOTH
def test_a_class_in_the_place_of_a_built_in_method_is_taken(package):
    table, module = private(package, "odeint").SOLVERS, theirs if package == "torchdiffeq" else ours
    built_in = table["rk4"]

    class Doubled(built_in):
        def _step_func(self, func, t0, dt, t1, y0):
            dy, f0 = super()._step_func(func, t0, dt, t1, y0)
            return 2 * dy, f0

    table["rk4"] = Doubled
    try:
        y = module.odeint(lambda t, y: torch.ones_like(y), torch.zeros(1), torch.tensor([0.0, 1.0]), method="rk4")
    finally:
        table["rk4"] = built_in
    assert float(y[-1]) == pytest.approx(2.0)


@BOTH
def test_a_solver_that_integrates_by_itself(package):
    """As diffusion models do: every output is made from the one before, at the times as they are."""

    class Diffusion(private(package, "solvers").FixedGridODESolver):
        order = 1

        def _step_func(self, func, t0, dt, t1, y0):
            return func(t0, y0), None

        def integrate(self, t):
            ys = [self.y0]
            for time in self.grid_constructor(self.func, self.y0, t)[1:]:
                ys.append(self.func(time, ys[-1]))
            return torch.stack(ys)

    table, module = private(package, "odeint").SOLVERS, theirs if package == "torchdiffeq" else ours
    table["diffusion"] = Diffusion
    try:
        y = module.odeint(lambda t, y: y * (1 - t), torch.ones(2), torch.tensor([0.0, 0.5, 0.75]), method="diffusion")
    finally:
        del table["diffusion"]
    assert y[:, 0].tolist() == [1.0, 0.5, 0.125]


def test_a_class_without_a_step_says_so():
    table = private("odenets.torchdiffeq", "odeint").SOLVERS
    table["empty"] = type("Empty", (private("odenets.torchdiffeq", "solvers").FixedGridODESolver,), {})
    try:
        with pytest.raises(NotImplementedError, match=r"Empty must define `_step_func\(func, t0, dt, t1, y0\)`"):
            ours.odeint(lambda t, y: y, torch.ones(1), torch.tensor([0.0, 1.0]), method="empty")
        with pytest.warns(UserWarning, match="Empty ignores the unknown options step"):
            table["empty"](None, torch.ones(1), rtol=1, atol=1, step=0.1)
    finally:
        del table["empty"]


@pytest.mark.parametrize("method", ["dopri5", "euler", "fixed_adams", "scipy_solver"])
def test_events_of_solver_objects(method):
    kind = private("odenets.torchdiffeq", "odeint").SOLVERS[method]
    options = {} if method in ("dopri5", "scipy_solver") else {"step_size": 0.01}
    solver = kind(func=lambda t, y, perturb=None: -y, y0=torch.ones(1, dtype=DOUBLE), rtol=1e-6, atol=1e-8, **options)
    t0 = torch.zeros((), dtype=DOUBLE)
    if method == "scipy_solver":
        with pytest.raises(ValueError, match="`event_fn` does not go with `method` 'scipy_solver'"):
            solver.integrate_until_event(t0, lambda t, y: y - 0.5)
        return
    solver.func = (
        solver.func if method == "dopri5" else private("odenets.torchdiffeq", "misc")._PerturbFunc(solver.func)
    )
    if method != "dopri5":
        solver.func.callback_step = lambda *_: None
    t, y = solver.integrate_until_event(t0, lambda t, y: (y - 0.5).min())
    assert float(t) == pytest.approx(0.6931, abs=5e-3)
    assert y.shape == (2, 1)
    assert float(y[-1]) == pytest.approx(0.5, abs=1e-6)


def test_wrapped_funcs_are_theirs():
    f = lambda t, y: (y[0] * t, y[1])  # noqa: E731
    t, y = torch.tensor(2.0, dtype=DOUBLE), torch.arange(3.0, dtype=DOUBLE)
    found = []
    for package in ("torchdiffeq", "odenets.torchdiffeq"):
        misc = private(package, "misc")
        flat = misc._TupleFunc(f, [torch.Size((2,)), torch.Size(())])
        turned = misc._ReverseFunc(lambda t, y: y + t, mul=-1.0)
        seen = misc._PerturbFunc(lambda t, y: t * torch.ones_like(y))
        sides = [seen(t, y, perturb=side) for side in misc.Perturb]
        found.append(torch.stack([flat(t, y), turned(t, y), *sides]))
    assert torch.equal(*found)


def test_an_event_is_found_as_theirs_is():
    for package in ("torchdiffeq", "odenets.torchdiffeq"):
        handling = private(package, "event_handling")
        zero = torch.zeros((), dtype=DOUBLE)
        event = handling.combine_event_functions(lambda t, y: torch.stack([y - 0.25, 5 - t]), zero, 1.0 + zero)
        t, y = handling.find_event(
            lambda t: (1 - t) ** 2, torch.sign(event(zero, 1 + zero)), zero, 1 + zero, event, 1e-9
        )
        assert float(t) == pytest.approx(0.5, abs=1e-8)
        assert float(y) == pytest.approx(0.25, abs=1e-8)


def test_an_own_method_that_meets_no_event_or_leaves_the_numbers(monkeypatch):
    t = torch.tensor([0.0, 1.0])
    monkeypatch.setattr("odenets.torchdiffeq.solvers.MOST_STEPS", 50)
    with pytest.raises(SolveError, match="NO_EVENT at t = 50"):
        ours.odeint(
            lambda t, y: 0 * y,
            torch.ones(1),
            t,
            event_fn=lambda t, y: y,
            method="fixed_adams",
            options={"step_size": 1.0},
        )
    with pytest.raises(SolveError, match="NON_FINITE_STATE"):
        ours.odeint(
            lambda t, y: y**9, torch.full((1,), 9.0), 50 * t, method="explicit_adams", options={"step_size": 1.0}
        )


def told(package):
    """A method that judges its steps: it accepts those that end before 1, and rejects the others once."""

    class Judging(private(package, "solvers").FixedGridODESolver):
        order = 1

        @classmethod
        def valid_callbacks(cls):
            return {"callback_step", "callback_accept_step", "callback_reject_step"}

        def _step_func(self, func, t0, dt, t1, y0):
            f0 = func(t0, y0)
            if t1 >= 1:
                func.callback_reject_step(t0, y0, dt)
            func.callback_accept_step(t0, y0, dt)
            return dt * f0, f0

    return Judging


class Told(nn.Module):
    """A field that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.heard = []
        names = ("callback_step", "callback_accept_step", "callback_reject_step")
        for name in names:
            setattr(self, name, lambda *step, name=name: self.hear(name, *step))

    def hear(self, name, t, y, dt):
        parts = y if isinstance(y, tuple) else (y,)
        self.heard.append((name, round(float(t), 6), [part.tolist() for part in parts], round(float(dt), 6)))

    def forward(self, t, y):
        return tuple(0 * part for part in y) if isinstance(y, tuple) else 0 * y


@pytest.mark.parametrize("state", [torch.ones(2), (torch.ones(1), torch.ones(2))])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["judging", "rk4", "explicit_adams", "scipy_solver", "dopri5"])
def test_every_method_calls_the_callbacks_that_theirs_calls_and_warns_of_the_others(method, state, sign):
    heard, warned, t = [], [], sign * torch.linspace(0, 1, 5)
    for package, module in (("torchdiffeq", theirs), ("odenets.torchdiffeq", ours)):
        table, f = private(package, "odeint").SOLVERS, Told()
        table["judging"] = told(package)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                module.odeint(f, state, t, method=method)
        finally:
            del table["judging"]
        heard.append(f.heard[:1] if method == "dopri5" else f.heard)
        warned.append([{name for name in CALLBACKS if re.search(rf"\b{name}\b", str(x.message))} for x in said])
    assert heard[0] == heard[1]
    assert warned[0] == warned[1]


def test_callbacks_of_the_backward_solve_that_no_one_calls_are_warned_of():
    def f(t, y):
        return -y

    f.callback_accept_step_adjoint = lambda *step: None
    y0, t = torch.ones(2, requires_grad=True), torch.linspace(0, 1, 5)
    for method in ("rk4", "explicit_adams", "scipy_solver"):
        with pytest.warns(UserWarning, match=rf"method '{method}' does not call callback_accept_step_adjoint"):
            ours.odeint_adjoint(f, y0, t, method=method)


def test_the_norm_of_an_adjoint_is_theirs():
    augmented = tuple(torch.linspace(-1, k, 4, dtype=DOUBLE) for k in (2, 3, 4, 9))
    augmented = (augmented[0][:1].reshape(()), *augmented[1:])
    given = lambda parts: sum((k + 1) * part.abs().sum() for k, part in enumerate(parts))  # noqa: E731
    for shapes in (None, [torch.Size((2,)), torch.Size((1, 2))]):
        for options in ({}, {"norm": "seminorm"}, {"norm": given}):
            found = []
            for package in ("torchdiffeq", "odenets.torchdiffeq"):
                mine = dict(options)
                private(package, "adjoint").handle_adjoint_norm_(mine, shapes, lambda y: y.abs().max())
                found.append(float(mine["norm"](augmented)))
            assert found[0] == pytest.approx(found[1], rel=1e-12)
