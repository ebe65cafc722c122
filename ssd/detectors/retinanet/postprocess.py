"""From a model's candidates to detections, as detectron2 has it."""

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.torchvision.candidates import Candidates
from ssd.detectors.torchvision.postprocess import detections_of, looks_at_boxes
from ssd.detectors.torchvision.targets import limits_px
from ssd.detectors.tta.looks import Looks


def detect(thresholds: Thresholds) -> Detect:
    """Boxes are cut to the image after they suppressed each other, and D = max_per_image are chosen."""

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        limits = limits_px(batch.placed_ltrb_px[:, 2:], batch.images.device)
        return without_empty(detections_of(forward(batch.images, limits), limits, thresholds))

    return detect_batch


def looks(thresholds: Thresholds) -> Looks:
    """As `detect`: what lies beside the image takes places."""
    plain = looks_at_boxes(thresholds)

    def detections(joined: Candidates, limits: Tensor, passes: int) -> Detections:
        return without_empty(plain.detections(joined, limits, passes))

    return plain._replace(detections=detections)


def without_empty(detections: Detections) -> Detections:
    """But for boxes that lay beside the image, of which nothing is left. As detectron2, they take the places of others
    first."""
    sides = detections.boxes_ltrb[..., 2:] - detections.boxes_ltrb[..., :2]
    scores = torch.where((sides > 0).all(dim=2), detections.scores, 0)
    scores, order = scores.topk(scores.shape[1], dim=1)  # a sort that ONNX knows, too
    real = scores > 0
    boxes_ltrb = detections.boxes_ltrb.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
    return Detections(
        boxes_ltrb=torch.where(real.unsqueeze(2), boxes_ltrb, 0),
        scores=scores,
        labels=torch.where(real, detections.labels.gather(1, order), 0),
        counts=real.sum(dim=1),
    )
