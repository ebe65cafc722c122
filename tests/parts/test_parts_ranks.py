"""What several ranks find of masks and keypoints, put together on the first."""

from typing import Any

import numpy as np
import torch
from two_ranks import on_two_ranks

from ssd.evaluation.detect import Results, _joined
from ssd.views import ObjectParts

# Of each rank; the second run of the two has a rank that finds nothing.
MASKS = [[b"first", b"a longer one"], [b"third"]]


def joins(ranks: Any, numbers: tuple[int, int]) -> Results | None:
    """numbers: how many objects each rank found."""
    own = numbers[ranks.rank]
    rows = torch.arange(7 * own, dtype=torch.float64).view(own, 7) + 100 * ranks.rank
    keypoints = torch.full((own, 2, 3), float(ranks.rank), dtype=torch.float64)
    return _joined(rows, MASKS[ranks.rank][:own], keypoints, ObjectParts(masks=True, keypoints=True), ranks)


def test_the_first_rank_has_all_in_the_order_of_the_ranks() -> None:
    results, none = on_two_ranks(joins, (2, 1))
    assert none is None
    assert results.rows[:, 0].tolist() == [0, 7, 100]
    assert results.masks == [b"first", b"a longer one", b"third"]
    assert results.keypoints.shape == (3, 2, 3) and results.keypoints[:, 0, 0].tolist() == [0, 0, 1]


def test_a_rank_may_find_nothing() -> None:
    results, _ = on_two_ranks(joins, (0, 1))
    assert results.masks == [b"third"] and np.array_equal(results.rows, np.arange(7.0).reshape(1, 7) + 100)
    results, _ = on_two_ranks(joins, (0, 0))
    assert results.masks == [] and results.rows.shape == (0, 7) and results.keypoints.shape == (0, 2, 3)
