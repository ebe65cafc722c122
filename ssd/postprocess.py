"""From predictions to detections: decode, threshold, greedy NMS for each class, the best of each image.

Everything runs on the predictions' device over the whole batch, without a loop over images, classes or boxes.
"""

import torch
from torch import Tensor

from ssd.anchors import decode, default_boxes_cxcywh
from ssd.batch import Detections, Predictions
from ssd.boxes import pairwise_iou

# Groups (an image and a class) that are suppressed together: bounds the memory of a detector that sees everything.
_GROUPS_AT_ONCE = 64


def detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> Detections:
    """Detections of B images, D = max_per_image.

    For each class but background: of the default boxes whose probability exceeds score_threshold, the max_per_class
    best go through greedy non-maximum suppression, in which a box falls to a better one of its class with an IoU above
    nms_iou; then the max_per_image best of all classes stay.
    """
    batch, _, num_classes = predictions.logits.shape
    device = predictions.logits.device
    defaults = default_boxes_cxcywh().to(device)
    all_boxes_ltrb = decode(predictions.offsets.float(), defaults).clamp(0, 1)
    probabilities = predictions.logits.float().softmax(dim=2)[..., 1:]

    image, default, label = (probabilities > score_threshold).nonzero(as_tuple=True)
    scores = probabilities[image, default, label]
    group, order, rank = _rank_in_groups(image * num_classes + label + 1, scores)
    kept = rank < max_per_class
    group, rank, order = group[kept], rank[kept], order[kept]
    boxes_ltrb, scores = all_boxes_ltrb[image[order], default[order]], scores[order]

    survives = _greedy_nms(boxes_ltrb, group, rank, nms_iou)
    boxes_ltrb, scores, group = boxes_ltrb[survives], scores[survives], group[survives]

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


def _rank_in_groups(group: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts n candidates by group, then by falling score. Returns the sorted groups, the order that sorts, and each
    sorted candidate's rank in its group from 0; all n int64."""
    by_score = scores.argsort(descending=True, stable=True)
    group, by_group = group[by_score].sort(stable=True)
    first = torch.searchsorted(group, group)  # left: where each one's group begins
    return group, by_score[by_group], torch.arange(len(group), device=group.device) - first


def _greedy_nms(boxes_ltrb: Tensor, group: Tensor, rank: Tensor, nms_iou: float) -> Tensor:
    """Which of n boxes survive greedy suppression in their group: n bool. Sorted as `_rank_in_groups` returns them."""
    if len(group) == 0:
        return torch.zeros(0, dtype=torch.bool, device=group.device)
    _, row = group.unique_consecutive(return_inverse=True)
    size = int(rank.max()) + 1
    padded = boxes_ltrb.new_zeros(int(row[-1]) + 1, size, 4)
    padded[row, rank] = boxes_ltrb
    return torch.cat([_survivors(chunk, nms_iou) for chunk in padded.split(_GROUPS_AT_ONCE)])[row, rank]


def _survivors(boxes_ltrb: Tensor, nms_iou: float) -> Tensor:
    """Greedy suppression within each of G groups of R boxes, best first: G x R x 4 -> G x R bool."""
    # beats[g, i, j]: i is better than j and overlaps it. Padding has area 0, so it beats nothing.
    beats = (pairwise_iou(boxes_ltrb, boxes_ltrb) > nms_iou).triu_(1)
    # A box survives if no surviving better box beats it. Repeating this from "all survive" settles rank 0 in the first
    # round, rank 1 by the second, ...: the fixed point is the greedy solution, reached in a few rounds in practice.
    survives = torch.ones(boxes_ltrb.shape[:2], dtype=torch.bool, device=boxes_ltrb.device)
    while True:
        settled = ~(beats & survives.unsqueeze(2)).any(dim=1)
        if torch.equal(settled, survives):
            return survives
        survives = settled
