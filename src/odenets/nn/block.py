"""The ODE layer."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenets.arguments import count, given_times, refuse_class, shown
from odenets.nn.regularise import Integrands, check_names, check_state, solve_regularised
from odenets.returned import works
from odenets.solution import Solution, SolveError, Stats
from odenets.solve import solve


class ODEBlock(nn.Module):
    """A layer whose output is the solution of dz/dt = f(t, z) with z(t[0]) = the input (equation (2)).

    A module like any other: `nn.Sequential(nn.Linear(3, 8), ODEBlock(MLPField(8)), nn.Linear(8, 2))`.

    Args:
        field: The vector field, called as `field(t, z)`; an `nn.Module` or a function.
        t: The times from the input to the output. With two (or with `last=True`) the output is z(t[-1]), of the
            input's shape; otherwise it is all states, (len(t), *input.shape). Parameters among the times are
            parameters of the block.
        augment: Extra dimensions, zero at the start and appended to an axis: the field then sees
            (..., width + augment). The trajectories of a one-dimensional flow cannot cross, those of an augmented one
            can (Dupont, Doucet and Teh, "Augmented neural ODEs", NeurIPS 2019).
        augment_dim: The axis: 1 for the channels of images (batch, channels, height, width), as in the paper; None
            for the last one, the features, of an input of no more than three axes.
        last: Whether to return z(t[-1]) alone; None: exactly when there are two times.
        regularise: "kinetic" (∫ |f|² dt), "jacobian" (∫ ‖∂f/∂z‖²_F dt) or both: what keeps trajectories straight and
            the field smooth, so that it takes fewer evaluations of f (Finlay et al., "How to train your neural ODE",
            ICML 2020). In training mode they are integrated along the solve, outside of its error control, for an
            input with samples along the first axis; add them to the loss. The Jacobian's norm is an unbiased estimate
            with one random probe a sample and solve; it doubles the cost of f.
        solve_options: Options of `odenets.solve`: `method`, `rtol`, `atol`, `controller`, `adjoint`, `max_steps`,
            `on_failure`, `args`.

    Attributes:
        stats: `Stats` of the newest forward pass (and its backward pass, once that has run); None before.
        regularisation: The integrals of the newest forward pass in training mode by the names in `regularise`, (batch,)
            each and differentiable: `loss + 0.01 * block.regularisation["kinetic"].mean()`. Empty before, and after a
            forward pass in evaluation mode.

    Raises:
        TypeError: If an option is not one of `odenets.solve`.
        ValueError: In the forward pass, if the input has no such `augment_dim`, or if it has more than three axes and
            `augment` comes without `augment_dim`.
        SolveError: In the forward pass, if the solve fails.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        augment: int = 0,
        augment_dim: int | None = None,
        last: bool | None = None,
        regularise: str | Sequence[str] = (),
        **solve_options: Any,
    ) -> None:
        super().__init__()
        unknown = set(solve_options) - OPTIONS
        if unknown:
            raise TypeError(f"ODEBlock has no option `{sorted(unknown)[0]}`; it takes {', '.join(sorted(OPTIONS))}")
        check_callable("field", field, "field(t, z)")
        check_repeatable("field", field, "the ODEBlock")
        self.field = field
        self.t = registered(t)
        self.augment = count("augment", augment, least=0)
        self.augment_dim = augment_dim
        self.last = len(self.t) == 2 if last is None else last
        self.solve_options = solve_options
        self.regularise = check_names(regularise)
        self.stats: Stats | None = None
        self.regularisation: dict[str, Tensor] = {}
        self._integrands: Integrands | None = None

    def forward(self, x: Tensor) -> Tensor:
        """z(t[-1]) for z(t[0]) = x, or all states: see `t`."""
        times = self.t if isinstance(self.t, Tensor) else tuple(self.t)
        solve_from = self._solve_augmented if self.augment else self._solve
        solution, ys, self.regularisation = solve_from(x, times)
        self.stats = solution.stats
        return ys[-1] if self.last else ys

    def augmented(self, x: Tensor) -> Tensor:
        """The state that the solve starts from: the input, and the extra dimensions where there are some."""
        if not self.augment:
            return x
        axis = self._augmented_axis(x)
        extra = x.new_zeros([self.augment if i == axis else size for i, size in enumerate(x.shape)])
        return torch.cat([x, extra], dim=axis)

    def _solve_augmented(self, x: Tensor, times: Any) -> tuple[Solution, Tensor, dict[str, Tensor]]:
        state = self.augmented(x)
        try:
            return self._solve(state, times)
        except SolveError:
            raise
        except (RuntimeError, ValueError) as error:
            if self._takes(x) and not self._takes(state):
                raise ValueError(
                    f"`field` takes the input's shape {tuple(x.shape)} and not the augmented state's, which has "
                    f"{state.shape[self._augmented_axis(x)]} along axis {self._augmented_axis(x)}: make it for width + "
                    "augment"
                ) from error
            raise

    def _solve(self, state: Tensor, times: Any) -> tuple[Solution, Tensor, dict[str, Tensor]]:
        if not (self.regularise and self.training):
            solution = solve(self.field, state, times, **self.solve_options)
            return solution, solution.ys, {}
        check_state(state)
        wanted = Integrands(self.field, self.regularise, tuple(state.shape[1:]))
        if self._integrands is None or vars(self._integrands) != vars(wanted):
            self._integrands = wanted  # kept, so that a compiled solve knows it again
        return solve_regularised(self._integrands, state, times, self.solve_options)

    def __getstate__(self) -> dict[str, Any]:
        """Without the integrals, whose graphs cannot be copied."""
        return {**self.__dict__, "regularisation": {}, "_integrands": None}

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.solve_options.items())
        augment = f", augment={self.augment}" if self.augment else ""
        axis = "" if self.augment_dim is None else f", augment_dim={self.augment_dim}"
        times = tuple(float(v.detach() if isinstance(v, Tensor) else v) for v in self.t)
        regularise = f", regularise={self.regularise!r}" if self.regularise else ""
        return f"t={times}{augment}{axis}{regularise}{options}"

    def _augmented_axis(self, x: Tensor) -> int:
        axis = self.augment_dim
        if axis is None and x.dim() > _FEATURES_LAST:
            raise ValueError(
                f"`augment` needs `augment_dim` for an input of {x.dim()} axes, got shape {tuple(x.shape)}: "
                "write augment_dim=1 for the channels of images, augment_dim=-1 for features along the last axis"
            )
        axis = -1 if axis is None else axis
        if not -x.dim() <= axis < x.dim() or (axis % x.dim() == 0 and x.dim() > 1):
            raise ValueError(
                f"`augment_dim` must be an axis of the input, of shape {tuple(x.shape)}, and not that of the samples; "
                f"got {axis}: write 1 for the channels of images, -1 for features along the last axis"
            )
        return axis % x.dim()

    def _takes(self, state: Tensor) -> bool:
        """Whether the field works with a state of that shape."""
        t = torch.zeros((), dtype=state.real.dtype, device=state.device)
        return works(self.field, t, state, state, self.solve_options.get("args", ()))


def check_callable(name: str, f: Any, call: str) -> None:
    """Refuse what is neither a module nor a function.

    Raises:
        TypeError: Naming the argument, and how it is called.
    """
    refuse_class(name, f)
    if not callable(f):
        raise TypeError(f"`{name}` must be a module or a function, called as {call}, got {shown(f)}")


def check_repeatable(name: str, f: Any, layer: str) -> None:
    """Refuse what makes f another function at every evaluation; no iteration or solver can control the error of that.

    Raises:
        ValueError: Naming the argument, the module in it, and where to put that instead.
    """
    for module in f.modules() if isinstance(f, nn.Module) else ():
        if isinstance(module, _RANDOM) and module.p > 0:
            raise ValueError(
                f"`{name}` contains {type(module).__name__}(p={module.p}), which draws anew at every evaluation; "
                f"that makes the error estimate and the gradient meaningless: put it before or after {layer}"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise ValueError(
                f"`{name}` contains {type(module).__name__}, whose running statistics would be updated at every "
                "evaluation, rejected and replayed ones included: use LayerNorm or GroupNorm, or "
                "`track_running_stats=False`"
            )


def registered(t: Any) -> Any:
    """The times, in a module where there are Parameters among them."""
    times = given_times(t)
    if isinstance(times, Tensor):
        return t
    if not any(isinstance(value, nn.Parameter) for value in times):
        return tuple(times)
    for i, value in enumerate(times):
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if value.requires_grad:
                raise TypeError(f"`t[{i}]` requires grad beside a Parameter: write nn.Parameter(...) for it too")
            times[i] = float(value)
    return nn.ParameterList(times)


_FEATURES_LAST = 3  # axes up to which an input is (features), (batch, features) or (batch, time, features)
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
OPTIONS = set(inspect.signature(solve).parameters) - {"f", "y0", "t", "dense"}
