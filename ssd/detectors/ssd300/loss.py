"""The multibox loss of SSD (Liu et al. 2016, section 2.2), in float32."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd.batch import MatchedBatch, Predictions

NEGATIVES_PER_POSITIVE = 3
_SKIPS_ZEROS_ON = ("cpu",)


def ssd_losses(model: Callable[[Tensor], Predictions], batch: MatchedBatch) -> dict[str, Tensor]:
    """What the training loop asks of a detector: the losses of its model on a batch."""
    return multibox_loss(model(batch.images), batch)


def compiled_ssd_losses() -> Callable[[Callable[[Tensor], Predictions], MatchedBatch], dict[str, Tensor]]:
    """`ssd_losses` with its loss as one compiled graph."""
    compiled_loss = torch.compile(multibox_loss, fullgraph=True, dynamic=False)
    return lambda model, batch: compiled_loss(model(batch.images), batch)


def multibox_loss(predictions: Predictions, batch: MatchedBatch) -> dict[str, Tensor]:
    """Smooth L1 on the positives' offsets, and cross-entropy on the positives and the hardest negatives.

    Each image's losses are divided by its number of positives; an image without any contributes 0; then the batch's
    mean is taken. Returns {"box": (), "class": ()}, float32 scalars that always have a gradient path, so that a
    rank without positives takes part in DDP like any other.
    """
    positive = batch.labels > 0
    positives = positive.sum(dim=1)

    box_loss = F.smooth_l1_loss(predictions.offsets.float(), batch.offsets, reduction="none").sum(dim=2)
    box_loss = torch.where(positive, box_loss, 0).sum(dim=1)

    class_loss = _cross_entropy(predictions.logits.flatten(0, 1), batch.labels.flatten()).view_as(positive)
    # The sum of the hardest negatives needs their sorted losses only, not which they are: one sort instead of two.
    hardest = torch.where(positive, 0, class_loss).sort(dim=1, descending=True).values
    rank = torch.arange(hardest.shape[1], device=hardest.device)
    chosen = rank < NEGATIVES_PER_POSITIVE * positives.unsqueeze(1)
    class_loss = torch.where(positive, class_loss, 0).sum(dim=1) + torch.where(chosen, hardest, 0).sum(dim=1)

    per_image = positives.clamp(min=1)
    return {"box": (box_loss / per_image).mean(), "class": (class_loss / per_image).mean()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of n x K logits, in float32: n."""
    if logits.device.type in _SKIPS_ZEROS_ON and not torch.compiler.is_compiling():
        return _SparseCrossEntropy.apply(logits, labels)
    return F.cross_entropy(logits.float(), labels, reduction="none")


class _SparseCrossEntropy(torch.autograd.Function):
    """Its backward pass leaves out the rows that the mining has left out. On a GPU that would wait for the device."""

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor) -> Tensor:
        context.save_for_backward(logits, labels)
        return -logits.log_softmax(dim=1, dtype=torch.float32).gather(1, labels.unsqueeze(1)).squeeze(1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = context.saved_tensors
        row = gradient.nonzero().squeeze(1)
        of_rows = logits[row].softmax(dim=1, dtype=torch.float32)
        of_rows.scatter_add_(1, labels[row].unsqueeze(1), of_rows.new_full((len(row), 1), -1.0))
        of_logits = torch.zeros_like(logits)
        of_logits[row] = (of_rows * gradient[row].unsqueeze(1)).to(logits.dtype)
        return of_logits, None
