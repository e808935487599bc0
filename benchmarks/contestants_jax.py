"""The contestants that run on JAX: diffrax, the whole step under one `jit`, with the networks of `works`."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]
import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from torch import Tensor

from works import Work

Params = dict[str, Any]  # a PyTorch name -> an array
Field = Callable[[Any, Any, Params], Any]  # t, y, parameters -> dy/dt


def linear(p: Params, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def ecg_field(t: Any, y: Any, p: Params) -> Any:
    return linear(p, "field.layers.0", jax.nn.relu(y) + t)


def ecg_head(x: Any, p: Params) -> Any:
    for layer in ("head.0", "head.2"):
        x = jax.nn.relu(linear(p, layer, x))
    return linear(p, "head.4", x)


def ecg_tail(y: Any, p: Params) -> Any:
    return linear(p, "tail.1", jax.nn.relu(y))


def cubic_field(t: Any, y: Any, p: Params) -> Any:
    y = jnp.concatenate([y, jnp.full((*y.shape[:-1], 1), t, y.dtype)], axis=-1)
    return linear(p, "field.layers.2", jnp.tanh(linear(p, "field.layers.0", y)))


def spiral_field(t: Any, y: Any, p: Params) -> Any:
    return linear(p, "field.layers.2", jnp.tanh(linear(p, "field.layers.0", y**3)))


def convolution_field(t: Any, y: Any, p: Params) -> Any:
    y = convolve(p, "field.conv1", t, jax.nn.relu(group_norm(p, "field.norm1", y)))
    y = convolve(p, "field.conv2", t, jax.nn.relu(group_norm(p, "field.norm2", y)))
    return group_norm(p, "field.norm3", y)


def group_norm(p: Params, name: str, y: Any) -> Any:
    z = y.reshape(*y.shape[:3], 32, -1)  # samples, height, width, groups, channels of a group
    z = (z - z.mean((1, 2, 4), keepdims=True)) * jax.lax.rsqrt(z.var((1, 2, 4), keepdims=True) + 1e-5)
    return z.reshape(y.shape) * p[f"{name}.weight"] + p[f"{name}.bias"]


def convolve(p: Params, name: str, t: Any, y: Any) -> Any:
    """A 3 × 3 convolution as one matrix product: XLA's own is many times slower in the body of a loop on a CPU."""
    n, height, width, _ = y.shape
    y = jnp.concatenate([jnp.full((n, height, width, 1), t, y.dtype), y], axis=-1)
    y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [y[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = jnp.concatenate(shifted, axis=-1).reshape(n * height * width, -1)
    kernel = p[f"{name}.weight"].reshape(columns.shape[1], -1)
    return (columns @ kernel).reshape(n, height, width, -1) + p[f"{name}.bias"]


def vanderpol_field(t: Any, y: Any, p: Params) -> Any:
    x, v = y[..., 0], y[..., 1]
    return jnp.stack([v, p["field.mu"] * (1 - x**2) * v - x], axis=-1)


def cross_entropy(output: Any, target: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(output), target[:, None], axis=1))


def mean_square(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


def mean_absolute(output: Any, target: Any) -> Any:
    return jnp.mean(jnp.abs(output - target))


FIELDS: dict[str, Field] = {
    "ecg": ecg_field,
    "cubic": cubic_field,
    "spiral": spiral_field,
    "convolution": convolution_field,
    "vanderpol": vanderpol_field,
}
HEADS: dict[str, Callable[[Any, Params], Any]] = {"ecg": ecg_head}
TAILS: dict[str, Callable[[Any, Params], Any]] = {"ecg": ecg_tail}
LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "ecg": cross_entropy,
    "cubic": mean_square,
    "spiral": mean_absolute,
    "convolution": mean_square,
}


class Step:
    """One training step, or one forward pass, as one compiled function."""

    compiles = True

    def __init__(self, work: Work, adjoint: diffrax.AbstractAdjoint, *, per_sample: bool = False) -> None:
        jax.config.update("jax_enable_x64", work.dtype == torch.float64)
        self.work, self.adjoint, self.per_sample = work, adjoint, per_sample
        self.names = [name for name, _ in work.network.named_parameters()]
        self.params = {name: to_jax(value) for name, value in work.network.state_dict().items()}
        self.arrays = (image(work.x), image(work.target), jnp.zeros((), image(work.x).dtype))
        self.compiled = jax.jit(self._step(FIELDS[work.name]))

    def __call__(self) -> None:
        jax.block_until_ready(self.compiled(self.params, *self.arrays))

    def answer(self) -> Tensor:
        """The gradient of all parameters, or without a loss the output."""
        return self._judged[0]

    def counts(self) -> tuple[int, int]:
        """Evaluations of f, forward and backward."""
        if self.per_sample:  # a call at run time would be one for each sample
            solution = jax.jit(lambda p, x: self._solution(FIELDS[self.work.name], x, p))
            return 6 * int(solution(self.params, self.arrays[0]).stats["num_steps"].max()) + 2, 0
        if self.work.loss is None:
            return self._judged[1], 0
        return self._forward_calls, self._judged[1] - self._forward_calls

    @functools.cached_property
    def _judged(self) -> tuple[Tensor, int]:
        """The answer, and how often f is called for it; compiled once for both, apart from what is timed."""
        if self.per_sample:
            return to_torch(self.compiled(self.params, *self.arrays)).flatten(), 0
        if self.work.loss is None:
            output, calls = self._called(lambda field: lambda p, x, _: self._solve(field, x, p))
            return to_torch(output).flatten(), calls
        grads, calls = self._called(lambda field: jax.grad(self._loss(field)))
        return torch.cat([to_torch(grads[name]).flatten() for name in self.names]), calls

    @functools.cached_property
    def _forward_calls(self) -> int:
        return self._called(self._loss)[1]

    def _called(self, function: Callable[[Field], Callable[..., Any]]) -> tuple[Any, int]:
        """What the function of a field returns, and how often it calls the field at run time."""
        calls: list[int] = []

        def field(t: Any, y: Any, p: Params) -> Any:
            jax.debug.callback(lambda _: calls.append(1), y)
            return FIELDS[self.work.name](t, y, p)

        out = jax.block_until_ready(jax.jit(function(field))(self.params, *self.arrays[:2]))
        jax.effects_barrier()
        return out, len(calls)

    def _step(self, field: Field) -> Callable[..., Any]:
        if self.work.loss is None:
            return lambda p, x, target, rate: self._solve(field, x, p)

        def step(p: Params, x: Any, target: Any, rate: Any) -> tuple[Params, Any]:
            loss, grads = jax.value_and_grad(self._loss(field))(p, x, target)
            return jax.tree.map(lambda value, grad: value - rate * grad, p, grads), loss

        return step

    def _loss(self, field: Field) -> Callable[[Params, Any, Any], Any]:
        name = self.work.name
        head, tail = HEADS.get(name, lambda x, _: x), TAILS.get(name, lambda y, _: y)

        def loss(p: Params, x: Any, target: Any) -> Any:
            ys = self._solve(field, head(x, p), p)
            return LOSSES[name](tail(ys[-1] if self.work.last else ys, p), target)

        return loss

    def _solve(self, field: Field, y0: Any, p: Params) -> Any:
        ys = self._solution(field, y0, p).ys
        return jnp.swapaxes(ys, 0, 1) if self.per_sample else ys

    def _solution(self, field: Field, y0: Any, p: Params) -> Any:
        def solve(y0: Any, p: Params) -> Any:
            work = self.work
            return diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Dopri5(),
                work.times[0],
                work.times[-1],
                None,
                y0,
                p,
                saveat=diffrax.SaveAt(t1=True) if work.last else diffrax.SaveAt(ts=jnp.array(work.times)),
                stepsize_controller=diffrax.PIDController(rtol=work.rtol, atol=work.atol),
                adjoint=self.adjoint,
                max_steps=work.max_steps,
                throw=False,
            )

        return (jax.vmap(solve) if self.per_sample else solve)(y0, p)


def image(x: Tensor) -> Any:
    """Data as JAX has it: channels last."""
    return jnp.array((x.permute(0, 2, 3, 1) if x.dim() == 4 else x).numpy())


def to_jax(parameter: Tensor) -> Any:
    """A parameter as JAX has it: height, width, in, out."""
    return jnp.array((parameter.permute(2, 3, 1, 0) if parameter.dim() == 4 else parameter).numpy())


def to_torch(parameter: Any) -> Tensor:
    tensor = torch.from_numpy(np.array(parameter)).double()
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor


def training(work: Work) -> dict[str, Step]:
    """The contestants of a training step."""
    controller = diffrax.PIDController(rtol=work.rtol, atol=work.atol, norm=diffrax.adjoint_rms_seminorm)
    every = diffrax.RecursiveCheckpointAdjoint(checkpoints=work.max_steps)
    return {
        "diffrax RecursiveCheckpoint": Step(work, diffrax.RecursiveCheckpointAdjoint()),
        "diffrax RecursiveCheckpoint, all steps": Step(work, every),
        "diffrax Direct": Step(work, diffrax.DirectAdjoint()),
        "diffrax Backsolve": Step(work, diffrax.BacksolveAdjoint()),
        "diffrax Backsolve, seminorm": Step(work, diffrax.BacksolveAdjoint(stepsize_controller=controller)),
    }


def forward(work: Work) -> dict[str, Step]:
    """The contestants of a forward pass in which the samples differ much."""
    return {
        "diffrax, per sample": Step(work, diffrax.RecursiveCheckpointAdjoint(), per_sample=True),
        "diffrax, per sample, ForwardMode": Step(work, diffrax.ForwardMode(), per_sample=True),
        "diffrax": Step(work, diffrax.RecursiveCheckpointAdjoint()),
    }
