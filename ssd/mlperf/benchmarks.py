"""MLPerf's benchmarks of detectors, as the rulesets of its checker have them. Light: nothing here imports torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ssd.config import Config
from ssd.detectors.names import family_of
from ssd.errors import InputError


class Benchmark(NamedTuple):
    """name: in logs. ruleset: the checker's, that a log is written by. quality: metric -> the figure in [0, 1] that one
    evaluation of the closed division has to reach. words: metric -> its name in eval_accuracy; {} where that is the AP
    itself."""

    name: str
    ruleset: str
    quality: dict[str, float]
    words: dict[str, str] = {}

    def accuracy(self, metrics: Mapping[str, Any]) -> Any:
        """The value of eval_accuracy. Of a split without masks their AP is -1, as pycocotools says of one without
        objects."""
        if not self.words:
            return metrics["AP"]
        return {word: metrics.get(metric, -1.0) for metric, word in self.words.items()}

    def share_of_quality(self, accuracy: Any) -> float:
        """How near a value of eval_accuracy is to the quality: 1 or more where all of it is reached."""
        figures = accuracy if self.words else {"": accuracy}
        return min(figures[self.words.get(metric, "")] / least for metric, least in self.quality.items())


# The rules of 1.1.0 ask for MXNet's own names of weights, and from 2.0.0 to 4.1.0 `ssd` is RetinaNet.
SSD = Benchmark("ssd", "1.0.0", {"AP": 0.23})
# From 6.0.0 on there is none of RetinaNet.
RETINANET = Benchmark("retinanet", "5.1.0", {"AP": 0.34})
# The last with it. 1.1.0 to 2.1.0 ask for one initialization of each weight, by names of the reference.
MASK_RCNN = Benchmark("maskrcnn", "3.1.0", {"AP": 0.377, "segm_AP": 0.339}, {"AP": "BBOX", "segm_AP": "SEGM"})

BENCHMARKS = {benchmark.name: benchmark for benchmark in (SSD, RETINANET, MASK_RCNN)}


def benchmark_of(config: Config) -> Benchmark:
    """That of the detector. Raises InputError for one that MLPerf has none of."""
    name = family_of(config.detector).benchmark(config.detector)
    if not name:
        raise InputError(
            f"--mlperf: MLPerf has no benchmark of {config.detector.name}; leave it out, or pass --detector ssd300, a "
            "RetinaNet or a Mask R-CNN"
        )
    return BENCHMARKS[name]
