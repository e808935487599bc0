"""What is put in where a value is missing."""

import torch
from torch import Tensor

from odenets import transforms


def filled(t: Tensor, u: Tensor, holds: bool, zeros: bool, looks: bool) -> Tensor:
    """u, (T, ...), with the missing values put in."""
    seen, knots = ~u.isnan(), len(t)
    if looks:
        _check_observed(u, seen, zeros)
    step = torch.arange(knots, device=u.device).reshape(-1, *(1,) * (u.dim() - 1))
    before = torch.where(seen, step, -1).cummax(0).values  # −1: none
    after = torch.where(seen, step, knots).flip(0).cummin(0).values.flip(0)  # T: none
    left = torch.where(before < 0, after, before).clamp(0, knots - 1)
    right = left if holds else torch.where(after == knots, before, after).clamp(0, knots - 1)
    start, span = t[left], t[right] - t[left]
    share = torch.where(span > 0, (t.reshape(step.shape) - start) / torch.where(span > 0, span, 1), 0)
    first, last = u.gather(0, left), u.gather(0, right)
    put_in = first + share.to(u.real.dtype) * (last - first)
    if zeros:
        put_in = torch.where(seen.any(0), put_in, 0)
    return torch.where(seen, u, put_in)


def _check_observed(u: Tensor, seen: Tensor, zeros: bool) -> None:
    if transforms.unwrapped(u).isinf().any():
        raise ValueError("`u` must be finite, or NaN where a value is missing, got an infinity: write u.nan_to_num()")
    observed = transforms.unwrapped(seen.any(0))
    if not zeros and not observed.all():
        index = [str(i) for i in (~observed).nonzero()[0].tolist()]
        where = ", ".join([*index[:-1], ":", *index[-1:]])
        raise ValueError(
            f"`u` must have an observation in every channel, u[{where}] is NaN throughout: leave the channel out, or "
            'write unobserved="zeros"'
        )
