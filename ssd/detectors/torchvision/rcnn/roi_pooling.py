"""RoIAlign of each box from that map of the pyramid that suits its size."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import roi_align

from ssd.detectors.torchvision.rcnn.roi_align_cpu import roi_align_cpu

SIDE = 7
"""Of a box for the box head, in cells."""
PART_SIDE = 14
"""Of one for the mask and the keypoint head."""
KEYPOINT_SIDE = 4 * PART_SIDE
"""Of what the keypoint head makes of one."""
_SAMPLES = 2
# Feature Pyramid Networks (Lin et al. 2017), equation 1.
_CANONICAL_SIDE_PX, _CANONICAL_LEVEL = 224, 4
# Where choosing boxes costs no wait for the device, each map is sampled for its own only; elsewhere, and in a graph,
# whose shapes are fixed, for all of them.
_CHOOSES_ON = ("cpu",)
_OUTSIDE_PX = -1e4


def level_of(boxes_ltrb_px: Tensor, strides: Sequence[int]) -> Tensor:
    """Which of the maps suits boxes N x 4: N int64."""
    least, most = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    sides = (boxes_ltrb_px[:, 2:] - boxes_ltrb_px[:, :2]).prod(dim=1).sqrt()
    level = (_CANONICAL_LEVEL + (sides / _CANONICAL_SIDE_PX).log2() + 1e-6).floor()
    return level.clamp(least, most).to(torch.int64) - least


def rois_of(boxes_ltrb_px: Tensor) -> Tensor:
    """Boxes B x N x 4 with their image in front: BN x 5 float32."""
    batch, count = boxes_ltrb_px.shape[:2]
    image = torch.arange(batch, device=boxes_ltrb_px.device).view(-1, 1, 1).expand(-1, count, 1)
    return torch.cat([image.to(boxes_ltrb_px.dtype), boxes_ltrb_px], dim=2).flatten(0, 1)


class Sampler(Protocol):
    """(map B x C x H x W, rois R x 5, cells in each direction, cells of the map a pixel) -> R x C x side x side."""

    def __call__(self, features: Tensor, rois: Tensor, side: int, scale: float, /) -> Tensor: ...


def _chooses(rois: Tensor) -> bool:
    return rois.device.type in _CHOOSES_ON and not torch.compiler.is_compiling()


def aligned(samples: int, *, centred: bool = False) -> Sampler:
    """samples: of a cell in each direction; 0 for as many as it has cells of the map. centred: whether a cell's value
    is that of its middle, not of its left top corner."""

    def sample(features: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
        if samples and not centred and _chooses(rois):
            return roi_align_cpu(features, rois, side, scale, samples)
        return roi_align(features, rois, side, scale, samples, centred)

    return sample


def pool(maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, side: int = SIDE) -> Tensor:
    """As torchvision's MultiScaleRoIAlign. maps: B x C x H x W each. rois: R x 5. Returns R x C x side x side."""
    return pool_levels(maps, strides, rois, level_of(rois[:, 1:], strides), side, aligned(_SAMPLES))


def pool_levels(
    maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, level: Tensor, side: int, sampler: Sampler
) -> Tensor:
    """level: R int64, which of the maps each of R rois is sampled in. Returns R x C x side x side."""
    dtype = maps[0].dtype
    # 16 bits would move a box by up to a pixel, so maps are read at the boxes' precision, as torchvision does.
    precise = [features.to(rois.dtype) for features in maps]
    if _chooses(rois):
        own = [(level == place).nonzero().squeeze(1) for place in range(len(maps))]
        sampled = [
            sampler(features, rois[boxes], side, 1 / stride)
            for features, stride, boxes in zip(precise, strides, own, strict=True)
        ]
        return torch.cat(sampled).to(dtype)[torch.cat(own).argsort()]
    pooled = precise[0].new_zeros(rois.shape[0], maps[0].shape[1], side, side)
    for place, (features, stride) in enumerate(zip(precise, strides, strict=True)):
        # A box far outside of the map reads nothing of it and gives 0.
        boxes = torch.where((level == place).unsqueeze(1), rois[:, 1:], _OUTSIDE_PX)
        pooled = pooled + sampler(features, torch.cat([rois[:, :1], boxes], dim=1), side, 1 / stride)
    return pooled.to(dtype)
