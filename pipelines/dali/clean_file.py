"""The annotation file that DALI reads.

DALI never sees the user's annotation file. It crashes on some malformed ones and misreads others without a word, so it
gets a file of its own with what `pipelines.annotations` passed: clipped boxes, no crowd regions, image numbers for ids.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations import Annotations
from ssd.errors import InputError


def write_clean_file(annotations: Annotations, file: Path, *, with_boxes: bool) -> None:
    """A COCO file for DALI's reader. Image i has id i, and boxes are inside the image also in DALI's float32."""
    trains = annotations.trains() if with_boxes else np.zeros(len(annotations.labels), dtype=bool)
    images = annotations.image_of_box()[trains]
    boxes_xywh_px = _xywh_px_inside(annotations.boxes_ltrb[trains], annotations.sizes_px[images])
    sizes_and_names = zip(annotations.sizes_px, annotations.file_names, strict=True)
    tables: dict[str, Iterator[dict[str, Any]]] = {
        "images": (
            {"id": i, "width": int(width), "height": int(height), "file_name": name}
            for i, ((width, height), name) in enumerate(sizes_and_names)
        ),
        "categories": ({"id": i, "name": category.name} for i, category in enumerate(annotations.categories, start=1)),
        "annotations": (
            {"image_id": int(image), "category_id": int(label), "bbox": box.tolist(), "iscrowd": 0}
            for image, label, box in zip(images, annotations.labels[trains], boxes_xywh_px, strict=True)
        ),
    }
    with file.open("w") as stream:
        # Row by row: all rows of COCO as Python's objects take 800 MB, on every rank.
        for start, (name, rows) in zip("{,,", tables.items(), strict=True):
            stream.write(f'{start} "{name}": [')
            stream.writelines(f"{', ' * (i > 0)}{json.dumps(row)}" for i, row in enumerate(rows))
            stream.write("]")
        stream.write("}")


def _xywh_px_inside(boxes_ltrb: np.ndarray, sizes_px: np.ndarray) -> np.ndarray:
    """n x 4 ltrb in [0, 1] and n x 2 sizes -> n x 4 float32 xywh pixels with (x + w) / width <= 1 in float32.

    random_bbox_crop aborts on a box that leaves the image, if only by a rounding.
    """
    sizes = sizes_px.astype(np.float32)
    left_top = boxes_ltrb[:, :2] * sizes
    width_height = boxes_ltrb[:, 2:] * sizes - left_top
    while (outside := (left_top + width_height) / sizes > 1).any():
        width_height[outside] = np.nextafter(width_height[outside], np.float32(0))
    return np.concatenate([left_top, width_height], axis=1)


def require_utf8(annotations: Annotations) -> None:
    """Raises InputError for a name that is no UTF-8, in which Python has single surrogates; DALI takes none."""
    for name in (str(annotations.image_folder), *annotations.file_names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name}: this name is no UTF-8, and DALI cannot read it; rename it, or pass --data_pipeline no_dali"
            ) from None
