"""What the detectors see of an image, and their default boxes: torchvision's numbers."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from ssd.detectors.torchvision.square.settings import MOBILENET, VGG

# As `matching.OFFSET_STDS` says it.
OFFSET_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_CPU = torch.device("cpu")


class Square(NamedTuple):
    """size_px: of the image. mean, std: of R, G and B in [0, 1]. cells: a side of each feature map. ratios: of the
    default boxes of each map beside squares, each also upright. scales: of the maps' default boxes, as fractions of the
    image's side, and of what would come after the last. steps_px: between cells, or None for the image by the cells."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cells: tuple[int, ...]
    ratios: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    steps_px: tuple[int, ...] | None

    @property
    def boxes_a_cell(self) -> list[int]:
        return [2 + 2 * len(ratios) for ratios in self.ratios]


SQUARES = {
    # Caffe's VGG saw values in [0, 255] less their mean.
    VGG: Square(
        size_px=300,
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        cells=(38, 19, 10, 5, 3, 1),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        steps_px=(8, 16, 32, 64, 100, 300),
    ),
    MOBILENET: Square(
        size_px=320,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        cells=(20, 10, 5, 3, 2, 1),
        ratios=((2, 3),) * 6,
        scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
        steps_px=None,
    ),
}


@functools.cache
def default_boxes_ltrb(builder: str, device: torch.device = _CPU) -> Tensor:
    """A x 4 float32 ltrb in [0, 1], not clipped, one map after the other, rows, columns, shapes. Shared: do not write
    to it."""
    if device != _CPU:
        return default_boxes_ltrb(builder).to(device)
    size_px, _, _, cells, ratios, scales, steps_px = SQUARES[builder]
    generator = DefaultBoxGenerator(
        [list(each) for each in ratios], scales=list(scales), steps=None if steps_px is None else list(steps_px)
    )
    image = ImageList(torch.empty(1, 3, size_px, size_px), [(size_px, size_px)])
    (boxes_ltrb_px,) = generator(image, [torch.empty(1, 1, side, side) for side in cells])
    return boxes_ltrb_px / size_px
