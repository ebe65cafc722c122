"""A small data set of all shapes, and loaders of a small view of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pipelines
from pipelines.annotations import Annotations
from pipelines.readers.coco import read_annotations
from ssd.batch import EvalLoader, TrainLoader
from ssd.distributed import Ranks
from ssd.views import ShortSideView

SIZES_PX = [
    (48, 32),
    (30, 40),
    (64, 64),
    (20, 80),
    (96, 24),
    (33, 47),
    (50, 50),
    (41, 29),
    (60, 45),
    (45, 60),
    (70, 35),
]
"""Seven wide ones, of which image 7 has no box, and four tall ones. Image i has id 1000 + i."""
BOXES = {7: 0, 3: 3}
"""How many boxes an image has, of those that have not one."""
ALONE = Ranks(0, 0, 1, torch.device("cpu"))
VIEW = ShortSideView(short_sides_px=(24, 32), long_side_px=56, divisor=8)


def write(folder: Path) -> Annotations:
    """Images that are smooth, as photographs are, with boxes of label i % 3 + 1, and a crowd region in the first."""
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for i, (width, height) in enumerate(SIZES_PX):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / "train" / f"{i}.jpg", quality=95)
        images.append({"id": 1000 + i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for number in range(BOXES.get(i, 1)):
            box = [2 + number, 3, width / 2, height / 2]
            boxes.append({"image_id": 1000 + i, "category_id": 1 + i % 3, "bbox": box, "iscrowd": 0})
    boxes.append({"image_id": 1000, "category_id": 1, "bbox": [0, 0, 48, 32], "iscrowd": 1})
    boxes = [{"id": number + 1, **box} for number, box in enumerate(boxes)]
    categories = [{"id": number, "name": f"kind {number}"} for number in (1, 2, 3)]
    file = folder / "annotations" / "instances_train.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return read_annotations(folder, "train")


def ranks_of(world_size: int) -> list[Ranks]:
    return [Ranks(rank, rank, world_size, torch.device("cpu")) for rank in range(world_size)]


def train_loader(
    name: str,
    split: Annotations,
    view: ShortSideView = VIEW,
    ranks: Ranks = ALONE,
    *,
    batch: int = 2,
    seed: int = 3,
    workers: int = 0,
) -> TrainLoader:
    return pipelines.build_train(name, split, batch_size=batch, num_workers=workers, seed=seed, ranks=ranks, view=view)


def eval_loader(
    name: str, split: Annotations, view: ShortSideView = VIEW, ranks: Ranks = ALONE, *, batch: int = 3
) -> EvalLoader:
    return pipelines.build_eval(name, split, batch_size=batch, num_workers=0, ranks=ranks, view=view)
