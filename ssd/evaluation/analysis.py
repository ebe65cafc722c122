"""What an evaluation tells beyond its metrics: precision-recall curves and confusions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask
import torch

from ssd.batch import GroundTruth
from ssd.evaluation.coco import class_names, precision_at_iou50, without_nan

# Detections below this are left out of pictures and of the confusion matrix, where COCO's metrics count them all.
SHOWN_SCORE = 0.4
CONFUSION_IOU = 0.5


def analyse(
    ground_truth: GroundTruth,
    results: np.ndarray,
    engine: str = "faster",
    coverage: Callable[[torch.Tensor], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """What a run's evaluation.json holds. results: as `detect.detect_split` returns them.

    "classes": names, in the order of everything else. "boxes": how many of each the split has, without crowd regions.
    "precision_at_iou50": `coco.precision_at_iou50`, None for a class without ground truth. "confusion": see
    `confusion`, with the IoU and score it was made at. "box_sizes": what `Detector.coverage` says
    of the split's boxes, of a detector that has it.
    """
    results = without_nan(results)
    curves = precision_at_iou50(ground_truth, results, engine)
    matrix = confusion(ground_truth, results)
    content = {
        "images": len(ground_truth.image_ids),
        "classes": class_names(ground_truth),
        "boxes": matrix[:-1].sum(axis=1).tolist(),
        "precision_at_iou50": [None if curve[0] < 0 else curve.round(4).tolist() for curve in curves],
        "confusion": {"iou": CONFUSION_IOU, "score": SHOWN_SCORE, "matrix": matrix.tolist()},
    }
    return content if coverage is None else {**content, "box_sizes": coverage(boxes_of(ground_truth))}


def confusion(ground_truth: GroundTruth, results: np.ndarray) -> np.ndarray:
    """How often a box of each class is detected as each class: (classes + 1) x (classes + 1) int64.

    Rows are true, columns are predicted classes; the last column counts missed boxes, the last row detections of
    nothing. Detections above SHOWN_SCORE and ground truth pair up by falling IoU, whatever their classes, from
    CONFUSION_IOU on. Crowd regions are not counted, nor are detections within them.
    """
    label_of = {category_id: label for label, category_id in enumerate(ground_truth.category_ids)}
    nothing = len(label_of)
    matrix = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
    truths: dict[int, list[dict[str, Any]]] = {int(image_id): [] for image_id in ground_truth.image_ids}
    for row in ground_truth.dataset["annotations"]:
        truths[row["image_id"]].append(row)
    shown = results[results[:, 5] >= SHOWN_SCORE]
    shown = shown[np.argsort(shown[:, 0], kind="stable")]
    starts = np.searchsorted(shown[:, 0], list(truths))
    ends = np.searchsorted(shown[:, 0], list(truths), side="right")
    for rows, start, end in zip(truths.values(), starts, ends, strict=True):
        objects = [row for row in rows if not row["iscrowd"]]
        true = [label_of[row["category_id"]] for row in objects]
        found = [label_of[int(category_id)] for category_id in shown[start:end, 6]]
        boxes_xywh_px = shown[start:end, 1:5]
        true_of = _pair_up(_iou(boxes_xywh_px, objects))
        share_in_crowd = _iou(boxes_xywh_px, [row for row in rows if row["iscrowd"]]).max(axis=1, initial=0)
        for detection, label in enumerate(found):
            if detection in true_of:
                matrix[true[true_of[detection]], label] += 1
            elif share_in_crowd[detection] < CONFUSION_IOU:
                matrix[nothing, label] += 1
        for missed in set(range(len(true))) - set(true_of.values()):
            matrix[true[missed], nothing] += 1
    return matrix


def _iou(boxes_xywh_px: np.ndarray, rows: list[dict[str, Any]]) -> np.ndarray:
    """Detections x annotations float64; of a crowd region, the share of the detection that lies in it."""
    if len(boxes_xywh_px) == 0 or not rows:
        return np.zeros((len(boxes_xywh_px), len(rows)))
    truth_xywh_px = np.array([row["bbox"] for row in rows], dtype=np.float64)
    is_crowd = [row["iscrowd"] for row in rows]
    return np.asarray(pycocotools.mask.iou(np.ascontiguousarray(boxes_xywh_px), truth_xywh_px, is_crowd))


def _pair_up(iou: np.ndarray) -> dict[int, int]:
    """Pairs of a row and a column with at least CONFUSION_IOU, the highest first, each row and column once."""
    pairs: dict[int, int] = {}
    taken = set()
    row, column = np.nonzero(iou >= CONFUSION_IOU)
    for at in np.argsort(-iou[row, column], kind="stable"):
        if row[at] not in pairs and column[at] not in taken:
            pairs[int(row[at])] = int(column[at])
            taken.add(column[at])
    return pairs


def boxes_of(ground_truth: GroundTruth) -> torch.Tensor:
    """N x 4 float32 in [0, 1], cut to the image; without crowd regions."""
    rows = [row for row in ground_truth.dataset["annotations"] if not row["iscrowd"]]
    size_of = dict(zip(ground_truth.image_ids.tolist(), ground_truth.sizes_px, strict=True))
    xywh_px = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    sizes_px = np.array([size_of[row["image_id"]] for row in rows], dtype=np.float64).reshape(-1, 2)
    ltrb = np.concatenate([xywh_px[:, :2], xywh_px[:, :2] + xywh_px[:, 2:]], axis=1) / np.tile(sizes_px, 2)
    return torch.from_numpy(ltrb.clip(0, 1)).float()
