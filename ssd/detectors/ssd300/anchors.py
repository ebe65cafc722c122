"""SSD300's default boxes: where they are, which ground truth each one learns, and the offsets between the two.

`encode` is the readable oracle for DALI's box encoder, which does the same in the DALI data path.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssd.batch import IMAGE_SIZE_PX
from ssd.boxes import cxcywh_to_ltrb, ltrb_to_cxcywh, pairwise_iou
from ssd.constants import constant

# Liu et al., SSD (2016), COCO settings, as all of the published ResNet versions have them
# (NVIDIA's DALI example and DeepLearningExamples, MLPerf's reference).
FEATURE_SIZES = (38, 19, 10, 5, 3, 1)
STEPS_PX = (8, 16, 32, 64, 100, 300)
SCALES_PX = (21, 45, 99, 153, 207, 261, 315)
ASPECT_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
BOXES_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)
NUM_BOXES = sum(count * size * size for count, size in zip(BOXES_PER_CELL, FEATURE_SIZES, strict=True))

# Offsets are divided by these, so that targets have about unit variance ("scale_xy", "scale_wh" in the ancestors).
OFFSET_STDS = (0.1, 0.1, 0.2, 0.2)
MATCH_IOU = 0.5
_CPU = torch.device("cpu")


def _level_boxes_cxcywh_px(level: int) -> list[tuple[float, float, float, float]]:
    size, step, scale, next_scale = FEATURE_SIZES[level], STEPS_PX[level], SCALES_PX[level], SCALES_PX[level + 1]
    between = math.sqrt(scale * next_scale)
    shapes: list[tuple[float, float]] = [(scale, scale), (between, between)]
    for ratio in ASPECT_RATIOS[level]:
        root = math.sqrt(ratio)
        shapes += [(scale * root, scale / root), (scale / root, scale * root)]
    return [
        ((column + 0.5) * step, (row + 0.5) * step, width, height)
        for width, height in shapes
        for row in range(size)
        for column in range(size)
    ]


@functools.cache
def default_boxes_cxcywh(device: torch.device = _CPU) -> Tensor:
    """A x 4 float32 cxcywh in [0, 1], in the published order: level, shape, row, column. Shared: do not write to it."""
    if device != _CPU:
        return default_boxes_cxcywh().to(device)
    boxes_px = [box for level in range(len(FEATURE_SIZES)) for box in _level_boxes_cxcywh_px(level)]
    return (torch.tensor(boxes_px, dtype=torch.float64) / IMAGE_SIZE_PX).clamp(0, 1).float()


@functools.cache
def default_boxes_ltrb() -> Tensor:
    """A x 4 float32 ltrb of the same boxes, not clipped to the image. Shared: do not write to it."""
    return cxcywh_to_ltrb(default_boxes_cxcywh())


def match(boxes_ltrb: Tensor, defaults_ltrb: Tensor | None = None) -> Tensor:
    """Which ground truth each default box learns.

    A default box learns the ground truth it overlaps most if their IoU exceeds 0.5, and every ground truth has at
    least the default box that overlaps it most. Of equals the last wins, and of ground truths with one best default
    box too: so DALI's encoder has it.

    boxes_ltrb: N x 4 float32 in [0, 1]. defaults_ltrb: A x 4; SSD300's own if not given.
    Returns A int64: a row of boxes_ltrb, or -1.
    """
    if defaults_ltrb is None:
        defaults_ltrb = default_boxes_ltrb()
    if len(boxes_ltrb) == 0:
        return torch.full((len(defaults_ltrb),), -1)
    iou = pairwise_iou(boxes_ltrb, defaults_ltrb)
    last_default = iou.shape[1] - 1
    best_default = last_default - iou.flip(1).argmax(dim=1)
    best_iou, from_last = iou.flip(0).max(dim=0)
    matched = torch.where(best_iou > MATCH_IOU, len(boxes_ltrb) - 1 - from_last, -1)
    # numpy promises that the last of several claimants has it.
    matched.numpy()[best_default.numpy()] = np.arange(len(boxes_ltrb))
    return matched


def offsets_of(boxes_ltrb: Tensor, defaults_cxcywh: Tensor) -> Tensor:
    """Regression targets of boxes (... x 4 ltrb) against as many default boxes (... x 4 cxcywh): ... x 4."""
    boxes = ltrb_to_cxcywh(boxes_ltrb)
    centre = (boxes[..., :2] - defaults_cxcywh[..., :2]) / defaults_cxcywh[..., 2:]
    size = (boxes[..., 2:] / defaults_cxcywh[..., 2:]).log()
    return torch.cat([centre, size], dim=-1) / boxes.new_tensor(OFFSET_STDS)


def encode(boxes_ltrb: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The training targets of one image.

    boxes_ltrb: N x 4 float32 in [0, 1], with width and height above 0. labels: N int64 in [1, K).
    Returns offsets A x 4 float32 and labels A int64, both 0 where no ground truth matched.
    """
    _, default, offsets, default_labels = encode_sparse([boxes_ltrb], [labels])
    offsets_dense = torch.zeros(NUM_BOXES, 4)
    labels_dense = torch.zeros(NUM_BOXES, dtype=torch.int64)
    offsets_dense[default] = offsets
    labels_dense[default] = default_labels
    return offsets_dense, labels_dense


def encode_sparse(boxes_ltrb: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`encode` of each of B images, without the zeros.

    Returns, for the P default boxes of all images that match something: the image in [0, B) and the default box in
    [0, A), P int64 each; P x 4 offsets; P labels.
    """
    matched = torch.stack([match(boxes) for boxes in boxes_ltrb])
    image, default = (matched >= 0).nonzero(as_tuple=True)
    # The images' boxes lie one after the other: each image's begin where those of the ones before it end.
    counts = torch.tensor([len(boxes) for boxes in boxes_ltrb])
    box = matched[image, default] + (counts.cumsum(0) - counts)[image]
    offsets = offsets_of(torch.cat(list(boxes_ltrb))[box], default_boxes_cxcywh()[default])
    return image, default, offsets, torch.cat(list(labels))[box]


def decode(offsets: Tensor, defaults_cxcywh: Tensor) -> Tensor:
    """The inverse of `offsets_of`: ... x A x 4 offsets -> ... x A x 4 ltrb, not clipped."""
    offsets = offsets * constant(OFFSET_STDS, offsets.device, offsets.dtype)
    centre = offsets[..., :2] * defaults_cxcywh[..., 2:] + defaults_cxcywh[..., :2]
    size = offsets[..., 2:].exp() * defaults_cxcywh[..., 2:]
    return cxcywh_to_ltrb(torch.cat([centre, size], dim=-1))
