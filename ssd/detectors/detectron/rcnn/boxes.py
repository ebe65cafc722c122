"""Boxes by Detectron's rules. It has closed ranges of pixels, whose width is right - left + 1; here they are half-open:
right and bottom are larger by one. So IoU, offsets and suppression are those of torchvision."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssd.constants import on_device
from ssd.detectors.detectron.network.bodies import rpn_strides
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.boxes import grid_ltrb_px, kept_side

Cell = tuple[int, tuple[tuple[float, ...], ...]]
"""Of a map (pixels a cell, ltrb in pixels of the anchors of its first cell)."""
Cells = tuple[Cell, ...]


def cells_of(settings: DetectronSettings) -> Cells:
    strides, sizes, ratios = rpn_strides(settings), settings.anchor_sizes_px, settings.anchor_ratios
    of_levels = [sizes] if settings.has_one_rpn_level else [(size,) for size in sizes]
    of_cell = anchors_of_cell if settings.rules == "detectron" else exact_anchors_of_cell
    return tuple(
        (stride, tuple(of_cell(stride, of_level, ratios))) for stride, of_level in zip(strides, of_levels, strict=True)
    )


def anchors_of_cell(stride: int, sizes: Sequence[int], ratios: Sequence[float]) -> list[tuple[float, ...]]:
    """ltrb in pixels of the first cell, about its centre, one ratio after the other.

    A box as large as the cell is given each ratio, its sides are rounded, and what is rounded is made as large as each
    size says. Halves are rounded to even.
    """
    anchors: list[tuple[float, ...]] = []
    for ratio in ratios:
        width = round((stride * stride / ratio) ** 0.5)
        height = round(width * ratio)
        for size in sizes:
            half = (width * size / stride / 2, height * size / stride / 2)
            anchors.append((stride / 2 - half[0], stride / 2 - half[1], stride / 2 + half[0], stride / 2 + half[1]))
    return anchors


def exact_anchors_of_cell(stride: int, sizes: Sequence[int], ratios: Sequence[float]) -> list[tuple[float, ...]]:
    """detectron2's: of each size all ratios, with the area of its square, about the cell's left top corner."""
    anchors: list[tuple[float, ...]] = []
    for size in sizes:
        for ratio in ratios:
            half_width = (size * size / ratio) ** 0.5 / 2
            anchors.append((-half_width, -half_width * ratio, half_width, half_width * ratio))
    return anchors


def anchors_ltrb_px(cells: Cells, maps: Sequence[Tensor]) -> Tensor:
    """The anchors of all maps of a batch, one map after the other, rows, columns, shapes: A x 4 float32.

    The same tensor for the same shapes: do not write to it.
    """
    grids = tuple((each.shape[2], each.shape[3]) for each in maps)
    if torch.compiler.is_compiling():  # shapes are symbols then, and what is made is part of the graph
        return _anchors(cells, grids, maps[0].device, _grid)
    return _kept_anchors(cells, grids, maps[0].device, _cut_grid)


def _anchors(
    cells: Cells, grids: tuple[tuple[int, int], ...], device: torch.device, grid_of: Callable[..., Tensor]
) -> Tensor:
    of_maps = [
        grid_of(cell, rows, columns, device).reshape(-1, 4) for cell, (rows, columns) in zip(cells, grids, strict=True)
    ]
    return torch.cat(of_maps)


def _grid(cell: Cell, rows: int, columns: int, device: torch.device) -> Tensor:
    stride, of_first = cell
    return grid_ltrb_px(on_device(torch.tensor(of_first), device), (stride, stride), rows, columns)


def _cut_grid(cell: Cell, rows: int, columns: int, device: torch.device) -> Tensor:
    return _kept_grid(cell, kept_side(rows), kept_side(columns), device)[:rows, :columns]


_kept_grid = functools.lru_cache(maxsize=1024)(_grid)
_kept_anchors = functools.lru_cache(maxsize=32)(_anchors)


def cut(boxes_ltrb_px: Tensor, limits_px: Tensor, edge_px: int = 1) -> Tensor:
    """Boxes B x N x 4 without what lies outside of images with limits B x 1 x 4: closed ranges from 0 to a side less 1,
    so that each box has a pixel at least. edge_px, here and below: as in the settings, 0 for boxes that are no closed
    ranges and that nothing may be left of."""
    left_top = torch.minimum(boxes_ltrb_px[..., :2].clamp(min=0), limits_px[..., 2:] - edge_px)
    right_bottom = torch.minimum(boxes_ltrb_px[..., 2:].clamp(min=edge_px), limits_px[..., 2:])
    return torch.cat([left_top, right_bottom], dim=-1)


def closed(boxes_ltrb_px: Tensor, edge_px: int = 1) -> Tensor:
    """Half-open boxes, ... x 4 or with their image in front ... x 5, as the rules have them."""
    return torch.cat([boxes_ltrb_px[..., :-2], boxes_ltrb_px[..., -2:] - edge_px], dim=-1)


def half_open(boxes_ltrb_px: Tensor, edge_px: int = 1) -> Tensor:
    """`closed` undone."""
    return torch.cat([boxes_ltrb_px[..., :-2], boxes_ltrb_px[..., -2:] + edge_px], dim=-1)


def scaled(boxes_ltrb_px: Tensor, factor: Tensor | float, edge_px: int = 1) -> Tensor:
    """Half-open boxes in an image of another scale. Detectron scales closed ranges, so that what is one pixel wide
    stays so."""
    return half_open(closed(boxes_ltrb_px, edge_px) * factor, edge_px)
