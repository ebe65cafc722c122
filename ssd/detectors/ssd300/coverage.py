"""How the boxes of a data set suit SSD300's default boxes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd.boxes import pairwise_iou
from ssd.detectors.ssd300.anchors import FEATURE_SIZES, IMAGE_SIZE_PX, SCALES_PX, default_boxes_ltrb
from ssd.matching import MATCH_IOU

# Of the network's input: the smallest and largest default boxes have sides of 21 and 315 px.
SIZE_EDGES_PX = np.geomspace(3, 300, 31)


def box_sizes(boxes_ltrb: Tensor) -> dict[str, Any]:
    """How large boxes are once an image is 300 x 300, and which of them a default box matches.

    boxes_ltrb: N x 4 float32 in [0, 1] of their images. Counts of boxes by sqrt(width x height), between SIZE_EDGES_PX,
    the outermost bins open to the outside. "covered": those with which a default box has an IoU above MATCH_IOU;
    "uncovered": those that only their nearest one learns. "levels": [cells a side, the side in pixels of the first
    default box] of each feature map.
    """
    # In slices: 256 boxes x 8732 default boxes are 9 MB.
    parts = [pairwise_iou(part, default_boxes_ltrb()).amax(dim=1) for part in boxes_ltrb.split(256)] or [torch.zeros(0)]
    is_covered = torch.cat(parts).gt(MATCH_IOU).numpy()
    sizes_px: np.ndarray = (
        IMAGE_SIZE_PX * (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2]).clamp(min=0).prod(dim=1).sqrt().numpy()
    )
    sizes_px = sizes_px.clip(SIZE_EDGES_PX[0], SIZE_EDGES_PX[-1])
    covered, uncovered = (np.histogram(sizes_px[rows], SIZE_EDGES_PX)[0] for rows in (is_covered, ~is_covered))
    edges_px: list[float] = SIZE_EDGES_PX.round(2).tolist()
    levels = [list(level) for level in zip(FEATURE_SIZES, SCALES_PX[:-1], strict=True)]
    return {"edges_px": edges_px, "covered": covered.tolist(), "uncovered": uncovered.tolist(), "levels": levels}
