"""Length conventions: mixing them up is right for one image and wrong for two."""

import pytest
import torch

from npu_kernels import Segments


def test_conventions() -> None:
    segments = Segments.of([4, 0, 6, 4])
    assert segments.lengths == (4, 6, 4)
    assert segments.cumulative_ends == (4, 10, 14)
    assert segments.cumulative == (0, 4, 10, 14)
    assert (segments.num_rows, segments.max_length) == (14, 6)


def test_groups_cover_every_row_once() -> None:
    groups = Segments((4, 6, 4, 2)).groups
    assert [(group.length, group.num_segments) for group in groups] == [(2, 1), (4, 2), (6, 1)]
    rows = torch.cat([group.rows for group in groups if group.rows is not None])
    assert sorted(rows.tolist()) == list(range(16))
    assert groups[1].rows is not None
    assert groups[1].rows.tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_equal_lengths_need_no_gathering() -> None:
    (group,) = Segments((5, 5, 5)).groups
    assert (group.length, group.num_segments, group.rows) == (5, 3, None)


def test_tensors_are_made_once_for_all_layers() -> None:
    segments, device = Segments((4, 6)), torch.device("cpu")
    assert segments.cumulative_on(device) is segments.cumulative_on(device)
    assert segments.cumulative_on(device).tolist() == [0, 4, 10]
    assert segments.cumulative_on(device).dtype == torch.int32
    assert segments.groups_on(device) is segments.groups_on(device)
    assert [group.length for group in segments.groups_on(device)] == [4, 6]


@pytest.mark.parametrize("lengths", [(), (3, 0), (3, -1)])
def test_refuses_empty_segments(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Segments(lengths)
