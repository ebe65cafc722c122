"""A training batch out of nothing, for measurements that should not wait for data."""

import torch

from ssd.batch import RaggedBatch
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.view import view_of
from ssd.detectors.torchvision import synthetic


def input_size_px(settings: DetectronSettings) -> tuple[int, int]:
    """(width, height) of an image of 4 to 3, as most of COCO's are."""
    return synthetic.input_size_px(view_of(settings))


def synthetic_batch(
    settings: DetectronSettings, num_classes: int, device: torch.device, batch_size: int
) -> RaggedBatch:
    """Noise to look at and random boxes to find, in images of `input_size_px`."""
    num_points = len(settings.skeleton.names) if settings.skeleton else 0
    return synthetic.synthetic_batch(view_of(settings), num_classes, device, batch_size, num_points=num_points)
