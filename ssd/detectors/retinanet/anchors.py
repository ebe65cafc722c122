"""detectron2's anchors of a RetinaNet: sides that are not rounded, in cells of fixed sizes."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssd.constants import on_device
from ssd.detectors.torchvision.boxes import grid_ltrb_px, kept_side

STRIDES_PX = (8, 16, 32, 64, 128)
"""Of the feature maps P3 to P7."""
_SIDE_IN_STRIDES = 4
_SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)
ANCHORS_A_CELL = len(_SCALES) * len(_RATIOS)


def cell_anchors_ltrb_px(stride_px: int) -> Tensor:
    """The anchors about the point (0, 0), sizes in the outer order and ratios (height / width) in the inner one:
    9 x 4 float32."""
    boxes = []
    for scale in _SCALES:
        for ratio in _RATIOS:
            width = math.sqrt((_SIDE_IN_STRIDES * stride_px * scale) ** 2 / ratio)
            height = width * ratio
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(boxes)


def anchors_ltrb_px(maps: Sequence[Tensor]) -> Tensor:
    """The anchors of all feature maps, one map after the other, rows, columns, shapes: A x 4 float32. Those of a cell
    lie about its left top corner.

    The same tensor for the same shapes: do not write to it.
    """
    grids = tuple((each.shape[2], each.shape[3]) for each in maps)
    if torch.compiler.is_compiling():  # shapes are symbols then, and what is made is part of the graph
        return _anchors(grids, maps[0].device, _grid)
    return _kept_anchors(grids, maps[0].device, _cut_grid)


def _anchors(grids: tuple[tuple[int, int], ...], device: torch.device, grid_of: Callable[..., Tensor]) -> Tensor:
    of_maps = [
        grid_of(stride_px, rows, columns, device).reshape(-1, 4)
        for stride_px, (rows, columns) in zip(STRIDES_PX, grids, strict=True)
    ]
    return torch.cat(of_maps)


def _grid(stride_px: int, rows: int, columns: int, device: torch.device) -> Tensor:
    return grid_ltrb_px(on_device(cell_anchors_ltrb_px(stride_px), device), (stride_px, stride_px), rows, columns)


def _cut_grid(stride_px: int, rows: int, columns: int, device: torch.device) -> Tensor:
    return _kept_grid(stride_px, kept_side(rows), kept_side(columns), device)[:rows, :columns]


_kept_grid = functools.lru_cache(maxsize=1024)(_grid)
_kept_anchors = functools.lru_cache(maxsize=32)(_anchors)
