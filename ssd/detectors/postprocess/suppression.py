"""Greedy non-maximum suppression of the candidates of a batch, without a loop over images or classes.

Everything runs on the candidates' device. On a GPU the host waits for the device once, whatever is found.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import Detections

# Where choosing costs no wait, candidates that are out are dropped at once; elsewhere they are carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)
# Of the fixed point. Made-up images of 80 classes, with crowds of 120 too, need 4 to 6; each costs two kernels.
_ROUNDS_BEFORE_LOOKING = 16
# How many pairs of candidates are compared at once, which bounds the memory: 64 MiB for each float32 of a pair.
_PAIRS_AT_ONCE = 2**24


class Candidates(NamedTuple):
    """What the default boxes of a batch may have found, n of all images, sorted as `rank_in_groups` returns them.

    boxes_ltrb: n x 4 float32, not clipped. scores: n float32. group: n int64, image * num_classes + label, or -1 of a
    candidate that max_per_class of its group are better than, and which is none.
    """

    boxes_ltrb: Tensor
    scores: Tensor
    group: Tensor
    batch_size: int
    num_classes: int
    max_per_class: int


def suppress(candidates: Candidates, *, nms_iou: float, max_per_image: int) -> Detections:
    """Non-maximum suppression, and the max_per_image best of each image, cut to it."""
    boxes_ltrb, scores, group, batch, num_classes, max_per_class = candidates
    device = boxes_ltrb.device
    if device.type in _DROPS_AT_ONCE_ON:
        stays = _greedy_nms(boxes_ltrb, group, nms_iou).nonzero().squeeze(1)
        boxes_ltrb, scores, group = (part.index_select(0, stays) for part in (boxes_ltrb, scores, group))
        image = group // num_classes
    else:  # those that fell are of an image of their own
        stays = _fixed_point_nms(boxes_ltrb, group, nms_iou, max_per_class)
        image = (group // num_classes).masked_fill(~stays | (group < 0), batch)

    label = group % num_classes
    image, order, rank = rank_in_groups(image, scores)
    # All that is left over goes to one row behind the others.
    padded_rows = batch * max_per_image
    row = torch.where((rank < max_per_image) & (image < batch), image * max_per_image + rank, padded_rows)
    counts = torch.zeros(batch + 1, dtype=torch.int64, device=device).index_add_(0, image, torch.ones_like(image))

    def padded(values: Tensor) -> Tensor:
        rows = values.new_zeros(padded_rows + 1, *values.shape[1:]).index_copy_(0, row, values[order])
        return rows[:padded_rows].view(batch, max_per_image, *values.shape[1:])

    return Detections(
        boxes_ltrb=padded(boxes_ltrb.clamp(0, 1)),
        scores=padded(scores),
        labels=padded(label),
        counts=counts[:batch].clamp(max=max_per_image),
    )


def rank_in_groups(group: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts n candidates by group, then by falling score (float32, not negative). Returns the sorted groups, the order
    that sorts, and each sorted candidate's rank in its group from 0; all n int64."""
    # The bits of such floats rise as they do, so that one sort of integers does for both keys.
    order = ((group << 32) - scores.view(torch.int32)).argsort(stable=True)
    group = group[order]
    first = torch.searchsorted(group, group)  # left: where each one's group begins
    return group, order, torch.arange(len(group), device=group.device) - first


def _share(boxes_ltrb: Tensor, nms_iou: float) -> Tensor:
    """What each of n boxes adds to the intersection that it may have with another: the IoU of two is above nms_iou if
    their intersection is above the sum of both. n float32."""
    # IoU > t is intersection > (area + area) * t / (1 + t).
    return (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2]).clamp(min=0).prod(dim=1) * (nms_iou / (1 + nms_iou))


def _greedy_nms(boxes_ltrb: Tensor, group: Tensor, nms_iou: float) -> Tensor:
    """Which of n boxes survive greedy suppression in their group: n bool. Sorted as `rank_in_groups` returns them.

    In each round the best box left of every group survives, and what it overlaps too much falls with it. So there are
    as many rounds as survivors in the fullest group, and they get shorter quickly: the least work, but two waits a
    round.
    """
    survives = torch.zeros_like(group, dtype=torch.bool)
    # Five planes of n, because vectors load them best.
    planes = torch.cat([boxes_ltrb.t(), _share(boxes_ltrb, nms_iou).unsqueeze(0)])
    place = torch.arange(len(group), device=group.device)
    while len(group):
        is_best = torch.ones_like(group, dtype=torch.bool)
        torch.ne(group[1:], group[:-1], out=is_best[1:])
        best = is_best.nonzero().squeeze(1)
        survives.index_fill_(0, place.index_select(0, best), True)
        of_best = planes.index_select(1, best).index_select(1, is_best.cumsum(0).sub_(1))
        sides = torch.minimum(planes[2:4], of_best[2:4]).sub_(torch.maximum(planes[:2], of_best[:2])).clamp_(min=0)
        falls = (sides[0].mul_(sides[1]) > of_best[4].add_(planes[4])).logical_or_(is_best)
        left = falls.logical_not_().nonzero().squeeze(1)
        planes, group, place = planes.index_select(1, left), group.index_select(0, left), place.index_select(0, left)
    return survives


def _fixed_point_nms(boxes_ltrb: Tensor, group: Tensor, nms_iou: float, max_per_class: int) -> Tensor:
    """`_greedy_nms` of groups that have at most max_per_class candidates, by more work that waits once. What is said of
    candidates of group -1 means nothing.

    A box falls if a better one of its group that it overlaps too much does not. Asked of all boxes at once, again and
    again, this settles: after r rounds it is right of those to which no chain of r such overlaps leads. Chains are
    short, so a few rounds do nearly always. If they did not, as many follow as the longest possible chain needs.
    """
    before = min(max_per_class, len(group)) - 1  # how many places back a better one of the group can be
    if before < 1:
        return torch.ones_like(group, dtype=torch.bool)
    # As many places that overlap nothing in front, so that each candidate has as many before it.
    share = _share(boxes_ltrb, nms_iou).masked_fill_(group < 0, math.inf)
    planes = torch.cat([boxes_ltrb.new_full((5, before), math.inf), torch.cat([boxes_ltrb.t(), share.unsqueeze(0)])], 1)
    group = torch.cat([group.new_full((before,), -1), group])
    fell = torch.zeros_like(group, dtype=torch.bool)
    if not _settle(fell, planes, group, before, _ROUNDS_BEFORE_LOOKING):  # the one wait
        _settle(fell, planes, group, before, before + 1)
    return fell[before:].logical_not_()


def _settle(fell: Tensor, planes: Tensor, group: Tensor, before: int, rounds: int) -> Tensor:
    """So many rounds of `_fixed_point_nms`, in place. planes: 5 x N float32. group: N int64. fell: N bool. Returns
    whether the last round changed nothing: () bool."""
    settled = torch.ones((), dtype=torch.bool, device=fell.device)
    at_once = max(1, _PAIRS_AT_ONCE // before)
    for first in range(before, len(fell), at_once):
        last = min(first + at_once, len(fell))
        own, earlier = slice(first, last), slice(first - before, last - 1)
        # Each one's `before` predecessors: n x before, in place.
        left, top, right, bottom, share = planes[:, own].unsqueeze(2)
        left_2, top_2, right_2, bottom_2, share_2 = planes[:, earlier].unfold(1, before, 1)
        width = torch.minimum(right, right_2).sub_(torch.maximum(left, left_2)).clamp_(min=0)
        height = torch.minimum(bottom, bottom_2).sub_(torch.maximum(top, top_2)).clamp_(min=0)
        overlap = width.mul_(height) > share + share_2
        overlap &= group[own].unsqueeze(1) == group[earlier].unfold(0, before, 1)
        for _ in range(rounds - 1):
            torch.any(overlap > fell[earlier].unfold(0, before, 1), dim=1, out=fell[own])
        before_last = fell[own].clone()
        torch.any(overlap > fell[earlier].unfold(0, before, 1), dim=1, out=fell[own])
        settled &= (before_last == fell[own]).all()
    return settled
