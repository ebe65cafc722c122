"""COCO's metrics of detections that `detect.py` made of a split."""

import contextlib
import io
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from ssd.batch import GroundTruth
from ssd.errors import InputError

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# The classes of each of config.EVAL_ENGINES for a data set and for its judge. They have one interface.
ENGINES = {
    "faster": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
}


def coco_metrics(ground_truth: GroundTruth, results: np.ndarray, engine: str = "faster") -> dict[str, Any]:
    """The COCO bbox metrics of results as `detect_split` returns them, over all images of the split.

    engine: one of config.EVAL_ENGINES; both give the same numbers. Returns the twelve of METRIC_NAMES in [0, 1] (-1
    where there is no ground truth to find, as pycocotools has it), and "per_class": {name: AP, None where the class has
    no ground truth}. Raises InputError for an image or category that the split does not have, which the engines would
    pass over in silence.
    """
    results = without_nan(results)
    _require_known(results[:, 0], ground_truth.image_ids, "image")
    _require_known(results[:, 6], np.array(ground_truth.category_ids), "category")
    judge = _judged(ground_truth, results, engine)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.summarize()
    metrics: dict[str, Any] = dict(zip(METRIC_NAMES, map(float, judge.stats), strict=True))
    precision = judge.eval["precision"][:, :, :, 0, 2]  # IoU x recall x category, all areas, 100 detections
    by_id = {}
    for position, category_id in enumerate(judge.params.catIds):
        values = precision[:, :, position]
        values = values[values > -1]
        by_id[category_id] = float(values.mean()) if values.size else None
    names = class_names(ground_truth)
    metrics["per_class"] = {
        name: by_id[category_id] for category_id, name in zip(ground_truth.category_ids, names, strict=True)
    }
    return metrics


def precision_at_iou50(ground_truth: GroundTruth, results: np.ndarray, engine: str = "faster") -> np.ndarray:
    """Precision-recall curves at an IoU of 0.5: classes x 101 float64, the classes in the order of their labels.

    Column r is the precision in [0, 1] at a recall of r / 100, 0 where the class's detections never get there, and -1
    where the class has no ground truth. A row's mean is the class's AP50.
    """
    judge = _judged(ground_truth, without_nan(results), engine, iou_thresholds=[0.5])
    order = {category_id: position for position, category_id in enumerate(judge.params.catIds)}
    precision: np.ndarray = judge.eval["precision"][0, :, :, 0, -1].T  # all areas, 100 detections
    return precision[[order[category_id] for category_id in ground_truth.category_ids]]


def without_nan(results: np.ndarray) -> np.ndarray:
    """The rows of results without NaN: a box or score of NaN is no detection, and the engines would count it as one."""
    return results[~np.isnan(results).any(axis=1)]


def class_names(ground_truth: GroundTruth) -> list[str]:
    """The classes' names in the order of their labels, with the id behind a name that several of them have."""
    names = ground_truth.category_names
    return [
        name if names.count(name) == 1 else f"{name} ({category_id})"
        for category_id, name in zip(ground_truth.category_ids, names, strict=True)
    ]


def _judged(
    ground_truth: GroundTruth, results: np.ndarray, engine: str, iou_thresholds: list[float] | None = None
) -> Any:
    """The engine's judge, with its precisions accumulated. iou_thresholds: COCO's ten if not given."""
    new_dataset, new_judge = ENGINES[engine]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth, found = new_dataset(), new_dataset()
        truth.dataset, found.dataset = ground_truth.dataset, _result_set(ground_truth, results)
        truth.createIndex()
        found.createIndex()
        judge = new_judge(truth, found, "bbox")
        if iou_thresholds is not None:
            judge.params.iouThrs = np.array(iou_thresholds)
        judge.evaluate()
        judge.accumulate()
    return judge


def _require_known(ids: np.ndarray, known: np.ndarray, kind: str) -> None:
    unknown = ids[~np.isin(ids, known)]
    if len(unknown):
        raise InputError(
            f"results name {kind} id {unknown[0]:.0f}, which the split does not have; judge them by the split and the "
            "categories that they were made on"
        )


def _result_set(ground_truth: GroundTruth, results: np.ndarray) -> dict[str, Any]:
    boxes_xywh_px = results[:, 1:5]
    columns = {
        "id": range(1, len(results) + 1),  # not 0, which the engines write for "no detection"
        "image_id": results[:, 0].astype(np.int64).tolist(),
        "bbox": boxes_xywh_px.tolist(),
        "area": boxes_xywh_px[:, 2:].prod(axis=1).tolist(),
        "score": results[:, 5].tolist(),
        "category_id": results[:, 6].astype(np.int64).tolist(),
    }
    annotations = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {**ground_truth.dataset, "annotations": annotations}
