"""SSD300's default boxes: where they are."""

import functools
import math

import torch
from torch import Tensor

from ssd.boxes import cxcywh_to_ltrb

IMAGE_SIZE_PX = 300
# Liu et al., SSD (2016), COCO settings, as all of the published ResNet versions have them
# (NVIDIA's DALI example and DeepLearningExamples, MLPerf's reference).
FEATURE_SIZES = (38, 19, 10, 5, 3, 1)
STEPS_PX = (8, 16, 32, 64, 100, 300)
SCALES_PX = (21, 45, 99, 153, 207, 261, 315)
ASPECT_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
BOXES_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)
NUM_BOXES = sum(count * size * size for count, size in zip(BOXES_PER_CELL, FEATURE_SIZES, strict=True))

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
