"""A training batch out of nothing, for measurements that should not wait for data."""

import torch

from ssd.batch import RaggedBatch
from ssd.detectors.yolov2.settings import YOLOv2Settings, input_size_px

_OBJECTS_AN_IMAGE = 7  # COCO 2017 has 7.3


def synthetic_batch(settings: YOLOv2Settings, num_classes: int, device: torch.device, batch_size: int) -> RaggedBatch:
    """Noise to look at and random boxes to find, in images of the network's input."""
    generator = torch.Generator().manual_seed(0)
    width, height = input_size_px(settings)
    images = torch.rand(batch_size, 3, height, width, generator=generator)
    sides = 0.05 + 0.45 * torch.rand(batch_size * _OBJECTS_AN_IMAGE, 2, generator=generator)
    corners = (1 - sides) * torch.rand(len(sides), 2, generator=generator)
    boxes_ltrb_px = torch.cat([corners, corners + sides], dim=1) * torch.tensor([width, height] * 2)
    return RaggedBatch(
        images.to(device, memory_format=torch.channels_last),
        torch.tensor([[width, height]] * batch_size),
        boxes_ltrb_px.to(device),
        torch.randint(1, num_classes, (len(sides),), generator=generator).to(device),
        torch.full((batch_size,), _OBJECTS_AN_IMAGE),
        torch.arange(batch_size),
    )
