"""The general instances that a run learns from, on the images that they were chosen in."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ssd.constants import on_device
from ssd.distillation.methods.instances import Instances
from ssd.pictures.drawing import Box, draw_boxes, mosaic, picture_of
from ssd.storage.files import written_whole
from ssd.views import View

_IMAGES, _COLUMNS, _TILE_PX = 8, 4, 300


class InstancesPicture:
    """Keeps what is chosen in the first call of `show`, and in every so many calls after it, until it is drawn.

    file: None draws nothing, as on all ranks but the first. every: of how many, such as an epoch's steps.
    """

    def __init__(self, file: Path | None, view: View, every: int) -> None:
        self.file, self.view, self.every = file, view, every
        self._calls = 0
        self._kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        """Images as small as they are drawn, boxes_ltrb in [0, 1] of them, which are real, and scores."""

    def show(self, images: Tensor, instances: Instances) -> None:
        """images: of a training batch, B x 3 x H x W. Without a wait for the device."""
        is_due = self._calls % self.every == 0
        self._calls += 1
        if self.file is None or not is_due:
            return
        height, width = images.shape[2:]
        scale = _TILE_PX / max(height, width)
        size_px = max(1, round(scale * height)), max(1, round(scale * width))
        small = F.interpolate(images[:_IMAGES].detach().float(), size_px, mode="bilinear", antialias=True)
        whole_px = on_device(torch.tensor([width, height, width, height]), images.device)  # of ragged batches, any
        self._kept = small, instances.boxes_ltrb_px / whole_px, instances.real, instances.scores

    def draw(self) -> None:
        """Writes the file if there is something new."""
        if self._kept is None or self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.file) as temporary:
            self._sheet(*(part.cpu() for part in self._kept)).save(temporary, "JPEG", quality=90)
        self._kept = None

    def _sheet(self, images: Tensor, boxes_ltrb: Tensor, real: Tensor, scores: Tensor) -> Image.Image:
        tiles = []
        for image, boxes, is_real, of_image in zip(images, boxes_ltrb, real, scores, strict=False):
            tile = picture_of(image, (image.shape[2], image.shape[1]), self.view.mean, self.view.std)
            shown = zip(boxes[is_real].tolist(), of_image[is_real].tolist(), strict=True)
            draw_boxes(
                tile,
                [Box((left, top, right, bottom), 1, f"{score:.1g}") for (left, top, right, bottom), score in shown],
            )
            tiles.append(tile)
        rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
        title = "general instances: where teacher and student differ most, and by how much"
        titles = [title, *[""] * (len(rows) - 1)]
        return Image.fromarray(mosaic(list(zip(titles, rows, strict=True)), _TILE_PX))
