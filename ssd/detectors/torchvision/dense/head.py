"""RetinaNet's heads, which train on the small maps of a pyramid side by side."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.retinanet import RetinaNetHead


class Head(RetinaNetHead):
    """torchvision's, with its weights, and its numbers up to rounding.

    In training all maps but the largest are one map to the convolutions. With five maps a convolution has its weights
    laid out five times and five gradients of them added up, which costs more than a small map's own work. Each map is
    taken by itself where the heads have norms, which would count the gaps, and where a hook watches a convolution.
    """

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        if not self.training or len(x) < 3 or self._needs_whole_maps():
            said: dict[str, Tensor] = super().forward(x)
            return said
        classes, boxes = self.classification_head, self.regression_head
        packed = pack(x[1:])
        return {
            "cls_logits": _said(classes.conv, classes.cls_logits, classes.num_classes, x[0], packed),
            "bbox_regression": _said(boxes.conv, boxes.bbox_reg, 4, x[0], packed),
        }

    def _needs_whole_maps(self) -> bool:
        parts = [module for module in self.modules() if module is not self]
        return any(_is_watched(module) or isinstance(module, nn.GroupNorm | _BatchNorm) for module in parts)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class Packed(NamedTuple):
    """Maps beside each other. canvas: B x C x H x W, 0 between them. between: 1 x 1 x H x W bool, where no map lies.
    places: the rows and columns of each."""

    canvas: Tensor
    between: Tensor
    places: list[tuple[slice, slice]]


def pack(maps: list[Tensor]) -> Packed:
    """The first on top, the others in a row under it, with a cell of 0 between any two: what a convolution of 3 x 3
    sees around a map is 0, as at the edge of an image. Each of B x C x h x w."""
    heights, widths = [each.shape[2] for each in maps], [each.shape[3] for each in maps]
    places = [(slice(0, heights[0]), slice(0, widths[0]))]
    top, left = heights[0] + 1, 0
    for height, width in zip(heights[1:], widths[1:], strict=True):
        places.append((slice(top, top + height), slice(left, left + width)))
        left += width + 1
    batch, channels = maps[0].shape[:2]
    height, width = top + max(heights[1:]), max(widths[0], left - 1)
    canvas = maps[0].new_zeros(batch, height, width, channels).permute(0, 3, 1, 2)  # channels_last
    between = maps[0].new_ones(1, 1, height, width, dtype=torch.bool)
    for each, (rows, columns) in zip(maps, places, strict=True):
        canvas[:, :, rows, columns] = each
        between[:, :, rows, columns] = False
    return Packed(canvas, between, places)


def by_anchor(said: Tensor, values: int) -> Tensor:
    """B x (shapes * values) x H x W -> B x (H * W * shapes) x values, in the order of the anchors."""
    return said.permute(0, 2, 3, 1).reshape(len(said), -1, values)


def _said(conv: nn.Module, last: nn.Module, values: int, largest: Tensor, packed: Packed) -> Tensor:
    """What a head's convolutions, and the last of them, say of each anchor: B x A x values."""
    x = packed.canvas
    for layer in conv.children():
        convolution, relu = layer.children()
        # Filled, not multiplied: what overflows between maps would be no number.
        x = relu(convolution(x).masked_fill(packed.between, 0))
    x = last(x)
    small = [by_anchor(x[:, :, rows, columns], values) for rows, columns in packed.places]
    return torch.cat([by_anchor(last(conv(largest)), values), *small], dim=1)
