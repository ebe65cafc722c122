"""Judging a detector: detections over a split, COCO results, COCO metrics."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from ssd.batch import Detections, EvalLoader, GroundTruth
from ssd.boxes import ltrb_to_xywh
from ssd.config import Config
from ssd.distributed import Ranks, gather_tensors
from ssd.postprocess import detect
from ssd.precision import autocast

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@torch.no_grad()
def detect_split(
    model: nn.Module, loader: EvalLoader, ground_truth: GroundTruth, config: Config, ranks: Ranks
) -> np.ndarray | None:
    """Every detection of a split, on rank 0; None on the others.

    n x 7 float64: image id, x, y, w, h in pixels, score, category id; the ids are the data set's own. The model is left
    in the mode it was in.
    """
    training = model.training
    model.eval()
    rows = [torch.zeros(0, 7, dtype=torch.float64)]
    for batch in loader:
        with autocast(config, ranks.device):
            predictions = model(batch.images)
        detections = detect(
            predictions,
            score_threshold=config.score_threshold,
            nms_iou=config.nms_iou,
            max_per_class=config.max_per_class,
            max_per_image=config.max_per_image,
        )
        rows.append(_coco_rows(detections, batch.indices, ground_truth))
    model.train(training)
    parts = gather_tensors(torch.cat(rows), ranks)
    return None if parts is None else torch.cat(parts).numpy()


def _coco_rows(detections: Detections, indices: torch.Tensor, ground_truth: GroundTruth) -> torch.Tensor:
    boxes_xywh, scores, labels, counts = (
        tensor.cpu() for tensor in (ltrb_to_xywh(detections.boxes_ltrb), *detections[1:])
    )
    real = torch.arange(scores.shape[1]) < counts.unsqueeze(1)
    sizes_px = torch.from_numpy(ground_truth.sizes_px[indices.numpy()]).double()
    boxes_xywh_px = boxes_xywh.double() * sizes_px.repeat(1, 2).unsqueeze(1)
    image_ids = torch.from_numpy(ground_truth.image_ids[indices.numpy()]).double().unsqueeze(1).expand_as(scores)
    category_ids = torch.tensor([0, *ground_truth.category_ids], dtype=torch.float64)[labels]
    columns = [image_ids.unsqueeze(2), boxes_xywh_px, scores.double().unsqueeze(2), category_ids.unsqueeze(2)]
    return torch.cat(columns, dim=2)[real]


def coco_metrics(ground_truth: GroundTruth, results: np.ndarray) -> dict[str, Any]:
    """pycocotools' bbox metrics of results as `detect_split` returns them, over all images of the split.

    Returns the twelve of METRIC_NAMES in [0, 1] (-1 where there is no ground truth to find, as pycocotools has it), and
    "per_class": {name: AP, None where the class has no ground truth}.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _coco(ground_truth.dataset)
        found = _coco(_result_set(ground_truth, results))
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics: dict[str, Any] = dict(zip(METRIC_NAMES, judge.stats.tolist(), strict=True))
    precision = judge.eval["precision"][:, :, :, 0, 2]  # IoU x recall x category, all areas, 100 detections
    by_id = {}
    for position, category_id in enumerate(judge.params.catIds):
        values = precision[:, :, position]
        values = values[values > -1]
        by_id[category_id] = float(values.mean()) if values.size else None
    names = ground_truth.category_names
    metrics["per_class"] = {
        name if names.count(name) == 1 else f"{name} ({category_id})": by_id[category_id]
        for category_id, name in zip(ground_truth.category_ids, names, strict=True)
    }
    return metrics


def _coco(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _result_set(ground_truth: GroundTruth, results: np.ndarray) -> dict[str, Any]:
    annotations = [
        {
            "id": number,
            "image_id": int(image_id),
            "bbox": [x, y, w, h],
            "area": w * h,
            "score": score,
            "category_id": int(category_id),
            "iscrowd": 0,
        }
        for number, (image_id, x, y, w, h, score, category_id) in enumerate(results.tolist(), start=1)
    ]
    return {**ground_truth.dataset, "annotations": annotations}


def evaluate(
    model: nn.Module, loader: EvalLoader, ground_truth: GroundTruth, config: Config, ranks: Ranks
) -> dict[str, Any] | None:
    """`coco_metrics` of the model on the loader's split, on rank 0; None on the others."""
    results = detect_split(model, loader, ground_truth, config, ranks)
    return None if results is None else coco_metrics(ground_truth, results)
