"""How the boxes of a split look before any is dropped: what shows a mistake in all of them, which none shows alone.

Each form of annotations states a box by other numbers: COCO's are left, top, width and height, VOC's are corners, and
YOLO's are centre, width and height. A tool that writes one form's numbers into another's files makes boxes of which
many cannot be right, while nearly all would be right if they were read as the other numbers.
"""

from typing import NamedTuple

import numpy as np

COCO, VOC, YOLO = "COCO", "VOC", "YOLO"
_TOLERANCE = 1e-3
_SAME_AREA = 0.02
"""Tools round, and some count the last pixel in."""
_SLIP = 0.02
"""Of the image's side: boxes that go further beyond an edge were not drawn so."""


class BoxCounts(NamedTuple):
    """Numbers of the boxes that a file states."""

    stated: int = 0
    as_fractions: int = 0
    """None of their four numbers is above 1, as of boxes that were written as fractions of the image."""
    as_percent: int = 0
    """None of their edges lies beyond 100 in an image that is at least half as large again, both ways."""
    impossible: int = 0
    """COCO and YOLO: far beyond an edge of the image. VOC: right of left or below of top, that is, of negative size."""
    fitting_otherwise: int = 0
    """Inside the image and not empty if their numbers are read as another form's: COCO's and YOLO's as corners, VOC's
    as left, top, width and height."""
    empty: int = 0
    """Without width or height, which say nothing of what their numbers mean."""
    form: str = COCO
    """How boxes are stated."""
    of_area_as_corners: int = 0
    """COCO: their stated area is that of their numbers read as corners, and not width x height."""


def count_boxes(
    boxes_xywh_px: np.ndarray,
    sizes_px: np.ndarray,
    tolerance_px: float,
    form: str = COCO,
    areas_px: np.ndarray | None = None,
) -> BoxCounts:
    """boxes_xywh_px: M x 4, whatever the form, as its reader makes them of what is stated. sizes_px: M x 2, (width,
    height) of each box's image. areas_px: M, as stated. Not finite numbers count nowhere."""
    left_top, extent = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        right_bottom = left_top + extent
        # Corners of VOC that are fractions come out at -1..0, as its pixels count from 1.
        lies_in_first_pixel = (left_top >= -1 - _TOLERANCE) & (right_bottom <= 1 + _TOLERANCE)
        # Corners that are fractions, stated as COCO's numbers, end at up to 2.
        is_small = (left_top >= -_TOLERANCE) & (left_top <= 1 + _TOLERANCE) & (extent <= 1 + _TOLERANCE)
        fractions = lies_in_first_pixel.all(axis=1) | is_small.all(axis=1)
        fractions &= ((extent > 0) & (sizes_px > 2)).all(axis=1)
        percent = ((right_bottom <= 100 + _TOLERANCE) & (sizes_px >= 150)).all(axis=1) & ~fractions
        slip_px = tolerance_px + _SLIP * sizes_px
        if form == VOC:
            impossible = right_bottom < left_top + 1 - _TOLERANCE
            first, second = left_top + 1, right_bottom
            fits = (first >= -tolerance_px) & (second > 0) & (first + second <= sizes_px + 1 + tolerance_px)
        else:
            is_yolo = form == YOLO
            first = left_top + extent / 2 if is_yolo else left_top
            impossible = (right_bottom > sizes_px + slip_px) | (is_yolo & (left_top < -slip_px))
            fits = (extent > first) & (extent <= sizes_px + tolerance_px) & (first >= -tolerance_px)
        areas = np.full(len(extent), np.nan) if areas_px is None or form != COCO else areas_px
        as_sizes, as_corners = extent.prod(axis=1), (extent - left_top).prod(axis=1)
        of_area = (np.abs(as_corners - areas) <= _SAME_AREA * areas) & (np.abs(as_sizes - areas) > _SAME_AREA * areas)
        of_area &= (extent > left_top).all(axis=1)
        empty = (extent == 0).any(axis=1) & ~impossible.any(axis=1)
    return BoxCounts(
        stated=len(boxes_xywh_px),
        as_fractions=int(fractions.sum()),
        as_percent=int(percent.sum()),
        impossible=int(impossible.any(axis=1).sum()),
        fitting_otherwise=int(fits.all(axis=1).sum()),
        empty=int(empty.sum()),
        form=form,
        of_area_as_corners=int(of_area.sum()),
    )
