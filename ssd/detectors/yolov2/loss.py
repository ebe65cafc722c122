"""The region loss of YOLOv2, as a function whose gradient is what darknet writes down as one.

darknet has no loss: it has for each output a difference to a target, and multiplies some with the sigmoid's slope. The
function here has these differences for its gradient, which a test compares. The cost that darknet prints is another.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd.batch import RaggedBatch
from ssd.boxes import cxcywh_to_ltrb, ltrb_to_cxcywh, pairwise_iou
from ssd.constants import constant
from ssd.detectors.yolov2.boxes import Cells, cells_of
from ssd.detectors.yolov2.darknet.model import Raw
from ssd.detectors.yolov2.darknet.sections import Region

PRIOR_IMAGES = 12800
"""So many images long the boxes that learn no object are drawn to their anchors."""
_PRIOR_SCALE = 0.01


class _Truths(NamedTuple):
    """The objects of a batch, N of all images.

    image: N int64. boxes_cxcywh: N x 4 in [0, 1] of the input. labels: N int64, from 0. padded_ltrb: B x M x 4, the
    boxes of each image, filled up with empty ones.
    """

    image: Tensor
    boxes_cxcywh: Tensor
    labels: Tensor
    padded_ltrb: Tensor


class _Targets(NamedTuple):
    """What the objects are for the boxes of their cells.

    box: N int64, the box in B x P flattened that learns the object. is_learned: N bool; a box that two objects have
    learns the last. learns: B x P bool. centre_in_cell: N x 2. log_sides: N x 2, of the anchor's.
    """

    box: Tensor
    is_learned: Tensor
    learns: Tensor
    centre_in_cell: Tensor
    log_sides: Tensor


def region_losses(raw: Raw, batch: RaggedBatch, region: Region, form: str) -> dict[str, Tensor]:
    """Sums over the boxes of an image, means over the batch: float32 scalars "box", "objectness", "background",
    "class" and "prior".

    form: "darknet", or "square-root" of YOLOv1's paper, for comparison: sides count by their square roots, large boxes
    as much as small ones, and classes by squares. Nothing here waits for the device.
    """
    cells = cells_of(raw.values, region)
    truths = _truths_of(batch)
    targets = _match(truths, cells, region, raw.values.shape[2:])

    ignored = _best_iou(cells, truths) > region.thresh
    background = torch.where(ignored | targets.learns, 0, cells.objectness.sigmoid().square())
    off_prior = (cells.centre_in_cell - 0.5).square().sum(dim=2) + cells.log_sides.square().sum(dim=2)
    off_prior = torch.where(targets.learns | (raw.seen >= PRIOR_IMAGES), 0, off_prior)
    losses = {
        **_learned(cells, truths, targets, region, form),
        "background": region.noobject_scale / 2 * background.sum(),
        "prior": _PRIOR_SCALE / 2 * off_prior.sum(),
    }
    return {name: losses[name] / len(batch.images) for name in ("box", "objectness", "background", "class", "prior")}


def _truths_of(batch: RaggedBatch) -> _Truths:
    device = batch.images.device
    height, width = batch.images.shape[2:]
    boxes_ltrb = batch.boxes_ltrb_px / constant((width, height, width, height), device)
    image = torch.repeat_interleave(torch.arange(len(batch.counts)), batch.counts)
    place = torch.arange(len(image)) - (batch.counts.cumsum(0) - batch.counts)[image]
    most = max(1, int(batch.counts.max()))  # counts lie on the host
    image, row = (_on_device(each, device) for each in (image, image * most + place))
    padded = boxes_ltrb.new_zeros(len(batch.counts) * most, 4).index_copy(0, row, boxes_ltrb)
    return _Truths(image, ltrb_to_cxcywh(boxes_ltrb), batch.labels - 1, padded.view(-1, most, 4))


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@torch.no_grad()
def _best_iou(cells: Cells, truths: _Truths) -> Tensor:
    """Of each box with any object of its image: B x P."""
    return pairwise_iou(cxcywh_to_ltrb(cells.boxes_cxcywh), truths.padded_ltrb).amax(dim=2)


@torch.no_grad()
def _match(truths: _Truths, cells: Cells, region: Region, grid: tuple[int, ...]) -> _Targets:
    """Each object goes to the cell that its centre lies in, and there to the anchor whose shape is most like its own;
    without bias_match, to the box that the network predicts with the most similar shape."""
    height, width = grid
    device = truths.image.device
    size = constant((width, height), device)
    at = truths.boxes_cxcywh[:, :2] * size
    cell = at.floor().clamp(min=0).minimum(size - 1)  # a centre on the right edge is in the last cell
    sides = truths.boxes_cxcywh[:, 2:] * size
    anchors = constant(region.anchors, device).view(region.num, 2)
    batch, boxes, _ = cells.boxes_cxcywh.shape
    of_cell = (cell[:, 1] * width + cell[:, 0]).long().unsqueeze(1)
    candidates = torch.arange(region.num, device=device) * (height * width) + of_cell
    candidates = candidates + truths.image.unsqueeze(1) * boxes
    if region.bias_match:
        shapes = anchors.unsqueeze(0)
    else:
        shapes = cells.boxes_cxcywh.flatten(0, 1)[candidates][..., 2:] * size
    shared = torch.minimum(sides.unsqueeze(1), shapes).prod(dim=2)
    iou = shared / (sides.prod(dim=1).unsqueeze(1) + shapes.prod(dim=2) - shared)
    anchor = iou.argmax(dim=1, keepdim=True)  # the first of equals
    box = candidates.gather(1, anchor).squeeze(1)

    number = torch.arange(len(box), device=device)
    owner = torch.full((batch * boxes,), -1, device=device).scatter_reduce_(0, box, number, "amax")
    return _Targets(
        box=box,
        is_learned=owner[box] == number,
        learns=(owner >= 0).view(batch, boxes),
        centre_in_cell=at - cell,
        log_sides=(sides / anchors[anchor.squeeze(1)]).log(),
    )


def _learned(cells: Cells, truths: _Truths, targets: _Targets, region: Region, form: str) -> dict[str, Tensor]:
    """The losses of the boxes that learn an object, summed over the batch."""
    centre, log_sides, objectness, classes, boxes_cxcywh = (part.flatten(0, 1)[targets.box] for part in cells)
    off_centre = (centre - targets.centre_in_cell).square().sum(dim=1)
    if form == "darknet":
        off_sides = (log_sides - targets.log_sides).square().sum(dim=1)
        weight = 2 - truths.boxes_cxcywh[:, 2:].prod(dim=1)
        of_class = F.cross_entropy(classes, truths.labels, reduction="none")
    else:  # exp(x / 2) is the root, and has a finite slope everywhere
        off_sides = ((log_sides / 2).exp() - (targets.log_sides / 2).exp()).square().sum(dim=1)
        weight = torch.ones_like(off_centre)
        own = truths.labels.unsqueeze(1) == torch.arange(classes.shape[1], device=classes.device)
        of_class = (classes.softmax(dim=1) - own.float()).square().sum(dim=1) / 2
    sought = _own_iou(boxes_cxcywh, truths.boxes_cxcywh) if region.rescore else 1.0
    off_objectness = (objectness.sigmoid() - sought).square()
    losses = {
        "box": region.coord_scale / 2 * weight * (off_centre + off_sides),
        "objectness": region.object_scale / 2 * off_objectness,
        "class": region.class_scale * of_class,
    }
    return {name: torch.where(targets.is_learned, value, 0).sum() for name, value in losses.items()}


@torch.no_grad()
def _own_iou(boxes_cxcywh: Tensor, others_cxcywh: Tensor) -> Tensor:
    """Of each of N boxes with the other one of the same number: a constant to the gradient, as in darknet."""
    one, other = cxcywh_to_ltrb(boxes_cxcywh), cxcywh_to_ltrb(others_cxcywh)
    return pairwise_iou(one.unsqueeze(1), other.unsqueeze(1)).flatten()
