"""The contestants that run on PyTorch: odenets, torchdiffeq, torchode, and what no solver can do without."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torchdiffeq
import torchode  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

import odenets
from works import METHOD, Network, Work, solve_reference

Stats = odenets.Stats | None
Solve = Callable[[Tensor], tuple[Tensor, Stats]]  # y0 -> the states at the times, and our own counts
Solver = Callable[[Work, nn.Module], Solve]  # bound to a field once, as in a training loop


class Step:
    """One training step: zero_grad, forward, loss, backward, SGD. Without a loss, one forward pass.

    `counted` is the solver whose evaluations of f are counted, where a compiled one hides them.
    """

    def __init__(self, work: Work, solver: Solver, *, counted: Solver | None = None, compiles: bool = False) -> None:
        self.work, self.solver, self.counted, self.compiles = work, solver, counted or solver, compiles
        self.network = copy.deepcopy(work.network)
        self.solve = solver(work, self.network.field)
        parameters = list(self.network.parameters())
        # A rate of 0: the same work each time.
        self.optimizer = torch.optim.SGD(parameters, lr=0.0) if work.loss else None

    def __call__(self) -> None:
        if self.optimizer is None:
            self._forward()
            return
        self.optimizer.zero_grad()
        self._loss()[0].backward()
        self.optimizer.step()

    def answer(self) -> Tensor:
        """The gradient of all parameters, or without a loss the output."""
        if self.optimizer is None:
            return self._forward()[0].flatten().double().cpu()
        self.optimizer.zero_grad()
        self._loss()[0].backward()
        return torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None]).double().cpu()

    def counts(self) -> tuple[int, int]:
        """Evaluations of f, forward and backward."""
        step = Step(self.work, self.counted)
        calls: list[int] = []
        step.network.field.register_forward_hook(lambda *_: calls.append(1))
        if step.optimizer is None:
            stats = step._forward()[1]
            return (len(calls), 0) if stats is None else (stats.nfe, 0)
        loss, stats = step._loss()
        forward = len(calls)
        loss.backward()
        return (forward, len(calls) - forward) if stats is None else (stats.nfe, stats.nfe_backward or 0)

    def _forward(self) -> tuple[Tensor, Stats]:
        with torch.set_grad_enabled(self.optimizer is not None):
            ys, stats = self.solve(self.network.head(self.work.x))
            return self.network.tail(ys[-1] if self.work.last else ys), stats

    def _loss(self) -> tuple[Tensor, Stats]:
        if self.work.loss is None:
            raise TypeError(f"{self.work.name} has no loss")
        output, stats = self._forward()
        return self.work.loss(output, self.work.target), stats


def ours(**options: Any) -> Solver:
    """`odenets.solve` with these options."""

    def bind(work: Work, field: nn.Module) -> Solve:
        def solve(y0: Tensor) -> tuple[Tensor, Stats]:
            tolerances = {} if "controller" in options else {"rtol": work.rtol, "atol": work.atol}
            solution = odenets.solve(field, y0, work.times, **{"method": METHOD, **tolerances, **options})
            return solution.ys, solution.stats

        return solve

    return bind


def diffeq(odeint: Callable[..., Any], **options: Any) -> Solver:
    """`torchdiffeq.odeint` or `odeint_adjoint` with these options."""

    def bind(work: Work, field: nn.Module) -> Solve:
        t = torch.tensor(work.times, dtype=work.dtype, device=work.x.device)
        given = {"method": METHOD, "rtol": work.rtol, "atol": work.atol, **options}
        return lambda y0: (odeint(field, y0, t, **given), None)

    return bind


def torchode_(*, compiled: bool = False) -> Solver:
    """torchode: each sample has its own steps; its state has shape (batch, features)."""

    def bind(work: Work, field: nn.Module) -> Solve:
        shape = work.y0.shape
        time_shape = (len(work.x), *(1,) * (len(shape) - 1))
        # Without its counts, and without gradients through the step sizes: both cost it time and the others have none.
        peer: Any = torchode  # its annotations do not fit its own arguments
        term = peer.ODETerm(lambda t, y: field(t.view(time_shape), y.view(shape)).flatten(1), with_stats=False)
        controller = peer.IntegralController(atol=work.atol, rtol=work.rtol, term=term).to(work.dtype)
        method = peer.Dopri5(term=term)
        adjoint = peer.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)
        solve_problem = torch.compile(adjoint.solve) if compiled else adjoint.solve
        t = torch.tensor(work.times, dtype=work.dtype, device=work.x.device).repeat(len(work.x), 1)
        times = {"t_start": t[:, 0], "t_end": t[:, -1]} if work.last else {"t_eval": t}

        def solve(y0: Tensor) -> tuple[Tensor, Stats]:
            ys = solve_problem(peer.InitialValueProblem(y0=y0.flatten(1), **times)).ys
            return ys.transpose(0, 1).unflatten(-1, shape[1:]), None

        return solve

    return bind


class NoSolve(torch.autograd.Function):
    """The state at all times is the start, and the field's gradient is zero."""

    @staticmethod
    def forward(ctx: Any, y0: Tensor, times: int, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return torch.stack([y0] * times)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].sum(0), None, *(torch.zeros_like(p) for p in ctx.parameters)


def nothing(work: Work, field: nn.Module) -> Solve:
    """No solve at all: what else a training step does."""
    return lambda y0: (NoSolve.apply(y0, len(work.times), *field.parameters()), None)


class Evaluations:
    """Evaluations of the field, each of the last one's result, and one backward pass: a step without its arithmetic."""

    def __init__(self, work: Work, count: int, *, backward: bool) -> None:
        self.field, self.y, self.count = work.network.field, work.y0.requires_grad_(backward), count
        self.t = torch.tensor(work.times[0], dtype=work.dtype, device=work.x.device)
        self.wanted = [self.y, *self.field.parameters()] if backward else []
        self.cotangent = torch.ones_like(self.y)

    def __call__(self) -> None:
        y = self.y
        with torch.set_grad_enabled(bool(self.wanted)):
            for _ in range(self.count):
                y = self.field(self.t, y)
        if self.wanted:
            torch.autograd.grad(y, self.wanted, self.cotangent)


class Plain:
    """The training step of a network without a solve."""

    def __init__(self, work: Work, network: nn.Module, *, compiles: bool = False) -> None:
        network = copy.deepcopy(network)
        self.work, self.compiles = work, compiles
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        self.network = torch.compile(network) if compiles else network

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        if self.work.loss is not None:
            self.work.loss(self.network(self.work.x), self.work.target).backward()
        self.optimizer.step()


def training(work: Work) -> dict[str, Step]:
    """The contestants of a training step."""
    checkpointed, direct = odenets.Checkpointed(), odenets.Direct()
    seminorm = {"norm": "seminorm"}
    return {
        "odenets Checkpointed": Step(work, ours(adjoint=checkpointed)),
        "odenets Direct": Step(work, ours(adjoint=direct)),
        "odenets Backsolve": Step(work, ours(adjoint=odenets.Backsolve())),
        "odenets Checkpointed, compiled": Step(work, ours(adjoint=checkpointed, compile=True), compiles=True),
        "odenets Direct, compiled": Step(work, ours(adjoint=direct, compile=True), compiles=True),
        "torchdiffeq odeint_adjoint": Step(work, diffeq(torchdiffeq.odeint_adjoint)),
        "torchdiffeq odeint_adjoint, seminorm": Step(
            work, diffeq(torchdiffeq.odeint_adjoint, adjoint_options=seminorm)
        ),
        "torchdiffeq odeint": Step(work, diffeq(torchdiffeq.odeint)),
        "torchode": Step(work, torchode_()),
        "torchode, compiled": Step(work, torchode_(compiled=True), counted=torchode_(), compiles=True),
    }


def forward(work: Work) -> dict[str, Step]:
    """The contestants of a forward pass in which the samples differ much."""
    return {
        "odenets, per sample": Step(work, ours(per_sample=True)),
        "odenets, per sample, compiled": Step(work, ours(per_sample=True, compile=True), compiles=True),
        "odenets": Step(work, ours()),
        "odenets, compiled": Step(work, ours(compile=True), compiles=True),
        "torchdiffeq": Step(work, diffeq(torchdiffeq.odeint)),
        "torchode, per sample": Step(work, torchode_()),
        "torchode, per sample, compiled": Step(work, torchode_(compiled=True), counted=torchode_(), compiles=True),
    }


def reference(work: Work) -> Tensor:
    """What a contestant's answer should be."""

    def bind(work: Work, field: nn.Module) -> Solve:
        return lambda y0: (solve_reference(field, y0, work.times, work.exact), None)

    network: Network = copy.deepcopy(work.network).double()
    target = work.target.double() if work.target.is_floating_point() else work.target
    return Step(replace(work, network=network, x=work.x.double(), target=target), bind).answer()
