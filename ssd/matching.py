"""Matching: which ground truth each default box learns, and the offsets between the two.

`encode` is the readable oracle for DALI's box encoder, which does the same in the DALI data path.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import cxcywh_to_ltrb, ltrb_to_cxcywh, pairwise_iou
from ssd.constants import constant

# Offsets are divided by these, so that targets have about unit variance ("scale_xy", "scale_wh" in the ancestors).
OFFSET_STDS = (0.1, 0.1, 0.2, 0.2)
MATCH_IOU = 0.5


def match(boxes_ltrb: Tensor, defaults_ltrb: Tensor) -> Tensor:
    """Which ground truth each default box learns.

    A default box learns the ground truth it overlaps most if their IoU exceeds 0.5, and every ground truth has at
    least the default box that overlaps it most. Of equals the last wins, and of ground truths with one best default
    box too: so DALI's encoder has it.

    boxes_ltrb: N x 4 float32 in [0, 1]. defaults_ltrb: A x 4.
    Returns A int64: a row of boxes_ltrb, or -1.
    """
    if len(boxes_ltrb) == 0:
        return torch.full((len(defaults_ltrb),), -1)
    iou = pairwise_iou(boxes_ltrb, defaults_ltrb)
    last_default = iou.shape[1] - 1
    best_default = last_default - iou.flip(1).argmax(dim=1)
    best_iou, from_last = iou.flip(0).max(dim=0)
    matched = torch.where(best_iou > MATCH_IOU, len(boxes_ltrb) - 1 - from_last, -1)
    # numpy promises that the last of several claimants has it.
    matched.numpy()[best_default.numpy()] = np.arange(len(boxes_ltrb))
    return matched


def offsets_of(boxes_ltrb: Tensor, defaults_cxcywh: Tensor) -> Tensor:
    """Regression targets of boxes (... x 4 ltrb) against as many default boxes (... x 4 cxcywh): ... x 4."""
    boxes = ltrb_to_cxcywh(boxes_ltrb)
    centre = (boxes[..., :2] - defaults_cxcywh[..., :2]) / defaults_cxcywh[..., 2:]
    size = (boxes[..., 2:] / defaults_cxcywh[..., 2:]).log()
    return torch.cat([centre, size], dim=-1) / boxes.new_tensor(OFFSET_STDS)


def encode(boxes_ltrb: Tensor, labels: Tensor, defaults_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """The training targets of one image.

    boxes_ltrb: N x 4 float32 in [0, 1], with width and height above 0. labels: N int64 in [1, K).
    defaults_cxcywh: A x 4.
    Returns offsets A x 4 float32 and labels A int64, both 0 where no ground truth matched.
    """
    _, default, offsets, default_labels = encode_sparse([boxes_ltrb], [labels], defaults_cxcywh)
    offsets_dense = torch.zeros(len(defaults_cxcywh), 4)
    labels_dense = torch.zeros(len(defaults_cxcywh), dtype=torch.int64)
    offsets_dense[default] = offsets
    labels_dense[default] = default_labels
    return offsets_dense, labels_dense


def encode_sparse(
    boxes_ltrb: Sequence[Tensor], labels: Sequence[Tensor], defaults_cxcywh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`encode` of each of B images, without the zeros.

    Returns, for the P default boxes of all images that match something: the image in [0, B) and the default box in
    [0, A), P int64 each; P x 4 offsets; P labels.
    """
    defaults_ltrb = cxcywh_to_ltrb(defaults_cxcywh)
    matched = torch.stack([match(boxes, defaults_ltrb) for boxes in boxes_ltrb])
    image, default = (matched >= 0).nonzero(as_tuple=True)
    # The images' boxes lie one after the other: each image's begin where those of the ones before it end.
    counts = torch.tensor([len(boxes) for boxes in boxes_ltrb])
    box = matched[image, default] + (counts.cumsum(0) - counts)[image]
    offsets = offsets_of(torch.cat(list(boxes_ltrb))[box], defaults_cxcywh[default])
    return image, default, offsets, torch.cat(list(labels))[box]


def decode(offsets: Tensor, defaults_cxcywh: Tensor) -> Tensor:
    """The inverse of `offsets_of`: ... x A x 4 offsets -> ... x A x 4 ltrb, not clipped."""
    offsets = offsets * constant(OFFSET_STDS, offsets.device, offsets.dtype)
    centre = offsets[..., :2] * defaults_cxcywh[..., 2:] + defaults_cxcywh[..., :2]
    size = offsets[..., 2:].exp() * defaults_cxcywh[..., 2:]
    return cxcywh_to_ltrb(torch.cat([centre, size], dim=-1))
