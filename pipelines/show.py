"""A mosaic of what the detector learns from: augmented images, their boxes and, where there are any, the default boxes
matched to them."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ssd.batch import Batch, RaggedBatch, TrainLoader
from ssd.boxes import cxcywh_to_ltrb
from ssd.keypoints import Skeleton
from ssd.matching import decode
from ssd.pictures.drawing import Box, class_colour, draw_boxes, draw_skeleton, drawable, picture_of, tint
from ssd.pictures.lettering import picture_font, shown_in_picture
from ssd.views import RaggedView, SquareView, View

_GAP_PX = 8
_TITLE_PX = 26
_RAGGED_TILE_PX = 300
"""Of the longer side of an image that keeps its shape."""


def _draw(image: Tensor, offsets: Tensor, labels: Tensor, names: list[str], view: SquareView) -> Image.Image:
    """One tile: matched default boxes thin, the ground truth they learn thick, with its class."""
    picture = picture_of(image, (view.size_px, view.size_px), view.mean, view.std)
    draw = ImageDraw.Draw(picture)
    positive = labels.cpu() > 0
    defaults_ltrb = cxcywh_to_ltrb(view.defaults_cxcywh)[positive] * view.size_px
    boxes_ltrb = decode(offsets.cpu(), view.defaults_cxcywh)[positive] * view.size_px
    matched = labels.cpu()[positive].tolist()
    for box, label in zip(defaults_ltrb.tolist(), matched, strict=True):
        draw.rectangle(drawable(*box), outline=class_colour(label), width=1)
    # Many default boxes learn one ground truth: the offsets of each give it back, up to rounding.
    truths: list[tuple[int, Any]] = []
    for box, label in zip(boxes_ltrb.tolist(), matched, strict=True):
        if not any(label == other and np.allclose(box, known, rtol=0, atol=0.5) for other, known in truths):
            truths.append((label, box))
    draw_boxes(
        picture,
        [
            Box(tuple(side / view.size_px for side in box), label, shown_in_picture(names[label - 1], label))
            for label, box in truths
        ],
    )
    return picture


def _tiles(
    loader: TrainLoader, count: int, names: list[str], view: View, skeleton: Skeleton | None
) -> list[Image.Image]:
    tiles: list[Image.Image] = []
    for batch in islice(loader.batches(0), count):
        tiles += _tiles_of(batch, names, view, skeleton)
        if len(tiles) >= count:
            break
    return tiles[:count]


def _tiles_of(batch: Batch, names: list[str], view: View, skeleton: Skeleton | None) -> list[Image.Image]:
    if isinstance(batch, RaggedBatch):
        assert not isinstance(view, SquareView)
        return [_draw_ragged(each, names, view, skeleton) for each in batch.split(len(batch.images))]
    assert isinstance(view, SquareView)
    return [_draw(*sample, names, view) for sample in zip(batch.images, batch.offsets, batch.labels, strict=True)]


def _draw_ragged(batch: RaggedBatch, names: list[str], view: RaggedView, skeleton: Skeleton | None) -> Image.Image:
    """One tile of a batch of one image: without its padding, as large as the tile lets it be, with its boxes, and masks
    and keypoints if it has them."""
    ((width, height),) = batch.sizes_px.tolist()
    scale = _RAGGED_TILE_PX / max(width, height)
    size_px = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = picture_of(batch.images[0, :, :height, :width], size_px, view.mean, view.std)
    _tint_masks(picture, batch, (width, height))
    boxes_ltrb = batch.boxes_ltrb_px.cpu() / torch.tensor([width, height, width, height])
    labels = batch.labels.tolist()
    draw_boxes(
        picture,
        [
            Box(tuple(box), label, shown_in_picture(names[label - 1], label))
            for box, label in zip(boxes_ltrb.tolist(), labels, strict=True)
        ],
    )
    if batch.keypoints_px is not None and skeleton is not None:
        for points, label in zip(batch.keypoints_px.tolist(), labels, strict=True):
            stated = [(x * scale, y * scale) if visibility else None for x, y, visibility in points]
            draw_skeleton(ImageDraw.Draw(picture), stated, skeleton, label, 2)
    return picture


def _tint_masks(picture: Image.Image, batch: RaggedBatch, size_px: tuple[int, int]) -> None:
    """Each mask where its window lies in an image of this size, of which the picture is a larger or smaller one."""
    if batch.masks is None or batch.mask_windows_ltrb_px is None:
        return
    factor = np.tile(np.divide(picture.size, size_px), 2)
    rows = zip(batch.masks.cpu().numpy(), batch.mask_windows_ltrb_px.cpu().numpy(), batch.labels.tolist(), strict=True)
    for mask, window, label in rows:
        left, top, right, bottom = np.round(window * factor).astype(int).tolist()
        stencil = Image.new("L", picture.size)
        stencil.paste(Image.fromarray(mask).resize((max(1, right - left), max(1, bottom - top))), (left, top))
        tint(picture, np.asarray(stencil), label)


def write_mosaic(
    file: Path,
    loaders: dict[str, TrainLoader],
    names: list[str],
    view: View,
    *,
    rows: int,
    columns: int,
    skeleton: Skeleton | None = None,
) -> None:
    """The first rows x columns samples of each loader, the loaders side by side under their names, as a PNG.

    names: the K - 1 classes' names. skeleton: of the keypoints, where the batches have them.
    """
    step = (view.size_px if isinstance(view, SquareView) else _RAGGED_TILE_PX) + _GAP_PX
    panel_width = columns * step + _GAP_PX
    mosaic = Image.new("RGB", (len(loaders) * panel_width + _GAP_PX, rows * step + _TITLE_PX + _GAP_PX), "white")
    draw = ImageDraw.Draw(mosaic)
    for number, (title, loader) in enumerate(loaders.items()):
        left = number * panel_width + _GAP_PX
        draw.text((left, 4), title, fill="black", font=picture_font(title, 18))
        for place, tile in enumerate(_tiles(loader, rows * columns, names, view, skeleton)):
            row, column = divmod(place, columns)
            mosaic.paste(tile, (left + column * step, _TITLE_PX + row * step))
    file.parent.mkdir(parents=True, exist_ok=True)
    mosaic.save(file)
