"""Which objects a view learns, and which images it shows in training for that: both data paths take it from here."""

import numpy as np

from pipelines.annotations import Annotations
from ssd.views import ShortSideView, View, needs_points, shows_empty


def learned_rows(annotations: Annotations, image: int, *, closed: bool) -> np.ndarray:
    """The rows of an image's objects that are learned, int64, ascending: no crowd regions.

    closed: whether boxes are ranges of pixels, as Detectron has them; then none `without_extent`.
    """
    rows = annotations.boxes_of(image)
    learned = ~annotations.is_crowd[rows]
    if closed:
        learned &= ~_without_extent(annotations, rows, annotations.sizes_px[image])
    return rows.start + np.flatnonzero(learned)


def without_extent(annotations: Annotations, view: View) -> np.ndarray:
    """The rows of boxes that the view leaves out of training because they have no extent: int64, ascending. Only
    Detectron's views do."""
    if not (isinstance(view, ShortSideView) and view.one_scale):
        return np.zeros(0, dtype=np.int64)
    sizes_px = annotations.sizes_px[annotations.image_of_box()]
    return np.flatnonzero(annotations.trains() & _without_extent(annotations, slice(None), sizes_px))


def _without_extent(annotations: Annotations, rows: slice, sizes_px: np.ndarray) -> np.ndarray:
    """Whether a box's last pixel lies no farther right, or below, than its first, or its stated area is 0: n bool.

    From json_dataset.py of Detectron: offsets to such a box would be logarithms of 0. sizes_px: of the boxes' images,
    or of their only one.
    """
    boxes_xywh_px, last_px = annotations.boxes_xywh_px[rows], sizes_px - 1.0
    first = boxes_xywh_px[:, :2].clip(0, last_px)
    last = (boxes_xywh_px[:, :2] + (boxes_xywh_px[:, 2:] - 1).clip(min=0)).clip(0, last_px)
    without: np.ndarray = (last <= first).any(axis=1) | (annotations.areas_px[rows] <= 0)
    return without


def shown_indices(annotations: Annotations, view: View) -> np.ndarray:
    """Int64 indices, ascending, of the images that the view shows in training."""
    if shows_empty(view):
        return annotations.trainable_indices(with_empty=True)
    learned = annotations.trains()
    learned[without_extent(annotations, view)] = False
    image_of_box = annotations.image_of_box()
    shown = np.unique(image_of_box[learned])
    if needs_points(view) and annotations.keypoints is not None:
        stated = (annotations.keypoints.points[..., 2] > 0).any(axis=1)
        shown = np.intersect1d(shown, image_of_box[learned & stated])
    return shown
