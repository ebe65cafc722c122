"""CrossKD (Wang et al. 2024): the student's head features through the rest of the teacher's head, whose predictions
they are held to. So the student's own head need not serve both the teacher and the ground truth."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.boxes import giou_loss
from ssd.distillation.methods.ranks import share, summed_with_gradient

_EPS = 1e-6


class HeadProjections(nn.Module):
    """A 1x1 convolution for all maps of a branch whose channels are not the teacher's. Without a bias, which `aligned`
    would take out again."""

    def __init__(self, channels: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(
            {branch: nn.Conv2d(own, other, 1, bias=False) for branch, (own, other) in channels.items() if own != other}
        )

    def forward(self, branches: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        return {
            name: [self.convs[name](each) for each in maps] if name in self.convs else list(maps)
            for name, maps in branches.items()
        }


def aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with the mean and the standard deviation that each channel of the teacher's has over the images
    of all ranks, their rows and their columns: B x C x H x W float32 each."""
    own, other = student.float(), teacher.float()
    own_mean, own_std = _moments(own)
    other_mean, other_std = _moments(other)
    return (own - own_mean) / (own_std + _EPS) * other_std + other_mean


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """1 x C x 1 x 1 each."""
    dims, places = (0, 2, 3), values.numel() // values.shape[1]
    totals = summed_with_gradient(torch.cat([values.sum(dim=dims), values.new_full((1,), places)]))
    count = totals[-1].detach()
    mean = (totals[:-1] / count).view(1, -1, 1, 1)
    squares = summed_with_gradient((values - mean).square().sum(dim=dims))
    # The root of 0 has no finite slope.
    std = (squares / (count - 1).clamp(min=1)).clamp(min=1e-20).sqrt()
    return mean, std.view(1, -1, 1, 1)


def class_loss(logits: Tensor, of_teacher: Tensor, counted: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy to the teacher's probabilities, each times how far apart they are, summed and divided by the number
    of anchors that learn an object.

    logits, of_teacher: B x A x K float32. counted: B x A bool, which anchors the detector's own loss does not leave
    out. positives: () their number on this rank.
    """
    targets = of_teacher.sigmoid()
    terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    terms = (terms * (logits.sigmoid() - targets).abs()).sum(dim=2)
    return torch.where(counted, terms, 0).sum() / _divisor(positives)


def box_loss(
    boxes_ltrb_px: Tensor, of_teacher_ltrb_px: Tensor, of_teacher: Tensor, counted: Tensor, positives: Tensor
) -> Tensor:
    """1 - GIoU of boxes B x A x 4, each times the teacher's largest probability; `of_teacher` and others as above."""
    terms = giou_loss(boxes_ltrb_px, of_teacher_ltrb_px) * of_teacher.sigmoid().amax(dim=2)
    return torch.where(counted, terms, 0).sum() / _divisor(positives)


def _divisor(positives: Tensor) -> Tensor:
    count = share(positives)
    return torch.where(count > 0, count, 1)
