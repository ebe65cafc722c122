"""A small synthetic data set in COCO layout, so that training can be tried without downloading anything.

Every image is a picnic seen from above: balloons, crates, stars, donuts, leaves and mushrooms lie on wood, sand,
grass, cloth, pavement or paper, with soft shadows, overlaps and objects cut by the border. As in COCO, category ids
have gaps, some images hold no object, and some hold a crowd: many tiny objects under one run-length mask.
"""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.demo.scenes import compose
from pipelines.demo.shapes import CLASSES, POINTS
from ssd.errors import InputError

VERSION = 2  # raise it when a pixel or an annotation changes: older copies are then written anew
SPLITS = ("train2017", "val2017")
MARKER = "demo-data.txt"


def write_demo_data(folder: Path, train_images: int = 512, val_images: int = 128, seed: int = 0) -> Path:
    """Write the demo data set to `folder`, unless this very set is already there, and return `folder`.

    The layout is COCO's: `train2017/*.jpg`, `val2017/*.jpg`, `annotations/instances_{train2017,val2017}.json`.
    `bbox` is xywh in px, tight around the whole object, hidden parts included, clipped to the image; `segmentation`
    is the polygon of the same extent, and `area` its area in px. Crowds have uncompressed run lengths instead. Stars
    have named points: eyes, mouth, hands and feet.

    Any number of processes may call this at once: one writes, the others wait for it. The set appears at `folder` in
    one move, complete. An older or damaged demo set is replaced; a folder holding anything else is left alone and
    raises InputError.
    """
    label = f"demo data, version {VERSION}, seed {seed}, {train_images} + {val_images} images\n"
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it even if this process is killed
        if _is_complete(folder, label, counts):
            return folder
        if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something other than the demo data set: name an empty or a new folder")
        unfinished = folder.parent / f".{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for split, count in counts.items():
            _write_split(unfinished, split, count, seed)
        (unfinished / MARKER).write_text(label)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
    return folder


def _is_complete(folder: Path, label: str, counts: dict[str, int]) -> bool:
    marker = folder / MARKER
    return (
        marker.is_file()
        and marker.read_text() == label
        and all((folder / "annotations" / f"instances_{split}.json").is_file() for split in counts)
        and all(len(list((folder / split).glob("*.jpg"))) == count for split, count in counts.items())
    )


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = compose(np.random.default_rng([seed, SPLITS.index(split), index]), index)
        image_id = len(SPLITS) * index + SPLITS.index(split) + 1  # unique across the splits
        file_name = f"{image_id:012d}.jpg"
        height, width, _ = scene.pixels.shape
        scene.image().save(folder / split / file_name, quality=90)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1})
        for annotation in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    content = {
        "info": {"description": "Picnic: a synthetic detection data set", "version": str(VERSION), "year": 2017},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "picnic", **_points_of(category_id)}
            for category_id, (name, _) in CLASSES.items()
        ],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _points_of(category_id: int) -> dict[str, Any]:
    if category_id not in POINTS:
        return {}
    names, links = POINTS[category_id]
    return {"keypoints": list(names), "skeleton": [list(link) for link in links]}
