"""What a run shows of its evaluations: example pictures after each, curves for its trackers, and evaluation.json,
plots and a report at its end.

On rank 0 only, and beside the training steps: it keeps what the evaluation had in its hands anyway.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ssd.batch import EvalBatch, EvalLoader, GroundTruth
from ssd.drawing import Box, draw_boxes, draw_skeleton, mosaic, picture_of, tint
from ssd.evaluation.analysis import SHOWN_SCORE, analyse
from ssd.evaluation.coco import class_names, precision_at_iou50
from ssd.evaluation.detect import Results
from ssd.files import written_whole
from ssd.lettering import shown_in_picture
from ssd.masks import bitmap_of_segmentation
from ssd.report.history import PREDICTIONS, read_history, write_csv
from ssd.run.files import Run

EXAMPLES = 8
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


class Showcase:
    """A loader of the split to judge by that remembers its first images with objects, and `take`s what was found."""

    def __init__(
        self,
        loader: EvalLoader,
        ground_truth: GroundTruth,
        run: Run,
        engine: str,
        coverage: Callable[[Tensor], dict[str, Any]] | None = None,
        *,
        plots: bool,
    ) -> None:
        """engine: one of config.EVAL_ENGINES. coverage: as `Detector.coverage`. plots: draw the examples, plots
        and the report into the run's folder."""
        self._coverage = coverage
        self._loader, self.ground_truth, self._run, self._engine = loader, ground_truth, run, engine
        self._names = class_names(ground_truth)
        self._with_objects = {row["image_id"] for row in ground_truth.dataset["annotations"]}
        self._examples: dict[int, Tensor] = {}  # index -> 3 x H x W
        self._results: np.ndarray | None = None
        self._pictures = run.folder / "plots" / PREDICTIONS if plots else None
        self._drew = False

    def __iter__(self) -> Iterator[EvalBatch]:
        for batch in self._loader:
            if self._run.is_main and len(self._examples) < EXAMPLES:
                self._remember(batch)
            yield batch

    def _remember(self, batch: EvalBatch) -> None:
        for row, index in enumerate(batch.indices.tolist()):
            if self.ground_truth.image_ids[index] in self._with_objects and len(self._examples) < EXAMPLES:
                left, top, right, bottom = batch.placed_ltrb_px[row].tolist()
                self._examples[index] = batch.images[row, :, top:bottom, left:right].cpu()

    def take(self, found: Results, step: int) -> None:
        """Draws the examples, and sends the trackers curves and pictures."""
        self._results = results = found.rows
        if self._pictures is not None and self._examples:
            self._draw(self._pictures, found)
        if self._run.trackers:
            precision = precision_at_iou50(self.ground_truth, results, self._engine)
            curves = zip(class_names(self.ground_truth), precision, strict=True)
            self._run.trackers.precision_recall({name: curve for name, curve in curves if curve[0] >= 0}, step)
            if self._examples:
                self._run.trackers.image("predictions", self._mosaic(found), step)

    def _draw(self, file: Path, found: Results) -> None:
        file.parent.mkdir(exist_ok=True)
        with written_whole(file) as temporary:
            Image.fromarray(self._mosaic(found)).save(temporary, format="JPEG", quality=88)
        if not self._drew:
            self._drew = True
            self._run.say(f"example detections, drawn anew after each evaluation: {file}")

    def write(self) -> None:
        """Writes evaluation.json and metrics.csv into the folder of the run, which has its results already; with plots,
        those and report.html."""
        if self._results is not None:
            self._run.write_evaluation(analyse(self.ground_truth, self._results, self._engine, self._coverage))
        write_csv(self._run.folder / "metrics.csv", read_history(self._run.folder))
        if self._pictures is None:
            return
        from ssd.report.page import (
            write_plots_and_report,  # matplotlib: a second that no run has to wait for at its start
        )

        if note := write_plots_and_report([self._run.folder], self._run.folder):
            self._run.say(f"note: {note}")

    def _mosaic(self, results: Results) -> np.ndarray:
        """The examples, in rows: ground truth above, detections below."""
        truths, found = [], []
        rows = results.rows
        for index, image in self._examples.items():
            width, height = self.ground_truth.sizes_px[index].tolist()
            scale = _TILE_PX / max(width, height)
            size_px = max(1, round(scale * width)), max(1, round(scale * height))
            picture = picture_of(image, size_px)
            truths.append(picture.copy())
            self._draw_parts(truths[-1], index, self._true_parts(index))
            draw_boxes(truths[-1], self._true_boxes(index))
            shown = np.flatnonzero((rows[:, 0] == self.ground_truth.image_ids[index]) & (rows[:, 5] >= SHOWN_SCORE))
            found.append(picture)
            self._draw_parts(found[-1], index, _found_parts(results, shown, [height, width]))
            boxes = [(row[1:5].tolist(), int(row[6]), f" {row[5]:.2f}") for row in rows[shown]]
            draw_boxes(found[-1], [self._box(index, *box) for box in boxes])
        titled = []
        for first in range(0, len(found), _COLUMNS):
            titled.append(("ground truth", truths[first : first + _COLUMNS]))
            titled.append((f"detections that score {SHOWN_SCORE} or more", found[first : first + _COLUMNS]))
        return mosaic(titled, _TILE_PX)

    def _true_parts(self, index: int) -> list[_Part]:
        image_id = self.ground_truth.image_ids[index]
        rows = [row for row in self.ground_truth.dataset["annotations"] if row["image_id"] == image_id]
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
        width, height = self.ground_truth.sizes_px[index].tolist()
        factor = np.divide(picture.size, (width, height))
        draw = ImageDraw.Draw(picture)
        for category_id, segmentation, points in reversed(parts):
            label = self.ground_truth.category_ids.index(category_id) + 1
            if segmentation:
                tint(picture, bitmap_of_segmentation(segmentation, (width, height)), label)
            skeleton = self.ground_truth.skeleton
            if points is not None and skeleton is not None and skeleton.is_of(label):
                places = [(x, y) if visibility else None for x, y, visibility in (points * (*factor, 1)).tolist()]
                draw_skeleton(draw, places, skeleton, label, 2)

    def _true_boxes(self, index: int) -> list[Box]:
        image_id = self.ground_truth.image_ids[index]
        rows = [row for row in self.ground_truth.dataset["annotations"] if row["image_id"] == image_id]
        return [self._box(index, row["bbox"], row["category_id"], " (crowd)" if row["iscrowd"] else "") for row in rows]

    def _box(self, index: int, xywh_px: list[float], category_id: int, more: str) -> Box:
        width, height = self.ground_truth.sizes_px[index].tolist()
        x, y, w, h = xywh_px
        label = self.ground_truth.category_ids.index(category_id)
        ltrb = x / width, y / height, (x + w) / width, (y + h) / height
        return Box(ltrb, label + 1, shown_in_picture(self._names[label], label + 1) + more)
