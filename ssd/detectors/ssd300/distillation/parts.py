"""The six maps and the heads of SSD300, as the methods of distillation look at them."""

import torch
from torch import Tensor, nn

from ssd.batch import MatchedBatch
from ssd.boxes import cxcywh_to_ltrb, pairwise_iou
from ssd.constants import constant
from ssd.detectors.distillation import Anchors, DistillationParts, Heads, Seen, softmax_divergence
from ssd.detectors.ssd300.anchors import FEATURE_SIZES, IMAGE_SIZE_PX, SCALES_PX, default_boxes_cxcywh
from ssd.detectors.ssd300.heads import predict
from ssd.detectors.ssd300.model import SSD300
from ssd.matching import MATCH_IOU, decode

# By the nearest powers of two, as the maps of pyramids are named: 38 x 38 cells are of 8 pixels.
NAMES = ("p3", "p4", "p5", "p6", "p7", "p8")


def _watched(model: SSD300) -> dict[str, nn.Module]:
    return {**dict(zip(NAMES, (model.trunk, *model.extra_blocks), strict=True)), "predictions": model}


def _maps(seen: Seen) -> dict[str, Tensor]:
    return {name: seen[name][0] for name in NAMES}


def _forward(model: SSD300, images: Tensor, with_heads: bool) -> Seen:
    maps = [model.trunk(images)]
    for block in model.extra_blocks:
        maps.append(block(maps[-1]))
    seen: Seen = {name: [each] for name, each in zip(NAMES, maps, strict=True)}
    if with_heads:
        seen["predictions"] = [predict(maps, model.box_heads, model.class_heads, model.num_classes)]
    return seen


def _heads(seen: Seen) -> Heads:
    offsets, logits = seen["predictions"][0]
    return Heads(logits.float(), offsets.float())


def _anchors_ltrb_px(maps: dict[str, Tensor], images: Tensor) -> Tensor:
    return cxcywh_to_ltrb(default_boxes_cxcywh(images.device)) * IMAGE_SIZE_PX


def _decode(offsets: Tensor, anchors_ltrb_px: Tensor) -> Tensor:
    return decode(offsets, default_boxes_cxcywh(offsets.device)) * IMAGE_SIZE_PX


def _learns(boxes_ltrb_px: Tensor, real: Tensor, anchors_ltrb_px: Tensor) -> Tensor:
    """As `matching.match`: above its IoU, or the last of those that a box overlaps most."""
    iou = torch.where(real.unsqueeze(2), pairwise_iou(boxes_ltrb_px, anchors_ltrb_px), -1)
    best = iou.shape[2] - 1 - iou.flip(2).argmax(dim=2, keepdim=True)
    learns = (iou > MATCH_IOU).scatter(2, best, True) & real.unsqueeze(2)
    return learns.any(dim=1)


def _level_of(boxes_ltrb_px: Tensor) -> Tensor:
    """The map whose default boxes are about as large."""
    sides = (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    return torch.bucketize(sides, constant(SCALES_PX[1:-1], sides.device, sides.dtype), right=True)


def _truths(batch: MatchedBatch) -> tuple[Tensor, Tensor]:
    """Of what the default boxes learn, so that a box comes once for each of them."""
    return _decode(batch.offsets, batch.offsets), batch.labels > 0


PARTS = DistillationParts(
    strides_px={name: IMAGE_SIZE_PX / cells for name, cells in zip(NAMES, FEATURE_SIZES, strict=True)},
    watched=_watched,
    maps=_maps,
    forward=_forward,
    anchors=Anchors(
        heads=_heads,
        anchors_ltrb_px=_anchors_ltrb_px,
        decode=_decode,
        probabilities=lambda logits: logits.softmax(dim=-1)[..., 1:],
        divergence=softmax_divergence,
        learns=_learns,
        level_of=_level_of,
        truths=_truths,
        assigned=lambda batch, anchors_ltrb_px: (batch.labels > 0, torch.zeros_like(batch.labels, dtype=torch.bool)),
    ),
)
