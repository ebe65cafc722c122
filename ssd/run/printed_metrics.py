"""What is printed of an evaluation: the COCO table, and where an AP falls among the published ones."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from ssd.console import Console
from ssd.detectors.contract import Published
from ssd.evaluation.coco import METRIC_NAMES
from ssd.evaluation.figures import figures

_VOC = {"VOC07": "mean precision at 11 recalls", "VOC12": "area under the precision"}
_COCO = METRIC_NAMES[:9]  # the recalls by size would make the table wider than a terminal
_KINDS = {"segm": "masks", "keypoints": "keypoints", "recall": "recall of boxes of any class"}
_MANY_CLASSES, _SHOWN_CLASSES = 20, 8


def show_metrics(metrics: dict[str, Any], title: str, console: Console | None = None) -> None:
    """Prints the COCO table, all other metrics and each class's AP, best first."""
    console = console or Console(soft_wrap=True)
    table = Table(title=escape(title), title_justify="left")
    for name in _COCO:
        if name in metrics:
            table.add_column(name, justify="right")
    table.add_row(*(_score(metrics[str(column.header)]) for column in table.columns))
    console.print(table)
    _show_parts(metrics, console)
    per_class = metrics.get("per_class", {})
    best_first = sorted(per_class, key=lambda name: -1 if per_class[name] is None else per_class[name], reverse=True)
    scores = [f"{name} {_score(per_class[name])}" for name in best_first if per_class[name] is not None]
    if len(scores) > _MANY_CLASSES:
        middle = len(scores) - 2 * _SHOWN_CLASSES
        scores = [*scores[:_SHOWN_CLASSES], f"... {middle} more ...", *scores[-_SHOWN_CLASSES:]]
    if scores:
        console.print(f"AP by class: {', '.join(scores)}", markup=False)
    for name in ("VOC07", "VOC12"):
        if name in metrics:
            own = ", ".join(f"{each} {_score(value)}" for each, value in metrics[f"{name}_per_class"].items())
            console.print(f"{name}, {_VOC[name]}: {_score(metrics[name])} ({own})", markup=False)
    if without := [name for name in best_first if per_class[name] is None]:
        console.print(f"without objects in the split: {', '.join(without)}", markup=False)


def _show_parts(metrics: dict[str, Any], console: Console) -> None:
    """A line each of what was found beside boxes, of their recall, and of metrics that are known by name only."""
    others = [name for name in figures(metrics) if name not in (*METRIC_NAMES, *_VOC)]
    for kind, what in _KINDS.items():
        names = [name for name in others if name.startswith(f"{kind}_")]
        others = [name for name in others if name not in names]
        if names:
            scores = (f"{name.removeprefix(f'{kind}_')} {_score(metrics[name])}" for name in names)
            console.print(f"{what}: {'  '.join(scores)}", markup=False)
    if others:
        console.print(f"others: {'  '.join(f'{name} {_score(metrics[name])}' for name in others)}", markup=False)


def _score(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"


def published_band(ap: float, published: Published) -> str:
    """One line: where an AP in [0, 1] falls among the seeds of a published figure."""
    deviations = (ap - published.ap) / published.deviation
    side = "above" if deviations > 0 else "below"
    return (
        f"AP {ap:.4f} is {abs(deviations):.1f} standard deviations {side} the mean of {published.whose} "
        f"{published.seeds} published seeds, {published.ap} +- {published.deviation}"
    )
