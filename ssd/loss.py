"""The multibox loss of SSD (Liu et al. 2016, section 2.2), in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.batch import Batch, Predictions

NEGATIVES_PER_POSITIVE = 3


def ssd_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the training loop asks of a detector: the losses of its model on a batch."""
    return multibox_loss(model(batch.images), batch)


def multibox_loss(predictions: Predictions, batch: Batch) -> dict[str, Tensor]:
    """Smooth L1 on the positives' offsets, and cross-entropy on the positives and the hardest negatives.

    Each image's losses are divided by its number of positives; an image without any contributes 0; then the batch's
    mean is taken. Returns {"box": (), "class": ()}, float32 scalars that always have a gradient path, so that a
    rank without positives takes part in DDP like any other.
    """
    positive = batch.labels > 0
    positives = positive.sum(dim=1)

    box_loss = F.smooth_l1_loss(predictions.offsets.float(), batch.offsets, reduction="none").sum(dim=2)
    box_loss = torch.where(positive, box_loss, 0).sum(dim=1)

    class_loss = F.cross_entropy(predictions.logits.float().flatten(0, 1), batch.labels.flatten(), reduction="none")
    class_loss = class_loss.view_as(positive)
    # The sum of the hardest negatives needs their sorted losses only, not which they are: one sort instead of two.
    hardest = torch.where(positive, 0, class_loss).sort(dim=1, descending=True).values
    rank = torch.arange(hardest.shape[1], device=hardest.device)
    chosen = rank < NEGATIVES_PER_POSITIVE * positives.unsqueeze(1)
    class_loss = torch.where(positive, class_loss, 0).sum(dim=1) + torch.where(chosen, hardest, 0).sum(dim=1)

    per_image = positives.clamp(min=1)
    return {"box": (box_loss / per_image).mean(), "class": (class_loss / per_image).mean()}
