"""A small COCO document, what changes it, and what is true of annotations that were read."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations import Annotations
from pipelines.readers.coco import MIN_BOX_SIDE_PX

# Image 70 has two boxes, one of them a crowd; 7 has none; 9 only a crowd. Ids have gaps and fall.
DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 7, "file_name": "b.jpg", "width": 50, "height": 60},
        {"id": 9, "file_name": "c.jpg", "width": 10, "height": 10},
    ],
    "categories": [{"id": 90, "name": "kite"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 11, "image_id": 9, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 60.5, "iscrowd": 1},
        {"id": 12, "image_id": 70, "category_id": 3, "bbox": [20, 10, 100, 50], "area": 4000, "iscrowd": 0},
        {"id": 5, "image_id": 70, "category_id": 90, "bbox": [50.5, 25, 50, 25], "iscrowd": True},
    ],
}
MASK = [[1.5, 2.5, 3.5, 4.5, 5.5, 6.5]]


def write(folder: Path, document: object, image_folder: str = "train") -> Path:
    """A data set whose split 'train' has this document (bytes, text or JSON values) and three images."""
    file = folder / "annotations" / "instances_train.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / image_folder).mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / image_folder / name).touch()
    if isinstance(document, bytes):
        file.write_bytes(document)
    else:
        file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return folder


def changed(*path: str | int, to: object) -> dict[str, Any]:
    """DOCUMENT with the value at `path` replaced."""
    document: Any = copy.deepcopy(DOCUMENT)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return document


def without(*path: str | int) -> dict[str, Any]:
    """DOCUMENT with the entry at `path` removed."""
    document: Any = copy.deepcopy(DOCUMENT)
    at = document
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return document


def with_boxes(*boxes: list[float]) -> dict[str, Any]:
    """DOCUMENT with only these boxes, all on image 70 of 200 x 100 pixels."""
    return changed("annotations", to=[{"image_id": 70, "category_id": 3, "bbox": box} for box in boxes])


def assert_clean(annotations: Annotations) -> None:
    n, m, k = len(annotations), len(annotations.labels), annotations.num_classes
    assert annotations.image_ids.shape == (n,) and annotations.image_ids.dtype == np.int64
    assert annotations.sizes_px.shape == (n, 2) and annotations.sizes_px.dtype == np.int32
    assert annotations.box_starts.shape == (n + 1,) and annotations.box_starts.dtype == np.int64
    assert annotations.boxes_ltrb.shape == (m, 4) and annotations.boxes_ltrb.dtype == np.float32
    assert annotations.boxes_xywh_px.shape == (m, 4) and annotations.boxes_xywh_px.dtype == np.float64
    assert annotations.areas_px.shape == (m,) and annotations.areas_px.dtype == np.float64
    assert annotations.labels.shape == (m,) and annotations.labels.dtype == np.int64
    assert annotations.is_crowd.shape == (m,) and annotations.is_crowd.dtype == np.bool_
    assert annotations.annotation_ids.shape == (m,) and annotations.annotation_ids.dtype == np.int64

    left, top, right, bottom = annotations.boxes_ltrb.T
    assert ((annotations.boxes_ltrb >= 0) & (annotations.boxes_ltrb <= 1)).all()
    assert (left < right).all() and (top < bottom).all()
    assert np.isfinite(annotations.boxes_xywh_px).all() and np.isfinite(annotations.areas_px).all()
    assert (annotations.boxes_xywh_px[:, 2:] >= MIN_BOX_SIDE_PX).all()
    assert ((annotations.labels >= 1) & (annotations.labels < k)).all()
    assert (annotations.sizes_px > 0).all()
    assert annotations.box_starts[0] == 0 and annotations.box_starts[-1] == m
    assert (np.diff(annotations.box_starts) >= 0).all()
    assert all((annotations.image_folder / name).is_file() for name in annotations.file_names)
    assert len(set(annotations.annotation_ids.tolist())) == m and (annotations.annotation_ids > 0).all()
    json.dumps(annotations.coco_dataset(), allow_nan=False)
