"""Detectron's average recall of proposals: how much of what is to be found the best boxes of an image cover, whatever
class they are of."""

from typing import Any

import numpy as np
import pycocotools.mask

from ssd.batch import GroundTruth
from ssd.evaluation.coco import without_nan

LIMITS = (100, 1000)
"""How many of an image's boxes count, the best first."""
_AREAS_PX = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""By the ending of a metric's name the least and the largest area of an object, both included."""
_LEAST_IOUS = np.arange(0.5, 0.951, 0.05)


def recall_metrics(ground_truth: GroundTruth, results: np.ndarray) -> dict[str, float]:
    """{"recall_AR100", "recall_AR100s", "recall_AR100m", "recall_AR100l", "recall_AR1000", ...}, each in [0, 1], -1
    where the split has no such objects: the mean of the recalls at an IoU of 0.5, 0.55, ... 0.95.

    results: as `detect.detect_split` returns them. Crowd regions do not count.
    """
    results = without_nan(results)
    results = results[np.lexsort((-results[:, 5], results[:, 0]))]
    images, first = np.unique(results[:, 0], return_index=True)
    of_images = dict(zip(images.tolist(), np.split(results[:, 1:5], first)[1:], strict=True))
    objects: dict[int, list[dict[str, Any]]] = {}
    for row in ground_truth.dataset["annotations"]:
        if not row["iscrowd"]:
            objects.setdefault(row["image_id"], []).append(row)
    metrics = {}
    for limit in LIMITS:
        for name, (least, largest) in _AREAS_PX.items():
            covered = [np.zeros(0)]
            for image, rows in objects.items():
                boxes = [row["bbox"] for row in rows if least <= row["area"] <= largest]
                if boxes:
                    found = of_images.get(image, np.zeros((0, 4)))[:limit]
                    covered.append(_covered(found, np.array(boxes, dtype=np.float64)))
            best = np.concatenate(covered)
            recalls = [(best >= iou).mean() for iou in _LEAST_IOUS] if len(best) else [-1.0]
            metrics[f"recall_AR{limit}{name}"] = float(np.mean(recalls))
    return metrics


def _covered(found_xywh: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """The IoU of each object's box with the found one that it is given: the pair that overlaps most first, and each
    found box to one object."""
    overlap = np.zeros(len(boxes_xywh))
    if not len(found_xywh):
        return overlap
    iou = pycocotools.mask.iou(found_xywh, boxes_xywh, [0] * len(boxes_xywh))
    for place in range(min(iou.shape)):
        found, box = np.unravel_index(iou.argmax(), iou.shape)
        overlap[place] = max(iou[found, box], 0.0)
        iou[found, :] = iou[:, box] = -1
    return overlap
