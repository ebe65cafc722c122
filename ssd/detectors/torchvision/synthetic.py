"""A training batch out of nothing, for measurements that should not wait for data."""

import torch

from ssd.batch import RaggedBatch
from ssd.views import ShortSideView

_OBJECTS_AN_IMAGE = 7  # COCO 2017 has 7.3
_MASK_SIDE = 112


def input_size_px(view: ShortSideView) -> tuple[int, int]:
    """(width, height) of an image of 4 to 3, as most of COCO's are."""
    short_side_px, long_side_px = view.evaluated_sides_px or (view.short_sides_px[-1], view.long_side_px)
    return min(short_side_px * 4 // 3, long_side_px), short_side_px


def synthetic_batch(
    view: ShortSideView, num_classes: int, device: torch.device, batch_size: int, num_points: int = 0
) -> RaggedBatch:
    """Noise to look at and random boxes to find, in images of `input_size_px`. num_points: of an object, where the
    view has keypoints."""
    generator = torch.Generator().manual_seed(0)
    width, height = input_size_px(view)
    padded = [-(-side // view.divisor) * view.divisor for side in (height, width)]
    images = torch.zeros(batch_size, 3, *padded)
    images[:, :, :height, :width] = torch.randn(batch_size, 3, height, width, generator=generator)
    sides = 0.05 + 0.45 * torch.rand(batch_size * _OBJECTS_AN_IMAGE, 2, generator=generator)
    corners = (1 - sides) * torch.rand(len(sides), 2, generator=generator)
    boxes_ltrb_px = torch.cat([corners, corners + sides], dim=1) * torch.tensor([width, height] * 2)
    width_height = boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]
    points = boxes_ltrb_px[:, None, :2] + width_height[:, None] * torch.rand(
        len(sides), num_points, 2, generator=generator
    )
    masks = torch.zeros(len(sides), _MASK_SIDE, _MASK_SIDE, dtype=torch.uint8)
    masks[:, 1:-1, 1:-1] = 1
    return RaggedBatch(
        images.to(device, memory_format=torch.channels_last),
        torch.tensor([[width, height]] * batch_size),
        boxes_ltrb_px.to(device),
        torch.randint(1, num_classes, (len(sides),), generator=generator).to(device),
        torch.full((batch_size,), _OBJECTS_AN_IMAGE),
        torch.arange(batch_size),
        masks.to(device) if view.parts.masks else None,
        boxes_ltrb_px.to(device) if view.parts.masks else None,
        torch.cat([points, torch.full_like(points[..., :1], 2)], dim=2).to(device) if view.parts.keypoints else None,
    )
