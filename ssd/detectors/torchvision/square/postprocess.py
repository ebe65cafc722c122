"""From predictions to detections: the best of each class, cut to the image, suppressed, the best of the image."""

import torch
from torch import Tensor

from ssd.batch import Detections, EvalBatch, Predictions
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.torchvision.boxes import decode
from ssd.detectors.torchvision.postprocess import detections_of
from ssd.detectors.torchvision.square.anchors import OFFSET_WEIGHTS, default_boxes_ltrb
from ssd.detectors.torchvision.square.settings import SquareSettings


def detect(settings: SquareSettings, thresholds: Thresholds) -> Detect:
    """As torchvision's models, D = max_per_image."""

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        predictions: Predictions = forward(batch.images)
        defaults_ltrb = default_boxes_ltrb(settings.builder, batch.images.device)
        boxes_ltrb, scores = best_of_classes(predictions, defaults_ltrb, thresholds.max_per_class)
        labels = torch.arange(1, 1 + scores.shape[1], device=scores.device).view(1, -1, 1).expand_as(scores)
        candidates = Candidates(boxes_ltrb.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        return detections_of(candidates, scores.new_ones(len(scores), 1, 4), thresholds)

    return detect_batch


def best_of_classes(predictions: Predictions, defaults_ltrb: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each class but background the default boxes that most likely are it, best first: boxes B x C x N x 4 ltrb in
    [0, 1] and probabilities B x C x N, N the lesser of count and A."""
    scores = predictions.logits.float().softmax(dim=2)[..., 1:].transpose(1, 2)
    scores, place = scores.topk(min(count, scores.shape[2]), dim=2)
    boxes_ltrb = decode(predictions.offsets.float(), defaults_ltrb, OFFSET_WEIGHTS).clamp(0, 1)
    boxes_ltrb = boxes_ltrb.unsqueeze(1).expand(-1, scores.shape[1], -1, -1)
    return boxes_ltrb.gather(2, place.unsqueeze(3).expand(-1, -1, -1, 4)), scores
