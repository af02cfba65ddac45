from __future__ import annotations

import pytest

from tpo_plugin.data.encode import _media_end, locate


def test_locate() -> None:
    assert locate(range(1, 3), [1, 2, 3], [1, 2, 3]) == 1
    assert locate(range(2, 4), [1, 9, 3, 4], [1, 9, 9, 9, 3, 4]) == 4
    # the second of two equal answers, between two media
    assert locate(range(3, 4), [5, 9, 5, 5, 9, 5], [5, 9, 9, 9, 5, 5, 9, 9, 9, 5]) == 5
    # 7 stands in what was put in, but not with 3 before it; 9 is merged with its neighbour
    assert locate(range(3, 4), [1, 9, 3, 7], [1, 8, 7, 7, 3, 7]) == 5
    # 3 before it is changed
    assert locate(range(3, 4), [1, 9, 3, 7], [1, 8, 8, 7]) == 3
    assert locate(range(2, 3), [1, 9, 7], [1, 7, 7, 7]) is None


@pytest.mark.parametrize(
    ("plain", "full", "end"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([1, 9, 3], [1, 9, 9, 9, 3], 4),
        ([1, 9, 2, 9, 3], [1, 9, 9, 2, 9, 9, 3], 6),
        ([1, 9, 3], [1, 8, 9, 9, 8, 3], 5),
    ],
)
def test_media_end(plain: list[int], full: list[int], end: int) -> None:
    assert _media_end(plain, full) == end
