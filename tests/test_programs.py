"""`compile=True` makes a program once: counted over several calls, with the compiler's last, long part left out."""

import contextlib
import functools
import importlib
import os
import threading
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from odenets import PID, Fixed, solve
from odenets.engine.compile import cxx, known, lower, told, trace
from odenets.engine.compile.cxx import Awaited, settle
from odenets.engine.compile.failing import NotCompiled
from odenets.nn import MLPField

EULER = {"method": "euler", "controller": Fixed(steps=2)}  # the smallest loop


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    forget()


def forget():
    """What is known of fields is forgotten, so that another shape is no third program of the one before."""
    trace._regions.clear()
    told.forget()


def test_what_fails_to_compile_is_no_other_fields_affair():
    def fail():
        raise RuntimeError("no such compiler")

    one, other = [Awaited(fail), Awaited(fail)], [Awaited(lambda: abs)]
    with pytest.raises(NotCompiled, match="no such compiler"):
        one[0]()
    settle(other)
    assert other == []
    with pytest.raises(NotCompiled, match="no such compiler"):
        settle(one)


@pytest.fixture
def started_anew():
    known.compiler.cache_clear()
    yield
    known.compiler.cache_clear()


@pytest.mark.parametrize("missing", ["compiler", "folder"])
def test_a_machine_without_a_compiler_is_told_once(missing, started_anew, monkeypatch, tmp_path):
    """For all fields, before anything is traced."""
    monkeypatch.setattr(trace, "traced_loops", None)
    (tmp_path / "file").touch()
    if missing == "folder":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    compilers = {"compiler": ("/no/such/compiler",), "folder": torch._inductor.config.cpp.cxx}[missing]
    says = {"compiler": r"no C\+\+ compiler .*install one", "folder": "folder .*set TORCHINDUCTOR_CACHE_DIR"}[missing]
    with torch._inductor.config.patch("cpp.cxx", compilers):
        with pytest.warns(UserWarning, match=f"`compile=True`: .*{says}"):
            ys = solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), compile=True, **EULER).ys
        solve(lambda t, y: 2 * y, torch.ones(2), (0.0, 1.0), compile=True, **EULER)
    torch.testing.assert_close(ys[-1], torch.full((2,), 0.25))


def test_a_forked_child_has_threads_of_its_own_to_compile_in():
    assert cxx._pool().submit(abs, -1).result() == 1
    child = os.fork()
    if child == 0:
        found = 1
        with contextlib.suppress(BaseException):
            found = cxx._pool().submit(abs, 0).result(timeout=20)
        os._exit(found)
    assert os.waitpid(child, 0)[1] == 0


class _MadeError(BaseException):
    """Instead of running a program that was not made."""


def _never_run(*_):
    raise _MadeError


@pytest.fixture
def programs(monkeypatch):
    """A list that grows with each program; they are traced, and not handed to the compiler."""
    made = []

    def make(*_, **__):
        made.append(1)
        return _never_run

    monkeypatch.setattr("odenets.engine.compile.lower._compiled", make)
    return made


@pytest.fixture
def lowered(monkeypatch):
    """The same, but all of the compiler runs except for its C++ compiler: it may assume sizes too."""
    made = []
    lowering = importlib.import_module("torch._inductor.graph").GraphLowering

    def module(*_):
        made.append(1)
        return types.SimpleNamespace(call=_never_run, __file__="")

    monkeypatch.setattr(lowering, "_compile_to_module_lines", module)
    with torch._inductor.config.patch(fx_graph_cache=False):
        yield made


def counts(made, calls):
    """How many programs each call makes."""
    found = []
    for call in calls:
        before = len(made)
        with contextlib.suppress(_MadeError):
            call()
        found.append(len(made) - before)
    return found


def a_call(f, y0, times=(0.0, 1.0), args=(), **options):
    return functools.partial(solve, f, y0, times, args, compile=True, **(EULER | options))


def test_threads_trace_one_after_the_other(programs):
    """Two at once took what the other traced for a change of their own f."""
    fields = [lambda t, y: torch.sin(y), lambda t, y: torch.cos(y) - t]
    threads = [threading.Thread(target=counts, args=(programs, [a_call(f, torch.ones(3))])) for f in fields]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(programs) == len(fields)


def state(shape, dtype=torch.float32, grad=True, layout="contiguous"):
    y = torch.randn(shape, dtype=dtype)
    if layout == "transposed":
        y = y.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "view":
        y = torch.randn((*shape, 2), dtype=dtype)[..., 1]
    return y.requires_grad_(grad)


def layer_of(shape, dtype=torch.float32):
    """A field made anew at each call around one layer."""
    layer = nn.Linear(shape[-1] if shape else 1, shape[-1] if shape else 1, dtype=dtype)
    if not shape:
        return lambda: lambda t, y: layer(y[None])[0] + t
    return lambda: lambda t, y: layer(y) + t


def batches(shape, **options):
    """Twice the same shape, then two with another batch."""
    if len(shape) < 2 or shape[0] < 2:
        return [state(shape, **options) for _ in range(3)]
    return [state((n, *shape[1:]), **options) for n in (shape[0], shape[0], shape[0] + 3, 2 * shape[0])]


SHAPES = [(), (3,), (2, 2), (5, 5), (1, 3), (20, 1, 2), (20, 2, 1), (5, 5, 5), (4, 1, 4, 4), (3, 2, 1, 1, 3)]


# The others are slow tests below, of the whole compiler.
@pytest.mark.parametrize("shape", [(), (3,), (5, 5), (1, 3), (20, 2, 1), (3, 2, 1, 1, 3)], ids=str)
def test_made_once_for_a_shape(shape, programs):
    make = layer_of(shape)
    found = counts(programs, [a_call(make(), y0) for y0 in batches(shape)])
    assert found == [2] + [0] * (len(found) - 1)


OPERATIONS = {
    "pad": lambda y: nn.functional.pad(y, (0, 1))[..., :-1],
    "interpolate": lambda y: nn.functional.interpolate(y, scale_factor=2)[..., : y.shape[-1]],
    "conv": lambda y: nn.functional.conv1d(y, torch.ones(y.shape[1], y.shape[1], 1)),
    "group norm": lambda y: nn.functional.group_norm(y, 1),
    "attention": lambda y: nn.functional.scaled_dot_product_attention(y, y, y),
    "einsum": lambda y: torch.einsum("bij,bkj,bkl->bil", y, y, y),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_made_once_for_an_operation(name, programs):
    operation = OPERATIONS[name]
    found = counts(programs, [a_call(lambda t, y: operation(y), state((n, 3, 2))) for n in (20, 20, 17, 23)])
    assert found == [2, 0, 0, 0]


LAYOUTS = ["contiguous", "transposed", "view"]


def test_made_once_for_all_layouts(programs):
    make = layer_of((4, 3, 2))
    states = [state((n, 3, 2), layout=layout) for layout in LAYOUTS for n in (4, 7)]
    assert counts(programs, [a_call(make(), y0) for y0 in states]) == [2, 0, 0, 0, 0, 0]


def in_a_partial(layer):
    return functools.partial(lambda scale, t, y: scale * layer(y), 2.0)


FIELDS = {
    "module": lambda layer: MLPField(2),  # a new one of the class
    "partial": in_a_partial,
}


@pytest.mark.parametrize("name", FIELDS)
def test_made_once_for_a_form_of_field(name, programs):
    layer = nn.Linear(2, 2)
    states = [state((n, 1, 2)) for n in (5, 5, 8)]
    assert counts(programs, [a_call(FIELDS[name](layer), y) for y in states]) == [2, 0, 0]


def test_made_once_with_arguments(programs):
    """One of the batch's length, and one that has it by chance."""

    def f(t, y, shift, weight):
        return y @ weight + shift

    weight = torch.randn(2, 2, requires_grad=True)
    calls = [a_call(f, state((n, 1, 2)), args=(torch.randn(n, 1, 2), weight)) for n in (2, 2, 5, 7)]
    found = counts(programs, calls)
    assert found[1] == found[3] == 0
    assert found[2] <= 2


def test_made_once_for_a_kind_of_solve(programs):
    """Forward alone, with outputs, per sample, float64."""
    for options in ({"grad": False}, {"dtype": torch.float64}, {"times": (0.0, 0.2, 0.7, 1.0)}):
        times, options = options.pop("times", (0.0, 1.0)), options
        make = layer_of((20, 2, 1), options.get("dtype", torch.float32))
        with torch.set_grad_enabled(options.get("grad", True)):
            found = counts(programs, [a_call(make(), y0, times) for y0 in batches((20, 2, 1), **options)])
        assert found[1:] == [0, 0, 0], options


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 20])
def test_made_once_for_rows_of_times(width, programs):
    """Others, in another number, of another batch."""
    options: dict[str, Any] = {"method": "heun", "controller": PID(), "per_sample": True}
    rows = [[0.0, 0.3, 1.0], [2.0, 2.0, 5.0], [1e6, 1e6 + 1, 1e6 + 2]]
    calls = [
        a_call(lambda t, y: -y, state((len(t), width)), torch.tensor(t, dtype=torch.float64), **options)
        for t in (rows, [[x, *row] for x, row in zip((-1.0, 1.0, 0.0), rows)], rows[:2])
    ]
    assert counts(programs, calls) == [2, 0, 0]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "outputs": {"times": (0.0, 0.2, 0.7, 1.0)},
    "no gradient": {"grad": False},
    "float64": {"dtype": torch.float64},
    "transposed": {"layout": "transposed"},
    "view": {"layout": "view"},
    "all at once": {"times": (0.0, 0.2, 0.7, 1.0), "grad": False, "dtype": torch.float64, "layout": "transposed"},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_made_once_by_the_whole_compiler(kind, shape, lowered):
    options = dict(KINDS[kind])
    times = options.pop("times", (0.0, 1.0))
    if not shape:
        options.pop("layout", None)  # one number has no other
    make = layer_of(shape, options.get("dtype", torch.float32))
    with torch.set_grad_enabled(options.get("grad", True)):
        found = counts(lowered, [a_call(make(), y0, times) for y0 in batches(shape, **options)])
    assert found[1:] == [0] * (len(found) - 1)


def test_a_third_program_is_told_once_with_its_reason(programs):
    class Scaled(nn.Module):
        scale = 1.0

        def forward(self, t, y):
            return -self.scale * y

    f, y0 = Scaled(), torch.ones(2, 3)
    calls = [functools.partial(setattr, f, "scale", scale) for scale in (1.0, 2.0, 3.0, 4.0)]
    calls = [call for change in calls for call in (change, a_call(f, y0))]
    with pytest.warns(UserWarning, match=r"A third program is compiled for one `f`.*scale") as caught:
        found = counts(programs, calls)
    assert found == [0, 1] * 4
    assert len(caught) == 1


def test_numbers_in_a_loop_become_operations_that_say_their_shape():
    """As the later stages of PyTorch's compiler ask of every operation: a loop with stops has such numbers."""
    module = make_fx(lambda x: x * torch.tensor([[2.0], [3.0]]), tracing_mode="fake")(torch.ones(2, 1))
    lower._spell_out_constants(module, FakeTensorMode())
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    assert all("val" in node.meta for node in calls)
    assert not any(node.target == torch.ops.aten.lift_fresh_copy.default for node in calls)
    torch.testing.assert_close(module(torch.ones(2, 1)), torch.tensor([[2.0], [3.0]]))
