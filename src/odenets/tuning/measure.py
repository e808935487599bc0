"""What `tune`, `diagnose` and `check_gradient` share: a module's ODE layer on a batch, put back after; differences."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets import support
from odenets.arguments import shown
from odenets.controller import PID, Fixed
from odenets.methods import METHODS, find
from odenets.nn import ODEBlock
from odenets.solve import solve

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(solve).parameters.items()}


class Layer:
    """A module, its one ODE layer, and the arguments that the module is called with.

    Args:
        module: An `ODEBlock`, or a module that contains exactly one.
        batch: Its input: a tensor, or a tuple of its arguments. It is not changed.
        verb: What is done, for the error of several layers: "tune".

    Raises:
        ValueError, TypeError: If there is not exactly one layer, or the batch is something else.
    """

    def __init__(self, module: nn.Module, batch: Any, verb: str) -> None:
        self.block, self.module = the_block(module, verb), module
        if not isinstance(batch, Tensor | tuple):
            raise TypeError(f"`batch` must be a tensor or a tuple of arguments, got {type(batch).__name__}")
        self.batch = pytree.tree_map(_own, batch if isinstance(batch, tuple) else (batch,))
        self.tensors = [x for x in pytree.tree_leaves(self.batch) if isinstance(x, Tensor)]
        self.devices = {x.device for x in (*module.parameters(), *module.buffers(), *self.tensors)}

    def run(self, options: dict[str, Any]) -> Any:
        """The module's output with these options of its layer; what its running changes stays changed.

        Raises:
            SolveError: If the solve fails.
            ValueError: If the module does not call its layer.
        """
        self.block.solve_options, self.block.stats = options, None
        out = self.module(*self.batch)
        if self.block.stats is None:
            raise ValueError("`block` does not call its ODEBlock: pass the ODEBlock itself, with its own input")
        return out

    def synchronize(self) -> None:
        """Wait until the devices have done what they were told to."""
        synchronize(self.devices)


def the_block(module: nn.Module, verb: str) -> ODEBlock:
    """The one ODE layer of a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"`block` must be an ODEBlock or contain exactly one, got {shown(module)}")
    blocks = {name: part for name, part in module.named_modules() if isinstance(part, ODEBlock)}
    if len(blocks) != 1:
        names = ", ".join(f"`{name}`" for name in blocks)
        found = f"{len(blocks)} of them, {names}: {verb} one at a time, with the input that it gets"
        what = type(module).__name__
        raise ValueError(
            f"`block` must be an ODEBlock or contain exactly one; {what} has {found if blocks else 'none'}"
        )
    return next(iter(blocks.values()))


def _own(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.detach().clone() if x.is_inference() else x.detach()


def synchronize(devices: Iterable[torch.device]) -> None:
    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


class State:
    """What running a module changes: buffers, attributes, those of a field that is an object too, random numbers."""

    def __init__(self, layer: Layer) -> None:
        places = [(m, name, b) for m in layer.module.modules() for name, b in m._buffers.items() if b is not None]
        self.buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in places]
        owners = [*layer.module.modules(), *([layer.block.field] if hasattr(layer.block.field, "__dict__") else [])]
        self.attributes = [(owner, dict(vars(owner))) for owner in owners]  # a counter, the layer's options and stats
        self.generators = [_Generator(device) for device in {torch.device("cpu"), *layer.devices}]

    def rewind(self) -> None:
        """Make it what it was, so that every run sees the same buffers and random numbers."""
        for generator in self.generators:
            generator.rewind()
        for module, name, buffer, value in self.buffers:
            module._buffers[name] = buffer
            buffer.data.copy_(value)  # of `data`, which leaves a graph valid that holds the buffer
        for owner, values in self.attributes:
            vars(owner).clear()
            vars(owner).update(values)  # past `__setattr__`, which the owner may have of its own

    def drawn(self) -> bool:
        """Whether random numbers have been drawn since."""
        return any(generator.moved() for generator in self.generators)


class _Generator:
    """The random numbers of a device."""

    def __init__(self, device: torch.device) -> None:
        self.module = torch if device.type == "cpu" else torch.get_device_module(device)
        self.arguments = () if device.type in ("cpu", "mps") else (device,)
        self.state: Tensor = self.module.get_rng_state(*self.arguments)

    def rewind(self) -> None:
        self.module.set_rng_state(self.state, *self.arguments)

    def moved(self) -> bool:
        return not torch.equal(self.state, self.module.get_rng_state(*self.arguments))


@contextlib.contextmanager
def left_as_it_was(layer: Layer) -> Iterator[State]:
    state = State(layer)
    try:
        yield state
    finally:
        state.rewind()


def saved_bytes(forward: Callable[[], Any], given: Iterable[Tensor]) -> int:
    """Bytes of what autograd keeps after a forward pass, each storage once; not those of inputs and weights."""
    known = {_storage(x) for x in given}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[_storage(x)] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()  # alive, so that no address is used twice
    del out
    return sum(size for place, size in saved.items() if place not in known)


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


# Differences.


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as the real numbers of one vector in float64 on the host."""
    parts = [(torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).detach() for x in tensors]
    return torch.cat([x.flatten().cpu().double() for x in parts])


def ratio(difference: float, size: float) -> float:
    if size > 0:
        return difference / size
    return 0.0 if difference == 0 else math.inf


def difference(reference: Tensor, found: Tensor) -> float:
    """‖found − reference‖ / ‖reference‖."""
    return ratio(float((found - reference).norm()), float(reference.norm()))


# Options, and how they are written.


def value_of(options: dict[str, Any], name: str) -> Any:
    """An option, or the default of `solve`."""
    return options.get(name, DEFAULTS[name])


def method_text(options: dict[str, Any]) -> str:
    return find(value_of(options, "method")).name


def controller_of(options: dict[str, Any]) -> Any:
    return options.get("controller") or PID(**{k: v for k, v in options.items() if k in ("rtol", "atol")})


def steps_text(options: dict[str, Any]) -> str:
    controller = controller_of(options)
    if isinstance(controller, Fixed):
        return f"steps {controller.steps}" if controller.dt is None else f"dt {controller.dt:g}"
    if not isinstance(controller, PID):
        return type(controller).__name__
    if controller.by_component:
        return "tol by component"
    same = controller.rtol == controller.atol
    return f"tol {controller.rtol:g}" + ("" if same else f", {controller.atol:g}")


class OtherSolver(NamedTuple):
    """Options to compare with, None where none are known, and their name."""

    options: dict[str, Any] | None
    text: str


def finer(options: dict[str, Any], dtype: torch.dtype) -> OtherSolver:
    """A hundredth of the tolerances, as far as the dtype can tell it apart; or half the step."""
    controller = controller_of(options)
    if isinstance(controller, PID) and not controller.by_component:
        least = 16 * torch.finfo(dtype).eps
        found: Any = replace(controller, rtol=max(controller.rtol / 100, least), atol=controller.atol / 100)
    elif isinstance(controller, Fixed):
        steps, dt = controller.steps, controller.dt
        found = Fixed(dt=None if dt is None else dt / 2, steps=None if steps is None else 2 * steps)
    else:
        return OtherSolver(None, "a finer solver")
    rest = {name: value for name, value in options.items() if name not in ("rtol", "atol", "controller")}
    return _named({**rest, "controller": found})


def goes(options: dict[str, Any]) -> bool:
    """Whether these options of `solve` go together."""
    asked = {name: value_of(options, name) for name in ("adjoint", "per_sample", "dense", "compile")}
    return support.goes(method=find(value_of(options, "method")), controller=controller_of(options), **asked)


def another(options: dict[str, Any]) -> OtherSolver:
    """A method of another order, as accurate at the same tolerance or more accurate at the same step."""
    method = find(value_of(options, "method"))
    if method.iterates:
        name = "gl6" if method.order == 5 else "radauIIA5"
    elif controller_of(options).adaptive:
        name = "bosh3" if method.order == 5 else "tsit5"
    else:
        name = next((m for m in ("rk4", "dopri5", "dopri8") if METHODS[m].order > method.order), "tsit5")
    return _named({**options, "method": name})


def _named(options: dict[str, Any]) -> OtherSolver:
    return OtherSolver(options, f"{method_text(options)}, {steps_text(options)}")


# Dtypes.


def to_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def to_dtypes(dtypes: dict[torch.dtype, torch.dtype]) -> Callable[[Any], Any]:
    """What puts tensors of these dtypes into others."""
    return lambda x: x.to(dtypes.get(x.dtype, x.dtype)) if isinstance(x, Tensor) else x
