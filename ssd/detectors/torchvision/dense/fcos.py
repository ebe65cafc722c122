"""FCOS (Tian et al. 2019) with torchvision's parts, names and numbers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSHead

from ssd.boxes import giou_loss
from ssd.detectors.postprocess.candidates import Candidates, best_of_maps
from ssd.detectors.torchvision.boxes import Cells, anchors_ltrb_px, cut
from ssd.detectors.torchvision.dense.losses import focal_loss
from ssd.detectors.torchvision.targets import BELOW, Targets, gather, of_images

# One square a cell as wide as the map's stride, whose centre is the paper's point.
CELLS: Cells = tuple(((stride,), (1.0,)) for stride in (8, 16, 32, 64, 128))
_RADIUS = 1.5
"""In strides: how far from a box's centre a point may lie that learns it."""


class Outputs(NamedTuple):
    """What the heads say of A points. logits: B x A x K. sides: B x A x 4, how far left, top, right and bottom lie, in
    strides. centreness: B x A, before sigmoid. anchors: A x 4, in pixels. per_map: how many each feature map has."""

    logits: Tensor
    sides: Tensor
    centreness: Tensor
    anchors_ltrb_px: Tensor
    per_map: list[int]


class FCOS(nn.Module):
    def __init__(self, backbone: nn.Module, head: FCOSHead):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def outputs(self, images: Tensor) -> Outputs:
        maps = list(self.backbone(images).values())
        said = self.head(maps)
        anchors = anchors_ltrb_px(CELLS, maps, images)
        per_map = [each.shape[2] * each.shape[3] for each in maps]
        sides, centreness = said["bbox_regression"].float(), said["bbox_ctrness"].float().squeeze(2)
        return Outputs(said["cls_logits"], sides, centreness, anchors, per_map)

    def forward(self, images: Tensor, about: Targets | Tensor) -> dict[str, Tensor] | Candidates:
        """The `losses` of a training batch, about which are its targets; or the `candidates`, with the limits of their
        boxes."""
        return self.losses(images, about) if isinstance(about, Targets) else self.candidates(images, about)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training batch, divided by its number of points that learn a box."""
        logits, sides, centreness, anchors, per_map = self.outputs(images)
        matched = match_points(targets, anchors, per_map)
        is_object = matched >= 0
        labels = torch.where(is_object, gather(targets.labels, matched), BELOW)
        # Where there is no object stands what has a finite loss, whose gradient is then times 0.
        boxes = torch.where(is_object.unsqueeze(2), gather(targets.boxes_ltrb_px, matched), anchors)
        centre = _centre(anchors)
        left, top, right, bottom = torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], dim=2).unbind(2)
        of_width, of_height = (torch.minimum(a, b) / torch.maximum(a, b) for a, b in ((left, right), (top, bottom)))
        of_boxes = giou_loss(_decode(sides, anchors), boxes)
        of_centres = F.binary_cross_entropy_with_logits(centreness, (of_width * of_height).sqrt(), reduction="none")
        objects = is_object.sum().clamp(min=1)
        return {
            "classification": focal_loss(logits, labels, torch.ones_like(is_object)).sum() / objects,
            "bbox_regression": torch.where(is_object, of_boxes, 0).sum() / objects,
            "bbox_ctrness": torch.where(is_object, of_centres, 0).sum() / objects,
        }

    def candidates(self, images: Tensor, limits_px: Tensor) -> Candidates:
        logits, sides, centreness, anchors, per_map = self.outputs(images)
        scores = (logits.float().sigmoid() * centreness.sigmoid().unsqueeze(2)).sqrt()
        scores, anchor, labels = best_of_maps(scores, per_map)
        boxes = _decode(sides.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4)), anchors[anchor])
        return Candidates(cut(boxes, limits_px), scores, labels)


def match_points(targets: Targets, anchors_ltrb_px: Tensor, per_map: list[int]) -> Tensor:
    """For each point the row of the box that it learns, or BELOW: B x A int64.

    That is the smallest of the boxes that have the point inside and near their centre, and whose farthest side is as
    far away as the point's map is for: 4 to 8 strides, on the first map less too and on the last more.
    """
    centre = _centre(anchors_ltrb_px).unsqueeze(1)
    stride = anchors_ltrb_px[:, 2:3] - anchors_ltrb_px[:, :1]
    least, most = stride * 4, stride * 8
    least[: per_map[0]] = 0
    most[-per_map[-1] :] = torch.inf
    matched = []
    for rows in of_images(targets):
        if rows.stop == rows.start:
            matched.append(torch.full((len(centre),), BELOW, dtype=torch.int64, device=centre.device))
            continue
        boxes = targets.boxes_ltrb_px[rows]
        near = (centre - _centre(boxes)).abs().amax(dim=2) < _RADIUS * stride
        sides = torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], dim=2)  # A x boxes x 4
        farthest = sides.amax(dim=2)
        fits = near & (sides.amin(dim=2) > 0) & (farthest > least) & (farthest < most)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        value, box = torch.where(fits, 1e8 - areas, 0).max(dim=1)
        matched.append(torch.where(value < 1e-5, BELOW, box + rows.start))
    return torch.stack(matched)


def _centre(boxes_ltrb: Tensor) -> Tensor:
    return (boxes_ltrb[..., :2] + boxes_ltrb[..., 2:]) / 2


def _decode(sides: Tensor, anchors_ltrb: Tensor) -> Tensor:
    centre, stride = _centre(anchors_ltrb), anchors_ltrb[..., 2:] - anchors_ltrb[..., :2]
    return torch.cat([centre - sides[..., :2] * stride, centre + sides[..., 2:] * stride], dim=-1)
