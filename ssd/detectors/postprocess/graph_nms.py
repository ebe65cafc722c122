"""From candidates to detections in a graph of fixed shapes: ONNX or torch.export."""

import torch
from torch import Tensor

from ssd.batch import Detections, of_boxes
from ssd.config import Thresholds


def greedy_nms(boxes_ltrb: Tensor, candidate: Tensor, nms_iou: float) -> Tensor:
    """Which of B x C x N boxes (x 4), best first, survive greedy suppression in their class: B x C x N bool.

    candidate: B x C x N bool, which of them take part. Each round of the loop, which a graph can hold, is a round of
    `postprocess.detect`'s for all images and classes at once.
    """
    left, top, right, bottom = boxes_ltrb.unbind(3)
    # IoU > t is intersection > (area + area) * t / (1 + t).
    share = (right - left).clamp(min=0) * (bottom - top).clamp(min=0) * (nms_iou / (1 + nms_iou))
    planes = torch.stack([left, top, right, bottom, share])

    def one_is_left(left: Tensor, survives: Tensor) -> Tensor:
        return left.any()

    def take_the_best(left: Tensor, survives: Tensor) -> tuple[Tensor, Tensor]:
        best = left.to(torch.int32).argmax(dim=2, keepdim=True)  # the first that is left
        is_best = torch.zeros_like(left).scatter(2, best, True) & left
        of_best = planes.gather(3, best.expand(5, -1, -1, -1))
        width = (torch.minimum(planes[2], of_best[2]) - torch.maximum(planes[0], of_best[0])).clamp(min=0)
        height = (torch.minimum(planes[3], of_best[3]) - torch.maximum(planes[1], of_best[1])).clamp(min=0)
        falls = width * height > of_best[4] + planes[4]
        return left & ~falls & ~is_best, survives | is_best

    _, survives = torch.while_loop(one_is_left, take_the_best, (candidate, torch.zeros_like(candidate)))
    return survives


def detections_in_graph(boxes_ltrb: Tensor, scores: Tensor, thresholds: Thresholds) -> dict[str, Tensor]:
    """`batch.Detections` of the candidates of each class but background, best first: boxes B x C x N x 4 in [0, 1] and
    scores B x C x N."""
    _, classes, per_class = scores.shape
    scores = torch.where(scores > thresholds.score_threshold, scores, 0)
    scores = torch.where(greedy_nms(boxes_ltrb, scores > 0, thresholds.nms_iou), scores, 0)
    scores, place = scores.flatten(1).topk(min(thresholds.max_per_image, per_class * classes), dim=1)
    boxes_ltrb = boxes_ltrb.flatten(1, 2).gather(1, place.unsqueeze(2).expand(-1, -1, 4)).clamp(0, 1)
    real = scores > 0
    detections = Detections(
        boxes_ltrb=torch.where(real.unsqueeze(2), boxes_ltrb, 0),
        scores=scores,
        labels=torch.where(real, place // per_class + 1, 0),
        counts=real.sum(dim=1),
    )
    return of_boxes(detections)  # a file of torch.export knows no type of ours
