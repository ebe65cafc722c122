"""A training batch out of nothing, for measurements that should not wait for data, and for tests."""

import torch

from ssd.batch import MatchedBatch
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX, default_boxes_cxcywh
from ssd.detectors.synthetic_squares import synthetic_squares
from ssd.views import Augmentation, SquareView


def synthetic_batch(batch_size: int, num_classes: int, device: torch.device, seed: int = 0) -> MatchedBatch:
    view = SquareView(IMAGE_SIZE_PX, Augmentation(), default_boxes_cxcywh())
    return synthetic_squares(view, num_classes, device, batch_size, seed)
