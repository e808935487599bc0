"""The ODE layer."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from odenets.solution import Stats
from odenets.solve import solve


class ODEBlock(nn.Module):
    """A layer whose output is the solution of dz/dt = f(t, z) with z(t[0]) = the input (equation (2)).

    A module like any other: `nn.Sequential(nn.Linear(3, 8), ODEBlock(MLPField(8)), nn.Linear(8, 2))`.

    Args:
        field: The vector field, called as `field(t, z)`; an `nn.Module` or a function.
        t: The times from the input to the output. With two (or with `last=True`) the output is z(t[-1]), of the
            input's shape; otherwise it is all states, (len(t), *input.shape).
        augment: Extra dimensions, zero at the start and appended to the last axis: the field then sees
            (..., width + augment). The trajectories of a one-dimensional flow cannot cross, those of an augmented one
            can (Dupont, Doucet and Teh, "Augmented neural ODEs", NeurIPS 2019).
        last: Whether to return z(t[-1]) alone; None: exactly when there are two times.
        solve_options: Options of `odenets.solve`: `method`, `rtol`, `atol`, `controller`, `adjoint`, `max_steps`,
            `on_failure`, `args`.

    Attributes:
        stats: `Stats` of the newest forward pass (and its backward pass, once that has run); None before.

    Raises:
        TypeError: If an option is not one of `odenets.solve`.
        SolveError: In the forward pass, if the solve fails.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        augment: int = 0,
        last: bool | None = None,
        **solve_options: Any,
    ) -> None:
        super().__init__()
        unknown = set(solve_options) - _OPTIONS
        if unknown:
            raise TypeError(f"ODEBlock has no option `{sorted(unknown)[0]}`; it takes {', '.join(sorted(_OPTIONS))}")
        if augment < 0:
            raise ValueError(f"`augment` must be an integer ≥ 0, got {augment}")
        self.field = field
        self.t = t
        self.augment = augment
        self.last = len(t) == 2 if last is None else last
        self.solve_options = solve_options
        self.stats: Stats | None = None
        self._check_field()

    def forward(self, x: Tensor) -> Tensor:
        """z(t[-1]) for z(t[0]) = x, or all states: see `t`."""
        z0 = nn.functional.pad(x, (0, self.augment)) if self.augment else x
        solution = solve(self.field, z0, self.t, **self.solve_options)
        self.stats = solution.stats
        return solution.ys[-1] if self.last else solution.ys

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.solve_options.items())
        augment = f", augment={self.augment}" if self.augment else ""
        return f"t={tuple(float(v) for v in self.t)}{augment}{options}"

    def _check_field(self) -> None:
        """Refuse what makes f another function at every evaluation; no solver can control the error of that."""
        modules = self.field.modules() if isinstance(self.field, nn.Module) else ()
        for module in modules:
            if isinstance(module, _RANDOM) and module.p > 0:
                raise ValueError(
                    f"`field` contains {type(module).__name__}(p={module.p}), which draws anew at every evaluation; "
                    "that makes the error estimate and the replayed gradient meaningless: put it before or after "
                    "the ODEBlock"
                )
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                raise ValueError(
                    f"`field` contains {type(module).__name__}, whose running statistics would be updated at every "
                    "evaluation of f, rejected steps and replays included: use LayerNorm or GroupNorm, or "
                    "`track_running_stats=False`"
                )


_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_OPTIONS = set(inspect.signature(solve).parameters) - {"f", "y0", "t", "dense"}
