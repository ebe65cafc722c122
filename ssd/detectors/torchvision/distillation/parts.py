"""The pyramids of torchvision's detectors, and the heads of RetinaNet, as the methods of distillation look at them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ssd.batch import RaggedBatch
from ssd.boxes import pairwise_iou
from ssd.constants import on_device
from ssd.detectors.distillation import (
    Anchors,
    DistillationParts,
    Heads,
    Seen,
    Tail,
    by_area,
    sigmoid_divergence,
)
from ssd.detectors.torchvision.boxes import anchors_ltrb_px, decode
from ssd.detectors.torchvision.dense.head import by_anchor
from ssd.detectors.torchvision.dense.retinanet import BACKGROUND_BELOW, CELLS, OBJECT_FROM
from ssd.detectors.torchvision.names import MOBILENET, parts_of
from ssd.detectors.torchvision.settings import Settings
from ssd.detectors.torchvision.targets import BETWEEN, match, targets_of

# torchvision's names of a pyramid's maps -> those of papers, whose number is the stride's power of two.
DENSE = {"0": "p3", "1": "p4", "2": "p5", "p6": "p6", "p7": "p7"}
RCNN = {"0": "p2", "1": "p3", "2": "p4", "3": "p5", "pool": "p6"}
_RCNN_MOBILENET = {"0": "p5", "1": "p5-last", "pool": "p6"}


def distillation_parts(settings: Settings) -> DistillationParts:
    parts = parts_of(settings.builder)
    if parts.family == "retinanet":
        return retinanet_parts(ANCHORS)
    if parts.family == "fcos":
        return maps_of(DENSE)
    return maps_of(_RCNN_MOBILENET if parts.body == MOBILENET else RCNN)._replace(is_two_stage=True)


def maps_of(names: dict[str, str]) -> DistillationParts:
    """The maps of a backbone. names: what it calls them -> p3 for a stride of 2 to the power of 3, and so on."""
    return DistillationParts(
        strides_px={name: 2.0 ** int(name[1]) for name in names.values()},
        watched=lambda model: {"backbone": model.backbone},
        maps=lambda seen: {names[name]: each for name, each in seen["backbone"][0].items()},
        forward=lambda model, images, with_heads: {"backbone": [model.backbone(images)]},
    )


def retinanet_parts(anchors: Anchors) -> DistillationParts:
    """The maps and the heads of a RetinaNet. anchors: what its heads' numbers mean."""

    def forward(model: Any, images: Tensor, with_heads: bool) -> Seen:
        maps = model.backbone(images)
        return {"backbone": [maps], **({"head": [model.head(list(maps.values()))]} if with_heads else {})}

    return maps_of(DENSE)._replace(
        watched=lambda model: {"backbone": model.backbone, "head": model.head},
        forward=forward,
        anchors=anchors,
        tail=_TAIL,
    )


def _heads(seen: Seen) -> Heads:
    said = seen["head"][0]
    return Heads(said["cls_logits"].float(), said["bbox_regression"].float())


def _learns(boxes_ltrb_px: Tensor, real: Tensor, anchors_ltrb_px: Tensor) -> Tensor:
    """As `targets.match` has RetinaNet's anchors learn: from its IoU on, or of those that a box overlaps most. Objects
    overlap some anchor; a box that a head made may lie where there is none, and is then learned by none."""
    iou = torch.where(real.unsqueeze(2), pairwise_iou(boxes_ltrb_px, anchors_ltrb_px), -1)
    learns = (iou >= OBJECT_FROM) | ((iou == iou.amax(dim=2, keepdim=True)) & (iou > 0))
    return (learns & real.unsqueeze(2)).any(dim=1)


def _truths(batch: RaggedBatch) -> tuple[Tensor, Tensor]:
    counts = targets_of(batch).counts
    boxes = batch.boxes_ltrb_px.new_zeros(len(counts), max(1, *counts), 4)
    for row, of_image in zip(boxes, batch.boxes_ltrb_px.split(counts), strict=True):
        row[: len(of_image)] = of_image
    place = torch.arange(boxes.shape[1], device=boxes.device)
    return boxes, place < on_device(torch.tensor(counts), boxes.device).unsqueeze(1)


def _assigned(batch: RaggedBatch, anchors_ltrb_px: Tensor) -> tuple[Tensor, Tensor]:
    matched = match(targets_of(batch), anchors_ltrb_px, low=BACKGROUND_BELOW, high=OBJECT_FROM, each_box_learns=True)
    return matched >= 0, matched == BETWEEN


ANCHORS = Anchors(
    heads=_heads,
    anchors_ltrb_px=lambda maps, images: anchors_ltrb_px(CELLS, list(maps.values()), images),
    decode=decode,
    probabilities=lambda logits: logits.sigmoid()[..., 1:],  # the first is the background's, which nothing trains
    divergence=sigmoid_divergence,
    learns=_learns,
    level_of=lambda boxes_ltrb_px: by_area(boxes_ltrb_px, 3, 7),
    truths=_truths,
    assigned=_assigned,
)


def _before_last_relu(conv: Any) -> nn.Module:
    """The last module before the ReLU of the third of four convolutions, which is a norm if they have any."""
    found: nn.Module = conv[-2][-2]
    return found


def _rest(model: Any, of_classes: list[Tensor], of_boxes: list[Tensor]) -> Heads:
    classes, boxes = model.head.classification_head, model.head.regression_head
    logits = [by_anchor(classes.cls_logits(classes.conv[-1](relu(each))), classes.num_classes) for each in of_classes]
    offsets = [by_anchor(boxes.bbox_reg(boxes.conv[-1](relu(each))), 4) for each in of_boxes]
    return Heads(torch.cat(logits, dim=1).float(), torch.cat(offsets, dim=1).float())


_TAIL = Tail(
    watched=lambda model: {
        "classes": _before_last_relu(model.head.classification_head.conv),
        "boxes": _before_last_relu(model.head.regression_head.conv),
    },
    rest=_rest,
)
