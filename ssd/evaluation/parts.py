"""COCO's metrics of masks and of keypoints, beside those of boxes."""

import contextlib
import io
from typing import Any

import numpy as np
import pycocotools.mask

from ssd.batch import GroundTruth
from ssd.evaluation.coco import ENGINES, METRIC_NAMES, coco_metrics
from ssd.evaluation.detect import Results
from ssd.keypoints import sigmas_of

KEYPOINT_METRIC_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def all_metrics(ground_truth: GroundTruth, results: Results, engine: str = "faster") -> dict[str, Any]:
    """`coco.coco_metrics` of the boxes, and of what else was found and is in the ground truth: of masks the same, named
    "segm_AP", ...; of keypoints KEYPOINT_METRIC_NAMES, "keypoints_AP", ..., over the categories that have any."""
    metrics = coco_metrics(ground_truth, results.rows, engine)
    kept = ~np.isnan(results.rows).any(axis=1)
    rows = results.rows[kept]
    first: dict[str, Any] = next(iter(ground_truth.dataset["annotations"]), {})
    if results.masks is not None and "segmentation" in first:
        masks = [mask for mask, stays in zip(results.masks, kept.tolist(), strict=True) if stays]
        stats = _stats(ground_truth, _with_masks(ground_truth, rows, masks), "segm", engine)
        metrics |= {f"segm_{name}": value for name, value in zip(METRIC_NAMES, stats, strict=True)}
    if results.keypoints is not None and ground_truth.skeleton is not None:
        stats = _stats(ground_truth, _with_keypoints(rows, results.keypoints[kept]), "keypoints", engine)
        metrics |= {f"keypoints_{name}": value for name, value in zip(KEYPOINT_METRIC_NAMES, stats, strict=True)}
    return metrics


def _stats(ground_truth: GroundTruth, found: list[dict[str, Any]], kind: str, engine: str) -> list[float]:
    new_dataset, new_judge = ENGINES[engine]
    dataset = ground_truth.dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truths, results = new_dataset(), new_dataset()
        # The engines put compressed run lengths into the annotations that they are given.
        truths.dataset = {**dataset, "annotations": [dict(row) for row in dataset["annotations"]]}
        results.dataset = {**dataset, "annotations": found}
        truths.createIndex()
        results.createIndex()
        skeleton = ground_truth.skeleton
        options = {}
        if engine == "faster" and kind == "keypoints" and skeleton is not None:
            options["kpt_oks_sigmas"] = list(sigmas_of(skeleton.names))
        judge = new_judge(truths, results, kind, **options)
        if kind == "keypoints" and skeleton is not None:
            judge.params.kpt_oks_sigmas = np.array(sigmas_of(skeleton.names))
            ids = enumerate(ground_truth.category_ids, start=1)
            judge.params.catIds = sorted(id for label, id in ids if skeleton.is_of(label))
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    count = len(METRIC_NAMES if kind == "segm" else KEYPOINT_METRIC_NAMES)
    return [float(value) for value in judge.stats[:count]]


def _with_masks(ground_truth: GroundTruth, rows: np.ndarray, masks: list[bytes]) -> list[dict[str, Any]]:
    sizes = {id: [height, width] for id, (width, height) in zip(
        ground_truth.image_ids.tolist(), ground_truth.sizes_px.tolist(), strict=True
    )}  # fmt: skip
    found = _detections(rows)
    for each, counts in zip(found, masks, strict=True):
        each["segmentation"] = {"size": sizes[each["image_id"]], "counts": counts}
    # As pycocotools' loadRes: small and large are masks by their own area.
    # One at a time: with numpy 2, pycocotools fails over more than 255 at once.
    return [{**each, "area": float(pycocotools.mask.area(each["segmentation"]))} for each in found]


def _with_keypoints(rows: np.ndarray, keypoints: np.ndarray) -> list[dict[str, Any]]:
    found = _detections(rows)
    for each, points in zip(found, keypoints, strict=True):
        corner, opposite = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        each["keypoints"] = np.concatenate([points[:, :2], np.ones((len(points), 1))], axis=1).ravel().tolist()
        each["num_keypoints"] = len(points)
        # As pycocotools' loadRes: small and large are detections by the extent of their points.
        each["bbox"] = [*corner.tolist(), *(opposite - corner).tolist()]
        each["area"] = float((opposite - corner).prod())
    return found


def _detections(rows: np.ndarray) -> list[dict[str, Any]]:
    columns = zip(rows[:, 0].astype(np.int64).tolist(), rows[:, 1:5].tolist(), rows[:, 5].tolist(),
                  rows[:, 6].astype(np.int64).tolist(), strict=True)  # fmt: skip
    return [
        {"id": number, "image_id": image, "bbox": box, "score": score, "category_id": category, "iscrowd": 0}
        for number, (image, box, score, category) in enumerate(columns, start=1)
    ]
