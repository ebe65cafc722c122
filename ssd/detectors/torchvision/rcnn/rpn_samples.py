"""The head of the region proposal network at the few anchors that have a loss.

Proposals take no gradient, so over all cells the head runs without one. Of the thousands of cells of an image 256 have
a loss at most; here they are computed once more, with what their gradient needs, which leaves out nearly all of a dense
backward pass.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssd.constants import on_device

Grids = tuple[tuple[int, int], ...]


def head_at(head: Any, maps: list[Tensor], anchor: Tensor) -> tuple[Tensor, Tensor]:
    """What torchvision's RPNHead says of some anchors, float32: logits B x S, offsets B x S x 4.

    anchor: B x S int64, places among the anchors of all maps.
    """
    shapes = head.cls_logits.out_channels
    convolutions = [each[0] for each in head.conv]
    if len(convolutions) > 1:
        return _dense(head, maps, anchor)
    weight, bias = convolutions[0].weight, convolutions[0].bias
    batch, channels = maps[0].shape[:2]
    grids = tuple((each.shape[2], each.shape[3]) for each in maps)
    cell, shape = anchor // shapes, anchor % shapes
    centre, row = _places(grids, cell)
    # With a border of zeros, the nine neighbours of a cell lie at fixed distances from it.
    table = torch.cat([F.pad(each.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(1, 2) for each in maps], dim=1)
    step = torch.arange(-1, 2, device=anchor.device)
    around = row.unsqueeze(2).unsqueeze(3) * step.unsqueeze(1) + step
    first = torch.arange(batch, device=anchor.device).view(-1, 1, 1) * table.shape[1] + centre.unsqueeze(2)
    neighbours = (first + around.flatten(2)).flatten()
    patches = table.flatten(0, 1).index_select(0, neighbours).view(-1, 9 * channels)
    hidden = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias).relu()
    logits = F.linear(hidden, head.cls_logits.weight.flatten(1), head.cls_logits.bias)
    offsets = F.linear(hidden, head.bbox_pred.weight.flatten(1), head.bbox_pred.bias)
    own = shape.flatten().unsqueeze(1)
    logits = logits.gather(1, own).view_as(anchor)
    offsets = offsets.unflatten(1, (shapes, 4)).gather(1, own.unsqueeze(2).expand(-1, -1, 4))
    return logits.float(), offsets.view(*anchor.shape, 4).float()


def _dense(head: Any, maps: list[Tensor], anchor: Tensor) -> tuple[Tensor, Tensor]:
    logits, offsets = head(maps)
    batch = len(anchor)
    logits = torch.cat([each.permute(0, 2, 3, 1).reshape(batch, -1) for each in logits], dim=1)
    offsets = torch.cat([each.permute(0, 2, 3, 1).reshape(batch, -1, 4) for each in offsets], dim=1)
    own = anchor.unsqueeze(2).expand(-1, -1, 4)
    return logits.gather(1, anchor).float(), offsets.gather(1, own).float()


def _places(grids: Grids, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Of cells numbered through all maps, their places in a table of maps with borders, and the length of a row of
    their map there: both in the shape of cell."""
    begins, begins_in_table, width_of = _table_of(grids, cell.device)
    level = (cell.unsqueeze(-1) >= begins[1:]).sum(dim=-1)
    width, place = width_of[level], cell - begins[level]
    row, column = place // width, place % width
    return begins_in_table[level] + (row + 1) * (width + 2) + column + 1, width + 2


@functools.lru_cache(maxsize=4096)  # a few numbers each
def _table_of(grids: Grids, device: torch.device) -> Tensor:
    """Of each map, its first cell, the first place of its rows with borders, and its width: 3 x maps int64."""
    columns, first, first_in_table = [], 0, 0
    for height, width in grids:
        columns.append((first, first_in_table, width))
        first += height * width
        first_in_table += (height + 2) * (width + 2)
    return on_device(torch.tensor(columns).T.contiguous(), device)
