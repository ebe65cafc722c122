"""What the tests of Detectron's R-CNNs share: small ones of every kind."""

from dataclasses import replace
from typing import Any

import torch

from ssd.batch import EvalBatch, RaggedBatch
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.synthetic import synthetic_batch

NUM_CLASSES = 4
SMALL = DetectronSettings(
    name="small",
    blocks=(1, 1, 1, 1),
    width_per_group=8,
    norm="group",
    freeze_at=0,
    group_norm_groups=8,
    fpn_channels=16,
    rpn_samples=32,
    rpn_before_nms=(60, 30),
    rpn_after_nms=(20, 10),
    box_head_channels=32,
    box_head_conv_channels=16,
    box_head_convs=1,
    mask_channels=16,
    keypoint_convs=1,
    keypoint_channels=16,
    roi_samples=8,
    short_sides_px=(64,),
    long_side_px=96,
    test_short_side_px=64,
    test_long_side_px=96,
)
C4: dict[str, Any] = {"maps": "C4", "box_head": "res5", "box_pooled": 14, "box_sampling": 0}
KINDS: dict[str, dict[str, Any]] = {
    "faster": {},
    "mask": {"mask_head": "v1up4convs"},
    "mask v1up": {"mask_head": "v1up", "mask_dilation": 2},
    "group norm": {
        "box_head": "convs", "mask_head": "v1up4convs", "box_head_group_norm": True, "mask_head_group_norm": True,
        "fpn_group_norm": True,
    },
    "ResNeXt": {"groups": 8, "stride_in_1x1": False},
    "one box and mask for all classes": {"class_agnostic_boxes": True, "mask_head": "v1up", "mask_of_classes": False},
    "keypoints": {"finds_keypoints": True},
    "keypoints v2": {
        "finds_keypoints": True, "keypoint_deconv_channels": 8, "keypoint_deconv_output": False,
        "keypoint_by_visible": False,
    },
    "C4": C4,
    "C4 v0upshare": {**C4, "mask_head": "v0upshare", "mask_side": 14},
    "C4 v0up": {**C4, "mask_head": "v0up", "mask_side": 14},
    "C5": {"maps": "C5"},
    "C5 dilated": {"maps": "C5", "res5_dilation": 2, "box_pooling": "max"},
    "finest map": {"rpn_levels": (2,), "roi_levels": (2,)},
    "proposals": {"rpn_only": True},
}  # fmt: skip


def small(kind: str) -> DetectronSettings:
    return replace(SMALL, **KINDS[kind])


def batch_for(settings: DetectronSettings) -> RaggedBatch:
    """Two images, enlarged and shrunk."""
    scales = torch.tensor([1.5, 0.7], dtype=torch.float64)
    return synthetic_batch(settings, NUM_CLASSES, torch.device("cpu"), 2)._replace(scales=scales)


def eval_batch_for(batch: RaggedBatch) -> EvalBatch:
    placed = torch.cat([torch.zeros_like(batch.sizes_px), batch.sizes_px], dim=1)
    assert batch.scales is not None
    stated_px = (batch.sizes_px / batch.scales.unsqueeze(1)).round().to(torch.int64)
    return EvalBatch(batch.images, placed, batch.image_ids, batch.scales, stated_px)
