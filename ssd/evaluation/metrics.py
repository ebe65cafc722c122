"""The metrics of --metrics: COCO's always, VOC's and the recall of proposals where they are asked for.

A new name also goes into `config.METRICS`; what shows figures takes any, see `figures.py`.
"""

from typing import Any

from ssd.batch import GroundTruth
from ssd.evaluation.detect import Results
from ssd.evaluation.parts import all_metrics
from ssd.evaluation.recall import recall_metrics
from ssd.evaluation.voc import voc_metrics

DECIDING = {"coco": "AP", "voc07": "VOC07", "voc12": "VOC12", "recall": "recall_AR1000"}
"""By --metrics: the figure that the best checkpoint and --target go by where it is named first."""


def metrics_of(
    ground_truth: GroundTruth, results: Results, *, names: tuple[str, ...], engine: str = "faster"
) -> dict[str, Any]:
    """names: of config.METRICS. engine: as in `all_metrics`, whose figures stand in the result too."""
    metrics = all_metrics(ground_truth, results, engine)
    for name in names:
        if name == "recall":
            metrics |= recall_metrics(ground_truth, results.rows)
        elif name != "coco":
            metrics |= voc_metrics(ground_truth, results.rows, name)
    return metrics
