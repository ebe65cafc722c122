"""A training batch of squares out of nothing, for measurements that should not wait for data, and for tests."""

import torch

from ssd.batch import MatchedBatch
from ssd.matching import encode
from ssd.views import SquareView

_OBJECTS_AN_IMAGE = 7  # COCO 2017 has 7.3


def synthetic_squares(
    view: SquareView, num_classes: int, device: torch.device, batch_size: int, seed: int = 0
) -> MatchedBatch:
    """Noise to look at and random boxes to find, matched to the view's default boxes as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch_size, 3, view.size_px, view.size_px, generator=generator)
    sides = 0.05 + 0.45 * torch.rand(batch_size, _OBJECTS_AN_IMAGE, 2, generator=generator)
    corners = (1 - sides) * torch.rand(batch_size, _OBJECTS_AN_IMAGE, 2, generator=generator)
    labels = torch.randint(1, num_classes, (batch_size, _OBJECTS_AN_IMAGE), generator=generator)
    boxes_ltrb = torch.cat([corners, corners + sides], dim=2)
    encoded = [encode(*image, view.defaults_cxcywh) for image in zip(boxes_ltrb, labels, strict=True)]
    offsets, default_labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    return MatchedBatch(
        images.to(device, memory_format=torch.channels_last),
        offsets.to(device),
        default_labels.to(device),
        torch.arange(batch_size),
    )
