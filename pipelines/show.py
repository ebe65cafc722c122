"""A mosaic of what the detector learns from: augmented images, their boxes and the default boxes matched to them."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ssd.batch import Batch, MatchedBatch, TrainLoader
from ssd.boxes import cxcywh_to_ltrb
from ssd.drawing import class_colour, picture_of
from ssd.lettering import picture_font, shown_in_picture
from ssd.matching import decode
from ssd.views import SquareView, View

_GAP_PX = 8
_TITLE_PX = 26


def _draw(image: Tensor, offsets: Tensor, labels: Tensor, names: list[str], view: SquareView) -> Image.Image:
    """One tile: matched default boxes thin, the ground truth they learn thick, with its class."""
    picture = picture_of(image, (view.size_px, view.size_px))
    draw = ImageDraw.Draw(picture)
    positive = labels.cpu() > 0
    defaults_ltrb = cxcywh_to_ltrb(view.defaults_cxcywh)[positive] * view.size_px
    boxes_ltrb = decode(offsets.cpu(), view.defaults_cxcywh)[positive] * view.size_px
    matched = labels.cpu()[positive].tolist()
    for box, label in zip(defaults_ltrb.tolist(), matched, strict=True):
        draw.rectangle(box, outline=class_colour(label), width=1)
    # Many default boxes learn one ground truth: the offsets of each give it back, up to rounding.
    truths = {(label, *np.round(box, 1)): box for box, label in zip(boxes_ltrb.tolist(), matched, strict=True)}
    for (label, *_), box in truths.items():
        colour = class_colour(label)
        draw.rectangle(box, outline="black", width=5)
        draw.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline=colour, width=3)
    for (label, *_), box in truths.items():
        name = shown_in_picture(names[label - 1], label)
        font = picture_font(name, 13)
        left, top = max(0, box[0]), max(0, box[1])
        draw.rectangle([left, top, left + draw.textlength(name, font) + 6, top + 17], fill="black")
        draw.text((left + 3, top + 8.5), name, fill="white", font=font, anchor="lm")
    return picture


def _tiles(loader: TrainLoader, count: int, names: list[str], view: SquareView) -> list[Image.Image]:
    tiles: list[Image.Image] = []
    for batch in islice(loader.batches(0), count):
        tiles += _tiles_of(batch, names, view)
        if len(tiles) >= count:
            break
    return tiles[:count]


def _tiles_of(batch: Batch, names: list[str], view: SquareView) -> list[Image.Image]:
    assert isinstance(batch, MatchedBatch)
    return [_draw(*sample, names, view) for sample in zip(batch.images, batch.offsets, batch.labels, strict=True)]


def write_mosaic(
    file: Path, loaders: dict[str, TrainLoader], names: list[str], view: View, *, rows: int, columns: int
) -> None:
    """The first rows x columns samples of each loader, the loaders side by side under their names, as a PNG.

    names: the K - 1 classes' names.
    """
    assert isinstance(view, SquareView)
    step = view.size_px + _GAP_PX
    panel_width = columns * step + _GAP_PX
    mosaic = Image.new("RGB", (len(loaders) * panel_width + _GAP_PX, rows * step + _TITLE_PX + _GAP_PX), "white")
    draw = ImageDraw.Draw(mosaic)
    for number, (title, loader) in enumerate(loaders.items()):
        left = number * panel_width + _GAP_PX
        draw.text((left, 4), title, fill="black", font=picture_font(title, 18))
        for place, tile in enumerate(_tiles(loader, rows * columns, names, view)):
            row, column = divmod(place, columns)
            mosaic.paste(tile, (left + column * step, _TITLE_PX + row * step))
    file.parent.mkdir(parents=True, exist_ok=True)
    mosaic.save(file)
