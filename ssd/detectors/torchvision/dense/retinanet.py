"""RetinaNet (Lin et al. 2017) with torchvision's parts, names and numbers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd.boxes import giou_loss
from ssd.detectors.postprocess.candidates import Candidates, best_of_maps
from ssd.detectors.torchvision.boxes import Cells, anchors_ltrb_px, cut, decode, encode
from ssd.detectors.torchvision.dense.head import Head
from ssd.detectors.torchvision.dense.losses import focal_loss
from ssd.detectors.torchvision.targets import BELOW, BETWEEN, Targets, gather, match

CELLS: Cells = tuple(
    ((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))), (0.5, 1.0, 2.0)) for size in (32, 64, 128, 256, 512)
)
ANCHORS_A_CELL = 9
BACKGROUND_BELOW, OBJECT_FROM = 0.4, 0.5


class Outputs(NamedTuple):
    """What the heads say of A anchors. logits: B x A x K. offsets: B x A x 4. anchors: A x 4, in pixels. per_map: how
    many of the A belong to each feature map."""

    logits: Tensor
    offsets: Tensor
    anchors_ltrb_px: Tensor
    per_map: list[int]


class RetinaNet(nn.Module):
    """box_loss: "l1" of offsets, or "giou" of boxes, which the second version has."""

    def __init__(self, backbone: nn.Module, head: Head, box_loss: str):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.box_loss = box_loss

    def outputs(self, images: Tensor) -> Outputs:
        maps = list(self.backbone(images).values())
        said = self.head(maps)
        anchors = anchors_ltrb_px(CELLS, maps, images)
        per_map = [each.shape[2] * each.shape[3] * ANCHORS_A_CELL for each in maps]
        return Outputs(said["cls_logits"], said["bbox_regression"].float(), anchors, per_map)

    def forward(self, images: Tensor, about: Targets | Tensor) -> dict[str, Tensor] | Candidates:
        """The `losses` of a training batch, about which are its targets; or the `candidates`, with the limits of their
        boxes."""
        return self.losses(images, about) if isinstance(about, Targets) else self.candidates(images, about)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training batch, each image's divided by its number of anchors that learn a box."""
        logits, offsets, anchors, _ = self.outputs(images)
        matched = match(targets, anchors, low=BACKGROUND_BELOW, high=OBJECT_FROM, each_box_learns=True)
        is_object = matched >= 0
        labels = torch.where(is_object, gather(targets.labels, matched), BELOW)
        of_classes = focal_loss(logits, labels, matched != BETWEEN)
        of_boxes = self._box_loss(offsets, anchors, gather(targets.boxes_ltrb_px, matched), is_object)
        objects = is_object.sum(dim=1).clamp(min=1)
        return {
            "classification": (of_classes / objects).mean(),
            "bbox_regression": (of_boxes / objects).mean(),
        }

    def _box_loss(self, offsets: Tensor, anchors: Tensor, boxes: Tensor, is_object: Tensor) -> Tensor:
        """Of each image, summed: B."""
        # Where there is no object stands what has a finite loss, whose gradient is then times 0.
        boxes = torch.where(is_object.unsqueeze(2), boxes, anchors)
        if self.box_loss == "giou":
            loss = giou_loss(decode(offsets, anchors), boxes)
        else:
            loss = (offsets - encode(boxes, anchors)).abs().sum(dim=2)
        return torch.where(is_object, loss, 0).sum(dim=1)

    def candidates(self, images: Tensor, limits_px: Tensor) -> Candidates:
        logits, offsets, anchors, per_map = self.outputs(images)
        scores, anchor, labels = best_of_maps(logits.float(), per_map)
        boxes = decode(offsets.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4)), anchors[anchor])
        return Candidates(cut(boxes, limits_px), scores.sigmoid(), labels)
