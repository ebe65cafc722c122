"""General instances (Dai et al. 2021, section 3.1): the boxes of which teacher and student think most differently."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.boxes import area, pairwise_iou


class Instances(NamedTuple):
    """boxes_ltrb_px: B x K x 4 float32. real: B x K bool, False where an image has fewer. scores: B x K. places: where
    they stood among what they were chosen from, B x K int64."""

    boxes_ltrb_px: Tensor
    real: Tensor
    scores: Tensor
    places: Tensor


def scores_and_boxes(
    form: str, teacher: Tensor, student: Tensor, teacher_ltrb_px: Tensor, student_ltrb_px: Tensor
) -> tuple[Tensor, Tensor]:
    """How different A anchors are, B x A, and the boxes of whoever is surer of them, the student's where both are as
    sure: B x A x 4.

    form: "paper" or "seed" of `settings.GID.score`. teacher, student: probabilities of classes, B x A x C.
    """
    surest_teacher, surest_student = teacher.amax(dim=2), student.amax(dim=2)
    if form == "seed":  # which does not see that they are sure of two classes
        scores = (surest_teacher - surest_student).abs()
    else:
        scores = (teacher - student).abs().amax(dim=2)
    is_teachers = (surest_teacher > surest_student).unsqueeze(2)
    return scores, torch.where(is_teachers, teacher_ltrb_px, student_ltrb_px)


def usable(scores: Tensor, boxes_ltrb_px: Tensor, least_side_px: float) -> Tensor:
    """The scores, minus infinity where a number is not finite or a side of the box is not longer."""
    sides = boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]
    is_usable = scores.isfinite() & boxes_ltrb_px.isfinite().all(dim=2) & (sides > least_side_px).all(dim=2)
    return torch.where(is_usable, scores, -torch.inf)


def best(scores: Tensor, boxes_ltrb_px: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The so many best of each image, best first, and where they stood; all where count is 0."""
    if count == 0 or count >= scores.shape[1]:
        return scores, boxes_ltrb_px, torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    scores, place = scores.topk(count, dim=1)
    return scores, boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4)), place


def choose(scores: Tensor, boxes_ltrb_px: Tensor, count: int, nms_iou: float) -> Instances:
    """The first `count` boxes of each image that greedy non-maximum suppression keeps, whatever their class or map.

    Box after box, over the batch at once: no list of all overlaps, and no wait for the device.
    scores: B x A, minus infinity of what cannot be chosen. boxes: B x A x 4.
    """
    left, boxes = scores.clone(), torch.where((scores > -torch.inf).unsqueeze(2), boxes_ltrb_px, 0)
    chosen, chosen_scores, places = [], [], []
    for _ in range(count):
        place = left.argmax(dim=1, keepdim=True)
        box = boxes.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
        chosen.append(box)
        chosen_scores.append(left.gather(1, place))
        places.append(place)
        overlaps = pairwise_iou(box, boxes).squeeze(1) > nms_iou
        left = left.masked_fill(overlaps, -torch.inf).scatter(1, place, -torch.inf)
    found = torch.cat(chosen_scores, dim=1)
    return Instances(torch.cat(chosen, dim=1), found > -torch.inf, found, torch.cat(places, dim=1))


def of_kind(
    instances: Instances,
    kind: str,
    shares: tuple[float, float],
    truths: tuple[Tensor, Tensor],
    learns: Tensor | None = None,
) -> Instances:
    """Only the instances of a kind, as in `settings.GID.instances`.

    truths: boxes of objects B x N x 4 in pixels, and which of them are real, B x N bool. learns: whether the instance's
    anchor learns an object, B x K bool: these are positive, and no other kind. None: the share of the box decides.
    """
    if kind == "all":
        return instances
    boxes, (objects, are_real) = instances.boxes_ltrb_px.unsqueeze(2), truths
    left_top = torch.maximum(boxes[..., :2], objects[..., :2].unsqueeze(1))
    right_bottom = torch.minimum(boxes[..., 2:], objects[..., 2:].unsqueeze(1))
    common = area(torch.cat([left_top, right_bottom], dim=3))
    within = common / area(boxes).clamp(min=torch.finfo(common.dtype).tiny)
    within = torch.where(are_real.unsqueeze(1), within, 0).amax(dim=2)
    low, high = shares
    if learns is None:
        is_own = {"neg": within < low, "semi_pos": (within >= low) & (within < high), "pos": within >= high}
    else:
        is_own = {"neg": ~learns & (within < low), "semi_pos": ~learns & (within >= high), "pos": learns}
    return instances._replace(real=instances.real & is_own[kind])
