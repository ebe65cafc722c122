"""What torchvision's SSDs show to the methods of distillation: their feature maps."""

import math
from typing import Any

from torch import Tensor

from ssd.detectors.distillation import DistillationParts, Seen
from ssd.detectors.torchvision.square.anchors import SQUARES
from ssd.detectors.torchvision.square.settings import MOBILENET, SquareSettings

_CELLS, _LITE_CELLS = (38, 19, 10, 5, 3, 1), (20, 10, 5, 3, 2, 1)


def distillation_parts(settings: SquareSettings) -> DistillationParts:
    cells = _LITE_CELLS if settings.builder == MOBILENET else _CELLS
    size_px = SQUARES[settings.builder].size_px
    first = round(math.log2(size_px / cells[0]))
    names = [f"p{first + place}" for place in range(len(cells))]

    def maps(seen: Seen) -> dict[str, Tensor]:
        return dict(zip(names, seen["backbone"][0].values(), strict=True))

    def forward(model: Any, images: Tensor, with_heads: bool) -> Seen:
        return {"backbone": [model.backbone(images)]}

    return DistillationParts(
        strides_px={name: size_px / count for name, count in zip(names, cells, strict=True)},
        watched=lambda model: {"backbone": model.backbone},
        maps=maps,
        forward=forward,
    )
