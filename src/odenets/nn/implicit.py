"""The implicit layer: an output that solves an equation, differentiated by the implicit function theorem."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenets import transforms
from odenets.arguments import count, number, shown
from odenets.methods.newton import FEW, rounding_of
from odenets.nn.block import check_callable, check_repeatable
from odenets.nn.derivative import inverted, jacobian, norms, pulled, sees_others, solve_scaled, with_graph
from odenets.nn.roots import METHODS, ImplicitError, check_finite

_REMEDY = "unroll some iterations of your own from the layer's detached output instead"


@dataclass
class ImplicitStats:
    """The effort of one pass of an `ImplicitLayer`.

    `iterations` until the last sample was done; `evaluations` of g in the forward pass, each of the whole batch;
    `residual`: the largest norm of a sample's g at the solution; `products`: how often the backward pass multiplied by
    the transposed Jacobian, None before it has run.
    """

    iterations: int = 0
    evaluations: int = 0
    residual: float = 0.0
    products: int | None = None


class ImplicitLayer(nn.Module):
    """A layer whose output is the y with g(x, y) = 0 (section 2.7 of the introduction).

    However many iterations find y, the backward pass keeps one evaluation of g and solves one system of linear
    equations: with (∂g/∂y)ᵀ w = −ȳ, the gradient of whatever g reaches is that of wᵀ g(x, y) at the fixed y.

    Use it where the output is best said by a condition: an equilibrium (a fixed point y = h(x, y) is
    g = h(x, y) − y), a constraint, the optimum of a smooth function (g is its gradient), or where memory is short: it
    is that of one evaluation of g. Do not use it where an explicit layer does: it takes tens of evaluations of g where
    that takes one, nothing says that a solution exists or is the only one, and training may move g to where it does
    not. An initial value problem is `ODEBlock`'s.

    Args:
        g: A module or function, called as `g(x, y)`, that returns a tensor of y's shape. The first axis of y is
            that of the samples; an x may have any shape. Samples may see each other (it is found out, and costs more).
        shape: The shape of one sample's y, without the batch's axis; None: y has the shape of x.
        method: "newton", for any g: with the Jacobian of each sample up to 32 unknowns, else by GMRES; steps that
            do not make g smaller are halved. "anderson" and "broyden" need no derivative and are for g = h(x, y) − y
            with an h that changes less than y does; they take more iterations, each cheaper.
        tol: What a sample's y may still change by, relative to its norm; None: the dtype's rounding to the power ⅔,
            4e-11 in float64 and 2e-5 in float32.
        max_iter: The most iterations.

    Input (batch, ...) and, if wanted, the start value `y0` (batch, ...), otherwise zeros; output as y0. Which of
    several solutions is found depends on `y0`; no gradient goes there.

    Attributes:
        stats: `ImplicitStats` of the newest pass; None before.

    Raises:
        TypeError, ValueError: An argument that cannot be; an x, y0 or value of g of the wrong kind or shape.
        ImplicitError: No solution was found (it says how far it got, for which sample, and what to try), g is not
            finite (where), or the Jacobian ∂g/∂y is singular, so that there is no step or, in the backward pass, no
            gradient.
        NotImplementedError: Under `torch.func` and in forward mode; for a second derivative (`create_graph=True`).

    Source: Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019, theorem 1; Duvenaud, Johnson and Kolter,
    "Deep implicit layers", tutorial at NeurIPS 2020, chapters 1 and 2.
    """

    def __init__(
        self,
        g: Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int] | None = None,
        *,
        method: str = "newton",
        tol: float | None = None,
        max_iter: int = 50,
    ) -> None:
        super().__init__()
        check_callable("g", g, "g(x, y)")
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {shown(method)}")
        if tol is not None:
            tol = number("tol", tol, "a number between 0 and 1, or None", lambda v: 0 < v < 1)
        check_repeatable("g", g, "the ImplicitLayer")
        self.g, self.method, self.tol = g, method, tol
        self.shape = None if shape is None else _checked_shape(shape)
        self.max_iter = count("max_iter", max_iter)
        self.stats: ImplicitStats | None = None

    def forward(self, x: Tensor, y0: Tensor | None = None) -> Tensor:
        """The y with g(x, y) = 0, near to y0."""
        if torch.compiler.is_dynamo_compiling():
            from odenets.engine.between_graphs import outside  # noqa: PLC0415 — imports PyTorch's compiler

            return outside(self.forward, x, y0)
        if transforms.active():
            raise NotImplementedError(
                "ImplicitLayer does not work under `torch.func` (grad, jvp, vmap, …) and in forward mode: "
                f"use `.backward()` or torch.autograd.grad, or {_REMEDY}"
            )
        y0 = self._start(x, y0)
        equations = _Equations(self.g, x, y0)
        if y0.numel() == 0:
            y = y0
        else:
            y = self._solved(equations, y0)
        value = equations.of(y)  # with the graph to all that g reaches
        equations.note_residual(value)
        self.stats = equations.stats
        if not value.requires_grad:
            return y
        value, at = with_graph(equations.of, y)
        return ImplicitRoot.apply(value, _Call(value, at, equations.stats))  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        shape = "" if self.shape is None else f"shape={self.shape}, "
        return f"{shape}method={self.method!r}, tol={self.tol}, max_iter={self.max_iter}"

    def _solved(self, equations: "_Equations", y0: Tensor) -> Tensor:
        samples = y0.reshape(_samples(y0), -1)
        tol = rounding_of(y0) ** (2 / 3) if self.tol is None else self.tol
        with torch.no_grad():
            root = METHODS[self.method](equations, samples, tol, self.max_iter)
        equations.stats.iterations = root.iterations
        return root.y.reshape(y0.shape)

    def _start(self, x: Tensor, y0: Tensor | None) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"`x` must be a tensor, got {shown(x)}: write torch.as_tensor(x), torch.cat(...) of several"
            )
        if y0 is None:
            return self._zeros(x)
        if not isinstance(y0, Tensor) or not y0.is_floating_point():
            raise TypeError(f"`y0` must be a tensor of real floating-point numbers, got {shown(y0)}")
        if self.shape is not None and y0.shape[1:] != self.shape:
            raise ValueError(f"`y0` must have the shape (batch, *{self.shape}), got {tuple(y0.shape)}")
        return check_start(y0.detach())

    def _zeros(self, x: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        if self.shape is None:
            if not x.is_floating_point():
                raise TypeError(f"`x` is {shown(x)}, so y cannot be like it: give `y0`, or the layer a `shape`")
            return torch.zeros_like(x, requires_grad=False)
        if x.dim() == 0:
            raise ValueError(
                "`x` must have an axis of samples where the layer has a `shape`, got shape (): write x[None]"
            )
        return torch.zeros(len(x), *self.shape, dtype=dtype, device=x.device)


def check_start(y0: Tensor) -> Tensor:
    """y0, where it is finite."""
    if not torch.isfinite(y0).all():
        raise ValueError("`y0` must be finite, got infinite values or NaN")
    return y0


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise TypeError(f"`shape` must be a sequence of integers, got {shape}: write ({shape},)")
    return tuple(count(f"shape[{i}]", size, least=0) for i, size in enumerate(shape))


def _samples(y: Tensor) -> int:
    return 1 if y.dim() == 0 else len(y)


class _Equations:
    """g with x, of samples (samples, n), counted and checked."""

    def __init__(self, g: Callable[[Tensor, Tensor], Tensor], x: Tensor, y0: Tensor) -> None:
        self.g, self.x, self.like, self.stats = g, x, y0, ImplicitStats()

    def __call__(self, y: Tensor) -> Tensor:
        return self.of(y.reshape(self.like.shape)).reshape(y.shape)

    def of(self, y: Tensor) -> Tensor:
        """g(x, y), of y's own shape."""
        self.stats.evaluations += 1
        value = self.g(self.x, y)
        if not isinstance(value, Tensor):
            raise TypeError(f"`g` must return a tensor of y's shape, returned {shown(value)}")
        if value.shape != y.shape:
            raise ValueError(
                f"`g` must return a tensor of y's shape {tuple(y.shape)}, returned {tuple(value.shape)} for x of shape "
                f"{tuple(self.x.shape)}: as many equations as unknowns; give `y0` or `shape` where y is not like x"
            )
        if not value.is_floating_point():
            raise TypeError(f"`g` must return real floating-point numbers, returned {shown(value)}")
        return value.to(y.dtype)

    def note_residual(self, value: Tensor) -> None:
        if value.numel():
            flat = value.detach().reshape(_samples(value), -1)
            self.stats.residual = float(norms(check_finite(flat, 0)).max())


@dataclass
class _Call:
    """What the backward pass needs beside its tensors: g at the solution with its graph to y."""

    value: Tensor
    at: Tensor
    stats: ImplicitStats


class ImplicitRoot(torch.autograd.Function):
    """y as a function of g's value: −(∂g/∂y)⁻¹ is its derivative, and autograd knows how g depends on the rest."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        return call.at.detach().clone()

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Tensor, None]:
        transforms.refuse_in_backward(bars, _REMEDY)
        if torch.is_grad_enabled():  # only with create_graph=True
            raise NotImplementedError(f"ImplicitLayer has no second derivative (create_graph=True): {_REMEDY}")
        call, (bar,) = ctx.call, bars
        if bar.numel() == 0:
            return torch.zeros_like(bar), None
        return -_solved_transposed(call, bar), None


def _solved_transposed(call: _Call, bar: Tensor) -> Tensor:
    """w with (∂g/∂y)ᵀ w = bar."""
    rounding, products = rounding_of(call.at), 0

    def pull(w: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return pulled(call.value, call.at, w.reshape(bar.shape)).reshape(w.shape)

    rhs = bar.reshape(_samples(bar), -1)
    if sees_others(pull, rhs):
        rhs = bar.reshape(1, -1)
    if rhs.shape[1] <= FEW:
        inverse, singular = inverted(jacobian(pull, rhs), rounding)
        w = (inverse.mT @ rhs.to(inverse.dtype)[..., None])[..., 0].to(bar.dtype)
    else:
        w, left = solve_scaled(pull, rhs, 4 * rounding)
        singular = torch.full_like(norms(rhs), left > rounding**0.5, dtype=torch.bool)
    call.stats.products = (call.stats.products or 0) + products
    if singular.any():
        sample = int(singular.nonzero()[0])
        raise ImplicitError(
            f"the Jacobian ∂g/∂y is singular at the solution (for sample {sample}, and {int(singular.sum())} of "
            f"{len(singular)}), so y has no derivative there: g does not depend on all of y, or detaches it, or the "
            "solution is a multiple one; change g, or compute in float64",
            call.stats.iterations,
            sample,
            call.stats.residual,
        )
    return w.reshape(bar.shape)
