"""darknet's layers, where torch's differ."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.detectors.yolov2.darknet.sections import Convolutional, MaxPool

_LEAKY_SLOPE = 0.1


def reorg(images: Tensor) -> Tensor:
    """B x C x H x W -> B x 4 C x H/2 x W/2 as darknet's [reorg] with stride 2 has it; C divisible by 4.

    It is not space to depth: half of the elements come from the row beside, some from the next channel. Output channel
    (2 dy + dx) C + c at row y and column x is F[4 (g // 2) + g % 2 + 2 dy, 2 x + dx], where g = c H/2 + y and F are the
    input's rows, those of all channels below each other.
    """
    batch, channels, height, width = images.shape
    rows = images.reshape(batch, channels * height // 4, 2, 2, width // 2, 2)
    return rows.permute(0, 2, 5, 1, 3, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def space_to_depth(images: Tensor) -> Tensor:
    """B x C x H x W -> B x 4 C x H/2 x W/2: output channel (2 dy + dx) C + c at (y, x) is input channel c at
    (2 y + dy, 2 x + dx). AlexeyAB's [reorg3d]."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


class DarknetReorg(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return reorg(images)


class SpaceToDepth(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return space_to_depth(images)


def _with_border_repeated(images: Tensor, dim: int, before: int, after: int) -> Tensor:
    """As many more of the first and of the last along a dimension. A window that reaches beyond the border has the
    border in it, so that its largest value stays. An infinity would do too, but what 8 bits have to hold is finite."""
    first, last = images.narrow(dim, 0, 1), images.narrow(dim, images.shape[dim] - 1, 1)
    return torch.cat([first] * before + [images] + [last] * after, dim=dim)


class DarknetMaxPool(nn.Module):
    """A window begins at -padding / 2, rounded down; what it has outside of the image counts for nothing."""

    def __init__(self, section: MaxPool) -> None:
        super().__init__()
        self.size_px, self.stride, self.padding_px = section.size_px, section.stride, section.padding_px

    def forward(self, images: Tensor) -> Tensor:
        before = self.padding_px // 2
        for dim in (2, 3):
            side = images.shape[dim]
            cells = (side + self.padding_px - self.size_px) // self.stride + 1
            after = max(0, (cells - 1) * self.stride + self.size_px - before - side)
            if before or after:
                images = _with_border_repeated(images, dim, before, after)
        return F.max_pool2d(images, self.size_px, self.stride)

    def extra_repr(self) -> str:
        return f"size_px={self.size_px}, stride={self.stride}, padding_px={self.padding_px}"


class Convolution(nn.Module):
    """conv, then norm if the section has one, then the activation. Fresh weights are those of darknet."""

    def __init__(self, section: Convolutional, channels: int) -> None:
        super().__init__()
        self.section = section
        normalises = section.batch_normalize
        self.conv = nn.Conv2d(
            channels, section.filters, section.size, section.stride, section.padding_px, groups=section.groups,
            bias=not normalises,
        )  # fmt: skip
        fan_in = section.size**2 * channels // section.groups
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / fan_in))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        # darknet divides by sqrt(variance + 1e-5) on GPUs, and keeps 0.99 of its running statistics. They begin at 0
        # there; here the variance begins at 1, so that a network that has not trained is finite.
        self.norm = nn.BatchNorm2d(section.filters, eps=1e-5, momentum=0.01) if normalises else None
        self.activation = _activation(section.activation)

    def forward(self, images: Tensor) -> Tensor:
        images = self.conv(images)
        if self.norm is not None:
            images = self.norm(images)
        return self.activation(images)


def _activation(name: str) -> nn.Module:
    known = {
        "leaky": nn.LeakyReLU(_LEAKY_SLOPE, inplace=True),
        "relu": nn.ReLU(inplace=True),
        "logistic": nn.Sigmoid(),
        "linear": nn.Identity(),
    }
    return known[name]
