"""A run's folder and what its user sees: settings, JSON lines, results, the checkpoints' places, console progress.

Only rank 0 writes; on other ranks every method does nothing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from ssd.checkpoints.retention import FOLDER, LAST
from ssd.config import Config
from ssd.console import Console
from ssd.detectors.table import detector_of
from ssd.distributed import Ranks
from ssd.environment import git_revision, hardware, versions
from ssd.errors import InputError
from ssd.run.printed_metrics import show_metrics
from ssd.run.progress import StepProgress
from ssd.run.trackers import Trackers
from ssd.storage.files import written_whole


class Run:
    """One run's folder: config.json, log.jsonl, results.json, evaluation.json, checkpoints/, and lost-batches.jsonl if
    there are any. What it logs of steps and evaluations, its trackers are told too."""

    def __init__(self, folder: Path, ranks: Ranks, trackers: Trackers | None = None):
        self.folder = folder
        self.trackers = Trackers(()) if trackers is None else trackers
        self.last_checkpoint = folder / FOLDER / LAST
        self.lost_batches = folder / "lost-batches.jsonl"
        self.is_main, self.world_size = ranks.is_main, ranks.world_size
        self.console = Console(quiet=not ranks.is_main, soft_wrap=True)
        self._progress: StepProgress | None = None
        if self.is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--output {folder}: cannot be a folder ({error.strerror}); pass another") from error

    def write_config(self, config: Config, ranks: Ranks) -> None:
        content = {
            "detector": detector_of(config.detector).title(config.detector),
            "settings": config.to_dict(),
            "command": sys.argv,
            "world_size": ranks.world_size,
            "hardware": hardware(ranks.device),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        self._write_json("config.json", content)

    def write_results(self, results: dict[str, Any]) -> None:
        self._write_json("results.json", results)

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """evaluation: as `analysis.analyse` returns it."""
        self._write_json("evaluation.json", evaluation, indent=None)

    def _write_json(self, name: str, content: dict[str, Any], indent: int | None = 2) -> None:
        if self.is_main:
            with written_whole(self.folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=indent) + "\n")

    def log(self, event: str, **values: Any) -> None:
        """Appends one line to log.jsonl."""
        self._append(self.folder / "log.jsonl", {"event": event, "time_s": round(time.time(), 3), **values})
        if event in ("train", "evaluation"):
            self.trackers.scalars(_scalars(values, f"{event}/"), values["step"])

    def write_lost_batches(self, image_ids: dict[int, list[int]]) -> None:
        """Appends a line a step: the images of the ranks whose loss was not finite."""
        for step, ids in image_ids.items():
            self._append(self.lost_batches, {"step": step, "image_ids": ids})

    def _append(self, file: Path, content: dict[str, Any]) -> None:
        if self.is_main:
            with file.open("a") as stream:
                stream.write(json.dumps(content) + "\n")

    def rewind(self, step: int, judged_step: int) -> None:
        """Takes out of log.jsonl the steps after this one and the evaluations after judged_step, to which a killed
        run had got that goes on from here, and a line that it did not end; and earlier results, which are those of a
        run that is over."""
        file = self.folder / "log.jsonl"
        if not self.is_main:
            return
        for name in ("results.json", "evaluation.json"):
            (self.folder / name).unlink(missing_ok=True)
        if not file.exists():
            return
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and _happened_by(json.loads(line), step, judged_step)]
        with written_whole(file) as temporary:
            temporary.write_text("".join(kept))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start_progress(self, total_steps: int, first_step: int) -> None:
        """Shows a bar in a terminal, and elsewhere a line now and then."""
        if self.is_main:
            self._progress = StepProgress(self.console, total_steps, first_step)

    def advance(self) -> None:
        """One step more is done."""
        if self._progress is not None:
            self._progress.advance()

    def show_state(self, text: str) -> None:
        """Puts a line under the bar, in place of the last one, or into the next line of progress."""
        if self._progress is not None:
            self._progress.show_state(text)

    def leave_out(self, seconds: float) -> None:
        """So long no step was taken, because the model was evaluated."""
        if self._progress is not None:
            self._progress.leave_out(seconds)

    def tell(self, text: str) -> None:
        """What goes on meanwhile: under the bar, or in a line."""
        if self._progress is not None:
            self._progress.tell(text)

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show_metrics(self, metrics: dict[str, Any], title: str) -> None:
        show_metrics(metrics, title, self.console)


def _happened_by(line: dict[str, Any], step: int, judged_step: int) -> bool:
    return line.get("step", 0) <= (judged_step if line["event"] == "evaluation" else step)


def _scalars(values: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of a line of the log, by name; those of a dictionary by its name and theirs: per_class/cat."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[prefix + name] = value
    return found
