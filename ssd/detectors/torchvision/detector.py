"""torchvision's detectors to the rest of the house: one record for all of their families."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssd.batch import RaggedBatch
from ssd.detectors.contract import Detector, LossesOf
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.channels.streams import streams_of
from ssd.detectors.torchvision.distillation.parts import distillation_parts
from ssd.detectors.torchvision.export import exportable
from ssd.detectors.torchvision.names import parts_of, title_of
from ssd.detectors.torchvision.postprocess import detect, tta_steps
from ssd.detectors.torchvision.settings import Settings
from ssd.detectors.torchvision.synthetic import input_size_px, synthetic_batch
from ssd.detectors.torchvision.targets import limits_px, targets_of
from ssd.detectors.torchvision.weights import foreign, fresh_heads, load_backbone
from ssd.detectors.tta.passes import published
from ssd.keypoints import Skeleton
from ssd.views import ObjectParts, ShortSideView


def freeze_backbone(model: nn.Module) -> None:
    model.backbone.freeze_body()  # type: ignore[union-attr, operator]


def _view(settings: Settings) -> ShortSideView:
    family = parts_of(settings.builder).family
    parts = ObjectParts(masks=family == "maskrcnn", keypoints=family == "keypointrcnn")
    return ShortSideView(settings.short_sides_px, settings.long_side_px, settings.divisor, parts=parts)


def _with_skeleton(settings: Settings, skeleton: Skeleton) -> Settings:
    names, links, labels = skeleton
    return replace(settings, keypoints=names, keypoint_links=links, keypoint_labels=labels)


def losses_of(settings: Any, compiled: bool) -> LossesOf:
    return lambda forward, batch: forward(batch.images, targets_of(batch))  # the losses are part of the model


def _synthetic(settings: Settings, num_classes: int, device: torch.device, batch_size: int) -> RaggedBatch:
    return synthetic_batch(_view(settings), num_classes, device, batch_size, num_points=len(settings.keypoints))


def trace(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    sizes_px = torch.tensor([[images.shape[3], images.shape[2]]]).expand(len(images), -1)
    candidates = model.candidates(images, limits_px(sizes_px, images.device))  # type: ignore[operator]
    return [candidates.boxes_ltrb_px, candidates.scores]


TORCHVISION = Detector(
    name="torchvision",
    settings=Settings,
    title=title_of,
    build=build,
    load_backbone=load_backbone,
    freeze_backbone=freeze_backbone,
    fresh_heads=fresh_heads,
    view=_view,
    losses_of=losses_of,
    detect=detect,
    input_size_px=lambda settings: input_size_px(_view(settings)),
    synthetic=_synthetic,
    one_shape=lambda settings: False,
    trace=trace,
    foreign=foreign,
    exportable=exportable,
    streams=streams_of,
    coverage=None,
    with_skeleton=_with_skeleton,
    skeleton=lambda settings: settings.skeleton,
    distillation_parts=distillation_parts,
    tta=lambda settings, is_asked: published(_view(settings)) if is_asked else None,
    tta_steps=lambda settings, thresholds, suppression: tta_steps(settings, thresholds),
)
