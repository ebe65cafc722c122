"""What the training forward pass of a ragged detector takes beside images, and which box each anchor learns."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import RaggedBatch
from ssd.boxes import pairwise_iou
from ssd.constants import on_device

BOXES_AT_ONCE = 64
"""Boxes that are compared with all anchors at once. An image of 1333 x 800 pixels has 268,569 anchors on a pyramid, so
that each of several matrices of IoUs has 66 MiB, where all 500 boxes of a crowded one would take 512."""
BELOW, BETWEEN = -1, -2
"""What `match` says of an anchor that learns no box: it is background, or neither."""


class Targets(NamedTuple):
    """A `RaggedBatch` without its images. What is read on the host are numbers of Python: DistributedDataParallel would
    move tensors to the GPU, where reading them waits.

    boxes_ltrb_px: N x 4 float32. labels: N int64. counts: of each image, N in all. sizes_px: of each image (width,
    height). scales: of each image, () of a view without one. The others as in `RaggedBatch`.
    """

    boxes_ltrb_px: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    sizes_px: tuple[tuple[int, int], ...]
    masks: Tensor | None = None
    mask_windows_ltrb_px: Tensor | None = None
    keypoints_px: Tensor | None = None
    scales: tuple[float, ...] = ()


def targets_of(batch: RaggedBatch) -> Targets:
    sizes_px = tuple((width, height) for width, height in batch.sizes_px.tolist())
    return Targets(
        batch.boxes_ltrb_px,
        batch.labels,
        tuple(batch.counts.tolist()),
        sizes_px,
        batch.masks,
        batch.mask_windows_ltrb_px,
        batch.keypoints_px,
        () if batch.scales is None else tuple(batch.scales.tolist()),
    )


def of_images(targets: Targets) -> list[slice]:
    """The rows of each image's boxes."""
    rows, first = [], 0
    for count in targets.counts:
        rows.append(slice(first, first + count))
        first += count
    return rows


def match(targets: Targets, anchors_ltrb_px: Tensor, *, low: float, high: float, each_box_learns: bool) -> Tensor:
    """For each anchor the row of the box that it learns, or BELOW or BETWEEN: B x A int64. torchvision's Matcher,
    without waiting for the device.

    anchors_ltrb_px: A x 4, or B x A x 4 where each image has its own. An anchor learns the box with which its IoU is
    highest if that is at least high; it is background below low. each_box_learns: the anchors that a box overlaps most,
    ties too, learn whichever box they overlap most themselves, however little that is.
    """
    shared = anchors_ltrb_px.dim() == 2
    matched = []
    for image, rows in enumerate(of_images(targets)):
        anchors = anchors_ltrb_px if shared else anchors_ltrb_px[image]
        if rows.stop == rows.start:
            matched.append(torch.full((len(anchors),), BELOW, dtype=torch.int64, device=anchors.device))
            continue
        best, box, of_a_box = overlaps(targets.boxes_ltrb_px[rows], anchors)
        box = box + rows.start
        learns = torch.where(best < low, BELOW, torch.where(best < high, BETWEEN, box))
        if each_box_learns:
            learns = torch.where(of_a_box, box, learns)
        matched.append(learns)
    return torch.stack(matched)


def overlaps(
    boxes_ltrb_px: Tensor, anchors_ltrb_px: Tensor, inside: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of A anchors: its largest IoU with one of N boxes, N > 0; which box that is, int64, of equal ones the
    first; and whether it is one of those that a box overlaps most.

    inside: A bool; the other anchors overlap nothing, by -1. The matrix of all pairs is never there at once.
    """
    best, box, of_a_box = _overlaps(boxes_ltrb_px[:BOXES_AT_ONCE], anchors_ltrb_px, inside)
    for first in range(BOXES_AT_ONCE, len(boxes_ltrb_px), BOXES_AT_ONCE):
        some = boxes_ltrb_px[first : first + BOXES_AT_ONCE]
        best_of_some, box_of_some, of_some = _overlaps(some, anchors_ltrb_px, inside)
        is_more = best_of_some > best
        best, box = torch.where(is_more, best_of_some, best), torch.where(is_more, box_of_some + first, box)
        of_a_box = of_a_box | of_some
    return best, box, of_a_box


def _overlaps(boxes_ltrb_px: Tensor, anchors_ltrb_px: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    iou = pairwise_iou(boxes_ltrb_px, anchors_ltrb_px)
    if inside is not None:
        iou = torch.where(inside, iou, -1)
    best, box = iou.max(dim=0)
    return best, box, (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)


def gather(values: Tensor, matched: Tensor) -> Tensor:
    """The rows of N values that `match` tells: B x A x ...; what stands where it tells none means nothing."""
    if not len(values):
        return values.new_zeros(matched.shape + values.shape[1:])
    return values[matched.clamp(min=0)]


def limits_px(sizes_px: Tensor, device: torch.device) -> Tensor:
    """The largest left, top, right and bottom of a box in each image of B x 2 sizes: B x 1 x 4 float32."""
    return on_device(sizes_px.to(torch.float32).repeat(1, 2).unsqueeze(1), device)
