"""What a run's folder tells of it, read back for plots, reports and metrics.csv."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from ssd.errors import InputError
from ssd.evaluation.figures import chief
from ssd.evaluation.metrics import DECIDING

PREDICTIONS = "predictions.jpg"
"""In a run's plots/: example detections beside the ground truth."""
INSTANCES = "instances.jpg"
"""The boxes that a distillation by general instances learns from."""


class History(NamedTuple):
    """A run as its folder has it. The dictionaries are those of the files.

    steps, evaluations: the lines of log.jsonl with these events, by step. results, evaluation: of results.json and
    evaluation.json; None while the run is not over.
    """

    folder: Path
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    results: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def loss_names(self) -> list[str]:
        """The losses whose sum is "loss", as the log's lines have them: "box_loss", ..."""
        return list(dict.fromkeys(name for line in self.steps for name in line if name.endswith("_loss")))

    def hours_at(self, step: int) -> float:
        """Of training and evaluations, up to the last line of the log that does not come after the step."""
        elapsed_s = [line["elapsed_s"] for line in self.steps if line["step"] <= step]
        return float(elapsed_s[-1]) / 3600 if elapsed_s else 0.0


def read_history(folder: Path) -> History:
    """Raises InputError for what is no run's folder, or one in which nothing has been logged."""
    config, results, evaluation = (_read_json(folder / f"{name}.json") for name in ("config", "results", "evaluation"))
    log = folder / "log.jsonl"
    if config is None or not log.is_file():
        raise InputError(f"{folder}: not the folder of a run; pass one with a config.json and a log.jsonl")
    # A run that is going on may be writing the last line.
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    try:
        lines = [json.loads(line) for line in whole]
    except ValueError as error:
        raise InputError(f"{log}: a line is damaged ({error}); take it out") from error
    steps, evaluations = ([line for line in lines if line["event"] == event] for event in ("train", "evaluation"))
    if not steps:
        raise InputError(f"{folder}: nothing is logged there yet; wait for its first line, see --log-interval")
    if "epoch" not in steps[0]:
        raise InputError(f"{log}: its steps name no epoch, as those of older versions; plot runs of this version")
    return History(folder, config, steps, evaluations, results, evaluation)


def deciding(history: History) -> str:
    """The metric that best.pt and --target went by. The run has been evaluated."""
    name = DECIDING[history.config["settings"].get("metrics", ("coco",))[0]]
    return name if all(name in line for line in history.evaluations) else chief(history.evaluations[-1])[0]


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); take it out, or run again") from error
    return content if isinstance(content, dict) else None


_OF_STEP = ("epoch", "step", "elapsed_s", "loss")
_OF_STEP_TOO = ("learning_rate", "images_per_second", "data_wait_s", "skipped_steps")
_NOT_METRICS = ("event", "time_s", "epoch", "step")


def write_csv(file: Path, history: History) -> None:
    """A row a line of the log: the losses and times of its steps, and in the row of its step, an evaluation's metrics
    and each class's AP as "AP <class>"."""
    judged = {line["step"]: _metrics_of(line) for line in history.evaluations}
    metrics = list(dict.fromkeys(name for values in judged.values() for name in values))
    with file.open("w", newline="") as stream:
        columns = [*_OF_STEP, *history.loss_names, *_OF_STEP_TOO, *metrics]
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for line in history.steps:
            writer.writerow(line | judged.get(line["step"], {}))


def _metrics_of(line: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in line.items() if name not in _NOT_METRICS and not isinstance(value, dict)}
    return own | {f"AP {name}": value for name, value in line.get("per_class", {}).items()}
