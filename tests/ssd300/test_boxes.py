"""Box forms and overlap: by hand, and against torchvision."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ssd.boxes import area, cxcywh_to_ltrb, ltrb_to_cxcywh, ltrb_to_xywh, pairwise_iou


def random_boxes_ltrb(*shape: int, seed: int, side: float = 1) -> Tensor:
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * side
    return corners.sort(dim=-2).values.flatten(-2)


def test_forms_by_hand() -> None:
    # Left 2, top 3, right 8, bottom 5: centre (2 + 8) / 2, (3 + 5) / 2; size 8 - 2, 5 - 3.
    box_ltrb = torch.tensor([2.0, 3, 8, 5])
    assert ltrb_to_cxcywh(box_ltrb).tolist() == [5, 4, 6, 2]
    assert ltrb_to_xywh(box_ltrb).tolist() == [2, 3, 6, 2]
    assert cxcywh_to_ltrb(torch.tensor([5.0, 4, 6, 2])).tolist() == [2, 3, 8, 5]


def test_round_trip_is_exact_where_float32_is() -> None:
    # Multiples of 1/1024 in [0, 1]: their sums and halves need 12 of float32's 24 bits, so nothing rounds.
    boxes_ltrb = (random_boxes_ltrb(1000, seed=1) * 1024).round() / 1024
    assert torch.equal(cxcywh_to_ltrb(ltrb_to_cxcywh(boxes_ltrb)), boxes_ltrb)
    boxes_cxcywh = ltrb_to_cxcywh(boxes_ltrb)
    assert torch.equal(ltrb_to_cxcywh(cxcywh_to_ltrb(boxes_cxcywh)), boxes_cxcywh)


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 2**-24), (torch.float64, 2**-53)])
def test_round_trip_of_any_box(dtype: torch.dtype, step: float) -> None:
    boxes_ltrb = random_boxes_ltrb(1000, seed=2).to(dtype)
    back = cxcywh_to_ltrb(ltrb_to_cxcywh(boxes_ltrb))
    assert back.dtype == dtype
    # Three roundings of numbers up to 2: centre, size, and their difference.
    torch.testing.assert_close(back, boxes_ltrb, rtol=0, atol=4 * step)


@pytest.mark.parametrize("convert", [ltrb_to_cxcywh, cxcywh_to_ltrb, ltrb_to_xywh, area])
def test_leading_dimensions_change_nothing(convert) -> None:
    boxes_ltrb = random_boxes_ltrb(2, 3, 5, seed=3)
    singly = torch.stack([convert(box) for box in boxes_ltrb.view(-1, 4)])
    assert torch.equal(convert(boxes_ltrb).flatten(0, 2), singly)


@pytest.mark.parametrize(
    ("box_ltrb", "expected"),
    [
        ([2, 3, 8, 5], 12),  # 6 x 2
        ([2, 3, 2, 5], 0),  # no width
        ([8, 3, 2, 5], 0),  # right < left
        ([8, 5, 2, 3], 0),  # both inverted: not (-6) x (-2) = 12
    ],
)
def test_area_by_hand(box_ltrb: list[float], expected: float) -> None:
    assert area(torch.tensor(box_ltrb, dtype=torch.float32)).item() == expected


@pytest.mark.parametrize(
    ("a_ltrb", "b_ltrb", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1),  # the same box
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),  # they share 1 x 1 of 4 + 4 - 1
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 / 4),  # contained: 4 of 16
        ([0, 0, 4, 1], [1, 0, 5, 1], 3 / 5),  # shifted by a quarter: 3 of 4 + 4 - 3
        ([0, 0, 4, 4], [3, 1, 5, 2], 1 / 17),  # 1 x 1 of 16 + 2 - 1
        ([0, 0, 2, 2], [2, 0, 4, 2], 0),  # they touch
        ([0, 0, 2, 2], [3, 3, 4, 4], 0),  # apart in both directions: not (-1) x (-1)
        ([0, 0, 2, 2], [0, 5, 2, 6], 0),  # apart in one
    ],
)
def test_iou_by_hand(a_ltrb: list[float], b_ltrb: list[float], expected: float) -> None:
    a, b = torch.tensor([a_ltrb], dtype=torch.float64), torch.tensor([b_ltrb], dtype=torch.float64)
    # One division of exact integers: the nearest double.
    assert pairwise_iou(a, b).item() == expected
    assert pairwise_iou(b, a).item() == expected


@pytest.mark.parametrize("side", [1, 640])
def test_iou_is_torchvisions(side: float) -> None:
    a, b = random_boxes_ltrb(300, seed=4, side=side), random_boxes_ltrb(200, seed=5, side=side)
    iou = pairwise_iou(a, b)
    assert iou.shape == (300, 200) and 0.3 < (iou > 0).float().mean() < 0.9
    # The same formula: a few roundings of 2^-24.
    torch.testing.assert_close(iou, box_iou(a, b), rtol=1e-6, atol=0)


def test_iou_of_pairs_swapped_is_its_transpose() -> None:
    a, b = random_boxes_ltrb(50, seed=6), random_boxes_ltrb(60, seed=7)
    assert torch.equal(pairwise_iou(a, b), pairwise_iou(b, a).T)


def test_iou_with_empty_boxes_is_0() -> None:
    empty = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.1, 0.2, 0.9], [0.0, 0.0, 0.0, 0.0]])
    full = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(pairwise_iou(empty, empty), torch.zeros(3, 3))  # 0 / 0 would be NaN
    assert torch.equal(pairwise_iou(empty, full), torch.zeros(3, 1))


def test_iou_without_boxes_has_no_rows_or_columns() -> None:
    boxes_ltrb, none = random_boxes_ltrb(3, seed=8), torch.zeros(0, 4)
    assert pairwise_iou(none, boxes_ltrb).shape == (0, 3)
    assert pairwise_iou(boxes_ltrb, none).shape == (3, 0)


def test_batched_iou_equals_single() -> None:
    a, b = random_boxes_ltrb(2, 3, 7, seed=9), random_boxes_ltrb(2, 3, 5, seed=10)
    batched = pairwise_iou(a, b)
    assert batched.shape == (2, 3, 7, 5)
    singly = [pairwise_iou(x, y) for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
    assert torch.equal(batched.flatten(0, 1), torch.stack(singly))


def test_iou_leaves_its_arguments_alone() -> None:
    a, b = random_boxes_ltrb(4, seed=11), random_boxes_ltrb(5, seed=12)
    a_before, b_before = a.clone(), b.clone()
    pairwise_iou(a, b)
    assert torch.equal(a, a_before) and torch.equal(b, b_before)
