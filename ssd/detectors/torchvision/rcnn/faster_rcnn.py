"""Faster R-CNN (Ren et al. 2015) on a feature pyramid with torchvision's parts, names and numbers, and with one more
head Mask and Keypoint R-CNN (He et al. 2017)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.torchvision.boxes import Cells, anchors_ltrb_px, cut, decode, encode
from ssd.detectors.torchvision.rcnn.parts import (
    Boxes,
    CandidatesOfMaps,
    keypoint_loss,
    keypoint_targets,
    mask_loss,
    mask_targets,
    those_or_one,
)
from ssd.detectors.torchvision.rcnn.proposals import Proposals, propose, with_boxes
from ssd.detectors.torchvision.rcnn.roi_pooling import KEYPOINT_SIDE, PART_SIDE, pool, rois_of
from ssd.detectors.torchvision.rcnn.rpn_samples import head_at
from ssd.detectors.torchvision.rcnn.sampling import sample
from ssd.detectors.torchvision.targets import BELOW, BETWEEN, Targets, gather, limits_px, match

_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_SMOOTH_BETA = 1 / 9
_SMALLEST_DETECTION_PX = 1e-2
_OBJECTS_SHARE = 0.25
# Where choosing costs no wait, what only fills up is dropped at once; elsewhere it is carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)


@dataclass(frozen=True)
class Numbers:
    """What differs between builders. Proposals: how many boxes of each map enter non-maximum suppression, how many of
    an image leave it, in training and in evaluation, and the objectness that they must have."""

    cells: Cells
    pooled_strides: tuple[int, ...] = (4, 8, 16, 32)
    """Of the maps that boxes are pooled from, the first ones of the pyramid."""
    before_nms: tuple[int, int] = (2000, 1000)
    after_nms: tuple[int, int] = (2000, 1000)
    least_objectness: float = 0.0
    anchors_an_image: int = 256
    """That have a loss, and so have boxes_an_image proposals."""
    boxes_an_image: int = 512


class FasterRCNN(nn.Module):
    """rpn: {"head"}. roi_heads: {"box_head", "box_predictor"} and what Mask and Keypoint R-CNN have beside them."""

    def __init__(self, backbone: nn.Module, rpn: nn.ModuleDict, roi_heads: nn.ModuleDict, numbers: Numbers):
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.numbers = numbers
        # Its statistics are those of the boxes that have a loss, without any that fill up.
        self.has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in roi_heads["box_head"].modules())

        self.finds_parts = "mask_head" in roi_heads or "keypoint_head" in roi_heads

    def forward(
        self, seen: Tensor | list[Tensor], about: Targets | Tensor | Boxes
    ) -> dict[str, Tensor] | Candidates | CandidatesOfMaps | PartMaps:
        """The `losses` of images, about which are their targets. Or the candidates in images, with the limits of their
        boxes; where the model finds masks or keypoints, with the feature maps too. Or, of such maps or of images, what
        these heads say of boxes."""
        if isinstance(about, Targets):
            return self.losses(seen, about)  # type: ignore[arg-type]
        if isinstance(about, Boxes):
            return self._parts_of(list(self.backbone(seen).values()) if isinstance(seen, Tensor) else seen, about)
        if not self.finds_parts:
            return self.candidates(seen, about)  # type: ignore[arg-type]
        maps = list(self.backbone(seen).values())
        return CandidatesOfMaps(self._candidates(maps, seen, about), maps)  # type: ignore[arg-type]

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training batch, of a sample of its anchors and proposals."""
        maps = list(self.backbone(images).values())
        anchors = anchors_ltrb_px(self.numbers.cells, maps, images)
        limits = limits_px(torch.tensor(targets.sizes_px), images.device)
        of_rpn = self._rpn_losses(maps, anchors, targets)
        with torch.no_grad():  # proposals take no gradient to the head that made them
            rois = self._sampled(with_boxes(self._proposals(maps, anchors, limits), targets), targets)
        of_parts = self._part_losses(maps, rois, targets) if self.finds_parts else {}
        return {**self._box_losses(maps, rois), **of_parts, **of_rpn}

    def _proposals(self, maps: list[Tensor], anchors: Tensor, limits: Tensor) -> Proposals:
        objectness, offsets = self.rpn["head"](maps)
        numbers, is_test = self.numbers, 0 if self.training else 1
        return propose(
            [_per_anchor(each, 1).squeeze(2) for each in objectness],
            [_per_anchor(each, 4) for each in offsets],
            anchors,
            limits,
            before_nms=numbers.before_nms[is_test],
            after_nms=numbers.after_nms[is_test],
            least_objectness=numbers.least_objectness,
        )

    def _rpn_losses(self, maps: list[Tensor], anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        matched = match(targets, anchors, low=0.3, high=0.7, each_box_learns=True)
        labels = torch.where(matched == BETWEEN, -1, (matched >= 0).to(torch.int64))
        anchor, counted = sample(labels, self.numbers.anchors_an_image, 0.5)
        objectness, offsets = head_at(self.rpn["head"], maps, anchor)
        is_object = counted & (labels.gather(1, anchor) > 0)
        boxes = gather(targets.boxes_ltrb_px, matched.gather(1, anchor))
        boxes = torch.where(is_object.unsqueeze(2), boxes, anchors[anchor])
        of_boxes = _smooth_l1(offsets, encode(boxes, anchors[anchor]))
        of_objectness = F.binary_cross_entropy_with_logits(objectness, is_object.float(), reduction="none")
        samples = counted.sum().clamp(min=1)
        return {
            "loss_objectness": torch.where(counted, of_objectness, 0).sum() / samples,
            "loss_rpn_box_reg": torch.where(is_object, of_boxes, 0).sum() / samples,
        }

    def _sampled(self, proposals: Proposals, targets: Targets) -> "_Rois":
        matched = match(targets, proposals.boxes_ltrb_px, low=0.5, high=0.5, each_box_learns=False)
        labels = torch.where(matched == BELOW, 0, gather(targets.labels, matched))
        place, counted = sample(torch.where(proposals.real, labels, -1), self.numbers.boxes_an_image, _OBJECTS_SHARE)
        boxes = proposals.boxes_ltrb_px.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
        matched = matched.gather(1, place)
        learned = gather(targets.boxes_ltrb_px, matched)
        rois = _Rois(
            rois_of(boxes), learned.flatten(0, 1), labels.gather(1, place).flatten(), counted.flatten(),
            matched.flatten(),
        )  # fmt: skip
        if boxes.device.type in _DROPS_AT_ONCE_ON or self.has_batch_norm:
            kept = rois.counted.nonzero().squeeze(1)
            rois = _Rois(*(part.index_select(0, kept) for part in rois))
        return rois

    def _box_losses(self, maps: list[Tensor], rois: "_Rois") -> dict[str, Tensor]:
        logits, offsets = self._of_boxes(maps, rois.rois)
        is_object = rois.counted & (rois.labels > 0)
        boxes = rois.rois[:, 1:]
        learned = torch.where(is_object.unsqueeze(1), rois.learned_ltrb_px, boxes)
        own = offsets.gather(1, rois.labels.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
        of_boxes = _smooth_l1(own, encode(learned, boxes, _BOX_WEIGHTS))
        of_classes = F.cross_entropy(logits, rois.labels, reduction="none")
        samples = rois.counted.sum().clamp(min=1)
        return {
            "loss_classifier": torch.where(rois.counted, of_classes, 0).sum() / samples,
            "loss_box_reg": torch.where(is_object, of_boxes, 0).sum() / samples,
        }

    def _part_losses(self, maps: list[Tensor], rois: "_Rois", targets: Targets) -> dict[str, Tensor]:
        """Of the boxes that learn an object."""
        is_object = rois.counted & (rois.labels > 0)
        if rois.rois.device.type in _DROPS_AT_ONCE_ON or self.has_batch_norm:
            kept = those_or_one(is_object)
        else:
            # The sampler puts objects first, and takes no more than a quarter.
            each, most = len(rois.rois) // len(targets.counts), int(self.numbers.boxes_an_image * _OBJECTS_SHARE)
            kept = torch.arange(len(rois.rois), device=is_object.device).view(-1, each)[:, :most].flatten()
        boxes, _, labels, _, matched = (part.index_select(0, kept) for part in rois)
        counted, boxes_ltrb_px = is_object.index_select(0, kept), boxes[:, 1:]
        losses = {}
        if "mask_head" in self.roi_heads:
            assert targets.masks is not None and targets.mask_windows_ltrb_px is not None
            logits = self._part_maps(maps, boxes, "mask")
            aims = mask_targets(targets.masks, targets.mask_windows_ltrb_px, matched, boxes_ltrb_px, logits.shape[-1])
            losses["loss_mask"] = mask_loss(logits, labels, aims, counted)
        if "keypoint_head" in self.roi_heads:
            assert targets.keypoints_px is not None
            cells, stated = keypoint_targets(gather(targets.keypoints_px, matched), boxes_ltrb_px, KEYPOINT_SIDE)
            stated &= counted.unsqueeze(1)
            if boxes.device.type in _DROPS_AT_ONCE_ON:  # the head is most of a step, and most boxes may have no points
                kept = those_or_one(stated.any(dim=1))
                boxes, cells, stated = boxes[kept], cells[kept], stated[kept]
            losses["loss_keypoint"] = keypoint_loss(self._part_maps(maps, boxes, "keypoint"), cells, stated)
        return losses

    def _part_maps(self, maps: list[Tensor], rois: Tensor, kind: str) -> Tensor:
        """What the "mask" or the "keypoint" head says of R rois: R x (classes or points) x S x S float32."""
        strides = self.numbers.pooled_strides
        pooled = pool(maps[: len(strides)], strides, rois, PART_SIDE)
        said: Tensor = self.roi_heads[f"{kind}_predictor"](self.roi_heads[f"{kind}_head"](pooled))
        return said.float()

    def _parts_of(self, maps: list[Tensor], boxes: Boxes) -> PartMaps:
        rois, batch = rois_of(boxes.boxes_ltrb_px), boxes.labels.shape[0]
        drops = rois.device.type in _DROPS_AT_ONCE_ON and not torch.compiler.is_compiling()
        found: list[Tensor | None] = []
        for kind in ("mask", "keypoint"):
            if f"{kind}_head" not in self.roi_heads:
                found.append(None)
                continue
            asked = boxes.labels if kind == "mask" else boxes.have_points
            kept = asked.flatten().nonzero().squeeze(1) if drops else None
            said = self._part_maps(maps, rois if kept is None else rois[kept], kind)
            if kind == "mask":
                labels = boxes.labels.flatten() if kept is None else boxes.labels.flatten()[kept]
                said = said.gather(1, labels.view(-1, 1, 1, 1).expand(-1, 1, *said.shape[2:])).squeeze(1)
            if kept is not None:
                said = said.new_zeros(len(rois), *said.shape[1:]).index_copy(0, kept, said)
            found.append(said.unflatten(0, (batch, -1)))
        return PartMaps(*found)

    def _of_boxes(self, maps: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Of R rois as `rois_of` makes them: logits R x K, offsets R x K x 4, in float32."""
        strides = self.numbers.pooled_strides
        pooled = pool(maps[: len(strides)], strides, rois)
        logits, offsets = self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled))
        return logits.float(), offsets.float().unflatten(1, (-1, 4))

    def candidates(self, images: Tensor, limits: Tensor) -> Candidates:
        return self._candidates(list(self.backbone(images).values()), images, limits)

    def _candidates(self, maps: list[Tensor], images: Tensor, limits: Tensor) -> Candidates:
        proposals = self._proposals(maps, anchors_ltrb_px(self.numbers.cells, maps, images), limits)
        boxes_ltrb_px, real, _ = proposals
        logits, offsets = self._of_boxes(maps, rois_of(boxes_ltrb_px))
        batch, count = real.shape
        scores = logits.softmax(dim=1).view(batch, count, -1)[..., 1:]
        found = decode(offsets[:, 1:].unflatten(0, (batch, count)), boxes_ltrb_px.unsqueeze(2), _BOX_WEIGHTS)
        found = cut(found.flatten(1, 2), limits)
        labels = torch.arange(1, 1 + scores.shape[2], device=scores.device).expand(batch, count, -1).flatten(1)
        is_box = (found[..., 2:] - found[..., :2]).amin(dim=2) >= _SMALLEST_DETECTION_PX
        scores = torch.where(real.unsqueeze(2), scores, 0).flatten(1)
        return Candidates(found, torch.where(is_box, scores, 0), labels)


class _Rois(NamedTuple):
    """Proposals that have a loss. rois: R x 5 as `rois_of` makes them. learned: R x 4. labels: R, 0 background.
    counted: R bool, false of what fills up. matched: R int64, the object that each learns, below 0 for none."""

    rois: Tensor
    learned_ltrb_px: Tensor
    labels: Tensor
    counted: Tensor
    matched: Tensor


def _per_anchor(head_map: Tensor, values: int) -> Tensor:
    """B x (shapes * values) x H x W -> B x (H * W * shapes) x values float32, in the order of the anchors."""
    return head_map.permute(0, 2, 3, 1).reshape(head_map.shape[0], -1, values).float()


def _smooth_l1(offsets: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(offsets, target, beta=_SMOOTH_BETA, reduction="none").sum(dim=-1)
