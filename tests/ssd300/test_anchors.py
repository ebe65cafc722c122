"""Default boxes, matching and encoding: by hand, and against torchvision, exact arithmetic and DALI."""

from fractions import Fraction
from math import sqrt

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from ssd.boxes import ltrb_to_cxcywh
from ssd.detectors.ssd300.anchors import (
    ASPECT_RATIOS,
    BOXES_PER_CELL,
    FEATURE_SIZES,
    NUM_BOXES,
    SCALES_PX,
    STEPS_PX,
    default_boxes_cxcywh,
    default_boxes_ltrb,
)
from ssd.matching import MATCH_IOU, OFFSET_STDS, match

# The first index of each level: 4 x 38^2 = 5776, + 6 x 19^2 = 7942, + 6 x 10^2 = 8542, + 6 x 5^2 = 8692,
# + 4 x 3^2 = 8728, + 4 = 8732.
LEVEL_STARTS = (0, 5776, 7942, 8542, 8692, 8728, 8732)


def random_boxes_ltrb(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Boxes inside the image with sides in [low, high]."""
    size = low + (high - low) * torch.rand(count, 2, generator=generator)
    left_top = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([left_top, (left_top + size).clamp(max=1)], dim=1)


# Default boxes


def test_there_are_8732() -> None:
    assert NUM_BOXES == 8732 == LEVEL_STARTS[-1]
    assert default_boxes_cxcywh().shape == default_boxes_ltrb().shape == (8732, 4)
    assert default_boxes_cxcywh().dtype == default_boxes_ltrb().dtype == torch.float32


@pytest.mark.parametrize(
    ("index", "box_cxcywh_px"),
    [
        # Level 0, step 8, scale 21: from (0.5 x 8, 0.5 x 8) to (37.5 x 8, 37.5 x 8).
        (0, (4, 4, 21, 21)),
        (1, (12, 4, 21, 21)),  # columns run fastest
        (38, (4, 12, 21, 21)),  # then rows
        (1443, (300, 300, 21, 21)),
        (1444, (4, 4, sqrt(21 * 45), sqrt(21 * 45))),  # then shapes: the square between two scales
        (2 * 1444, (4, 4, 21 * sqrt(2), 21 / sqrt(2))),  # twice as wide as high
        (3 * 1444, (4, 4, 21 / sqrt(2), 21 * sqrt(2))),  # and upright
        (5775, (300, 300, 21 / sqrt(2), 21 * sqrt(2))),
        # Level 1, step 16, scale 45: from 0.5 x 16 to 18.5 x 16 = 296.
        (5776, (8, 8, 45, 45)),
        (5776 + 2 * 361 + 3 * 19 + 7, (120, 56, 45 * sqrt(2), 45 / sqrt(2))),  # shape 2, row 3, column 7
        (5776 + 4 * 361, (8, 8, 45 * sqrt(3), 45 / sqrt(3))),
        (7941, (296, 296, 45 / sqrt(3), 45 * sqrt(3))),
        # Level 2, step 32, scale 99: 9.5 x 32 = 304 is clamped to 300.
        (7942, (16, 16, 99, 99)),
        (7942 + 9, (300, 16, 99, 99)),
        (8541, (300, 300, 99 / sqrt(3), 99 * sqrt(3))),
        # Level 3, step 64, scale 153: to 4.5 x 64 = 288.
        (8542, (32, 32, 153, 153)),
        (8691, (288, 288, 153 / sqrt(3), 153 * sqrt(3))),
        # Level 4, step 100, scale 207: to 2.5 x 100; 207 x sqrt 2 = 292.7 still fits.
        (8692, (50, 50, 207, 207)),
        (8727, (250, 250, 207 / sqrt(2), 207 * sqrt(2))),
        # Level 5, step 300, scale 261: 261 x sqrt 2 = 369.1 is clamped to 300.
        (8728, (150, 150, 261, 261)),
        (8729, (150, 150, sqrt(261 * 315), sqrt(261 * 315))),
        (8730, (150, 150, 300, 261 / sqrt(2))),
        (8731, (150, 150, 261 / sqrt(2), 300)),
    ],
)
def test_default_box_by_hand(index: int, box_cxcywh_px: tuple[float, ...]) -> None:
    # One rounding to float32 of a number up to 1, and one here.
    expected = torch.tensor(box_cxcywh_px) / 300
    torch.testing.assert_close(default_boxes_cxcywh()[index], expected, rtol=0, atol=2**-23)


def test_only_centre_and_size_are_clamped() -> None:
    cxcywh, ltrb = default_boxes_cxcywh(), default_boxes_ltrb()
    assert cxcywh.min() > 0 and cxcywh.max() == 1
    # The first box spans 4 -+ 10.5 px: it leaves the image. Box 8730 spans 150 -+ 150 px, after the clamp.
    torch.testing.assert_close(ltrb[0] * 300, torch.tensor([-6.5, -6.5, 14.5, 14.5]), rtol=0, atol=1e-5)
    torch.testing.assert_close(ltrb[8730, ::2], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", range(6))
def test_default_boxes_are_torchvisions(level: int) -> None:
    generator = DefaultBoxGenerator(
        aspect_ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[scale / 300 for scale in (21, 45, 99, 153, 207, 261, 315)],
        steps=[8, 16, 32, 64, 100, 300],
        clip=True,
    )
    image = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (theirs_ltrb_px,) = generator(image, [torch.zeros(1, 1, size, size) for size in FEATURE_SIZES])
    # torchvision clamps the sizes but not the centres.
    theirs = (ltrb_to_cxcywh(theirs_ltrb_px) / 300).clamp(0, 1)

    size, shapes = FEATURE_SIZES[level], BOXES_PER_CELL[level]
    here = slice(LEVEL_STARTS[level], LEVEL_STARTS[level + 1])
    # Row, column, shape there; shape, row, column here. The permutation makes this more than equality as sets.
    theirs = theirs[here].view(size, size, shapes, 4).permute(2, 0, 1, 3)
    ours = default_boxes_cxcywh()[here].view(shapes, size, size, 4)
    # torchvision goes through pixels in float32: several roundings of numbers up to 1.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_constants_are_those_of_the_reference() -> None:
    assert FEATURE_SIZES == (38, 19, 10, 5, 3, 1)
    assert STEPS_PX == (8, 16, 32, 64, 100, 300)
    assert SCALES_PX == (21, 45, 99, 153, 207, 261, 315)
    assert ASPECT_RATIOS == ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    assert BOXES_PER_CELL == (4, 6, 6, 6, 4, 4)
    assert OFFSET_STDS == (0.1, 0.1, 0.2, 0.2)
    assert MATCH_IOU == 0.5


# Matching


@pytest.mark.parametrize(
    ("boxes_ltrb", "defaults_ltrb", "expected"),
    [
        pytest.param(
            # IoU 1, 1/2 and 9/16: exactly a half is not enough.
            [(0, 0, 1, 1)],
            [(0, 0, 1, 1), (0, 0, 0.5, 1), (0, 0, 0.5625, 1)],
            [0, -1, 0],
            id="more than a half",
        ),
        pytest.param(
            # IoU 1/16 and 0: the best one has it all the same.
            [(0, 0, 0.25, 0.25)],
            [(0, 0, 1, 1), (0.5, 0.5, 1, 1)],
            [0, -1],
            id="best default box however bad",
        ),
        pytest.param(
            # Each half shares 1/4 of 1/2 + 1/2 - 1/4: IoU 1/3 and 1/3.
            [(0.25, 0, 0.75, 1)],
            [(0, 0, 0.5, 1), (0.5, 0, 1, 1)],
            [-1, 0],
            id="the last of two best default boxes",
        ),
        pytest.param(
            # The first default box has IoU 3/4 with both; the others are the two themselves, 1/2 with the other one.
            [(0, 0, 0.75, 1), (0.25, 0, 1, 1)],
            [(0, 0, 1, 1), (0, 0, 0.75, 1), (0.25, 0, 1, 1)],
            [1, 0, 1],
            id="the last of two best ground truths",
        ),
        pytest.param(
            # Both overlap the first default box most, with IoU 1 and 1/4; it goes to the last.
            [(0, 0, 0.5, 0.5), (0, 0, 0.25, 0.25)],
            [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)],
            [1, -1],
            id="the last of two with one best default box",
        ),
        pytest.param(
            # The same the other way round.
            [(0, 0, 0.25, 0.25), (0, 0, 0.5, 0.5)],
            [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)],
            [1, -1],
            id="the last of two with one best default box, reversed",
        ),
        pytest.param(
            # The first ground truth loses its best default box but keeps the second, with IoU (9/16) / 1 > 1/2.
            [(0, 0, 1, 1), (0, 0, 1, 0.25)],
            [(0, 0, 1, 1), (0, 0.4375, 1, 1)],
            [1, 0],
            id="a default box lost, another kept",
        ),
        pytest.param(
            [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)],
            [(0.5, 0.5, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)],
            [1, 0, -1],
            id="each its own",
        ),
        pytest.param([], [(0, 0, 1, 1), (0, 0, 0.5, 1)], [-1, -1], id="no ground truth"),
    ],
)
def test_match_by_hand(
    boxes_ltrb: list[tuple[float, ...]], defaults_ltrb: list[tuple[float, ...]], expected: list[int]
) -> None:
    matched = match(torch.tensor(boxes_ltrb).reshape(-1, 4), torch.tensor(defaults_ltrb))
    assert matched.dtype == torch.int64
    assert matched.tolist() == expected


IntBox = tuple[int, int, int, int]


def exact_iou(a: IntBox, b: IntBox) -> Fraction:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    size_a, size_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return Fraction(width * height, size_a + size_b - width * height)


def slow_match(boxes: list[IntBox], defaults: list[IntBox]) -> list[int]:
    """The rules one by one, in exact arithmetic."""
    matched = []
    for default in defaults:
        best, best_iou = -1, Fraction(1, 2)
        for i, box in enumerate(boxes):
            iou = exact_iou(box, default)
            if iou > Fraction(1, 2) and iou >= best_iou:
                best, best_iou = i, iou
        matched.append(best)
    for i, box in enumerate(boxes):
        _, last_best = max((exact_iou(box, default), d) for d, default in enumerate(defaults))
        matched[last_best] = i
    return matched


GRID = 8


def _span(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high)).filter(lambda p: p[0] != p[1]).map(sorted)


INT_BOXES = st.tuples(_span(0, GRID), _span(0, GRID)).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


# On so small a grid ties abound, and float32 holds every area and tells every two different IoUs apart.
@settings(max_examples=500, deadline=None)
@given(boxes=st.lists(INT_BOXES, max_size=6), defaults=st.lists(INT_BOXES, min_size=1, max_size=12))
@example(boxes=[(0, 0, 8, 8)] * 2, defaults=[(0, 0, 8, 8)] * 3)
def test_match_is_the_slow_match(boxes: list[IntBox], defaults: list[IntBox]) -> None:
    boxes_ltrb = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / GRID
    defaults_ltrb = torch.tensor(defaults, dtype=torch.float32) / GRID
    assert match(boxes_ltrb, defaults_ltrb).tolist() == slow_match(boxes, defaults)


@pytest.mark.parametrize("seed", range(5))
def test_match_with_the_8732(seed: int) -> None:
    boxes_ltrb = random_boxes_ltrb(12, 0.02, 0.8, torch.Generator().manual_seed(seed))
    iou = box_iou(boxes_ltrb, default_boxes_ltrb())
    matched = match(boxes_ltrb, default_boxes_ltrb())
    assert matched.shape == (8732,)
    best_of_default, best_of_box = iou.max(dim=0).values, iou.max(dim=1).values
    slack = 1e-6  # a few roundings of an IoU
    assert (best_of_default[matched < 0] <= 0.5 + slack).all()
    default = torch.nonzero(matched >= 0).squeeze(1)
    box = matched[default]
    own = iou[box, default]
    is_best_and_enough = (own > 0.5 - slack) & (own >= best_of_default[default] - slack)
    is_forced = own >= best_of_box[box] - slack
    assert (is_best_and_enough | is_forced).all()
    assert set(box.tolist()) == set(range(12))  # in these draws no two claim one default box


# Offsets
