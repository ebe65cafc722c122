"""Masks as COCO's run lengths: column by column, beginning with how many pixels do not belong to the object."""

from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

_PASTED_AT_ONCE = 16
"""Each is as large as its image."""
_MOST_DIGITS = 8
"""Of five bits each. COCO's own code takes more, and overflows."""


def runs_of(counts: str) -> np.ndarray:
    """The run lengths, int64, that the text of a compressed mask states. Raises ValueError for a text that is none.

    Each is written in groups of five bits from the lowest on, with a sixth that says whether one more follows and all
    plus 48 a character; from the fourth on as the difference to the one two places before.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("characters that are no run lengths") from None
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("characters that are no run lengths")
    ends = np.flatnonzero(digits & 32 == 0)
    if len(ends) == 0 or ends[-1] != len(digits) - 1:
        raise ValueError("run lengths that are cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_DIGITS:
        raise ValueError("a run length that is too large")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def bitmap_of_segmentation(segmentation: Any, size_px: tuple[int, int]) -> np.ndarray:
    """Height x width uint8, 1 where the object is. segmentation: polygons or run lengths, compressed or not, as COCO
    states them. size_px: (width, height)."""
    rles = segmentation
    if isinstance(segmentation, list) or not isinstance(segmentation["counts"], str | bytes):
        rles = pycocotools.mask.frPyObjects(segmentation, size_px[1], size_px[0])
    bitmap: np.ndarray = pycocotools.mask.decode(pycocotools.mask.merge(rles) if isinstance(rles, list) else rles)
    return bitmap


@torch.no_grad()
def pasted(masks: Tensor, boxes_ltrb_px: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Where objects are in their image, more likely than not: n x height x width bool. By torchvision's rule, which is
    Detectron's: each mask with a border of zeros is stretched to its box, with as much more, in whole pixels.

    masks: n x S x S float32 in [0, 1]. boxes: n x 4. size_px: (width, height).
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    probabilities = paste_masks_in_image(masks.unsqueeze(1), boxes_ltrb_px, (size_px[1], size_px[0]))
    is_object: Tensor = probabilities.squeeze(1) > 0.5
    return is_object


def pasted_counts(
    masks: Tensor, boxes_ltrb_px: Tensor, size_px: tuple[int, int], *, closed: bool = False
) -> list[bytes]:
    """The compressed run lengths of `pasted` masks, which are on the CPU. closed: as `views.pastes_closed`."""
    if closed:
        boxes_ltrb_px = boxes_ltrb_px - boxes_ltrb_px.new_tensor([0, 0, 1, 1])
    found: list[bytes] = []
    for first in range(0, len(masks), _PASTED_AT_ONCE):
        some = slice(first, first + _PASTED_AT_ONCE)
        bitmaps = pasted(masks[some], boxes_ltrb_px[some], size_px).permute(1, 2, 0).to(torch.uint8).numpy()
        found += [rle["counts"] for rle in pycocotools.mask.encode(np.asfortranarray(bitmaps))]
    return found
