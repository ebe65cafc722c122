"""Boxes: forms and overlap. The last dimension of every tensor here holds the four numbers of a box.

Forms: `ltrb` left, top, right, bottom; `xywh` left, top, width, height; `cxcywh` centre, width, height.
The unit is the caller's: image fractions in [0, 1], or pixels in names that end in `_px`.
"""

import torch
from torch import Tensor


def ltrb_to_cxcywh(boxes_ltrb: Tensor) -> Tensor:
    """... x 4 ltrb -> ... x 4 cxcywh, same dtype and unit."""
    left_top, right_bottom = boxes_ltrb[..., :2], boxes_ltrb[..., 2:]
    return torch.cat([(left_top + right_bottom) / 2, right_bottom - left_top], dim=-1)


def cxcywh_to_ltrb(boxes_cxcywh: Tensor) -> Tensor:
    """... x 4 cxcywh -> ... x 4 ltrb, same dtype and unit."""
    centre, half_size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half_size, centre + half_size], dim=-1)


def ltrb_to_xywh(boxes_ltrb: Tensor) -> Tensor:
    """... x 4 ltrb -> ... x 4 xywh, same dtype and unit."""
    left_top, right_bottom = boxes_ltrb[..., :2], boxes_ltrb[..., 2:]
    return torch.cat([left_top, right_bottom - left_top], dim=-1)


def area(boxes_ltrb: Tensor) -> Tensor:
    """... x 4 ltrb -> ... areas; a box with right < left or bottom < top has area 0."""
    width, height = (boxes_ltrb[..., 2:] - boxes_ltrb[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def pairwise_iou(a_ltrb: Tensor, b_ltrb: Tensor) -> Tensor:
    """... x N x 4 and ... x M x 4 ltrb -> ... x N x M IoU in [0, 1]; 0 where both boxes are empty."""
    a_left, a_top, a_right, a_bottom = a_ltrb.unsqueeze(-2).unbind(-1)
    # Four planes: vectorised loads instead of every fourth number.
    b_left, b_top, b_right, b_bottom = b_ltrb.unsqueeze(-3).movedim(-1, 0).contiguous()
    width = torch.minimum(a_right, b_right).sub_(torch.maximum(a_left, b_left)).clamp_(min=0)
    height = torch.minimum(a_bottom, b_bottom).sub_(torch.maximum(a_top, b_top)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area(a_ltrb).unsqueeze(-1) + area(b_ltrb).unsqueeze(-2)).sub_(intersection)
    # Two empty boxes have no union: 0 / tiny is 0 instead of NaN.
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def giou_loss(boxes_ltrb: Tensor, others_ltrb: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019) of ... x 4 boxes, each with one other: ..., in [0, 2]."""
    eps = 1e-7  # as torchvision, so that two boxes without area are no NaN
    left_top, right_bottom = boxes_ltrb[..., :2], boxes_ltrb[..., 2:]
    other_left_top, other_right_bottom = others_ltrb[..., :2], others_ltrb[..., 2:]
    common = torch.minimum(right_bottom, other_right_bottom) - torch.maximum(left_top, other_left_top)
    intersection = common.clamp(min=0).prod(dim=-1)
    areas = (right_bottom - left_top).prod(dim=-1) + (other_right_bottom - other_left_top).prod(dim=-1)
    union = areas - intersection
    around = torch.maximum(right_bottom, other_right_bottom) - torch.minimum(left_top, other_left_top)
    around = around.prod(dim=-1)
    return 1 - (intersection / (union + eps) - (around - union) / (around + eps))
