"""Regularisers of an ODE layer's field: what its trajectories cost, integrated beside the state.

Source: Finlay, Jacobsen, Nurbekyan and Oberman, "How to train your neural ODE: the world of Jacobian and kinetic
regularization", ICML 2020, section 3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.arguments import shown
from odenets.nn.leading import controlled_by_leading
from odenets.solution import Solution
from odenets.solve import solve

REGULARISERS = ("kinetic", "jacobian")


def check_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names of regularisers as a tuple, each once.

    Raises:
        ValueError: If one is unknown or there twice.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    if set(found) - set(REGULARISERS) or len(set(found)) < len(found):
        raise ValueError(f"`regularise` must be among {', '.join(REGULARISERS)}, each once; got {shown(names)}")
    return found


def solve_regularised(
    field: "Integrands", y0: Tensor, t: Any, options: dict[str, Any]
) -> tuple[Solution, Tensor, dict[str, Tensor]]:
    """Solve for the state with the integrals of the regularisers beside it.

    The integrals are columns of the state that the solver sees, (batch, size of a sample + number of regularisers),
    so every adjoint differentiates them. They take no part in the error control: nothing depends on them, so an error
    in them does not grow, and the steps, the evaluations of f and the output stay those of the solve without them.

    Returns:
        The solution, the states (len(t), *y0.shape), and each integral, (batch,).
    """
    _check(y0)
    batch, size = len(y0), math.prod(y0.shape[1:])
    state = torch.cat([y0.reshape(batch, size), y0.new_zeros(batch, len(field.names))], dim=1)
    # One probe for the whole solve: with a new one at every evaluation there would be no function to integrate.
    probe = torch.randint_like(y0, 2) * 2 - 1 if "jacobian" in field.names else y0.new_empty(0)
    args = (probe, *options.get("args", ()))
    options = {**controlled_by_leading(options, size, "regularise"), "args": args}
    solution = solve(field, state, t, **options)
    forward = (solution.ts[-1] - solution.ts[0]).detach().sign().to(y0.dtype)  # the integrals are over |dt|
    ys, sums = solution.ys[..., :size], forward * solution.ys[-1, :, size:]
    return solution, ys.reshape(len(ys), *y0.shape), dict(zip(field.names, sums.unbind(dim=1)))


def _check(y0: Tensor) -> None:
    if y0.dim() < 2 or not y0.is_floating_point():
        raise ValueError(
            "`regularise` needs a real input with samples along the first axis and at least one more, got "
            f"{y0.dtype} of shape {tuple(y0.shape)}: write x[None] for one sample"
        )


@dataclass(eq=False)
class Integrands:
    """The field with what the regularisers integrate beside it, for states of which a sample has `shape`."""

    field: Callable[..., Tensor]
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def __call__(self, t: Tensor, state: Tensor, probe: Tensor, *args: Any) -> Tensor:
        size = state.shape[1] - len(self.names)
        z = state[:, :size].reshape(len(state), *self.shape)
        t = t.reshape(-1, *(1,) * len(self.shape)) if t.dim() else t
        if "jacobian" in self.names:
            dz, product = _with_product(self.field, t, z, probe, args)
            found = {"kinetic": dz, "jacobian": product}
        else:
            found = {"kinetic": self.field(t, z, *args)}
        columns = [found[name].reshape(len(state), -1).square().sum(dim=1, keepdim=True) for name in self.names]
        dz = found["kinetic"].reshape(len(state), size)
        return torch.cat([dz, *columns], dim=1)


def _with_product(
    field: Callable[..., Tensor], t: Tensor, z: Tensor, probe: Tensor, args: tuple
) -> tuple[Tensor, Tensor]:
    """f and εᵀ ∂f/∂z; differentiable where gradients are on."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        there = z if z.requires_grad else z.detach().requires_grad_()
        dz = field(t, there, *args)
        grads: Sequence[Tensor | None] = (None,)
        if dz.requires_grad:
            grads = torch.autograd.grad(dz, there, probe, create_graph=wanted, retain_graph=wanted, allow_unused=True)
    product = torch.zeros_like(z) if grads[0] is None else grads[0]
    return (dz if wanted else dz.detach()), product
