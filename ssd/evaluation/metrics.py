"""The metrics of --metrics: COCO's always, VOC's where they are asked for."""

from typing import Any

import numpy as np

from ssd.batch import GroundTruth
from ssd.evaluation.coco import coco_metrics
from ssd.evaluation.voc import voc_metrics

DECIDING = {"coco": "AP", "voc07": "VOC07", "voc12": "VOC12"}
"""By --metrics: the figure that the best checkpoint and --target go by where it is named first."""


def metrics_of(
    ground_truth: GroundTruth, results: np.ndarray, *, names: tuple[str, ...], engine: str = "faster"
) -> dict[str, Any]:
    """names: of config.METRICS. engine: as in `coco_metrics`, whose figures stand in the result too."""
    metrics = coco_metrics(ground_truth, results, engine)
    for name in names:
        if name != "coco":
            metrics |= voc_metrics(ground_truth, results, name)
    return metrics
