"""Detectron's losses and what they divide by: numbers of one rank's batch, never 0."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from ssd.detectors.detectron.rcnn.rpn import AnchorSamples
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.boxes import encode

_RPN_BETA = 1 / 9
_BOX_BETA = 1.0


def rpn_losses(
    logits: Tensor, offsets: Tensor, samples: AnchorSamples, boxes: Tensor, anchors: Tensor, settings: DetectronSettings
) -> dict[str, Tensor]:
    """Of sampled anchors: logits B x S, offsets, boxes that they learn and anchors B x S x 4.

    Objectness: the sum over what it would be for full samples; with one map, over what there are. Boxes: of each image
    the sum over its samples, and the mean of images.
    """
    _, counted, is_object, _ = samples
    of_objectness = F.binary_cross_entropy_with_logits(logits, is_object.float(), reduction="none")
    of_objectness = torch.where(counted, of_objectness, 0).sum()
    if settings.has_one_rpn_level:
        of_objectness = of_objectness / counted.sum().clamp(min=1)
    else:
        of_objectness = of_objectness / (settings.rpn_samples * len(counted))
    learned = torch.where(is_object.unsqueeze(2), boxes, anchors)
    of_boxes = _smooth_l1(offsets, encode(learned, anchors), _RPN_BETA)
    of_images = torch.where(is_object, of_boxes, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return {"loss_objectness": of_objectness, "loss_rpn_box_reg": of_images.mean()}


def box_losses(
    logits: Tensor,
    offsets: Tensor,
    labels: Tensor,
    counted: Tensor,
    learned: Tensor,
    boxes: Tensor,
    settings: DetectronSettings,
) -> dict[str, Tensor]:
    """Of R boxes x 4 of all images: means over all that count, of the boxes too. logits: R x K. offsets: R x K x 4, or
    R x 2 x 4 where one is for all classes. labels: R int64, 0 background. learned: R x 4, of objects."""
    is_object = counted & (labels > 0)
    own = labels.clamp(max=1) if settings.class_agnostic_boxes else labels
    own_offsets = offsets.gather(1, own.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
    learned = torch.where(is_object.unsqueeze(1), learned, boxes)
    of_boxes = _smooth_l1(own_offsets, encode(learned, boxes, settings.box_weights), _BOX_BETA)
    of_classes = F.cross_entropy(logits, labels, reduction="none")
    samples = counted.sum().clamp(min=1)
    return {
        "loss_classifier": torch.where(counted, of_classes, 0).sum() / samples,
        "loss_box_reg": torch.where(is_object, of_boxes, 0).sum() / samples,
    }


def _smooth_l1(offsets: Tensor, target: Tensor, beta: float) -> Tensor:
    return F.smooth_l1_loss(offsets, target, beta=beta, reduction="none").sum(dim=-1)


def mask_targets(masks: Tensor, windows_ltrb_px: Tensor, matched: Tensor, boxes_ltrb_px: Tensor, side: int) -> Tensor:
    """Whether the middle of each cell of R closed boxes belongs to the object that the box learns: R x side x side
    float32, 0 or 1.

    masks, windows: of N objects as in `RaggedBatch`. matched: R int64, each box's object. Detectron moves and scales
    polygons to a box, from its left to its right, a pixel at least, and rasterises them there.
    """
    if not len(masks):
        return boxes_ltrb_px.new_zeros(len(boxes_ltrb_px), side, side)
    matched = matched.clamp(min=0)
    window = windows_ltrb_px[matched]
    sides = (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).clamp(min=1)
    boxes = torch.cat([boxes_ltrb_px[:, :2], boxes_ltrb_px[:, :2] + sides], dim=1)
    pixels = masks.shape[1] / (window[:, 2:] - window[:, :2])  # of the window's bitmap, a pixel of the image
    # The operator's pixels are points at integer places.
    boxes = (boxes - window[:, :2].repeat(1, 2)) * pixels.repeat(1, 2) - 0.5
    rois = torch.cat([matched.unsqueeze(1).to(boxes.dtype), boxes], dim=1)
    middles = roi_align(masks.unsqueeze(1).to(boxes.dtype), rois, side, sampling_ratio=1).squeeze(1)
    return (middles > 0.5).to(boxes.dtype)


def keypoint_loss(logits: Tensor, cells: Tensor, counted: Tensor, images: int, settings: DetectronSettings) -> Tensor:
    """Cross-entropy of the counted points' cells: its mean, or where keypoint_by_visible is False its sum over how many
    points as many images might have; 0 without any.

    logits: R x P x S x S. cells, counted: R x P as `parts.keypoint_targets` makes them.
    """
    of_points = F.cross_entropy(logits.flatten(0, 1).flatten(1), cells.flatten(), reduction="none")
    total = torch.where(counted.flatten(), of_points, 0).sum()
    if settings.keypoint_by_visible:
        return total / counted.sum().clamp(min=1)
    return total / (images * settings.roi_samples * settings.roi_positive_share * logits.shape[1])
