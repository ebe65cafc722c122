"""PKD (Cao et al. 2022): feature maps that correlate, whatever their scale."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd.distillation.methods.maps import Adapted, pairs
from ssd.distillation.methods.ranks import summed, world_size

_EPS = 1e-6


def pkd(adapted: Adapted, of_teacher: Sequence[Tensor]) -> Tensor:
    """The sum over the maps of `correlation_loss`: () float32."""
    return torch.stack([correlation_loss(own, other) for own, other in pairs(adapted, of_teacher)]).sum()


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of two maps, each standardised in each channel over the images of all ranks,
    their rows and their columns: (1 - r)(m - 1) / m, with r Pearson's correlation of m places, averaged over channels.

    student, teacher: B x C x H x W of one shape. A channel that is the same everywhere becomes 0.
    """
    loss: Tensor = _CorrelationLoss.apply(student, teacher)
    return loss


class _CorrelationLoss(torch.autograd.Function):
    """Its derivative by hand: the backward pass needs what the forward pass has summed over ranks, and no other sum."""

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        # The gradient grows as 1 / std, so that 16 bits would not do.
        kind = torch.promote_types(student.dtype, torch.float32)
        own, other = student.to(kind), teacher.to(kind)
        channels, places = own.shape[1], own.numel() // own.shape[1]
        dims = (0, 2, 3)
        totals = summed(torch.cat([own.sum(dim=dims), other.sum(dim=dims), own.new_full((1,), places)]))
        count = totals[-1]
        means = (totals[:-1] / count).view(2, 1, channels, 1, 1)
        own, other = own - means[0], other - means[1]
        squares = summed(torch.stack([own.square().sum(dim=dims), other.square().sum(dim=dims),
                                      (own * other).sum(dim=dims)]))  # fmt: skip
        own_variance, other_variance, covariance = squares / (count - 1).clamp(min=1)
        own_std = own_variance.sqrt()
        a, b = own_std + _EPS, other_variance.sqrt() + _EPS
        terms = own_variance / a.square() + other_variance / b.square() - 2 * covariance / (a * b)
        of_own = (1 - own_std / a) / a.square() + torch.where(own_std > 0, covariance / (a.square() * b * own_std), 0)
        # The mean over ranks of gradients is that of the whole where each is as many times larger.
        scale = world_size() / (count * channels)
        context.save_for_backward(own, other, of_own * scale, scale / (a * b))
        context.dtype = student.dtype
        return terms.mean() * (count - 1).clamp(min=0) / (2 * count)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own, other, of_own, of_other = context.saved_tensors
        of_own, of_other = (each.view(1, -1, 1, 1) * gradient for each in (of_own, of_other))
        return (own * of_own - other * of_other).to(context.dtype), None
