"""What the errors of `tune` are relative to: a training step with a solve that is as good as exact."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odenets.adjoint import Adjoint
from odenets.arguments import shown
from odenets.solution import SolveError
from odenets.tuning.measure import DEFAULTS, Layer, State, difference, flat, goes, ratio, to_double, to_dtypes
from odenets.tuning.tuned import TUNED, others


class Measured(NamedTuple):
    """The outcome of one training step."""

    loss: float
    gradient: Tensor  # of all wanted tensors, flat, in float64
    reached: tuple[bool, ...]  # which of them have a gradient
    nfe: int
    nfe_backward: int


@dataclass(frozen=True)
class Reference:
    measured: Measured
    text: str

    def errors(self, measured: Measured) -> tuple[float, float]:
        """The relative errors of the loss and of the gradient."""
        exact = self.measured
        return (
            ratio(abs(measured.loss - exact.loss), abs(exact.loss)),
            difference(exact.gradient, measured.gradient),
        )


class Lab(Layer):
    """A module whose ODE layer runs training steps under any options."""

    def __init__(self, module: nn.Module, batch: Any, loss: Callable[[Any], Tensor] | None) -> None:
        super().__init__(module, batch, "tune")
        block, self.loss = self.block, loss or _mean_square
        self.present = {name: value for name, value in block.solve_options.items() if name in TUNED}
        self.others = {**others(block.solve_options), "on_failure": "raise"}
        inputs = [x for x in self.tensors if x.is_floating_point() or x.is_complex()]
        self.wanted = [p for p in module.parameters() if p.requires_grad] or [x.requires_grad_() for x in inputs]
        if not self.wanted:
            raise ValueError("`block` has no parameter that requires grad, and `batch` no floating-point tensor")
        self.dtype = self.wanted[0].dtype.to_real() if self.wanted[0].is_complex() else self.wanted[0].dtype

    def step(self, options: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The loss and its gradients; those that the module holds stay as they are."""
        with torch.enable_grad():
            loss = self.loss(self.run({**self.others, **options}))
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                raise ValueError(f"`loss` must return a scalar made from the module's output, returned {shown(loss)}")
            return loss, torch.autograd.grad(loss, self.wanted, allow_unused=True)

    def measure(self, options: dict[str, Any]) -> Measured:
        loss, grads = self.step(options)
        stats: Any = self.block.stats
        full = [torch.zeros_like(x) if g is None else g for x, g in zip(self.wanted, grads)]
        reached = tuple(g is not None for g in grads)
        return Measured(float(loss.detach()), flat(full), reached, stats.nfe, stats.nfe_backward or 0)

    def in_float64(self) -> "Lab":
        """A copy in float64, whose output comes back in the present dtype so that the loss need not know."""
        module = copy.deepcopy(self.module).double()
        back = {torch.float64: self.dtype, torch.complex128: self.dtype.to_complex()}
        batch = pytree.tree_map(to_double, self.batch)
        lab = Lab(module, batch, lambda out: self.loss(pytree.tree_map(to_dtypes(back), out)))
        lab.others = {**self.others, "args": pytree.tree_map(to_double, self.others.get("args", ()))}
        return lab

    def possible(self, adjoints: Sequence[Adjoint]) -> Sequence[Adjoint]:
        """Those that go with the layer's other options."""
        options = {**self.block.solve_options, "compile": False}
        return [adjoint for adjoint in adjoints if goes({**options, "adjoint": adjoint})] or adjoints


def reference(lab: Lab, state: State, tolerance: float) -> Reference:
    """A solve that is as good as exact: in float64, or where that does not work as tight as the dtype allows.

    Random numbers, of a dropout layer for example, may differ between dtypes: then the module's own is kept.
    """
    rounding = 16 * torch.finfo(lab.dtype).eps
    tight = max(1e-5 * tolerance, 1e-12)
    try:
        state.rewind()
        own = _tight(max(0.1 * tolerance, rounding))
        probe = lab.measure(own)  # raises what is wrong with the module, its batch or its loss
        exact = None
        if lab.dtype != torch.float64 and not state.drawn():
            exact = _in_float64(lab, state, _tight(tight))
        if exact is not None and exact.reached == probe.reached:
            return _checked(exact, f"tsit5 at {tight:g} in float64")
        tight = max(tight, rounding)
        state.rewind()
        return _checked(lab.measure(_tight(tight)), f"tsit5 at {tight:g} in {str(lab.dtype).removeprefix('torch.')}")
    except SolveError as error:
        error.add_note("This was the reference of `odenets.tune`, a solve with tsit5 at a tight tolerance.")
        raise


def _in_float64(lab: Lab, state: State, options: dict[str, Any]) -> Measured | None:
    """None where the module cannot be copied, or not be run in float64."""
    state.rewind()
    try:
        return lab.in_float64().measure(options)
    except SolveError:
        raise
    except Exception:  # whatever a module may raise that holds tensors of its own; in its own dtype it has just run
        return None


def _tight(tolerance: float) -> dict[str, Any]:
    return {"method": "tsit5", "rtol": tolerance, "atol": tolerance, "max_steps": DEFAULTS["max_steps"]}


def _checked(measured: Measured, text: str) -> Reference:
    if not (math.isfinite(measured.loss) and bool(measured.gradient.isfinite().all())):
        raise ValueError(f"`loss` or its gradient is not finite even with {text}: {measured.loss}")
    return Reference(measured, text)


def _mean_square(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"`loss` is needed for a module that returns {type(output).__name__}: a function of its output")
    return output.abs().square().mean()
