"""Compiled loops of small states compute on one thread, whatever is set, and what is set stays."""

import pytest
import torch
from torch import nn

from odenets import solve
from odenets.engine.compile import programs, trace
from odenets.engine.compile.failing import NotCompiled
from odenets.engine.compile.threads import one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_what_was_set_holds_again():
    def fails():
        with one_thread(wanted=True):
            return torch.get_num_threads() / 0

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_num_threads() == 2
    for wanted, threads in ((True, 1), (False, 2)):
        with one_thread(wanted):
            assert torch.get_num_threads() == threads


class Products(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, t, y):
        return self.inner(y)


@pytest.mark.parametrize(("batch", "hidden", "threads"), [(16, 32, 1), (128, 1024, 2)])
def test_few_products_are_computed_alone(monkeypatch, batch, hidden, threads):
    """4 · 8 · hidden floating-point operations for each row of the state."""
    seen, graphs = [], []

    def program(*_):
        seen.append(torch.get_num_threads())
        raise NotCompiled("this is enough")

    def lowered(graph, *_):
        graphs.append(graph)
        return program

    trace._regions.clear()
    monkeypatch.setattr(programs, "lowered", lowered)
    with pytest.warns(UserWarning, match="this is enough"):
        solve(Products(8, hidden), torch.ones(batch, 8), [0.0, 1.0], compile=True)
    assert [graph.work for graph in graphs[:1]] == [4 * hidden]
    assert (4 * hidden * 8 * batch < 2**21) is (threads == 1)
    assert seen == [threads]
    assert torch.get_num_threads() == 2
