"""Which of many anchors or proposals have a loss: a fixed number an image, drawn so that the host waits for nothing."""

import torch
from torch import Tensor


def sample(labels: Tensor, size: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Of each image up to size * positive_share positives and negatives for the rest: places B x size int64 in the
    second dimension, and B x size bool, which of them are samples (the rest fills up where an image has too few).

    labels: B x N int64 or float, above 0 positive, 0 negative, below 0 neither. As torchvision's
    BalancedPositiveNegativeSampler: each subset is equally likely. It draws a number for each and takes the largest,
    where torchvision permutes what it has counted.
    """
    draws = torch.rand(labels.shape, device=labels.device)
    most = min(int(size * positive_share), labels.shape[1])
    values, place = torch.where(labels > 0, draws, -1).topk(most, dim=1)
    chosen = torch.zeros_like(labels, dtype=torch.bool).scatter_(1, place, values >= 0)
    # The positives that are chosen before all negatives, and these as drawn.
    order = torch.where(chosen, 2, torch.where(labels == 0, draws, -1))
    values, place = order.topk(min(size, labels.shape[1]), dim=1)
    return place, values >= 0
