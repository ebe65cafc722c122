"""PASCAL VOC's metrics: average precision of each class at an IoU of 0.5, and its mean.

What VOC calls difficult is a crowd region here (`pipelines.readers.voc`). VOC counts pixels of boxes whose corners
belong to them; a box here begins at the left edge of its first pixel and ends at the right edge of its last, so its
plain IoU is VOC's with + 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd.batch import GroundTruth
from ssd.evaluation.coco import class_names, without_nan

LEAST_IOU = 0.5
"""A detection finds an object with which its IoU is above this."""
_RECALLS_OF_2007 = np.arange(0, 1.05, 0.1)
"""As VOC's development kit makes them: .3, .6 and .7 come out a little too large, so that a recall of exactly so much
misses its point."""


def voc_metrics(ground_truth: GroundTruth, results: np.ndarray, year: str) -> dict[str, Any]:
    """year: "voc07", the mean precision at eleven recalls, or "voc12" (of 2010 and later), the area under the curve.

    results: as `detect.detect_split` returns them; rows of equal scores count in their order. Returns {"VOC07": the
    mean over the classes with objects, in [0, 1], -1 where none has any, "VOC07_per_class": {name: AP, None where the
    class has no object that is not difficult}}, or the same with VOC12.
    """
    results = without_nan(results)
    truths: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in ground_truth.dataset["annotations"]:
        truths.setdefault((row["category_id"], row["image_id"]), []).append(row)
    of_classes = [_average_precision(truths, results, category_id, year) for category_id in ground_truth.category_ids]
    found = [ap for ap in of_classes if ap is not None]
    name = year.upper()
    return {
        name: float(np.mean(found)) if found else -1.0,
        f"{name}_per_class": dict(zip(class_names(ground_truth), of_classes, strict=True)),
    }


def write_comp4(folder: Path, ground_truth: GroundTruth, results: np.ndarray, file_names: Sequence[str]) -> list[Path]:
    """The files that VOC's development kit reads, comp4_det_test_CLASS.txt for each class, of those without detections
    too. A line: the image's name without suffix, the score and xmin, ymin, xmax, ymax, counted from 1, the last pixel
    inside, cut to the image.

    results: as in `voc_metrics`. file_names: of the ground truth's images, in its order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = zip(ground_truth.image_ids.tolist(), file_names, ground_truth.sizes_px.tolist(), strict=True)
    about = {image_id: (Path(name).stem, *size) for image_id, name, size in images}
    results = without_nan(results)
    files = []
    for name, category_id in zip(class_names(ground_truth), ground_truth.category_ids, strict=True):
        lines = []
        for image_id, x, y, w, h, score, _ in results[results[:, 6] == category_id].tolist():
            stem, width, height = about[int(image_id)]
            corners = (max(x + 1, 1), max(y + 1, 1), min(x + w, width), min(y + h, height))
            lines.append(f"{stem} {score:.6f} {' '.join(f'{each:.6f}' for each in corners)}\n")
        files.append(folder / f"comp4_det_test_{name.replace('/', '_')}.txt")
        files[-1].write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return files


def _average_precision(
    truths: dict[tuple[int, int], list[dict[str, Any]]], results: np.ndarray, category_id: int, year: str
) -> float | None:
    own = {image: rows for (category, image), rows in truths.items() if category == category_id}
    objects = sum(not row["iscrowd"] for rows in own.values() for row in rows)
    if not objects:
        return None
    results = results[results[:, 6] == category_id]
    results = results[np.argsort(-results[:, 5], kind="stable")]
    is_true, is_false = _verdicts(own, results)
    true, false = is_true.cumsum(), is_false.cumsum()
    recall, precision = true / objects, true / np.maximum(true + false, 1)
    return _of_2007(recall, precision) if year == "voc07" else _area(recall, precision)


def _verdicts(own: dict[int, list[dict[str, Any]]], results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of detections of a class, best first: whether each is right, and whether it is wrong. Of a difficult object it is
    neither; of one that a better detection has, it is wrong, even if it overlaps another one as well."""
    is_true, is_false = (np.zeros(len(results), dtype=bool) for _ in range(2))
    boxes = {image: np.array([row["bbox"] for row in rows], dtype=float) for image, rows in own.items()}
    taken: set[tuple[int, int]] = set()
    for place, result in enumerate(results):
        image = int(result[0])
        iou = _iou(result[1:5], boxes[image]) if image in boxes else np.zeros(0)
        best = int(iou.argmax()) if len(iou) else -1
        if best < 0 or not iou[best] > LEAST_IOU:
            is_false[place] = True
        elif not own[image][best]["iscrowd"]:
            is_false[place] = (image, best) in taken
            is_true[place] = not is_false[place]
            taken.add((image, best))
    return is_true, is_false


def _iou(box_xywh: np.ndarray, others_xywh: np.ndarray) -> np.ndarray:
    """Of a box with N others."""
    start = np.maximum(box_xywh[:2], others_xywh[:, :2])
    end = np.minimum(box_xywh[:2] + box_xywh[2:], others_xywh[:, :2] + others_xywh[:, 2:])
    shared = (end - start).clip(min=0).prod(axis=1)
    union = box_xywh[2:].prod() + others_xywh[:, 2:].prod(axis=1) - shared
    iou: np.ndarray = shared / np.maximum(union, np.finfo(float).tiny)
    return iou


def _of_2007(recall: np.ndarray, precision: np.ndarray) -> float:
    return float(np.mean([precision[recall >= least].max(initial=0) for least in _RECALLS_OF_2007]))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Under the precision as a falling function of the recall."""
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())
