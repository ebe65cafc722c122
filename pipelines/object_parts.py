"""What annotations hold of objects beside their boxes: masks and named points, as flat arrays that ranks can share."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask

from ssd.keypoints import Skeleton

BITMAP_SIDE = 112
"""Of an object's bitmap, a ring of zeros included. A cell of the 28 x 28 that a mask head learns is from 2 to 8 of its
pixels wide, as a box that learns an object overlaps it by half at least."""
_LEAST_SIDE_PX = 0.1


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of M objects as their file states them: polygons or run lengths, each a row of numbers."""

    row_starts: np.ndarray
    """M + 1 int64: object i has the rows row_starts[i]:row_starts[i + 1]; one, of run lengths, or one a polygon."""
    starts: np.ndarray
    """1 + the rows' number, int64: row j has the numbers starts[j]:starts[j + 1]."""
    numbers: np.ndarray
    """float64, finite. Polygons: x, y, x, y, ... in pixels, three points at least, perhaps beyond the image. Run
    lengths: COCO's, whose sum is the number of the image's pixels."""
    is_rle: np.ndarray
    """M bool."""

    def __len__(self) -> int:
        return len(self.is_rle)

    def take(self, objects: np.ndarray) -> "Masks":
        """Those of some objects, ascending or not."""
        rows = _gathered(self.row_starts, objects)
        return Masks(
            row_starts=_starts(np.diff(self.row_starts)[objects]),
            starts=_starts(np.diff(self.starts)[rows]),
            numbers=self.numbers[_gathered(self.starts, rows)],
            is_rle=self.is_rle[objects],
        )

    def rows_of(self, i: int) -> list[np.ndarray]:
        """Object i's polygons, or its run lengths."""
        first, last = self.row_starts[i], self.row_starts[i + 1]
        return [self.numbers[self.starts[row] : self.starts[row + 1]] for row in range(first, last)]

    def segmentation(self, i: int, size_px: tuple[int, int]) -> Any:
        """Object i's as COCO states it. size_px: (width, height) of its image."""
        rows = self.rows_of(i)
        if self.is_rle[i]:
            return {"size": [size_px[1], size_px[0]], "counts": rows[0].astype(np.int64).tolist()}
        return [row.tolist() for row in rows]


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _gathered(starts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The places of all that these groups have, one group after the other."""
    counts = np.diff(starts)[groups]
    return np.repeat(starts[groups] - _starts(counts)[:-1], counts) + np.arange(counts.sum())


@dataclass(frozen=True, eq=False)
class Keypoints:
    """The named points of M objects."""

    skeleton: Skeleton
    points: np.ndarray
    """M x P x 3 float64, finite: x, y in pixels and COCO's visibility, 0 not stated, 1 hidden, 2 visible; 0 where an
    object has none."""

    def take(self, objects: np.ndarray) -> "Keypoints":
        return replace(self, points=self.points[objects])


def bitmap_of(masks: Masks, i: int, size_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Object i's mask in a window of its own size: BITMAP_SIDE x BITMAP_SIDE uint8, 1 where the object is, and the
    window, ltrb float64 in pixels of the image. The outermost pixels are 0: beyond a window there is nothing.

    size_px: (width, height) of the image. What is beyond it is no part of the mask.
    """
    inside = BITMAP_SIDE - 2
    if masks.is_rle[i]:
        bitmap = _decoded(masks, i, size_px)
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if len(rows) == 0:
            return _framed(np.zeros((inside, inside), dtype=np.uint8)), np.array([0.0, 0.0, *size_px])
        ltrb_px = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
        steps = (np.arange(inside) + 0.5) / inside
        row, column = (
            (ltrb_px[side] + steps * (ltrb_px[side + 2] - ltrb_px[side])).astype(np.int64) for side in (1, 0)
        )
        return _framed(bitmap[np.ix_(row, column)]), _window(ltrb_px)
    polygons = [row.reshape(-1, 2) for row in masks.rows_of(i)]
    points = np.concatenate(polygons)
    left_top = np.clip(points.min(axis=0), 0, np.array(size_px) - _LEAST_SIDE_PX)
    right_bottom = np.maximum(np.minimum(points.max(axis=0), size_px), left_top + _LEAST_SIDE_PX)
    scaled = [((polygon - left_top) * (inside / (right_bottom - left_top))).ravel().tolist() for polygon in polygons]
    rles = pycocotools.mask.frPyObjects(scaled, inside, inside)
    return (
        _framed(pycocotools.mask.decode(pycocotools.mask.merge(rles))),
        _window(np.concatenate([left_top, right_bottom])),
    )


def _decoded(masks: Masks, i: int, size_px: tuple[int, int]) -> np.ndarray:
    """Height x width uint8 of an object that has run lengths."""
    runs = masks.rows_of(i)[0].astype(np.int64)
    flat = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
    return flat.reshape(size_px).T


def _framed(bitmap: np.ndarray) -> np.ndarray:
    return np.pad(bitmap, 1)


def _window(ltrb_px: np.ndarray) -> np.ndarray:
    """With the frame."""
    pixel = np.tile((ltrb_px[2:] - ltrb_px[:2]) / (BITMAP_SIDE - 2), 2)
    return ltrb_px + pixel * (-1, -1, 1, 1)
