"""The figures among the results of an evaluation, by their names. What shows them takes any: a metric that is new needs
no line here."""

from typing import Any

from ssd.evaluation.coco import METRIC_NAMES

# What a line of the log or a run's results have beside the metrics.
_OF_RUN = {
    "time_s", "epoch", "step", "evaluation_s", "epochs", "images_per_second", "train_seconds", "skipped_steps",
    "time_to_target_s",
}  # fmt: skip
_CHIEF = ("AP", "AP50", "AP75", "VOC07", "VOC12", "segm_AP", "keypoints_AP", "recall_AR1000")
_KINDS = ("segm_", "keypoints_", "recall_")


def figures(results: dict[str, Any]) -> dict[str, float | None]:
    """Metrics that are one number, by name: {"AP": 0.25, "segm_AP": 0.2, ...}, without those of each class."""
    return {
        name: value
        for name, value in results.items()
        if name not in _OF_RUN and (value is None or isinstance(value, int | float))
    }


def chief(results: dict[str, Any]) -> list[str]:
    """The names to show where there is room for a few: of each kind of metrics the first ones, and all that are of no
    kind that is known here."""
    names = figures(results)
    known = {*METRIC_NAMES, *_CHIEF}
    return [
        *(name for name in _CHIEF if name in names),
        *(name for name in names if name not in known and not name.startswith(_KINDS)),
    ]
