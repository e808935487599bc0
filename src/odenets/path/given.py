"""What a path is made of and asked for, checked: values, knots, times."""

from typing import Any

import torch
from torch import Tensor

from odenets import transforms
from odenets.arguments import given_times, number, shown


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        names = " or ".join(f'"{x}"' for x in allowed)
        raise ValueError(f"`{name}` must be {names}, got {shown(value)}")


def check_values(u: Any) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"`u` must be a tensor, got {shown(u)}: write torch.as_tensor(u); the order is (t, u)")
    if not (u.dtype.is_floating_point or u.dtype.is_complex):
        raise TypeError(f"`u` must be floating-point or complex, got {u.dtype}: write u.float()")
    if u.dim() == 0:
        raise ValueError("`u` must be (T,) or (..., T, channels), got shape (): write u[None] for one knot")


def check_lengths(t: Tensor, u: Tensor) -> None:
    axis = -1 if u.dim() == 1 else -2
    if u.shape[axis] == len(t):
        return
    wrong = f"`u` must be (T,) or (..., T, channels) with one value a knot, T = {len(t)}, got shape {tuple(u.shape)}"
    remedy = "give t and u one length"
    if u.dim() == 1 and len(t) == 1:
        remedy = "write u[None] for one knot"
    elif u.shape[-1] == len(t):
        remedy = "write u[..., None] for one channel, or u.mT where channels come first"
    elif len(t) in u.shape[:-2]:
        remedy = f"write u.movedim({u.shape.index(len(t))}, -2)"
    raise ValueError(f"{wrong}: {remedy}")


def can_look(x: Tensor) -> bool:
    return not (torch.compiler.is_compiling() or transforms.is_recorded() or x.is_meta)


def given_knots(t: Any, u: Tensor, looks: bool) -> Tensor:
    """The knots in float64, beside u, checked."""
    t = given_times(t)
    tensors = [t] if isinstance(t, Tensor) else [x for x in t if isinstance(x, Tensor)]
    if any(x.requires_grad or (looks and _is_transformed(x)) for x in tensors):
        raise TypeError("`t` must be times without a gradient and outside of transforms: write t.detach()")
    dtype = torch.float32 if u.device.type == "mps" else torch.float64
    if not isinstance(t, Tensor):
        t = torch.tensor([float(value) for value in t], dtype=dtype)
    t = t.to(device=u.device, dtype=dtype, copy=True).contiguous()
    if looks and not bool(torch.isfinite(t).all()):
        raise ValueError(f"`t` must be finite, got {t[~t.isfinite()][0].item()}: leave those knots out")
    if looks and not bool((t.diff() > 0).all()):
        i = int((t.diff() <= 0).nonzero()[0])
        now, then = t[i].item(), t[i + 1].item()
        repeated = "keep one value a time, and give the times in float64"
        remedy = repeated if now == then else "sort both: order = t.argsort(), t[order] and u[..., order, :]"
        raise ValueError(f"`t` must increase from knot to knot, t[{i}] = {now!r} is followed by {then!r}: {remedy}")
    return t


def _is_transformed(t: Tensor) -> bool:
    """Whether a transform maps over the times or asks for derivatives by them; one that they were made in does not."""
    return transforms.is_mapped(t) or transforms.carries_derivative(t)


def time_beside(t: Any, knots: Tensor) -> tuple[Tensor, float]:
    """Times beside the knots, and the rounding of their own dtype, relative to them."""
    if not isinstance(t, Tensor):
        if not hasattr(t, "__array__"):
            t = number("t", t, "a number or a tensor of times", lambda _: True)
        t = torch.as_tensor(t) if hasattr(t, "__array__") else torch.tensor(t, dtype=torch.float64)
    if t.dtype.is_complex or t.dtype == torch.bool:
        raise TypeError(f"`t` must be real numbers, got dtype {t.dtype}: write the times in float64")
    digits = t.dtype if t.dtype.is_floating_point else torch.float64
    return t.to(device=knots.device, dtype=knots.dtype), 4 * torch.finfo(digits).eps


def refuse_outside(at: Tensor, first: float, last: float, slack: float) -> None:
    slack *= max(abs(first), abs(last))
    for value in [x.item() for x in ([at] if at.numel() == 1 else at.aminmax() if at.numel() else ())]:
        if not first - slack <= value <= last + slack:
            raise ValueError(
                f"`t` must lie within the knots, [{first!r}, {last!r}], got {value!r}: "
                'make the path with outside="hold" or outside="extend"'
            )
