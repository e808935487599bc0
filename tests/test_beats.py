import numpy as np
import pytest
import torch

from odenets.data.beats import CLASS_NAMES, CLASSES, Beats, scale_rows, segments
from odenets.data.errors import DataError


def some_beats(y: list[int]) -> Beats:
    n = len(y)
    return Beats(torch.rand(n, 187), torch.tensor(y), torch.arange(n), "made up.", synthetic=True)


def test_every_class_has_a_name():
    assert len(CLASSES) == len(CLASS_NAMES) == 5


def test_counts_has_all_five_classes():
    assert some_beats([0, 1, 1, 3]).counts() == (1, 2, 0, 1, 0)


def test_select_keeps_the_parts_together():
    beats = some_beats([0, 1, 2, 3])
    part = beats.select(torch.tensor([2, 0]))
    assert part.y.tolist() == part.record.tolist() == [2, 0]
    assert torch.equal(part.x, beats.x[[2, 0]])
    assert (len(part), part.source, part.synthetic) == (2, beats.source, True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.rand(2, 186)}),
        ("x", {"x": torch.rand(2, 187).double()}),
        ("y", {"y": torch.zeros(2)}),
        ("record", {"record": torch.zeros(3, dtype=torch.int64)}),
    ],
)
def test_shapes_and_types_are_checked(name, change):
    good = {"x": torch.rand(2, 187), "y": torch.tensor([0, 1]), "record": torch.tensor([1, 1])}
    with pytest.raises(DataError, match=f"`{name}` must have shape"):
        Beats(**good | change, source="", synthetic=False)


def test_segments_are_every_third_sample_from_the_beat_to_a_fifth_of_the_next_interval():
    index, lengths = segments(np.array([10, 30]), np.array([20, 31]), np.array([29, 41]))
    assert index.tolist() == [10, 13, 16, 19, 30]  # up to 20 + 9 // 5 = 21, and up to 31 + 10 // 5 = 33
    assert lengths.tolist() == [4, 1]


def test_scaling_looks_at_the_whole_segment_before_it_is_cut():
    values = np.append(np.zeros(187), 4.0)
    values[0] = 1.0
    rows = scale_rows(values, np.array([188]))
    assert rows.shape == (1, 187)
    assert rows.dtype == np.float32
    assert rows[0, 0] == 0.25
    assert rows.max() == 0.25


def test_short_segments_are_padded_with_zeros_and_flat_ones_are_zero():
    rows = scale_rows(np.array([2, 4, 3, 7, 7]), np.array([3, 2]))
    assert rows[0, :4].tolist() == [0, 1, 0.5, 0]
    assert not rows[0, 3:].any()
    assert not rows[1].any()


def test_no_segments_give_no_rows():
    assert scale_rows(np.array([]), np.array([], np.int64)).shape == (0, 187)
