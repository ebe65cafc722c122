"""What a detector is asked in each pass of test-time augmentation, and for what became of all."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ssd.batch import Detections, EvalBatch
from ssd.detectors.postprocess.candidates import Candidates, PartMaps


class Measures(NamedTuple):
    """Of a batch's images in the pixels that a detector's boxes are in. limits_px: B x 1 x 4, the largest left, top,
    right and bottom. mirror_px: B x 1 x 1, the width about whose half they are mirrored: where a resized width was
    rounded, it is less than a pixel off the largest right."""

    limits_px: Tensor
    mirror_px: Tensor


class TTASteps(NamedTuple):
    """The steps by which a detector finds objects in several passes. forward: the model as `contract.Detect` takes it.

    measures: a batch -> its images' measures. candidates: (forward, batch) -> what one pass finds.
    detections: (candidates of all passes in pixels of the first, its limits, how many passes) -> `Detections` without
    masks and keypoints.
    score_threshold: candidates that score no more are none.
    parts: (forward, batch, boxes_ltrb_px B x D x 4, labels B x D) -> what the heads say of these boxes. None of a
    detector that finds boxes only. finds_masks: whether it has a head for masks.
    points: (keypoint maps B x D x P x S x S, boxes, labels B x D, limits) -> `Detections.keypoints`; None
    of a detector without. mirrored_points: which point each becomes in a mirror image.
    is_closed: whether boxes are those of closed ranges of pixels, and are stretched as such.
    """

    measures: Callable[[EvalBatch], Measures]
    candidates: Callable[[Any, EvalBatch], Candidates]
    detections: Callable[[Candidates, Tensor, int], Detections]
    score_threshold: float
    parts: Callable[[Any, EvalBatch, Tensor, Tensor], PartMaps] | None = None
    finds_masks: bool = False
    points: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    mirrored_points: tuple[int, ...] = ()
    is_closed: bool = False
