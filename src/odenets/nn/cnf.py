"""Continuous normalising flows: a density from an ODE."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from odenets import transforms
from odenets.arguments import count, shown
from odenets.nn.block import OPTIONS, check_callable, check_repeatable, registered
from odenets.nn.derivative import called, sees_others, with_pullback
from odenets.nn.leading import controlled_by_leading
from odenets.solution import Stats
from odenets.solve import solve

TRACES = ("exact", "hutchinson")
PROBES = ("rademacher", "normal")


class CNF(nn.Module):
    """A density that a vector field makes of a simple one: x = z(t[1]) of dz/dt = f(t, z) with z(t[0]) ~ base.

    The log-density is carried along: log p(x) = log base(z(t[0])) − ∫ tr(∂f/∂z) dt (Chen et al. 2018, equation 8), as
    one more component of the state, so density and point come from one solve, and its gradients are those of
    `odenets.solve`, exact with the default adjoint.

    When to use: data of few dimensions whose density is wanted, or samples with their densities. When not: where only
    samples are wanted, or where a mixture of Gaussians fits; a flow is a continuous one-to-one map, so it cannot tear
    a base of one piece into separate ones, and leaves thin bridges between them.

    Args:
        field: The vector field, called as `field(t, z)` with z (batch, d); a module or a function. Each row of what it
            returns must depend on the same row of z alone. One with a method `jvp(t, z, v)`, which returns f and its
            derivative along directions v (..., batch, d), is differentiated by that and not by autograd: that is
            faster, and the only way to `compile` (`ConcatSquashField` has one).
        t: The time of the base and the time of the data. Parameters among them are parameters of the flow.
        trace: "exact": d pullbacks of f an evaluation, right for d up to about ten. "hutchinson": one, for any d,
            of which `log_prob` is an unbiased estimate (Grathwohl et al. 2019, equations 7 and 8): tr J = E[eᵀ J e].
        probe: The distribution of e, drawn once a solve: "rademacher" (±1; never of more variance, and exact where
            ∂f/∂z is diagonal) or "normal".
        base: The distribution of z(t[0]), with `event_shape` (d,); None for the standard normal.
        width: d; None for that of `base`, or of the field where it has a `width`.
        control_density: Whether the density takes part in the error control. True, the default: it is what is asked
            for, and nothing else bounds its error. False: the steps are those of the points alone, fewer where f is
            nearly linear and its trace is not; for training, where a rough density is enough. Fixed steps stay.
        solve_options: Options of `odenets.solve`: `method`, `rtol`, `atol`, `controller`, `adjoint`, `compile`, …

    Attributes:
        stats: `Stats` of the newest solve; None before.

    Raises:
        TypeError, ValueError: If an argument is not as described, or `field` contains dropout or batch normalisation,
            or makes a row of other rows.
        RuntimeError: If `field` depends on z where autograd does not look on.
        SolveError: From any method, if the solve fails.
        ReplayError: From the backward pass, if the field draws random numbers and is evaluated again there.

    Source: Chen, Rubanova, Bettencourt and Duvenaud, "Neural ordinary differential equations", NeurIPS 2018;
    Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud, "FFJORD", ICLR 2019.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        trace: str = "exact",
        *,
        probe: str = "rademacher",
        base: Distribution | None = None,
        width: int | None = None,
        control_density: bool = True,
        **solve_options: Any,
    ) -> None:
        super().__init__()
        _check_options(solve_options)
        check_callable("field", field, "field(t, z)")
        for name, value, allowed in (("trace", trace, TRACES), ("probe", probe, PROBES)):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {shown(value)}")
        _refuse_batch_norm(field)
        check_repeatable("field", field, "the CNF")
        self.field, self.t, self.base = field, registered(t), base
        if len(self.t) != 2:
            raise ValueError(f"`t` must be two times, that of the base and that of the data, got {shown(t)}")
        if solve_options.get("compile") and not hasattr(field, "jvp"):
            raise TypeError(
                "`compile=True` needs a field with a method `jvp(t, z, v)`, such as ConcatSquashField: derivatives by "
                "autograd inside of f are not compiled"
            )
        self.trace, self.probe = trace, probe
        self.width = _width(width, base, field)
        self.control_density = control_density
        if not control_density:
            solve_options = controlled_by_leading(solve_options, self.width, "control_density=False")
        self.solve_options = solve_options
        self.stats: Stats | None = None
        self._rows_are_separate = False  # until it has been found out

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The log-density of points, (batch, d) → (batch,), in nats; of a Hutchinson trace, an estimate of it.

        Args:
            x: The points. NaN and infinity are refused.
            generator: Where the probe is drawn; None for torch's own.
        """
        z, log_det = self.inverse(x, generator)
        return self._base(z).log_prob(z) + log_det

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points, (n, d), differentiable by the weights. `generator` draws them, of the standard normal base only."""
        z = self._draw(n, generator)
        return self._solve(z, self._times())

    def sample_with_log_prob(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n points (n, d) and their log-densities (n,), in one solve."""
        z = self._draw(n, generator)
        x, log_det = self.forward(z, generator)
        return x, self._base(z).log_prob(z) - log_det

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Points of the base (batch, d) to those of the data (batch, d), and log |det ∂x/∂z| (batch,)."""
        self._check(z, "z")
        return self._solve_with_density(z, self._times(), generator)

    def inverse(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Points of the data (batch, d) to those of the base (batch, d), and log |det ∂z/∂x| (batch,)."""
        self._check(x, "x")
        return self._solve_with_density(x, self._times()[::-1], generator)

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.solve_options.items())
        probe = f", probe={self.probe!r}" if self.trace == "hutchinson" else ""
        return f"width={self.width}, trace={self.trace!r}{probe}{options}"

    def _times(self) -> list[Any]:
        return list(self.t)

    def _solve(self, z: Tensor, times: list[Any]) -> Tensor:
        """The points alone."""
        solution = solve(self.field, z, times, **self.solve_options)
        self.stats = solution.stats
        return solution.ys[-1]

    def _solve_with_density(
        self, x: Tensor, times: list[Any], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        _check_generator(generator)
        directions = self._directions(x, generator)
        state = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        solution = solve(self._with_trace, state, times, (directions,), **self.solve_options)
        self.stats = solution.stats
        return solution.ys[-1, :, :-1], solution.ys[-1, :, -1]

    def _directions(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Along which f is differentiated: the unit vectors, (d, 1, d), or one probe a sample, (1, batch, d).

        They are an argument of f and not drawn by it: a backward pass that evaluates f again gets the same ones.
        """
        if self.trace == "exact":
            return torch.eye(self.width, dtype=x.dtype, device=x.device)[:, None]
        shape, place = x.shape, {"dtype": x.dtype, "device": x.device}
        if self.probe == "normal":
            return torch.randn(shape, generator=generator, **place)[None]
        return 2 * torch.randint(0, 2, shape, generator=generator, **place)[None] - 1

    def _with_trace(self, t: Tensor, state: Tensor, directions: Tensor) -> Tensor:
        """f, and Σ eᵀ (∂f/∂z) e over the directions as the last component: state is (batch, d + 1)."""
        z = state[:, :-1]
        self._check_rows(t, z)
        if hasattr(self.field, "jvp"):
            f, pushed = self.field.jvp(t, z, directions.expand(-1, *z.shape))  # pyright: ignore
            trace = (pushed * directions).sum(dim=(0, 2))
        else:
            f, trace = _traced(self.field, t, z, directions)
        return torch.cat([f, trace[:, None]], dim=1)

    def _check_rows(self, t: Tensor, z: Tensor) -> None:
        """Refuse, at the first evaluation that shows it, a field that makes a row of other rows too.

        Their derivatives would count as the row's own, and no number would look wrong.
        """
        if torch.compiler.is_compiling() or self._rows_are_separate or len(z) < 2:  # a tracer sees nothing of it
            return
        if transforms.active() or transforms.is_captured(z):
            return
        with torch.no_grad():
            _, pull = with_pullback(lambda z: called(self.field, t, z), z.detach())
            if sees_others(pull, z):
                raise ValueError(
                    "`field` makes a row of its result from other rows of z too (statistics of the batch, attention "
                    "between samples), and a CNF needs each row made from its own: use LayerNorm in place of BatchNorm"
                )
        self._rows_are_separate = True

    def _base(self, z: Tensor) -> Any:
        return _Standard() if self.base is None else self.base

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        n = count("n", n, least=0)
        _check_generator(generator)
        weights = self.field.parameters() if isinstance(self.field, nn.Module) else iter(())
        like = next(weights, torch.empty(0))
        if self.base is None:
            return torch.randn(n, self.width, generator=generator, dtype=like.dtype, device=like.device)
        if generator is not None:
            raise TypeError(
                "`generator` goes with the standard normal base; others draw from torch's: torch.manual_seed"
            )
        draw = self.base.rsample if self.base.has_rsample else self.base.sample
        z = draw((n,)) if n else draw((1,))[:0]  # a mixture refuses to draw none
        return z.to(like.dtype) if like.numel() else z

    def _check(self, x: Any, name: str) -> None:
        wanted = f"`{name}` must be points of shape (batch, {self.width})"
        if not isinstance(x, Tensor):
            raise TypeError(f"{wanted}, got {shown(x)}: write torch.as_tensor({name})")
        if x.dim() != 2 or x.shape[1] != self.width:
            one = x.shape == (self.width,)
            remedy = f"write {name}[None] for one point" if one else "give one row a point"
            raise ValueError(f"{wanted}, got {tuple(x.shape)}: {remedy}")
        if not x.dtype.is_floating_point:
            raise TypeError(f"{wanted} of a floating-point dtype, got {x.dtype}: write {name}.float()")
        values = x.detach() if torch.compiler.is_compiling() else transforms.unwrapped(x).detach()
        finite = torch.isfinite(values).all(dim=-1)
        if not finite.all():
            row = int(finite.flatten().logical_not().nonzero()[0])
            raise ValueError(f"{wanted} without NaN or infinity, and row {row} has one: leave such rows out")


def _traced(field: Callable[..., Tensor], t: Tensor, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, z) and Σ eᵀ (∂f/∂z) e, by one pullback for each direction e."""
    f, pull = with_pullback(lambda z: called(field, t, z), z)
    trace = z.new_zeros(len(z))
    for e in directions:
        e = e.expand_as(z)
        trace = trace + (pull(e) * e).sum(dim=1)
    return f, trace


class _Standard:
    """The standard normal distribution of d independent numbers, in any dtype and on any device."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(dim=1) + z.shape[1] * math.log(2 * math.pi))


def _check_generator(generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator, got {shown(generator)}: write torch.Generator().manual_seed(0)"
        )


def _refuse_batch_norm(field: Any) -> None:
    for module in field.modules() if isinstance(field, nn.Module) else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"`field` contains {type(module).__name__}, which makes a row of its result from all rows of z: use "
                "LayerNorm or GroupNorm"
            )


def _check_options(options: dict[str, Any]) -> None:
    allowed = OPTIONS - {"args"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise TypeError(f"CNF has no option `{unknown[0]}`; it takes {', '.join(sorted(allowed))}")
    if options.get("on_failure", "raise") != "raise":
        raise ValueError('`on_failure` must be "raise" in a CNF: a density of NaN says nothing')


def _width(width: int | None, base: Distribution | None, field: Any) -> int:
    """d, from whichever names it; those that do must agree."""
    given = {"`width`": width, "the field's `width`": getattr(field, "width", None)}
    if base is not None:
        if not isinstance(base, Distribution) or len(base.event_shape) != 1:
            raise TypeError(
                f"`base` must be a torch.distributions.Distribution of vectors, got {shown(base)}: for independent "
                "components write torch.distributions.Independent(base, 1)"
            )
        if base.batch_shape:
            raise ValueError(
                f"`base` must be one distribution of vectors, got {tuple(base.batch_shape)} of them: take one"
            )
        given["`base`"] = base.event_shape[0]
    known = {name: count(name.strip("`"), value) for name, value in given.items() if value is not None}
    if not known:
        raise TypeError("`width` must be the number of dimensions where neither `base` nor `field.width` says it")
    if len(set(known.values())) > 1:
        raise ValueError(f"the dimensions differ: {', '.join(f'{name} has {d}' for name, d in known.items())}")
    return next(iter(known.values()))
