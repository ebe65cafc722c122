"""The losses of dense detectors, in float32 and of fixed shapes: nothing is chosen by what a tensor holds, so that the
host does not wait for the device."""

from typing import Any

import torch
from torch import Tensor

# RetinaNet (Lin et al. 2017), section 4.1.
_ALPHA, _GAMMA = 0.25, 2


def focal_loss(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """The sigmoid focal loss of each image, summed over its anchors and classes: B float32.

    logits: B x A x K. labels: B x A int64, the class that an anchor shall be, or negative for none. counted: B x A
    bool, which anchors have a loss.
    """
    total: Tensor = _FocalLoss.apply(logits, labels, counted)
    return total


class _FocalLoss(torch.autograd.Function):
    """With z the logit of a class that the anchor is not, or minus the logit of the one that it is, each term is
    sigmoid(z) ** 2 * softplus(z) times 1 - alpha or alpha. Its derivative needs the same exponentials, so the forward
    pass takes both: a third of the passes over memory, and of the memory, of the terms written one by one."""

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        z = logits.to(torch.float32, copy=True)
        index = labels.clamp(min=0).unsqueeze(2)
        own = z.gather(2, index)
        is_object = (labels >= 0).unsqueeze(2)
        z.scatter_(2, index, torch.where(is_object, -own, own))
        softplus = torch.nn.functional.softplus(z)
        probability = z.sigmoid_()
        squared = probability.square()
        term = squared * softplus
        # What alpha makes of the one term that is an object's, beside the others of its row.
        own_extra = torch.where(is_object, term.gather(2, index) * (_ALPHA / (1 - _ALPHA) - 1), 0)
        of_anchor = (term.sum(dim=2) + own_extra.squeeze(2)) * (1 - _ALPHA)
        total = torch.where(counted, of_anchor, 0).sum(dim=1)
        if context.needs_input_grad[0]:
            # d/dz = sigmoid ** 2 * (gamma * (1 - sigmoid) * softplus + sigmoid)
            slope = softplus.mul_(1 - probability).mul_(_GAMMA).add_(probability).mul_(squared)
            slope *= (counted * (1 - _ALPHA)).unsqueeze(2)
            own_slope = slope.gather(2, index)
            slope.scatter_(2, index, torch.where(is_object, own_slope * (-_ALPHA / (1 - _ALPHA)), own_slope))
            context.save_for_backward(slope.to(logits.dtype))
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = context.saved_tensors
        return slope * gradient.view(-1, 1, 1).to(slope.dtype), None, None
