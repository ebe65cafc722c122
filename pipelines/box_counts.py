"""How the boxes of a split look before any is dropped: what shows a mistake in all of them, which none shows alone."""

from typing import NamedTuple

import numpy as np

_TOLERANCE = 1e-3


class BoxCounts(NamedTuple):
    """Numbers of the boxes that a file states."""

    stated: int = 0
    in_first_pixel: int = 0
    """Wholly in the image's first pixel, as boxes are that were written as fractions of the image."""
    leaving: int = 0
    """Beyond the right or lower edge."""
    fitting_as_corners: int = 0
    """Inside the image and not empty if width and height are taken for the right and lower edge."""


def count_boxes(boxes_xywh_px: np.ndarray, sizes_px: np.ndarray, tolerance_px: float) -> BoxCounts:
    """boxes_xywh_px: M x 4. sizes_px: M x 2, (width, height) of each box's image. Not finite numbers count nowhere."""
    left_top, extent = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):
        right_bottom = left_top + extent
        # Corners of VOC that are fractions come out at -1..0, as its pixels count from 1.
        first = (left_top >= -1 - _TOLERANCE) & (right_bottom <= 1 + _TOLERANCE) & (extent > 0) & (sizes_px > 2)
        leaving = (right_bottom > sizes_px + tolerance_px).any(axis=1)
        corners = (extent > left_top) & (extent <= sizes_px + tolerance_px) & (left_top >= -tolerance_px)
    return BoxCounts(
        len(boxes_xywh_px), int(first.all(axis=1).sum()), int(leaving.sum()), int(corners.all(axis=1).sum())
    )
