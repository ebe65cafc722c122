"""From what the region proposal network says to boxes that are worth a look: the best of each map, suppressed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ssd.detectors.torchvision.boxes import cut, decode
from ssd.detectors.torchvision.targets import Targets, of_images

_NMS_IOU = 0.7
_SMALLEST_PX = 1e-3


class Proposals(NamedTuple):
    """boxes: B x P x 4 float32, cut to the image. real: B x P bool, false of boxes that only fill up."""

    boxes_ltrb_px: Tensor
    real: Tensor


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
    logits, boxes, levels, first = [], [], [], 0
    for place, (of_map, offsets_of_map) in enumerate(zip(objectness, offsets, strict=True)):
        anchors = anchors_ltrb_px[first : first + of_map.shape[1]]
        first += of_map.shape[1]
        best, anchor = of_map.topk(min(before_nms, of_map.shape[1]), dim=1)
        logits.append(best)
        boxes.append(decode(offsets_of_map.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4)), anchors[anchor]))
        levels.append(torch.full_like(anchor, place))
    scores, level = torch.cat(logits, dim=1).sigmoid(), torch.cat(levels, dim=1)
    boxes_ltrb_px = cut(torch.cat(boxes, dim=1), limits_px)
    is_box = (boxes_ltrb_px[..., 2:] - boxes_ltrb_px[..., :2]).amin(dim=2) >= _SMALLEST_PX
    is_box &= scores >= least_objectness
    return _suppressed(boxes_ltrb_px, torch.where(is_box, scores, -1), level, after_nms)


def _suppressed(boxes_ltrb_px: Tensor, scores: Tensor, level: Tensor, after_nms: int) -> Proposals:
    """torchvision's non-maximum suppression, an image after the other."""
    kept = []
    for boxes, of_boxes, levels in zip(boxes_ltrb_px, scores, level, strict=True):
        real = (of_boxes >= 0).nonzero().squeeze(1)
        stays = batched_nms(boxes[real], of_boxes[real], levels[real], _NMS_IOU)[:after_nms]
        kept.append(boxes[real[stays]])
    counts = [len(boxes) for boxes in kept]
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
    return Proposals(padded, _first(counts, padded))


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
    real = torch.cat([_first(list(targets.counts), boxes), proposals.real], dim=1)
    return Proposals(torch.cat([boxes, proposals.boxes_ltrb_px], dim=1), real)
