"""A training batch out of nothing, for measurements that should not wait for data."""

import torch

from ssd.batch import RaggedBatch
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.synthetic import ragged_noise


def input_size_px(settings: DetectronSettings) -> tuple[int, int]:
    """(width, height) of an image of 4 to 3, as most of COCO's are."""
    short_side_px = settings.test_short_side_px
    return min(short_side_px * 4 // 3, settings.test_long_side_px), short_side_px


def synthetic_batch(
    settings: DetectronSettings, num_classes: int, device: torch.device, batch_size: int
) -> RaggedBatch:
    """Noise to look at and random boxes to find, in images of `input_size_px`."""
    points = len(settings.skeleton.names) if settings.skeleton else 0
    size_px = input_size_px(settings)
    return ragged_noise(size_px, settings.divisor, num_classes, device, batch_size, bool(settings.mask_head), points)
