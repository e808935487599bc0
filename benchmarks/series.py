"""A training step of models of irregular series, beside the same model on torchdiffeq and torchcde, equal weights.

Run it:  python benchmarks/series.py                (ten minutes on one core; needs the extra `bench`)
It writes results/series.json. All have the same weights, batch, method and tolerance. The peer's is what is published:
one solve from each time of the batch to the next, over all times that any sample has (Rubanova et al. 2019), and
`cdeint` over the rows (Kidger et al. 2020). Ours is the model as it is in `odenets.nn`, eager and compiled. Errors are
relative, against the same model solved to 1e-9 in float64. They take turns; what is compared is the least processor
time of a step, which other work on the machine disturbs least.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import torchcde  # pyright: ignore[reportMissingImports] — of the extra `bench`
import torchdiffeq
import typer
from torch import Tensor

import odenets
from measure import all_versions, use_one_core
from odenets.data.physionet import quantised
from odenets.data.stays import make_stays
from odenets.files import write_atomically
from odenets.nn import ODERNN, LatentODE, NeuralCDE
from odenets.nn.series.inputs import last_values
from odenets.series import Scaling, Series

BATCH, RTOL, ATOL = 64, 1e-3, 1e-4
HOURS = {"ode_rnn": 0.5, "latent": 0.5, "cde": 0.5}  # what times are rounded down to
ADAPTIVE: dict[str, Any] = {"method": "dopri5", "rtol": RTOL, "atol": ATOL}
FIXED: dict[str, Any] = {"method": "rk4", "controller": odenets.Fixed(dt=1.0)}


def stays(hours: float) -> Series:
    """A batch of made-up stays in intensive care, in scaled numbers."""
    series = quantised(make_stays(BATCH)[0], hours)
    return Scaling.fit(series)(series)


def theirs_ode_rnn(model: ODERNN, series: Series) -> Tensor:
    """Every time of the batch in turn, each a solve; a row's update where a sample has one."""
    times = series.times.unique()
    column = torch.searchsorted(times, series.times)
    given = model.cell_input(model.inputs(series, last_values(series.values)))
    row_at = torch.full((len(series), len(times)), -1)
    row_at.scatter_(1, column.where(series.rows, column[:, :1]), torch.arange(series.times.shape[1]).expand_as(column))
    row_at.scatter_(1, column[:, :1], torch.zeros(len(series), 1, dtype=torch.int64))
    h, everyone = model.first_state(series), torch.arange(len(series))
    last = series.end
    for j, at in enumerate(times.tolist()):
        if j > 0:
            ends = torch.tensor([times[j - 1].item(), at])
            solved: Any = torchdiffeq.odeint(model.field, h, ends, rtol=RTOL, atol=ATOL, method="dopri5")
            after = solved[-1]
            h = torch.where((at <= last)[:, None], after, h)
        here = row_at[:, j] >= 0
        if here.any():
            h = torch.where(here[:, None], model._updated(h, given[everyone, row_at[:, j].clamp(min=0)]), h)
    return model.readout(h)


def theirs_latent(model: LatentODE, series: Series) -> Tensor:
    """One solve over all times of the batch, of which each sample takes its own."""
    z0 = model.encode(series)[0]
    lags = series.times - series.start[:, None]
    times = lags.unique()
    states: Any = torchdiffeq.odeint(model.field, z0, times.to(z0), rtol=RTOL, atol=ATOL, method="dopri5")
    column = torch.searchsorted(times, lags)
    return model.decoder(states[column, torch.arange(len(series))[:, None]])


def theirs_cde(model: NeuralCDE, series: Series) -> Tensor:
    """`cdeint` along the rows."""
    x, _ = model._knots(series)
    path = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(x))

    def field(_: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(model.field(z)).unflatten(-1, (model.hidden, model.width))

    ends = torch.arange(x.shape[1], dtype=x.dtype)
    z0 = model.start(x[:, 0])
    if "controller" in model.solve_options:
        z = torchcde.cdeint(path, field, z0, ends, adjoint=False, method="rk4", options={"step_size": 1.0})
    else:
        z = torchcde.cdeint(path, field, z0, ends, adjoint=False, method="dopri5", rtol=RTOL, atol=ATOL)
    last = z[torch.arange(len(series)), series.lengths - 1]
    return model.readout(torch.cat([last, torch.zeros(len(series), 1)], dim=1))


def works(channels: int) -> dict[str, tuple[str, torch.nn.Module, Callable[..., Tensor]]]:
    """Name → the data's, the model, and the same on a peer."""
    return {
        "ODE-RNN, dopri5": ("ode_rnn", ODERNN(channels, 2, 32, static=1, **ADAPTIVE), theirs_ode_rnn),
        "latent ODE, dopri5": ("latent", LatentODE(channels, 8, 32, static=1, **ADAPTIVE), theirs_latent),
        "CDE, dopri5": ("cde", NeuralCDE(channels, 2, 16, **ADAPTIVE), theirs_cde),
        "CDE, rk4 a row": ("cde", NeuralCDE(channels, 2, 16, **FIXED), theirs_cde),
    }


def main(rounds: int = 7, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Time every work, or those alone, which are then not kept."""
    use_one_core()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = {}
    for name, (kind, model, theirs) in works(8).items():
        if only and name not in only:
            continue
        series = stays(HOURS[kind])
        series = replace(series, static=None) if isinstance(model, NeuralCDE) else series
        report[name] = compared(model, series, theirs, rounds)
        print(name, json.dumps(report[name]), flush=True)
    if only:
        return
    versions = {**all_versions(), "torchcde": version("torchcde")}
    result = {"batch": BATCH, "rtol": RTOL, "atol": ATOL, "works": report, "versions": versions}
    write_atomically(Path(__file__).parent.parent / "results" / "series.json", json.dumps(result, indent=1) + "\n")


def compared(model: Any, series: Series, theirs: Callable[..., Tensor], rounds: int) -> dict[str, Any]:
    """Least milliseconds of a step of each, in turn, the evaluations of f, and how far the outputs are off."""
    compiled = copy.deepcopy(model)
    compiled.solve_options = {**model.solve_options, "compile": True}
    compiled(series).square().nanmean().backward()  # which compiles
    runs = (("odenets", model, model), ("compiled", compiled, compiled), ("peer", model, lambda x: theirs(model, x)))
    seconds: dict[str, list[float]] = {who: [] for who, *_ in runs}
    counts: dict[str, int] = {}
    calls = [0]  # not of the compiled field, which would have to be traced with what counts
    model.field.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    outputs = {}
    for _ in range(rounds):
        for who, weights, run in runs:
            weights.zero_grad()
            calls[0], begun = 0, time.process_time()
            out = run(series)
            counts[who] = calls[0]
            out.square().nanmean().backward()
            seconds[who].append(time.process_time() - begun)
            outputs[who] = out.detach()
    ms = {who: 1e3 * min(found) for who, found in seconds.items()}
    exact = _exact(model, series)
    rows = series.rows if exact.dim() == 3 else ...
    errors = {who: float((out - exact)[rows].abs().max() / exact[rows].abs().max()) for who, out in outputs.items()}
    return {
        "ms": ms,
        "ratio": {who: ms["peer"] / ms[who] for who in ("odenets", "compiled")},
        "nfe": counts,
        "error": errors,
        "rows": series.times.shape[1],
        "times": len(series.times.unique()),
    }


def _exact(model: Any, series: Series) -> Tensor:
    """The same outputs with tolerances of 1e-9, in float64."""
    fine = copy.deepcopy(model).double()
    fine.solve_options = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11, "max_steps": 100_000}
    with torch.no_grad():
        return fine(series.to(torch.float64)).float()


if __name__ == "__main__":
    typer.run(main)
