"""Anchors of images of many shapes: those of torchvision's generator, and made once."""

from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from ssd.detectors.detectron.rcnn import boxes as of_detectron
from ssd.detectors.retinanet import anchors as of_detectron2
from ssd.detectors.torchvision import boxes as of_torchvision
from ssd.detectors.torchvision.dense.retinanet import CELLS
from ssd.detectors.torchvision.rcnn.rpn_samples import _places

STRIDES = (8, 16, 32, 64, 128)
# More than the 32 whose anchors are kept whole.
SHAPES = [(32 * rows, 32 * columns) for rows in range(3, 10) for columns in range(3, 10)]
OF_FIRST_CELLS = tuple((s, tuple(of_detectron.anchors_of_cell(s, (4 * s,), (0.5, 1.0, 2.0)))) for s in STRIDES)
ROOMS: dict[ModuleType, Callable[[Sequence[Tensor], Tensor], Tensor]] = {
    of_torchvision: lambda maps, images: of_torchvision.anchors_ltrb_px(CELLS, maps, images),
    of_detectron2: lambda maps, images: of_detectron2.anchors_ltrb_px(maps),
    of_detectron: lambda maps, images: of_detectron.anchors_ltrb_px(OF_FIRST_CELLS, maps),
}


def seen(height: int, width: int) -> tuple[list[Tensor], Tensor]:
    """Feature maps and the images that they are of."""
    maps = [torch.empty(1, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]
    return maps, torch.empty(1, 3, height, width)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_nothing_is_made_anew_for_a_shape_already_seen(room: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*arguments: object) -> Tensor:
        made.append(arguments)
        return of_torchvision_grid(*arguments)

    of_torchvision_grid: Callable[..., Tensor] = of_torchvision.grid_ltrb_px
    monkeypatch.setattr(room, "grid_ltrb_px", counted)
    room._kept_grid.cache_clear()
    room._kept_anchors.cache_clear()
    for shape in SHAPES:
        ROOMS[room](*seen(*shape))
    assert made
    made.clear()
    for shape in SHAPES:
        ROOMS[room](*seen(*shape))
    assert not made


@pytest.mark.parametrize("shape", SHAPES[::6], ids=str)
def test_anchors_are_torchvisions(shape: tuple[int, int]) -> None:
    maps, images = seen(*shape)
    sizes, ratios = zip(*CELLS, strict=True)
    (expected,) = AnchorGenerator(sizes, ratios)(ImageList(images, [shape]), maps)
    assert torch.equal(of_torchvision.anchors_ltrb_px(CELLS, maps, images), expected)


def test_cells_have_their_places_in_maps_with_borders() -> None:
    """Of 2 x 3 and 1 x 2 cells, one map after the other: 4 x 5 places, then 3 x 4."""
    places, rows = _places(((2, 3), (1, 2)), torch.arange(8).view(2, 4))
    assert places.tolist() == [[6, 7, 8, 11], [12, 13, 25, 26]]
    assert rows.tolist() == [[5, 5, 5, 5], [5, 5, 4, 4]]
