"""The general instances that a run learns from, on the images that they were chosen in."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from ssd.distillation.methods.instances import Instances
from ssd.pictures.drawing import Box, draw_boxes, mosaic, picture_of
from ssd.storage.files import written_whole
from ssd.views import View

_IMAGES, _COLUMNS, _TILE_PX = 8, 4, 300


class InstancesPicture:
    """Keeps what is chosen in the first step, and in every so many steps after it, until it is drawn.

    file: None draws nothing, as on all ranks but the first. every: of how many, such as an epoch's steps.
    """

    def __init__(self, file: Path | None, view: View, every: int) -> None:
        self.file, self.view, self.every = file, view, every
        self._steps = 0
        self._kept: tuple[Tensor, Instances] | None = None

    def show(self, images: Tensor, instances: Instances) -> None:
        """images: of a training batch, B x 3 x H x W. Without a wait for the device."""
        if self.file is not None and self._steps % self.every == 0:
            self._kept = images[:_IMAGES].detach().clone(), instances
        self._steps += 1

    def draw(self, *_: object) -> str:
        """Writes the file if there is something new. One of `Training.at_log_lines`, so it says something: ""."""
        if self._kept is None or self.file is None:
            return ""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.file) as temporary:
            self._sheet(*self._kept).save(temporary, "JPEG", quality=90)
        self._kept = None
        return ""

    def _sheet(self, images: Tensor, instances: Instances) -> Image.Image:
        tiles = []
        height, width = images.shape[2:]
        scale = _TILE_PX / max(height, width)
        size_px = (max(1, round(scale * width)), max(1, round(scale * height)))
        whole_px = (width, height, width, height)
        shown = (instances.boxes_ltrb_px, instances.real, instances.scores)
        for image, boxes, real, scores in zip(images, *(part.cpu() for part in shown), strict=False):
            tile = picture_of(image.detach(), size_px, self.view.mean, self.view.std)
            found = []
            for box, score in zip(boxes[real].tolist(), scores[real].tolist(), strict=True):
                left, top, right, bottom = (side / whole for side, whole in zip(box, whole_px, strict=True))
                found.append(Box((left, top, right, bottom), 1, f"{score:.1g}"))
            draw_boxes(tile, found)
            tiles.append(tile)
        rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
        title = "general instances: where teacher and student differ most, and by how much"
        titles = [title, *[""] * (len(rows) - 1)]
        return Image.fromarray(mosaic(list(zip(titles, rows, strict=True)), _TILE_PX))
