"""From a network's output to boxes."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.constants import constant
from ssd.detectors.yolov2.darknet.sections import Region

# Far beyond any box: what lies above would be infinite.
_LARGEST_LOG_SIDE = 20.0


class Cells(NamedTuple):
    """What a network says of its P = num x H x W boxes, anchor after anchor, in each row after row. All float32.

    centre_in_cell: B x P x 2, sigmoids: x and y within the cell. log_sides: B x P x 2, raw: width and height as
    logarithms of the anchor's. objectness: B x P logits. classes: B x P x C logits. boxes_cxcywh: B x P x 4 in [0, 1]
    of the input, not cut to it; without a gradient.
    """

    centre_in_cell: Tensor
    log_sides: Tensor
    objectness: Tensor
    classes: Tensor
    boxes_cxcywh: Tensor


def cells_of(values: Tensor, region: Region) -> Cells:
    """values: as `Raw.values`."""
    batch, _, height, width = values.shape
    by_box = values.float().unflatten(1, (region.num, 5 + region.classes)).permute(0, 1, 3, 4, 2)
    by_box = by_box.reshape(batch, region.num * height * width, 5 + region.classes)
    centre_in_cell, log_sides = by_box[..., 0:2].sigmoid(), by_box[..., 2:4]
    grid = constant((width, height), values.device)
    centres = (centre_in_cell.detach() + corners(region.num, height, width, values.device)) / grid
    sides = log_sides.detach().clamp(max=_LARGEST_LOG_SIDE).exp() * anchors_of(region, height, width, values.device)
    boxes_cxcywh = torch.cat([centres, sides], dim=2)
    return Cells(centre_in_cell, log_sides, by_box[..., 4], by_box[..., 5:], boxes_cxcywh)


def corners(num: int, height: int, width: int, device: torch.device) -> Tensor:
    """(column, row) of the cell of each box: P x 2 float32."""
    rows = torch.arange(height, dtype=torch.float32, device=device).unsqueeze(1).expand(height, width)
    columns = torch.arange(width, dtype=torch.float32, device=device).expand(height, width)
    return torch.stack([columns, rows], dim=2).flatten(0, 1).repeat(num, 1)


def anchors_of(region: Region, height: int, width: int, device: torch.device) -> Tensor:
    """Width and height of each box's anchor in [0, 1] of the input: P x 2 float32."""
    sides = constant(region.anchors, device).view(region.num, 2) / constant((width, height), device)
    return sides.repeat_interleave(height * width, dim=0)
