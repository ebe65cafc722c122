"""Anchors of feature maps, and boxes as offsets to them: torchvision's arithmetic, made so that nothing waits for the
device and no anchor is made twice for one shape."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ssd.constants import on_device

Grids = tuple[tuple[int, int], ...]
"""(height, width) of each feature map in cells."""
Cell = tuple[tuple[int, ...], tuple[float, ...]]
"""(sizes in pixels, ratios height / width) of the anchors of a cell."""
Cells = tuple[Cell, ...]
"""Of each feature map."""

# Offsets are cut before their exponential, as in Detectron.
_LARGEST_LOG_SCALE = math.log(1000.0 / 16)


def anchors_ltrb_px(cells: Cells, maps: Sequence[Tensor], images: Tensor) -> Tensor:
    """The anchors of all feature maps of a batch, one map after the other, rows, columns, shapes: A x 4 float32.

    The same tensor for the same shapes: do not write to it.
    """
    grids = tuple((each.shape[2], each.shape[3]) for each in maps)
    height_px, width_px = images.shape[2:]
    if torch.compiler.is_compiling():  # shapes are symbols then, and what is made is part of the graph
        return _anchors(cells, grids, height_px, width_px, images.device, _grid)
    return _kept_anchors(cells, grids, height_px, width_px, images.device, _cut_grid)


def _anchors(
    cells: Cells, grids: Grids, height_px: int, width_px: int, device: torch.device, grid_of: Callable[..., Tensor]
) -> Tensor:
    of_maps = [
        grid_of(cell, (height_px // rows, width_px // columns), rows, columns, device).reshape(-1, 4)
        for cell, (rows, columns) in zip(cells, grids, strict=True)
    ]
    return torch.cat(of_maps)


def _grid(cell: Cell, strides_px: tuple[int, int], rows: int, columns: int, device: torch.device) -> Tensor:
    sizes, ratios = cell
    (of_cell,) = AnchorGenerator((sizes,), (ratios,)).cell_anchors
    return grid_ltrb_px(on_device(of_cell, device), strides_px, rows, columns)


def _cut_grid(cell: Cell, strides_px: tuple[int, int], rows: int, columns: int, device: torch.device) -> Tensor:
    return _kept_grid(cell, strides_px, kept_side(rows), kept_side(columns), device)[:rows, :columns]


def grid_ltrb_px(of_cell_ltrb_px: Tensor, strides_px: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The S anchors of the first cell in each cell of a map: rows x columns x S x 4. strides_px: down, across."""
    device = of_cell_ltrb_px.device
    top = torch.arange(rows, device=device).unsqueeze(1) * strides_px[0]
    left = torch.arange(columns, device=device).unsqueeze(0) * strides_px[1]
    corner = torch.stack([left.expand(rows, columns), top.expand(rows, columns)], dim=2)
    return corner.repeat(1, 1, 2).unsqueeze(2) + of_cell_ltrb_px


def kept_side(cells: int) -> int:
    """The power of two that is no less. A run's images may have hundreds of shapes; grids with such sides, from which
    those of all shapes are cut, are few."""
    return 1 << (cells - 1).bit_length()


# Images of 800 x 1333 pixels have 4 MB of anchors, and the grids that theirs are cut from 9 MB. The strides of the last
# maps depend on the image, but these maps are small.
_kept_grid = functools.lru_cache(maxsize=1024)(_grid)
_kept_anchors = functools.lru_cache(maxsize=32)(_anchors)


def encode(boxes_ltrb: Tensor, anchors_ltrb: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Boxes (... x 4) as offsets to anchors of a shape that goes with theirs: of the centre in sides of the anchor, of
    the sides as logarithms, times weights. What is said of a box or anchor without area is infinite or NaN."""
    sides, anchor_sides = (each[..., 2:] - each[..., :2] for each in (boxes_ltrb, anchors_ltrb))
    centre = boxes_ltrb[..., :2] + 0.5 * sides
    anchor_centre = anchors_ltrb[..., :2] + 0.5 * anchor_sides
    x, y = ((centre - anchor_centre) / anchor_sides).unbind(-1)
    width, height = (sides / anchor_sides).log().unbind(-1)
    return torch.stack([value * weight for value, weight in zip((x, y, width, height), weights, strict=True)], dim=-1)


def decode(offsets: Tensor, anchors_ltrb: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes of `encode`'s offsets: ... x 4 ltrb, not cut to the image."""
    x, y, width, height = (part / weight for part, weight in zip(offsets.unbind(-1), weights, strict=True))
    anchor_sides = anchors_ltrb[..., 2:] - anchors_ltrb[..., :2]
    anchor_centre = anchors_ltrb[..., :2] + 0.5 * anchor_sides
    centre = torch.stack([x, y], dim=-1) * anchor_sides + anchor_centre
    half_sides = 0.5 * (torch.stack([width, height], dim=-1).clamp(max=_LARGEST_LOG_SCALE).exp() * anchor_sides)
    return torch.cat([centre - half_sides, centre + half_sides], dim=-1)


def cut(boxes_ltrb_px: Tensor, limits_px: Tensor) -> Tensor:
    """Boxes B x N x 4 without what lies outside of images with limits B x 1 x 4."""
    return torch.minimum(boxes_ltrb_px.clamp(min=0), limits_px)
