"""From predictions to detections: threshold, decode, greedy NMS for each class, the best of each image.

Everything runs on the predictions' device over the whole batch, without a loop over images or classes. On a GPU the
host waits for the device three times at most, whatever is found: each wait leaves the device idle for as long as the
host takes to give it work again.
"""

import math

from torch import Tensor

from ssd.batch import Detections, Predictions
from ssd.detectors.postprocess.suppression import Candidates, rank_in_groups, suppress
from ssd.detectors.ssd300.anchors import default_boxes_cxcywh
from ssd.matching import decode

# Where choosing costs no wait, candidates that are out are dropped at once; elsewhere they are carried on and marked.
_DROPS_AT_ONCE_ON = ("cpu",)


def detect(
    predictions: Predictions, *, score_threshold: float, nms_iou: float, max_per_class: int, max_per_image: int
) -> Detections:
    """Detections of B images, D = max_per_image.

    For each class but background: of the default boxes whose probability exceeds score_threshold, the max_per_class
    best go through greedy non-maximum suppression, in which a box falls to a better one of its class with an IoU above
    nms_iou; then the max_per_image best of all classes stay, and are cut to the image. Boxes are compared uncut, as
    NVIDIA's models have it. A box or probability of NaN is no detection.
    """
    candidates = decode_candidates(predictions, score_threshold=score_threshold, max_per_class=max_per_class)
    return suppress(candidates, nms_iou=nms_iou, max_per_image=max_per_image)


def decode_candidates(predictions: Predictions, *, score_threshold: float, max_per_class: int) -> Candidates:
    """The first half of `detect`: of each class the max_per_class best above the threshold, as boxes."""
    batch, num_boxes, num_classes = predictions.logits.shape
    offsets, logits = (part.flatten(0, 1) for part in predictions)
    device = logits.device

    box = _promising(logits, score_threshold)
    probabilities = logits.index_select(0, box).float().softmax(dim=1)[:, 1:]
    defaults = default_boxes_cxcywh(device)
    boxes_ltrb = decode(offsets.index_select(0, box).float(), defaults.index_select(0, box % num_boxes))
    # No metric may see a box of NaN. Here this costs no wait for the device.
    is_box = ~boxes_ltrb.isnan().any(dim=1, keepdim=True)
    row, label = ((probabilities > score_threshold) & is_box).nonzero(as_tuple=True)
    scores, box = probabilities[row, label], box[row]
    group, order, rank = rank_in_groups(box // num_boxes * num_classes + label + 1, scores)
    if device.type in _DROPS_AT_ONCE_ON:
        kept = (rank < max_per_class).nonzero().squeeze(1)
        group, order = group.index_select(0, kept), order.index_select(0, kept)
    else:
        group = group.masked_fill(rank >= max_per_class, -1)
    return Candidates(boxes_ltrb[row[order]], scores[order], group, batch, num_classes, max_per_class)


def _promising(logits: Tensor, score_threshold: float) -> Tensor:
    """Rows of n x K logits that can have a probability above the threshold, and a few more: m int64, ascending.

    A probability is at most its ratio to the background's, which costs no softmax. Nearly all default boxes are
    background by far, so only the others need one.
    """
    least = math.log(score_threshold) - 1e-3 if score_threshold > 0 else -math.inf  # less what rounding takes
    above_background = logits[:, 1:].amax(dim=1).float() - logits[:, 0].float()
    return (above_background > least).nonzero().squeeze(1)
