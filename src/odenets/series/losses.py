"""Losses of predicted values against observed ones: each observed value counts once, a missing one never."""

import math

import torch
from torch import Tensor

from odenets.arguments import number


def masked_mse(predicted: Tensor, values: Tensor) -> Tensor:
    """The mean squared error per observed value: Σ (predicted − value)² / number of values that are not NaN.

    Args:
        predicted: (..., C); a first axis more, of draws, is averaged over.
        values: (..., C), NaN where nothing was observed.

    Raises:
        ValueError: If nothing was observed, or the shapes do not fit.

    It is the pooled mean, as in mTAN's code. The code of Rubanova et al. (2019) averages each patient's and channel's
    mean instead, and takes that of a channel that was never observed for 0: its numbers are smaller.
    """
    seen = _seen(values)
    _check_fit(predicted, values)
    error = (predicted - values.where(seen, 0.0)).square().where(seen, 0.0)
    draws = predicted.dim() - values.dim()
    return error.sum() / (seen.sum() * (len(predicted) if draws else 1))


def gaussian_nll(predicted: Tensor, values: Tensor, sigma: float | Tensor) -> Tensor:
    """−log p(values) of each sample, (..., N): the exact density of independent normal errors, observed values alone.

    Args:
        predicted: (..., N, K, C).
        values: (N, K, C), NaN where nothing was observed: what adds nothing.
        sigma: The standard deviation of the observations, > 0: a number, or a tensor that broadcasts, such as (C,).

    Raises:
        TypeError, ValueError: A number that is none; shapes that do not fit.
    """
    if not isinstance(sigma, Tensor):  # a tensor's numbers are not looked at: the device would have to be waited for
        number("sigma", sigma, "a positive number", lambda x: x > 0)
    _check_fit(predicted, values)
    seen = ~values.isnan()
    sigma = torch.as_tensor(sigma, dtype=predicted.dtype, device=predicted.device)
    z = (predicted - values.where(seen, 0.0)) / sigma
    terms = 0.5 * z.square() + sigma.log() + 0.5 * math.log(2 * math.pi)
    return terms.where(seen, 0.0).sum(dim=(-2, -1))


def _seen(values: Tensor) -> Tensor:
    seen = ~values.isnan()
    if not seen.any():
        raise ValueError("`values` has no observation: leave the batch out")
    return seen


def _check_fit(predicted: Tensor, values: Tensor) -> None:
    """Refuse what would be broadcast: each value against each prediction."""
    if predicted.shape[-values.dim() :] != values.shape:
        raise ValueError(
            f"`predicted` must have the shape of `values`, {tuple(values.shape)}, behind axes of draws, got "
            f"{tuple(predicted.shape)}"
        )
