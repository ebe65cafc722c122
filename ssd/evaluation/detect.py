"""A model's detections over a split, as rows of COCO results."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from ssd.batch import Detections, EvalBatch, EvalLoader, GroundTruth, on_host
from ssd.boxes import ltrb_to_xywh
from ssd.config import Config
from ssd.detectors.contract import Forward
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks, gather_tensors
from ssd.precision import autocast


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
    detect = detector_of(config.detector).detect(config.detector, config.thresholds)
    forward = in_precision(model, config, ranks.device)
    rows = detect_rows(lambda batch: detect(forward, batch), loader, ground_truth)
    model.train(training)
    parts = gather_tensors(rows, ranks)
    return None if parts is None else torch.cat(parts).numpy()


def detect_rows(
    detect: Callable[[EvalBatch], Detections], loader: Iterable[EvalBatch], ground_truth: GroundTruth
) -> torch.Tensor:
    """This rank's rows of `detect_split`, by any function that detects a batch."""
    rows = [torch.zeros(0, 7, dtype=torch.float64)]
    rows += [_coco_rows(detect(batch), batch.indices, ground_truth) for batch in loader]
    return torch.cat(rows)


def in_precision(model: Forward, config: Config, device: torch.device) -> Forward:
    """The model, called in the run's precision."""

    def forward(*arguments: Any) -> Any:
        with autocast(config, device):
            return model(*arguments)

    return forward


def _coco_rows(detections: Detections, indices: torch.Tensor, ground_truth: GroundTruth) -> torch.Tensor:
    boxes_ltrb, scores, labels, counts = on_host(detections)
    boxes_xywh = ltrb_to_xywh(boxes_ltrb)
    real = torch.arange(scores.shape[1]) < counts.unsqueeze(1)
    sizes_px = torch.from_numpy(ground_truth.sizes_px[indices.numpy()]).double()
    boxes_xywh_px = boxes_xywh.double() * sizes_px.repeat(1, 2).unsqueeze(1)
    image_ids = torch.from_numpy(ground_truth.image_ids[indices.numpy()]).double().unsqueeze(1).expand_as(scores)
    category_ids = torch.tensor([0, *ground_truth.category_ids], dtype=torch.float64)[labels]
    columns = [image_ids.unsqueeze(2), boxes_xywh_px, scores.double().unsqueeze(2), category_ids.unsqueeze(2)]
    return torch.cat(columns, dim=2)[real]
