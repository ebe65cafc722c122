"""Detectron's R-CNNs to the rest of the house: one record for all of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssd.detectors.contract import Detector, LossesOf
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.naming import title_of
from ssd.detectors.detectron.config.testing import tta_of
from ssd.detectors.detectron.distillation import distillation_parts
from ssd.detectors.detectron.export import exportable
from ssd.detectors.detectron.postprocess import detect, tta_steps
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.streams import streams_of
from ssd.detectors.detectron.synthetic import input_size_px, synthetic_batch
from ssd.detectors.detectron.targets import placement, targets_of
from ssd.detectors.detectron.view import view_of
from ssd.detectors.detectron.weights.backbone import load_backbone
from ssd.detectors.detectron.weights.files import FOREIGN_FILES, foreign
from ssd.keypoints import Skeleton


def _freeze_backbone(model: nn.Module) -> None:
    model.backbone.freeze_body()  # type: ignore[union-attr, operator]


def _fresh_heads(settings: DetectronSettings) -> tuple[str, ...]:
    """The prefixes of the weights that depend on the classes, or on how many points the objects have."""
    if settings.rpn_only:
        return ()
    heads = ["roi_heads.box_predictor."]
    if settings.mask_head and settings.mask_of_classes:
        heads.append("roi_heads.mask_predictor.mask_fcn_logits.")
    if settings.finds_keypoints:
        heads.append("roi_heads.keypoint_predictor.kps_score_lowres.")
    return tuple(heads)


def _with_skeleton(settings: DetectronSettings, skeleton: Skeleton) -> DetectronSettings:
    names, links, labels = skeleton
    return replace(settings, keypoints=names, keypoint_links=links, keypoint_labels=labels)


def _losses_of(settings: DetectronSettings, compiled: bool) -> LossesOf:
    return lambda forward, batch: forward(batch.images, targets_of(batch))  # the losses are part of the model


def _trace(model: Any, images: Tensor) -> Sequence[Tensor]:
    sizes_px = torch.tensor([[images.shape[3], images.shape[2]]]).expand(len(images), -1)
    where = placement(sizes_px, torch.ones(len(images)), sizes_px, model.settings, images.device)
    candidates = model.candidates(images, where)
    return [candidates.boxes_ltrb_px, candidates.scores]


DETECTRON = Detector(
    name="detectron",
    settings=DetectronSettings,
    title=title_of,
    build=build,
    load_backbone=load_backbone,
    freeze_backbone=_freeze_backbone,
    fresh_heads=_fresh_heads,
    view=view_of,
    losses_of=_losses_of,
    detect=detect,
    input_size_px=input_size_px,
    synthetic=synthetic_batch,
    one_shape=lambda settings: False,
    trace=_trace,
    foreign=foreign,
    exportable=exportable,
    streams=streams_of,
    coverage=None,
    foreign_files=FOREIGN_FILES,
    with_skeleton=_with_skeleton,
    skeleton=lambda settings: settings.skeleton,
    distillation_parts=distillation_parts,
    tta=tta_of,
    tta_steps=tta_steps,
)
