"""The loss of torchvision's SSDs, in float32 and of fixed shapes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd.batch import MatchedBatch, Predictions

_NEGATIVES_PER_POSITIVE = 3


def multibox_loss(predictions: Predictions, batch: MatchedBatch) -> dict[str, Tensor]:
    """Smooth L1 on the positives' offsets, and cross-entropy on the positives and each image's hardest negatives, both
    divided by the number of positives in the batch."""
    positive = batch.labels > 0
    of_boxes = F.smooth_l1_loss(predictions.offsets.float(), batch.offsets, reduction="none").sum(dim=2)
    logits = predictions.logits.float()
    of_classes = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(positive)
    # The sum of the hardest negatives needs their sorted losses only, not which they are.
    hardest = torch.where(positive, 0, of_classes).sort(dim=1, descending=True).values
    rank = torch.arange(hardest.shape[1], device=hardest.device)
    chosen = rank < _NEGATIVES_PER_POSITIVE * positive.sum(dim=1, keepdim=True)
    of_classes = torch.where(positive, of_classes, 0).sum() + torch.where(chosen, hardest, 0).sum()
    positives = positive.sum().clamp(min=1)
    return {
        "bbox_regression": torch.where(positive, of_boxes, 0).sum() / positives,
        "classification": of_classes / positives,
    }
