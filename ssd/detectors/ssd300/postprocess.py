"""From predictions to detections: threshold, decode, greedy NMS for each class, the best of each image.

Everything runs on the predictions' device over the whole batch, without a loop over images or classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import Detections, Predictions
from ssd.detectors.ssd300.anchors import decode, default_boxes_cxcywh


def detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> Detections:
    """Detections of B images, D = max_per_image.

    For each class but background: of the default boxes whose probability exceeds score_threshold, the max_per_class
    best go through greedy non-maximum suppression, in which a box falls to a better one of its class with an IoU above
    nms_iou; then the max_per_image best of all classes stay, and are cut to the image. Boxes are compared uncut, as
    NVIDIA's models have it.
    """
    candidates = decode_candidates(predictions, score_threshold=score_threshold, max_per_class=max_per_class)
    return suppress(candidates, nms_iou=nms_iou, max_per_image=max_per_image)


class Candidates(NamedTuple):
    """What the default boxes of a batch may have found, n of all images, sorted as `_rank_in_groups` returns them.

    boxes_ltrb: n x 4 float32, not clipped. scores: n float32. group: n int64, image * num_classes + label.
    """

    boxes_ltrb: Tensor
    scores: Tensor
    group: Tensor
    batch_size: int
    num_classes: int


def decode_candidates(predictions: Predictions, *, score_threshold: float, max_per_class: int) -> Candidates:
    """The first half of `detect`: of each class the max_per_class best above the threshold, as boxes."""
    batch, num_boxes, num_classes = predictions.logits.shape
    offsets, logits = (part.flatten(0, 1) for part in predictions)

    box = _promising(logits, score_threshold)
    probabilities = logits.index_select(0, box).float().softmax(dim=1)[:, 1:]
    row, label = (probabilities > score_threshold).nonzero(as_tuple=True)
    scores, box = probabilities[row, label], box[row]
    group, order, rank = _rank_in_groups(box // num_boxes * num_classes + label + 1, scores)
    kept = rank < max_per_class
    group, order = group[kept], order[kept]
    scores, box = scores[order], box[order]

    defaults = default_boxes_cxcywh().to(logits.device)
    boxes_ltrb = decode(offsets.index_select(0, box).float(), defaults.index_select(0, box % num_boxes))
    return Candidates(boxes_ltrb, scores, group, batch, num_classes)


def suppress(candidates: Candidates, *, nms_iou: float, max_per_image: int) -> Detections:
    """The second half of `detect`: non-maximum suppression, and the best of each image."""
    boxes_ltrb, scores, group, batch, num_classes = candidates
    device = boxes_ltrb.device
    survives = _greedy_nms(boxes_ltrb, group, nms_iou)
    boxes_ltrb, scores, group = boxes_ltrb[survives].clamp(0, 1), scores[survives], group[survives]

    image, order, rank = _rank_in_groups(group // num_classes, scores)
    kept = rank < max_per_image
    image, rank, order = image[kept], rank[kept], order[kept]
    detections = Detections(
        boxes_ltrb=torch.zeros(batch, max_per_image, 4, device=device),
        scores=torch.zeros(batch, max_per_image, device=device),
        labels=torch.zeros(batch, max_per_image, dtype=torch.int64, device=device),
        counts=torch.bincount(image, minlength=batch),
    )
    detections.boxes_ltrb[image, rank] = boxes_ltrb[order]
    detections.scores[image, rank] = scores[order]
    detections.labels[image, rank] = group[order] % num_classes
    return detections


def _promising(logits: Tensor, score_threshold: float) -> Tensor:
    """Rows of n x K logits that can have a probability above the threshold, and a few more: m int64, ascending.

    A probability is at most its ratio to the background's, which costs no softmax. Nearly all default boxes are
    background by far, so only the others need one.
    """
    least = math.log(score_threshold) - 1e-3 if score_threshold > 0 else -math.inf  # less what rounding takes
    above_background = logits[:, 1:].amax(dim=1).float() - logits[:, 0].float()
    return (above_background > least).nonzero().squeeze(1)


def _rank_in_groups(group: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts n candidates by group, then by falling score (float32, not negative). Returns the sorted groups, the order
    that sorts, and each sorted candidate's rank in its group from 0; all n int64."""
    # The bits of such floats rise as they do, so that one sort of integers does for both keys.
    order = ((group << 32) - scores.view(torch.int32)).argsort(stable=True)
    group = group[order]
    first = torch.searchsorted(group, group)  # left: where each one's group begins
    return group, order, torch.arange(len(group), device=group.device) - first


def _greedy_nms(boxes_ltrb: Tensor, group: Tensor, nms_iou: float) -> Tensor:
    """Which of n boxes survive greedy suppression in their group: n bool. Sorted as `_rank_in_groups` returns them.

    In each round the best box left of every group survives, and what it overlaps too much falls with it. So there are
    as many rounds as survivors in the fullest group, and they get shorter quickly.
    """
    survives = torch.zeros_like(group, dtype=torch.bool)
    # IoU > t is intersection > (area + area) * t / (1 + t). Five planes of n, because vectors load them best.
    share = (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2]).clamp(min=0).prod(dim=1) * (nms_iou / (1 + nms_iou))
    planes = torch.cat([boxes_ltrb.t(), share.unsqueeze(0)])
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
