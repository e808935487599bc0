"""Errors of the drop-in name what its callers have, and are short."""

import contextlib
import importlib
import pkgutil
import re
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import odenets
import odenets.torchdiffeq as ours
from odenets import Backsolve, LostGradientError, ReplayError, Reversible, SolveError, solve

T = torch.tensor([0.0, 1.0])
Y = torch.ones(2)
WEIGHT = torch.ones(2, requires_grad=True)
HIDDEN = {"result": 2 * WEIGHT}
FOREIGN = re.compile(
    r"`args|Direct\(|Checkpointed|Backsolve|`?max_steps|controller|adjoint=|max_iterations|on_failure|`t_eval"
)


class Shares(nn.Module):
    """A field that reaches a tensor by a way that no walk over its names finds."""

    def __init__(self, late=False):
        super().__init__()
        self.late = late

    def forward(self, t, y):
        return -y if self.late and t < 0.5 else -y * eval("HIDDEN")["result"]


def late_leaf(t, y):
    return -y if t < 0.5 else -y * eval("WEIGHT")


def needs_grad(*shape):
    return torch.ones(*shape, requires_grad=True)


def adjoint(f, y0, **options):
    return ours.odeint_adjoint(f, y0, T, **options).sum().backward()


def without_room(call):
    """With no room for activations, so that the backward pass evaluates f again."""
    return mock.patch("odenets.adjoint.checkpointed._ACTIVATIONS", 0)(call)


CASES = {
    "a result behind the field": lambda: adjoint(Shares(), Y),
    "a random field": without_room(lambda: adjoint(lambda t, y: -WEIGHT * torch.rand_like(y), Y, method="euler")),
    "a leaf at another time": lambda: adjoint(late_leaf, needs_grad(2), method="rk4", options={"step_size": 0.1}),
    "a result at another time": lambda: adjoint(
        Shares(late=True), needs_grad(2), method="rk4", options={"step_size": 0.1}
    ),
    "the same of a backward solve": lambda: adjoint(Shares(), Y, adjoint_rtol=1e-3),
    "scipy": lambda: ours.odeint(lambda t, y: -WEIGHT * y, Y, T, method="scipy_solver").sum().backward(),
    "a second derivative": lambda: torch.autograd.grad(
        ours.odeint_adjoint(lambda t, y: -(y**2), y0 := needs_grad(2), T).sum(), y0, create_graph=True
    ),
    "too many steps": lambda: ours.odeint(lambda t, y: -y, Y, 9 * T, options={"max_num_steps": 1}),
    "too many steps backward": lambda: adjoint(lambda t, y: -WEIGHT * y, Y, adjoint_options={"max_num_steps": 1}),
    "an implicit step": lambda: ours.odeint(lambda t, y: y**2, Y, 9 * T, method="implicit_euler"),
    "a blow-up": lambda: ours.odeint(lambda t, y: y**2, Y, 2 * T),
    "not a number": lambda: ours.odeint(lambda t, y: y / 0 - y / 0, Y, T),
    "a start that is none": lambda: ours.odeint(lambda t, y: -y, Y / 0, T),
    "an end that is none": lambda: ours.odeint(lambda t, y: y**9, 9 * Y, torch.arange(9.0), method="euler"),
    "no event": lambda: ours.odeint(
        lambda t, y: 0 * y, Y, T, event_fn=lambda t, y: y, method="euler", options={"step_size": 1.0}
    ),
    "no tolerance": lambda: ours.odeint(lambda t, y: -y, Y, T, rtol=0, atol=0),
    "a tolerance in words": lambda: ours.odeint(lambda t, y: -y, Y, T, rtol="1e-3"),
    "a step that is none": lambda: ours.odeint(lambda t, y: -y, Y, T, options={"first_step": -1.0}),
    "a step in words": lambda: ours.odeint(lambda t, y: -y, Y, T, options={"first_step": "a"}),
    "a grid in words": lambda: ours.odeint(lambda t, y: -y, Y, T, method="euler", options={"step_size": "a"}),
    "options in a list": lambda: ours.odeint(lambda t, y: -y, Y, T, options=[1]),
    "no steps": lambda: ours.odeint(lambda t, y: -y, Y, T, options={"max_num_steps": 0}),
    "no iterations": lambda: ours.odeint(lambda t, y: -y, Y, T, method="gl4", options={"max_iters": 0}),
    "no corrections": lambda: ours.odeint(lambda t, y: -y, Y, T, method="fixed_adams", options={"max_iters": 0}),
    "a norm in words": lambda: ours.odeint(lambda t, y: -y, Y, T, options={"norm": "max"}),
    "no function": lambda: ours.odeint(None, Y, T),
    "a class for a method": lambda: ours.odeint(lambda t, y: -y, Y, T, method=object),
    "a state of integers": lambda: ours.odeint(lambda t, y: -y, torch.ones(2, dtype=torch.int64), T),
    "a long list": lambda: ours.odeint(lambda t, y: -y, [1.0] * 100_000, T),
    "a long tuple of numbers": lambda: ours.odeint(lambda t, y: -y, (1.0,) * 100_000, T),
    "times that repeat, many": lambda: ours.odeint(lambda t, y: -y, Y, torch.zeros(100_000)),
    "times that are none": lambda: ours.odeint(lambda t, y: -y, Y, T / 0),
    "times of whole numbers": lambda: ours.odeint(lambda t, y: -y, Y, torch.arange(3)),
    "a long grid": lambda: ours.odeint(
        lambda t, y: -y, Y, T, method="euler", options={"grid_constructor": lambda f, y, t: torch.zeros(100_000)}
    ),
    "a long tolerance": lambda: ours.odeint(lambda t, y: -y, torch.ones(100_000), T, atol=-torch.ones(100_000)),
    "another shape": lambda: ours.odeint(lambda t, y: -y[:, 0], torch.ones(3, 2), T),
    "too few parts": lambda: ours.odeint(lambda t, y: y[:1], (Y, Y), T),
    "another method backward": lambda: adjoint(
        lambda t, y: -y, needs_grad(2), options={"safety": 0.8}, adjoint_method="rk4"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_error_is_in_the_callers_words(case):
    raised = (TypeError, ValueError, SolveError, LostGradientError, NotImplementedError, ReplayError)
    with pytest.raises(raised) as caught:
        CASES[case]()
    text = str(caught.value)
    assert FOREIGN.findall(text) == []
    assert len(text) < 700
    assert re.search(r"`\w+|option|func|f ", text)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("a result behind the field", r"`func` uses the result .*: name it in `adjoint_params`, .* use `odeint`"),
        ("a leaf at another time", r"at another time than the first, `func` uses .*`adjoint_params`"),
        ("a second derivative", r"`odeint_adjoint` has no second derivative \(create_graph=True\): use `odeint`"),
        ("too many steps", r"MAX_STEPS .*the option 'max_num_steps' allows.*`method=\"radauIIA5\"` with `options="),
        ("too many steps backward", r"MAX_STEPS .*This was the backward solve that an `adjoint_…` argument"),
        ("an implicit step", r"the option 'max_iters'"),
        ("no tolerance", r"`rtol` and `atol` must not both be 0: write atol=1e-9"),
        ("a step that is none", r"`options` 'first_step' must be a number ≥ 0, got -1.0"),
        ("times that repeat, many", r"but t\[0\] = 0.0 is followed by t\[1\] = 0.0: leave one out"),
        ("times that are none", r"`t` must be finite, got t\[0\] = nan"),
        ("times of whole numbers", r"write t.double\(\)"),
        ("a long list", r"got list of 100000 \(float\): write tuple\(y0\)"),
    ],
)
def test_what_they_say(case, words):
    with pytest.raises(Exception, match=words):
        CASES[case]()


def test_what_is_named_in_adjoint_params_is_found():
    y = ours.odeint_adjoint(Shares(), Y, T, adjoint_params=(HIDDEN["result"],))
    (found,) = torch.autograd.grad(y[-1].sum(), HIDDEN["result"])
    assert torch.allclose(found, torch.full((2,), -torch.exp(torch.tensor(-2.0)).item()), atol=1e-5)


# Whatever is passed.

HUGE = {
    "list": [1.5] * 100_000,
    "dict": {str(k): k for k in range(100_000)},
    "set": set(range(100_000)),
    "text": "x" * 100_000,
    "bytes": b"x" * 100_000,
    "integer": 10**3000,
    "array": np.zeros(100_000),
    "tensor": torch.zeros(100_000),
    "module": nn.Sequential(*(nn.Linear(1, 1) for _ in range(300))),
    "nest": ([[[1.5] * 1000] * 9] * 9,),
}
PLACES = {
    **{name: (lambda value, name=name: {name: value}) for name in ("func", "y0", "t", "rtol", "atol", "method")},
    **{name: (lambda value, name=name: {name: value}) for name in ("options", "event_fn")},
    **{
        f"{name} of {method}": (lambda value, name=name, method=method: {"method": method, "options": {name: value}})
        for method, names in {
            "dopri5": ("first_step", "step_t", "jump_t", "safety", "max_step", "max_num_steps", "norm", "dtype"),
            "rk4": ("step_size", "grid_constructor", "interp"),
            "gl4": ("max_iters",),
            "fixed_adams": ("max_order", "max_iters", "step_size"),
            "scipy_solver": ("solver", "max_step"),
        }.items()
        for name in names
    },
    "unknown options": lambda value: {"options": value if isinstance(value, dict) else {str(value)[:10_000]: 1}},
    "result": lambda value: {"func": lambda t, y: value},
}


@contextlib.contextmanager
def kept():
    """The texts of the errors raised inside, whichever they are."""
    texts = []
    try:
        yield texts
    except Exception as error:
        texts.append(str(error))


@pytest.mark.parametrize("place", PLACES)
def test_no_message_is_long(place):
    for name, value in HUGE.items():
        call = {"func": lambda t, y: -y, "y0": Y, "t": T, **PLACES[place](value)}
        with warnings.catch_warnings(record=True) as said, kept() as texts:
            warnings.simplefilter("always")
            ours.odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)
        long = [text[:500] for text in (*texts, *(str(x.message) for x in said)) if len(text) > 420]
        assert long == [], (place, name)


PRIVATE = re.compile(r"\b_[A-Z]\w+")


ADAMS = {"method": "explicit_adams", "options": {"step_size": 0.5, "max_order": 5}}
NODES = {
    "odeint_adjoint": lambda: ours.odeint_adjoint(lambda t, y: -WEIGHT * y, Y, T),
    "a backward solve": lambda: ours.odeint_adjoint(lambda t, y: -WEIGHT * y, Y, T, adjoint_rtol=1e-3),
    "an event": lambda: ours.odeint_event(lambda t, y: -WEIGHT * y, Y, T[0], event_fn=lambda t, y: y - 0.5)[0],
    "scipy": lambda: ours.odeint(lambda t, y: -WEIGHT * y, Y, T, method="scipy_solver"),
    "an implicit method": lambda: ours.odeint(lambda t, y: -WEIGHT * y, Y, T, method="gl4"),
    "adams": lambda: ours.odeint(lambda t, y: -WEIGHT * y, Y, T, **ADAMS),
    "solve": lambda: solve(lambda t, y: -WEIGHT * y, Y, T).ys,
    "Backsolve": lambda: solve(lambda t, y: -WEIGHT * y, Y, T, adjoint=Backsolve()).ys,
    "Reversible": lambda: solve(lambda t, y: -WEIGHT * y, Y, T, adjoint=Reversible()).ys,
}


@pytest.mark.parametrize("node", NODES)
def test_no_private_name_stands_in_the_graph_from_which_pytorch_makes_its_messages(node):
    names, stack = set(), [NODES[node]().grad_fn]
    while stack:
        here = stack.pop()
        if here is not None and here.name() not in names:
            names.add(here.name())
            stack.extend(following for following, _ in here.next_functions)
    assert [name for name in names if PRIVATE.search(name)] == []


def test_no_function_of_autograd_is_named_privately():
    for module in pkgutil.walk_packages(odenets.__path__, "odenets."):
        if module.name.endswith("__main__"):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):
                assert not kind.__name__.startswith("_"), (module.name, name)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gl4", {"max_iters": np.int64(5)}),
        ("fixed_adams", {"max_iters": np.int64(5), "max_order": np.int64(5)}),
        ("dopri5", {"max_num_steps": float("inf")}),
        ("dopri5", {"max_num_steps": np.int64(500)}),
        ("dopri5", {"max_num_steps": 2**31 - 1}),
        ("rk4", {"step_size": np.float32(0.5)}),
    ],
)
def test_numbers_of_every_kind_are_options(method, options):
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    ends = [ours.odeint(lambda t, y: -y, Y, T, method=method, options=given)[-1] for given in (options, plain)]
    assert torch.equal(*ends)
    assert float(ends[0][0]) == pytest.approx(0.3679, abs=1e-2)


def test_an_adams_method_that_diverges_names_its_order():
    options = {"step_size": 0.25}
    with pytest.raises(SolveError, match=r"NON_FINITE_STATE at t = 50.0.*lower 'max_order' \(12 if not given"):
        ours.odeint(lambda t, y: -y, Y, torch.tensor([0.0, 1.0, 50.0]), method="explicit_adams", options=options)
    lower = {**options, "max_order": 4}
    assert float(ours.odeint(lambda t, y: -y, Y, 50 * T, method="explicit_adams", options=lower)[-1][0]) < 1e-9
