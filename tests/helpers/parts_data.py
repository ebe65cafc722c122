"""A small split whose objects have masks of every kind, and named points."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

SIZES_PX = [(48, 32), (30, 40), (64, 64), (40, 60)]
POINTS = ["nose", "left_eye", "right_eye", "left_foot", "right_foot"]


def circle(x: float, y: float, radius: float) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1).round(2).ravel().tolist()


def document() -> dict[str, Any]:
    """Images 1 to 4. Objects: 11 two polygons, 12 run lengths, 13 compressed ones, 14 a crowd, 15 a polygon beyond the
    image. Points: of 'animal' only, and none of object 12."""
    images = [{"id": i + 1, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(SIZES_PX)]
    block = np.zeros((40, 30), dtype=np.uint8)
    block[10:30, 5:15] = 1
    crowd = np.zeros((64, 64), dtype=np.uint8)
    crowd[:10, :20] = 1
    compressed = pycocotools.mask.encode(np.asfortranarray(block))
    flat = crowd.ravel(order="F")
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], flat, [-1]])))).tolist()
    polygons = {
        11: (1, [4, 4, 30, 24], [circle(10, 12, 6), circle(26, 20, 7.5)]),
        12: (2, [5, 10, 10, 20], {"size": [40, 30], "counts": [210, 20, *[20, 20] * 9, 610]}),
        13: (2, [5, 10, 10, 20], {"size": [40, 30], "counts": compressed["counts"].decode()}),
        14: (3, [0, 0, 20, 10], {"size": [64, 64], "counts": [0, *runs]}),
        15: (4, [20, 30, 20, 20], [circle(38, 40, 10)]),
    }
    rows = [
        {
            "id": id, "image_id": image, "category_id": 3 if id == 12 else 7, "bbox": box, "area": 300.0,
            "iscrowd": int(id == 14), "segmentation": mask,
            "keypoints": [] if id == 12 else [10, 12, 2, 8.5, 11, 1, 12, 11, 2, 0, 0, 0, 13, 20, 2],
        }
        for id, (image, box, mask) in polygons.items()
    ]  # fmt: skip
    categories = [
        {"id": 3, "name": "stone"},
        {"id": 7, "name": "animal", "keypoints": POINTS, "skeleton": [[1, 2], [1, 3], [2, 4]]},
    ]
    return {"images": images, "annotations": rows, "categories": categories}


def write(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Smooth images and the document, as split 'train'."""
    content = document() if content is None else content
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    for image in content["images"]:
        coarse = np.random.default_rng(image["id"]).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        size_px = (image["width"], image["height"])
        picture = Image.fromarray(coarse).resize(size_px, Image.Resampling.BICUBIC)
        picture.save(folder / "train" / image["file_name"], quality=95)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder
