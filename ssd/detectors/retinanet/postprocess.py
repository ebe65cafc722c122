"""From a model's candidates to detections, as detectron2 has it."""

from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Forward
from ssd.detectors.postprocess.candidates import Candidates
from ssd.detectors.torchvision.postprocess import detections_of, tta_steps_for_boxes, without_empty
from ssd.detectors.torchvision.targets import limits_px
from ssd.detectors.tta.steps import TTASteps


def detect(thresholds: Thresholds) -> Detect:
    """Boxes are cut to the image after they suppressed each other, and D = max_per_image are chosen."""

    def detect_batch(forward: Forward, batch: EvalBatch) -> Detections:
        limits = limits_px(batch.placed_ltrb_px[:, 2:], batch.images.device)
        return without_empty(detections_of(forward(batch.images, limits), limits, thresholds))

    return detect_batch


def tta_steps(thresholds: Thresholds) -> TTASteps:
    """As `detect`: what lies beside the image takes places."""
    plain = tta_steps_for_boxes(thresholds)

    def detections(joined: Candidates, limits: Tensor, passes: int) -> Detections:
        return without_empty(plain.detections(joined, limits, passes))

    return plain._replace(detections=detections)
