"""What a run shows of its evaluations: example pictures after each, curves for its trackers, and evaluation.json,
plots and a report at its end.

On rank 0 only, and beside the training steps: it keeps what the evaluation had in its hands anyway.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ssd.batch import EvalBatch, EvalLoader, GroundTruth
from ssd.evaluation.analysis import SHOWN_SCORE, analyse
from ssd.evaluation.coco import class_names, precision_at_iou50
from ssd.evaluation.detect import Results
from ssd.report.example_pictures import Examples
from ssd.report.history import PREDICTIONS, read_history, write_csv
from ssd.run.files import Run
from ssd.run.progress import told
from ssd.storage.files import written_whole
from ssd.views import View

EXAMPLES = 8


class Showcase:
    """A loader of the split to judge by that remembers its first images with objects, and `take`s what was found."""

    def __init__(
        self,
        loader: EvalLoader,
        ground_truth: GroundTruth,
        run: Run,
        engine: str,
        view: View,
        coverage: Callable[[Tensor], dict[str, Any]] | None = None,
        *,
        plots: bool,
    ) -> None:
        """engine: one of config.EVAL_ENGINES. view: the loader's. coverage: as `Detector.coverage`. plots: draw the
        examples, plots and the report into the run's folder."""
        self._coverage = coverage
        self._loader, self.ground_truth, self._run, self._engine = loader, ground_truth, run, engine
        self._examples = Examples(ground_truth, EXAMPLES, view)
        self._results: np.ndarray | None = None
        self._pictures = run.folder / "plots" / PREDICTIONS if plots else None
        self._drew = False

    def __iter__(self) -> Iterator[EvalBatch]:
        images = len(self.ground_truth.image_ids)
        for batch in told(self._loader, images, self._run.tell, images_each=self._run.world_size):
            if self._run.is_main:
                self._examples.remember(batch)
            yield batch

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

    def _mosaic(self, found: Results) -> np.ndarray:
        return self._examples.sheet([(f"detections that score {SHOWN_SCORE} or more", found)])
