"""Equations g(x, y) = 0 for the tests of the implicit layer."""

import pytest
import torch
from torch import nn

METHODS = ("newton", "anderson", "broyden")
FIXED_POINT = ("anderson", "broyden")
METHOD = pytest.mark.parametrize("method", METHODS)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def cubic(x, y):
    return y + y**3 - x


class Equilibrium(nn.Module):
    """g(x, y) = tanh(W y + x) − y."""

    def __init__(self, width=4, size=0.5, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(width, width, dtype=dtype)
        self.inner.weight.data.mul_(size)

    def forward(self, x, y):
        return torch.tanh(self.inner(y) + x) - y


def inputs(batch=3, width=4, dtype=torch.float64, **options):
    return torch.randn(batch, width, dtype=dtype, generator=torch.Generator().manual_seed(batch), **options)
