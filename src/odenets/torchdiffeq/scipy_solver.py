"""torchdiffeq's door to SciPy."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.methods import real_dtype
from odenets.pullback.reached import LostGradientError
from odenets.torchdiffeq.call import Call


@dataclass(frozen=True)
class Scipy:
    """`scipy.integrate.solve_ivp`, outside of autograd: a backward pass through it raises.

    Args:
        solver: The name of its method. min_step, max_step: Bounds of its steps; it honours the first with "LSODA" only.
    """

    rtol: Any
    atol: Any
    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf
    grid_points: Any = None  # without effect in torchdiffeq too
    eps: Any = None

    callbacks = ()

    def solve(self, call: Call) -> Tensor:
        """The states at call.t, (T, *y0.shape)."""
        ys = self._solve(call)
        if not torch.is_grad_enabled():
            return ys
        f0 = call.f(call.t[0].detach().to(real_dtype(call.y0)), call.y0.detach())
        wanting = (call.y0, call.t, f0)
        return ScipySolver.apply(ys, *wanting) if any(tensor.requires_grad for tensor in wanting) else ys

    @torch.no_grad()
    def _solve(self, call: Call) -> Tensor:
        try:
            from scipy.integrate import solve_ivp  # noqa: PLC0415 — scipy is optional
        except ImportError as error:
            raise ImportError('`method` "scipy_solver" needs SciPy: pip install scipy') from error
        y0, t = call.y0.detach(), call.t.detach().to(torch.float64).cpu().numpy()
        if len(t) == 1:
            return y0[None].clone()

        def f(time: float, y: Any) -> Any:
            state = torch.as_tensor(y, device=y0.device).to(y0.dtype).reshape(y0.shape).clone()
            out = call.f(torch.tensor(time, dtype=real_dtype(y0), device=y0.device), state)
            return out.cpu().numpy().reshape(-1).copy()

        settings: dict[str, Any] = {"rtol": self._flat(self.rtol, y0), "atol": self._flat(self.atol, y0)}
        settings |= {"max_step": self.max_step} | ({"min_step": self.min_step} if self.min_step else {})
        start = y0.cpu().numpy().reshape(-1)
        found = solve_ivp(f, (t[0], t[-1]), start, method=self.solver, t_eval=t, **settings)
        if not found.success:
            raise RuntimeError(f"SciPy's {self.solver} failed: {found.message}")
        return torch.as_tensor(found.y.T.copy(), device=y0.device).to(y0.dtype).reshape(-1, *y0.shape)

    @staticmethod
    def _flat(tolerance: Any, y0: Tensor) -> Any:
        if not isinstance(tolerance, Tensor):
            return tolerance
        return tolerance.expand(y0.shape).reshape(-1).double().cpu().numpy()


class ScipySolver(torch.autograd.Function):
    """SciPy's states, which depend on tensors that require grad."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor, *wanting: Tensor) -> Tensor:
        names = ("`y0`", "`t`", "a tensor that `func` reaches")
        ctx.lost = [name for name, tensor in zip(names, wanting) if tensor.requires_grad]
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise LostGradientError(
            f'`method` "scipy_solver" has no gradient, and {" and ".join(ctx.lost)} requires grad',
            'solve inside of torch.no_grad(), or take another method, such as "dopri5"',
        )
