"""The same images of a split again and again, with what is true of them and what detectors find in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ssd.batch import EvalBatch, GroundTruth
from ssd.evaluation.analysis import SHOWN_SCORE
from ssd.evaluation.coco import class_names
from ssd.evaluation.detect import Results
from ssd.masks import bitmap_of_segmentation
from ssd.pictures.drawing import Box, draw_boxes, draw_skeleton, mosaic, picture_of, tint
from ssd.pictures.lettering import shown_in_picture
from ssd.views import View

_COLUMNS = 4
_TILE_PX = 300


_Part = tuple[int, Any, np.ndarray | None]
"""Of an object: its category's id, its mask as COCO states it, and P x 3 points in pixels with a visibility."""


def _found_parts(results: Results, shown: np.ndarray, size: list[int]) -> list[_Part]:
    """size: (height, width) of the image."""
    parts: list[_Part] = []
    for row in shown.tolist():
        mask = results.masks and {"size": size, "counts": results.masks[row]}
        points = None
        if results.keypoints is not None:
            points = np.concatenate(
                [results.keypoints[row, :, :2], np.ones_like(results.keypoints[row, :, :1])], axis=1
            )
        parts.append((int(results.rows[row, 6]), mask, points))
    return parts


class Examples:
    """The first images with objects of what `remember` is shown, which the view has made."""

    def __init__(self, ground_truth: GroundTruth, count: int, view: View) -> None:
        self._ground_truth, self._count, self._view = ground_truth, count, view
        self._names = class_names(ground_truth)
        self._with_objects = {row["image_id"] for row in ground_truth.dataset["annotations"]}
        self._images: dict[int, Tensor] = {}  # index -> 3 x H x W

    def __len__(self) -> int:
        return len(self._images)

    def remember(self, batch: EvalBatch) -> None:
        for row, index in enumerate(batch.indices.tolist()):
            if self._ground_truth.image_ids[index] in self._with_objects and len(self._images) < self._count:
                left, top, right, bottom = batch.placed_ltrb_px[row].tolist()
                self._images[index] = batch.images[row, :, top:bottom, left:right].cpu()

    def sheet(self, found: Sequence[tuple[str, Results]]) -> np.ndarray:
        """H x W x 3 uint8: the images in rows, first with the ground truth, below with the detections of each.

        found: a title and results as `detect.detect_split` returns them. Those of SHOWN_SCORE or more are drawn.
        """
        titled = []
        indices = list(self._images)
        for first in range(0, len(indices), _COLUMNS):
            row = indices[first : first + _COLUMNS]
            truths = [self._drawn(index, self._true_boxes(index), self._true_parts(index)) for index in row]
            titled.append(("ground truth", truths))
            for title, results in found:
                titled.append((title, [self._drawn(index, *self._found(index, results)) for index in row]))
        return mosaic(titled, _TILE_PX)

    def _drawn(self, index: int, boxes: list[Box], parts: list[_Part]) -> Image.Image:
        width, height = self._ground_truth.sizes_px[index].tolist()
        scale = _TILE_PX / max(width, height)
        size_px = (max(1, round(scale * width)), max(1, round(scale * height)))
        picture = picture_of(self._images[index], size_px, self._view.mean, self._view.std)
        self._draw_parts(picture, index, parts)
        draw_boxes(picture, boxes)
        return picture

    def _found(self, index: int, results: Results) -> tuple[list[Box], list[_Part]]:
        rows = results.rows
        shown = np.flatnonzero((rows[:, 0] == self._ground_truth.image_ids[index]) & (rows[:, 5] >= SHOWN_SCORE))
        boxes = [self._box(index, row[1:5].tolist(), int(row[6]), f" {row[5]:.2f}") for row in rows[shown]]
        width, height = self._ground_truth.sizes_px[index].tolist()
        return boxes, _found_parts(results, shown, [height, width])

    def _true_parts(self, index: int) -> list[_Part]:
        image_id = self._ground_truth.image_ids[index]
        rows = [row for row in self._ground_truth.dataset["annotations"] if row["image_id"] == image_id]
        return [
            (
                row["category_id"],
                row.get("segmentation"),
                np.reshape(row["keypoints"], (-1, 3)) if "keypoints" in row else None,
            )
            for row in rows
        ]

    def _draw_parts(self, picture: Image.Image, index: int, parts: list[_Part]) -> None:
        """Masks and keypoints, where there are any, the first on top."""
        width, height = self._ground_truth.sizes_px[index].tolist()
        factor = np.divide(picture.size, (width, height))
        draw = ImageDraw.Draw(picture)
        for category_id, segmentation, points in reversed(parts):
            label = self._ground_truth.category_ids.index(category_id) + 1
            if segmentation:
                tint(picture, bitmap_of_segmentation(segmentation, (width, height)), label)
            skeleton = self._ground_truth.skeleton
            if points is not None and skeleton is not None and skeleton.is_of(label):
                places = [(x, y) if visibility else None for x, y, visibility in (points * (*factor, 1)).tolist()]
                draw_skeleton(draw, places, skeleton, label, 2)

    def _true_boxes(self, index: int) -> list[Box]:
        image_id = self._ground_truth.image_ids[index]
        rows = [row for row in self._ground_truth.dataset["annotations"] if row["image_id"] == image_id]
        return [self._box(index, row["bbox"], row["category_id"], " (crowd)" if row["iscrowd"] else "") for row in rows]

    def _box(self, index: int, xywh_px: list[float], category_id: int, more: str) -> Box:
        width, height = self._ground_truth.sizes_px[index].tolist()
        x, y, w, h = xywh_px
        label = self._ground_truth.category_ids.index(category_id)
        ltrb = x / width, y / height, (x + w) / width, (y + h) / height
        return Box(ltrb, label + 1, shown_in_picture(self._names[label], label + 1) + more)
