"""Soft non-maximum suppression (Bodla et al. 2017) and votes of boxes (Gidaris and Komodakis 2015), as Detectron has
them. They run on the CPU: each choice depends on the ones before."""

import torch
from torch import Tensor

from ssd.batch import Detections
from ssd.boxes import area, pairwise_iou
from ssd.config import Thresholds
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.postprocess.suppression import rank_in_groups
from ssd.detectors.tta.rules import Suppression

# Detectron's score_thresh of soft_nms.
_LEAST_SCORE = 1e-4
# More than there are labels.
_GROUPS_AN_IMAGE = 2**16
# How many pairs of boxes vote at once, which bounds the memory.
_PAIRS_AT_ONCE = 2**22


def refined(
    candidates: Candidates,
    limits_px: Tensor,
    thresholds: Thresholds,
    suppression: Suppression,
    *,
    hard_iou: float,
    least_score: float = 0.0,
) -> Detections:
    """Suppression in each class, votes, and the max_per_image best of each image.

    limits_px: B x 1 x 4, of the images whose pixels the boxes are in. hard_iou: in the place of nms_iou where nothing
    is soft. least_score: what a detection has to exceed in the end, whereas only candidates above score_threshold take
    part.
    """
    device, batch = candidates.scores.device, len(candidates.scores)
    boxes, scores, labels, limits = (part.cpu() for part in (*candidates, limits_px))
    found = (scores > thresholds.score_threshold) & ~boxes.isnan().any(dim=2) & (labels > 0)
    image, place = found.nonzero(as_tuple=True)
    group, order, rank = rank_in_groups(image * _GROUPS_AN_IMAGE + labels[image, place], scores[image, place])
    order, group = order[rank < thresholds.max_per_class], group[rank < thresholds.max_per_class]
    image, place = image[order], place[order]
    boxes, scores = boxes[image, place], scores[image, place]

    nms_iou = thresholds.nms_iou if suppression.soft else hard_iou
    stays, new_scores = soft_nms(boxes, scores, group, nms_iou, suppression.soft or "hard", suppression.sigma)
    stays, order = stays.sort()  # so that equal scores are ordered as plain suppression orders them
    new_boxes, new_scores, new_group = boxes[stays], new_scores[order], group[stays]
    if suppression.votes:
        new_boxes, new_scores = voted(new_boxes, new_scores, new_group, boxes, scores, group, suppression)
    kept = new_scores > least_score
    new_boxes, new_scores, new_group = new_boxes[kept], new_scores[kept], new_group[kept]

    image, order, rank = rank_in_groups(new_group // _GROUPS_AN_IMAGE, new_scores)
    most = thresholds.max_per_image
    order, image, rank = order[rank < most], image[rank < most], rank[rank < most]
    of_boxes, of_scores = torch.zeros(batch, most, 4), torch.zeros(batch, most)
    of_labels = torch.zeros(batch, most, dtype=torch.int64)
    of_boxes[image, rank] = (new_boxes[order] / limits[image, 0]).clamp(0, 1)
    of_scores[image, rank] = new_scores[order]
    of_labels[image, rank] = new_group[order] % _GROUPS_AN_IMAGE
    counts = (of_labels > 0).sum(dim=1)
    return Detections(*(part.to(device) for part in (of_boxes, of_scores, of_labels, counts)))


def soft_nms(
    boxes_ltrb: Tensor, scores: Tensor, group: Tensor, nms_iou: float, method: str, sigma: float
) -> tuple[Tensor, Tensor]:
    """Takes the best box of each group that is left, again and again; what overlaps it loses score, and falls below
    1e-4. Returns the places of those that were taken and their scores then.

    n boxes, sorted by group. method: one of rules.SOFT_METHODS: by 1 - IoU above nms_iou, by exp(-IoU ** 2 / sigma)
    whatever the IoU, or to 0 above nms_iou. Of equal scores the first is taken.
    """
    left, scores = torch.arange(len(scores)), scores.clone()
    taken, at = [], []
    while len(left):
        now = scores[left]
        _, own = group[left].unique_consecutive(return_inverse=True)
        number = int(own[-1]) + 1
        highest = torch.zeros(number).scatter_reduce(0, own, now, "amax")
        place = torch.where(now == highest[own], torch.arange(len(left)), len(left))
        first = torch.full((number,), len(left)).scatter_reduce(0, own, place, "amin")
        best = left[first]
        taken.append(best)
        at.append(scores[best])
        intersection, iou = _overlap(boxes_ltrb[left], boxes_ltrb[best[own]])
        if method == "gaussian":
            weight = torch.exp(-(iou * iou) / sigma)
        else:
            weight = torch.where(iou > nms_iou, 1 - iou if method == "linear" else torch.zeros_like(iou), 1)
        now = torch.where(intersection > 0, now * weight, now)
        scores[left] = now
        falls = (intersection > 0) & (now < _LEAST_SCORE)
        falls[first] = True
        left = left[~falls]
    none = scores.new_zeros(0)
    return torch.cat([none.to(torch.int64), *taken]), torch.cat([none, *at])


def _overlap(boxes_ltrb: Tensor, others_ltrb: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and IoU of n boxes, each with one other. Of two without area the IoU is 0."""
    both = torch.cat(
        [torch.maximum(boxes_ltrb[:, :2], others_ltrb[:, :2]), torch.minimum(boxes_ltrb[:, 2:], others_ltrb[:, 2:])], 1
    )
    intersection = area(both)
    union = area(boxes_ltrb) + area(others_ltrb) - intersection
    return intersection, intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def voted(
    boxes_ltrb: Tensor,
    scores: Tensor,
    group: Tensor,
    all_ltrb: Tensor,
    all_scores: Tensor,
    all_group: Tensor,
    suppression: Suppression,
) -> tuple[Tensor, Tensor]:
    """n boxes as means of those of all N of their group that overlap them by vote_iou or more, weighted by score; and
    what vote_score makes of their scores. A box that none overlaps so stays as it is, as one without area."""
    boxes_ltrb, scores = boxes_ltrb.clone(), scores.clone()
    for each in group.unique().tolist():
        rows, voters = (group == each).nonzero().squeeze(1), (all_group == each).nonzero().squeeze(1)
        own_boxes, own_scores = all_ltrb[voters].double(), all_scores[voters].double()
        for some in rows.split(max(1, _PAIRS_AT_ONCE // len(voters))):
            # In float32, as Detectron, so that what lies on the threshold is the same.
            iou = pairwise_iou(boxes_ltrb[some], all_ltrb[voters])
            votes = iou >= suppression.vote_iou
            weights = votes * own_scores
            has_votes = weights.sum(dim=1) > 0
            some, iou, votes, weights = some[has_votes], iou[has_votes], votes[has_votes], weights[has_votes]
            boxes_ltrb[some] = (weights @ own_boxes / weights.sum(dim=1, keepdim=True)).float()
            if suppression.vote_score != "ID":
                scores[some] = _vote_scores(votes, own_scores, iou.double(), suppression).float()
    return boxes_ltrb, scores


def _vote_scores(votes: Tensor, scores: Tensor, iou: Tensor, suppression: Suppression) -> Tensor:
    """votes: n x N bool, one at least in a row. scores: N float64. iou: n x N float64. Returns n float64."""
    rule, beta, count = suppression.vote_score, suppression.vote_beta, votes.sum(dim=1)
    if rule == "IOU_AVG":
        return (votes * iou * scores).sum(dim=1) / (votes * iou).sum(dim=1)
    if rule == "GENERALIZED_AVG":
        return ((votes * scores**beta).sum(dim=1) / count) ** (1 / beta)
    if rule == "QUASI_SUM":
        return (votes * scores).sum(dim=1) / count**beta
    if rule == "TEMP_AVG":  # of a probability and its complement, each to the power of 1 / beta
        pair = torch.stack([scores, 1 - scores])
        tempered = (pair / pair.amax(dim=0)) ** (1 / beta)
        scores = tempered[0] / tempered.sum(dim=0)
    return (votes * scores).sum(dim=1) / count
