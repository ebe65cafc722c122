"""Detectron's Faster R-CNN (Ren et al. 2015), with more heads Mask and Keypoint R-CNN (He et al. 2017), or without any
the region proposal network alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd.constants import on_device
from ssd.detectors.detectron.network.bodies import FINEST_LEVEL
from ssd.detectors.detectron.network.heads import enlarged
from ssd.detectors.detectron.rcnn.boxes import anchors_ltrb_px, cells_of, closed, cut, scaled
from ssd.detectors.detectron.rcnn.losses import box_losses, keypoint_loss, mask_targets, rpn_losses
from ssd.detectors.detectron.rcnn.rois import (
    Rois,
    objects_of_masks,
    pooled,
    pooling_of,
    sample_keypoint_rois,
    sample_rois,
)
from ssd.detectors.detectron.rcnn.rpn import join, joins_images, most_kept, propose, sample_anchors
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.torchvision.boxes import decode
from ssd.detectors.torchvision.rcnn.parts import Boxes, CandidatesOfMaps, keypoint_targets, mask_loss, those_or_one
from ssd.detectors.torchvision.rcnn.proposals import Proposals, with_boxes
from ssd.detectors.torchvision.rcnn.roi_pooling import rois_of
from ssd.detectors.torchvision.rcnn.rpn_samples import head_at
from ssd.detectors.torchvision.targets import Targets, gather, limits_px

# Where choosing costs no wait, what only fills up is dropped at once; elsewhere it is carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)


class Placement(NamedTuple):
    """Of the images of a batch, on their device, float32. limits_px: B x 1 x 4, of the window that proposals are cut
    to. scales: B x 1 x 1, by which each was resized. stated_limits_px: B x 1 x 4, of the image before that."""

    limits_px: Tensor
    scales: Tensor
    stated_limits_px: Tensor


class RCNN(nn.Module):
    """rpn: {"head"}. roi_heads: {"box_head", "box_predictor"} and what `heads` makes for masks and keypoints; empty for
    proposals alone."""

    def __init__(self, backbone: nn.Module, rpn: nn.ModuleDict, roi_heads: nn.ModuleDict, settings: DetectronSettings):
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.settings = settings
        self.finds_parts = "mask_predictor" in roi_heads or "keypoint_predictor" in roi_heads

    def forward(
        self, seen: Tensor | list[Tensor], about: Targets | Placement | Boxes
    ) -> dict[str, Tensor] | Candidates | CandidatesOfMaps | PartMaps:
        """The `losses` of images, about which are their targets. Or the candidates in images, and where the model finds
        masks or keypoints the feature maps too. Or, of such maps or of images, what these heads say of boxes."""
        if isinstance(about, Targets):
            return self.losses(seen, about)  # type: ignore[arg-type]
        if isinstance(about, Boxes):
            return self._parts_of(list(self.backbone(seen).values()) if isinstance(seen, Tensor) else seen, about)
        maps = list(self.backbone(seen).values())
        candidates = self._candidates(maps, about)
        return CandidatesOfMaps(candidates, maps) if self.finds_parts else candidates

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training batch, of a sample of its anchors and proposals."""
        settings, maps = self.settings, list(self.backbone(images).values())
        rpn_maps = self._rpn_maps(maps)
        anchors = anchors_ltrb_px(cells_of(settings), rpn_maps)
        samples = sample_anchors(targets, anchors, settings)
        logits, offsets = head_at(self.rpn["head"], rpn_maps, samples.anchor)
        boxes = gather(targets.boxes_ltrb_px, samples.matched)
        of_rpn = rpn_losses(logits, offsets, samples, boxes, anchors[samples.anchor], settings)
        if settings.rpn_only:
            return of_rpn
        with torch.no_grad():  # proposals take no gradient to the head that made them
            proposals = with_boxes(self._training_proposals(rpn_maps, anchors, targets), targets)
            rois = sample_rois(proposals, targets, settings)
            if rois.rois.device.type in _DROPS_AT_ONCE_ON:
                rois = rois.take(rois.counted.nonzero().squeeze(1))
        features = self._box_features(maps, rois.rois)
        logits, offsets = self._box_outputs(features)
        learned = gather(targets.boxes_ltrb_px, rois.matched)
        losses = box_losses(logits, offsets, rois.labels, rois.counted, learned, rois.rois[:, 1:], settings)
        if settings.mask_head:
            losses["loss_mask"] = self._mask_loss(maps, features, rois, targets)
        if settings.finds_keypoints:
            losses["loss_keypoint"] = self._keypoint_loss(maps, proposals, targets)
        return {**losses, **of_rpn}

    def _rpn_maps(self, maps: list[Tensor]) -> list[Tensor]:
        if not self.settings.has_pyramid:
            return maps
        first, last = self.settings.rpn_levels[0], self.settings.rpn_levels[-1]
        return maps[first - FINEST_LEVEL : last - FINEST_LEVEL + 1]

    def _proposals(
        self, rpn_maps: list[Tensor], anchors: Tensor, limits: Tensor, scales: Tensor, *, training: bool
    ) -> Proposals:
        objectness, offsets = self.rpn["head"](rpn_maps)
        return propose(
            [_per_anchor(each, 1).squeeze(2) for each in objectness],
            [_per_anchor(each, 4) for each in offsets],
            anchors,
            limits,
            self.settings.rpn_min_size_px[0 if training else 1] * scales.squeeze(2),
            self.settings,
            training=training,
        )

    def _training_proposals(self, rpn_maps: list[Tensor], anchors: Tensor, targets: Targets) -> Proposals:
        limits = limits_px(torch.tensor(targets.sizes_px), anchors.device)
        scales = torch.ones_like(limits[..., :1])
        if self.settings.rpn_min_size_px[0] and targets.scales:
            scales = on_device(torch.tensor(targets.scales, dtype=torch.float32), limits.device).view_as(scales)
        proposals = self._proposals(rpn_maps, anchors, limits, scales, training=True)
        if not joins_images(self.settings):
            return proposals
        return join(proposals, most_kept(self.settings, training=True))

    def _box_features(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """What the box head makes of R rois: R x C, or R x C x H x W of res5."""
        settings = self.settings
        pooling = pooling_of(settings.box_pooling, settings.box_pooled, settings.box_sampling)
        features: Tensor = self.roi_heads["box_head"](pooled(maps, rois, pooling, settings))
        return features

    def _box_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of R boxes: logits R x K, offsets R x K x 4, in float32."""
        if features.dim() == 4:
            features = features.mean(dim=(2, 3))
        logits, offsets = self.roi_heads["box_predictor"](features)
        return logits.float(), offsets.float().unflatten(1, (-1, 4))

    def _mask_loss(self, maps: list[Tensor], features: Tensor, rois: Rois, targets: Targets) -> Tensor:
        """Of the boxes that learn an object."""
        assert targets.masks is not None and targets.mask_windows_ltrb_px is not None
        is_object = rois.counted & (rois.labels > 0)
        if is_object.device.type in _DROPS_AT_ONCE_ON:
            kept = those_or_one(is_object)
        else:
            # The sampler puts objects first, and takes no more than a share of them.
            each = len(is_object) // len(targets.counts)
            most = round(self.settings.roi_samples * self.settings.roi_positive_share)
            kept = torch.arange(len(is_object), device=is_object.device).view(-1, each)[:, :most].flatten()
        chosen, counted = rois.take(kept), is_object.index_select(0, kept)
        shared = features.index_select(0, kept) if self.settings.mask_head == "v0upshare" else None
        logits = self._mask_maps(maps, chosen.rois, shared)
        boxes = closed(chosen.rois[:, 1:], self.settings.edge_px)
        learned = objects_of_masks(chosen, targets, self.settings)
        aims = mask_targets(targets.masks, targets.mask_windows_ltrb_px, learned, boxes, logits.shape[-1])
        return self.settings.mask_loss_weight * mask_loss(logits, self._mask_of(chosen.labels), aims, counted)

    def _keypoint_loss(self, maps: list[Tensor], proposals: Proposals, targets: Targets) -> Tensor:
        assert targets.keypoints_px is not None
        with torch.no_grad():
            rois = sample_keypoint_rois(proposals, targets, self.settings)
            if rois.rois.device.type in _DROPS_AT_ONCE_ON:
                rois = rois.take(those_or_one(rois.counted))
        logits = self._keypoint_maps(maps, rois.rois)
        points = gather(targets.keypoints_px, rois.matched)
        boxes = closed(rois.rois[:, 1:], self.settings.edge_px)
        cells, stated = keypoint_targets(points, boxes, logits.shape[-1])
        counted = stated & rois.counted.unsqueeze(1)
        loss = keypoint_loss(logits, cells, counted, len(targets.counts), self.settings)
        return self.settings.keypoint_loss_weight * loss

    def _mask_of(self, labels: Tensor) -> Tensor:
        """Which of the mask head's maps is of each label."""
        return labels if self.settings.mask_of_classes else torch.zeros_like(labels)

    def _mask_maps(self, maps: list[Tensor], rois: Tensor, shared: Tensor | None = None) -> Tensor:
        """What the mask head says of R rois: R x (classes or 1) x S x S float32. shared: the box head's features."""
        settings = self.settings
        if settings.mask_head == "v0upshare":
            features = self._box_features(maps, rois) if shared is None else shared
        else:
            pooling = pooling_of(settings.mask_pooling, settings.mask_pooled, settings.mask_sampling)
            features = self.roi_heads["mask_head"](pooled(maps, rois, pooling, settings))
        return enlarged(self.roi_heads["mask_predictor"](features).float(), settings.mask_upsampling)

    def _keypoint_maps(self, maps: list[Tensor], rois: Tensor) -> Tensor:
        """What the keypoint head says of R rois: R x P x S x S float32."""
        settings = self.settings
        pooling = pooling_of(settings.keypoint_pooling, settings.keypoint_pooled, settings.keypoint_sampling)
        features = self.roi_heads["keypoint_head"](pooled(maps, rois, pooling, settings))
        said: Tensor = self.roi_heads["keypoint_predictor"](features)
        return said.float()

    def _parts_of(self, maps: list[Tensor], boxes: Boxes) -> PartMaps:
        rois, labels = rois_of(boxes.boxes_ltrb_px), boxes.labels.flatten()
        drops = rois.device.type in _DROPS_AT_ONCE_ON and not torch.compiler.is_compiling()

        def said_of(asked: Tensor, says: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            """What a head says of rois and their labels, in the places of those that are asked for."""
            if not drops:
                said = says(rois, labels)
            else:
                kept = asked.flatten().nonzero().squeeze(1)
                said = says(rois[kept], labels[kept])
                said = said.new_zeros(len(rois), *said.shape[1:]).index_copy(0, kept, said)
            return said.unflatten(0, (boxes.labels.shape[0], -1))

        def masks_of(rois: Tensor, labels: Tensor) -> Tensor:
            said = self._mask_maps(maps, rois)
            own = self._mask_of(labels).view(-1, 1, 1, 1).expand(-1, 1, *said.shape[2:])
            return said.gather(1, own).squeeze(1)

        masks = said_of(boxes.labels, masks_of) if self.settings.mask_head else None
        keypoints: Tensor | None = None
        if self.settings.finds_keypoints:
            keypoints = said_of(boxes.have_points, lambda rois, _: self._keypoint_maps(maps, rois))
        return PartMaps(masks, keypoints)

    def candidates(self, images: Tensor, placement: Placement) -> Candidates:
        return self._candidates(list(self.backbone(images).values()), placement)

    def _candidates(self, maps: list[Tensor], placement: Placement) -> Candidates:
        """In pixels of the images before they were resized."""
        limits, scales, stated_limits = placement
        rpn_maps = self._rpn_maps(maps)
        anchors = anchors_ltrb_px(cells_of(self.settings), rpn_maps)
        boxes_ltrb_px, real, scores = self._proposals(rpn_maps, anchors, limits, scales, training=False)
        edge_px = self.settings.edge_px
        stated_px = scaled(boxes_ltrb_px, 1 / scales, edge_px)
        if self.settings.rpn_only:
            return Candidates(
                cut(stated_px, stated_limits, edge_px), torch.where(real, scores, 0), real.to(torch.int64)
            )
        logits, offsets = self._box_outputs(self._box_features(maps, rois_of(boxes_ltrb_px)))
        batch, count = real.shape
        of_classes = logits.softmax(dim=1).view(batch, count, -1)[..., 1:]
        classes = of_classes.shape[2]
        offsets = offsets[:, 1:].expand(-1, classes, -1).unflatten(0, (batch, count))
        found = decode(offsets, stated_px.unsqueeze(2), self.settings.box_weights)
        found = cut(found.flatten(1, 2), stated_limits, edge_px)
        labels = torch.arange(1, 1 + classes, device=found.device).expand(batch, count, -1).flatten(1)
        return Candidates(found, torch.where(real.unsqueeze(2), of_classes, 0).flatten(1), labels)


def _per_anchor(head_map: Tensor, values: int) -> Tensor:
    """B x (shapes * values) x H x W -> B x (H * W * shapes) x values float32, in the order of the anchors."""
    return head_map.permute(0, 2, 3, 1).reshape(head_map.shape[0], -1, values).float()
