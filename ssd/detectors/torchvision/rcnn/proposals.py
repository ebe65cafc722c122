"""From what the region proposal network says to boxes that are worth a look: the best of each map, suppressed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import batched_nms

from ssd.detectors.postprocess import suppression
from ssd.detectors.postprocess.graph_nms import greedy_nms
from ssd.detectors.torchvision.boxes import cut, decode
from ssd.detectors.torchvision.targets import Targets, of_images

_NMS_IOU = 0.7
_SMALLEST_PX = 1e-3
_AN_IMAGE_AFTER_THE_OTHER_ON = ("cpu",)


class Proposals(NamedTuple):
    """boxes: B x P x 4 float32, cut to the image. real: B x P bool, false of boxes that only fill up. scores: B x P
    float32, what was said of each in [0, 1]."""

    boxes_ltrb_px: Tensor
    real: Tensor
    scores: Tensor


def propose(
    objectness: list[Tensor],
    offsets: list[Tensor],
    anchors_ltrb_px: Tensor,
    limits_px: Tensor,
    *,
    before_nms: int,
    after_nms: int,
    least_objectness: float,
) -> Proposals:
    """objectness: of each map B x A, before sigmoid. offsets: of each map B x A x 4. anchors: those of all maps."""
    logit, boxes_ltrb_px, level = best_of_levels(objectness, offsets, anchors_ltrb_px, before_nms)
    scores = logit.sigmoid()
    boxes_ltrb_px = cut(boxes_ltrb_px, limits_px)
    is_box = (boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]).amin(dim=2) >= _SMALLEST_PX
    is_box &= (scores >= least_objectness) & (logit > -torch.inf)
    scores = torch.where(is_box, scores, -1)
    if torch.compiler.is_compiling():
        return suppressed_in_graph(boxes_ltrb_px, scores, len(objectness), after_nms)
    return suppressed(boxes_ltrb_px, scores, level, limits_px, before_nms, after_nms)


def best_of_levels(
    objectness: list[Tensor], offsets: list[Tensor], anchors_ltrb_px: Tensor, before_nms: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The before_nms best anchors of each map: their logits, B x N, minus infinity of what only fills up; the boxes
    that their offsets make of them, B x N x 4, not cut; and their maps, B x N int64."""
    logits, boxes, levels, first = [], [], [], 0
    for place, (of_map, offsets_of_map) in enumerate(zip(objectness, offsets, strict=True)):
        count = of_map.shape[1]
        anchors = anchors_ltrb_px[first : first + count]
        first += count
        if torch.compiler.is_compiling():  # where the number is a symbol, so that there are always enough
            of_map = pad(of_map, (0, before_nms), value=-torch.inf)
        best, anchor = of_map.topk(min(before_nms, of_map.shape[1]), dim=1)
        anchor = anchor.clamp(max=count - 1)
        logits.append(best)
        boxes.append(decode(offsets_of_map.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4)), anchors[anchor]))
        levels.append(torch.full_like(anchor, place))
    return torch.cat(logits, dim=1), torch.cat(boxes, dim=1), torch.cat(levels, dim=1)


def suppressed(
    boxes_ltrb_px: Tensor,
    scores: Tensor,
    level: Tensor,
    limits_px: Tensor,
    before_nms: int,
    after_nms: int,
    nms_iou: float = _NMS_IOU,
) -> Proposals:
    """The after_nms best of each image, best first, after suppression within each level. scores: B x N, below 0 of what
    is no box. level: B x N int64. before_nms: no level of an image has more."""
    if boxes_ltrb_px.device.type in _AN_IMAGE_AFTER_THE_OTHER_ON:
        return _suppressed(boxes_ltrb_px, scores, level, after_nms, nms_iou)
    return suppressed_at_once(boxes_ltrb_px, scores, level, limits_px, before_nms, after_nms, nms_iou)


def _suppressed(
    boxes_ltrb_px: Tensor, scores: Tensor, level: Tensor, after_nms: int, nms_iou: float = _NMS_IOU
) -> Proposals:
    """torchvision's non-maximum suppression, an image after the other."""
    kept, of_kept = [], []
    for boxes, of_boxes, levels in zip(boxes_ltrb_px, scores, level, strict=True):
        real = (of_boxes >= 0).nonzero().squeeze(1)
        stays = batched_nms(boxes[real], of_boxes[real], levels[real], nms_iou)[:after_nms]
        kept.append(boxes[real[stays]])
        of_kept.append(of_boxes[real[stays]])
    counts = [len(boxes) for boxes in kept]
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
    return Proposals(padded, _first(counts, padded), torch.nn.utils.rnn.pad_sequence(of_kept, batch_first=True))


def suppressed_at_once(
    boxes_ltrb_px: Tensor,
    scores: Tensor,
    level: Tensor,
    limits_px: Tensor,
    before_nms: int,
    after_nms: int,
    nms_iou: float = _NMS_IOU,
) -> Proposals:
    """`_suppressed` of all images together, by more work that waits for the device once. P is after_nms."""
    batch, count = scores.shape
    levels = count  # any number that no level reaches
    image = torch.arange(batch, device=scores.device).unsqueeze(1)
    group = torch.where(scores >= 0, image * levels + level, -1).flatten()
    group, order, _ = suppression.rank_in_groups(group, scores.clamp(min=0).flatten())
    candidates = suppression.Candidates(
        boxes_ltrb=(boxes_ltrb_px / limits_px).flatten(0, 1)[order],
        scores=scores.flatten()[order],
        group=group,
        batch_size=batch,
        num_classes=levels,
        max_per_class=before_nms,
    )
    found = suppression.suppress(candidates, nms_iou=nms_iou, max_per_image=after_nms)
    real = torch.arange(after_nms, device=scores.device) < found.counts.unsqueeze(1)
    return Proposals(found.boxes_ltrb * limits_px, real, found.scores)


def suppressed_in_graph(
    boxes_ltrb_px: Tensor, scores: Tensor, levels: int, after_nms: int, nms_iou: float = _NMS_IOU
) -> Proposals:
    """`suppressed` in a graph of fixed shapes. Each level has as many boxes, best first."""
    stays = greedy_nms(boxes_ltrb_px.unflatten(1, (levels, -1)), scores.unflatten(1, (levels, -1)) >= 0, nms_iou)
    scores = torch.where(stays.flatten(1), scores, -1)
    scores, place = scores.topk(min(after_nms, scores.shape[1]), dim=1)
    return Proposals(boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4)), scores >= 0, scores)


def _first(counts: list[int], padded: Tensor) -> Tensor:
    real = torch.zeros(padded.shape[:2], dtype=torch.bool, device=padded.device)
    for image, count in enumerate(counts):
        real[image, :count] = True
    return real


def with_boxes(proposals: Proposals, targets: Targets) -> Proposals:
    """Each image's own boxes, which training always looks at, and behind them the proposals."""
    boxes = proposals.boxes_ltrb_px.new_zeros(len(targets.counts), max(targets.counts), 4)
    for image, rows in enumerate(of_images(targets)):
        boxes[image, : rows.stop - rows.start] = targets.boxes_ltrb_px[rows]
    is_own = _first(list(targets.counts), boxes)
    return Proposals(
        torch.cat([boxes, proposals.boxes_ltrb_px], dim=1),
        torch.cat([is_own, proposals.real], dim=1),
        torch.cat([is_own.to(proposals.scores.dtype), proposals.scores], dim=1),
    )
