"""detectron2's inference with an R-CNN on a pyramid, said once more in a few lines, from weights by its own names."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

Weights = dict[str, Tensor]


def tensors(arrays: dict[str, np.ndarray]) -> Weights:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def normed(w: Weights, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    x = F.conv2d(x, w[f"{name}.weight"], None, stride, padding)
    weight, bias, mean, var = (w[f"{name}.norm.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var"))
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def biased(w: Weights, name: str, x: Tensor, padding: int = 0) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], 1, padding)


def bottleneck(w: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    """MSRA's: the first convolution has the stride."""
    out = normed(w, f"{name}.conv1", x, stride).relu()
    out = normed(w, f"{name}.conv3", normed(w, f"{name}.conv2", out, 1, 1).relu())
    if f"{name}.shortcut.weight" in w:
        x = normed(w, f"{name}.shortcut", x, stride)
    return (out + x).relu()


def pyramid(w: Weights, rgb_255: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """P2 to P6 of one image H x W x 3 uint8, whose sides are multiples of 32."""
    bgr = rgb_255.permute(2, 0, 1).flip(0).float()
    x = ((bgr - w["pixel_mean"]) / w["pixel_std"]).unsqueeze(0)
    x = F.max_pool2d(normed(w, "backbone.bottom_up.stem.conv1", x, 2, 3).relu(), 3, 2, 1)
    laterals = []
    for number, count in enumerate(blocks, start=2):
        for block in range(count):
            x = bottleneck(w, f"backbone.bottom_up.res{number}.{block}", x, 2 if block == 0 and number > 2 else 1)
        laterals.append(biased(w, f"backbone.fpn_lateral{number}", x))
    top = laterals.pop()
    maps = [biased(w, "backbone.fpn_output5", top, 1)]
    for level in (4, 3, 2):
        top = laterals.pop() + F.interpolate(top, scale_factor=2.0, mode="nearest")
        maps.insert(0, biased(w, f"backbone.fpn_output{level}", top, 1))
    return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def anchors(height: int, width: int, stride: int, size: int) -> Tensor:
    found = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                w = math.sqrt(size**2 / ratio)
                h = ratio * w
                found.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    return torch.tensor(found)


def moved(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...]) -> Tensor:
    dx, dy, dw, dh = (deltas[:, place] / weight for place, weight in enumerate(weights))
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    most = math.log(1000 / 16)
    w, h = dw.clamp(max=most).exp() * w, dh.clamp(max=most).exp() * h
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)


def clipped(boxes: Tensor, size_px: tuple[int, int]) -> Tensor:
    width, height = size_px
    return torch.stack(
        [boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
         boxes[:, 3].clamp(0, height)], dim=1,
    )  # fmt: skip


def proposals(w: Weights, maps: list[Tensor], size_px: tuple[int, int], most: int = 1000) -> Tensor:
    boxes, scores, levels = [], [], []
    name = "proposal_generator.rpn_head"
    for level, features in enumerate(maps):
        hidden = biased(w, f"{name}.conv", features, 1).relu()
        logits = biased(w, f"{name}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten()
        deltas = biased(w, f"{name}.anchor_deltas", hidden)[0].permute(1, 2, 0).reshape(-1, 4)
        best, place = logits.topk(min(1000, len(logits)))
        of_level = anchors(*features.shape[2:], 4 * 2**level, 32 * 2**level)
        boxes.append(clipped(moved(of_level[place], deltas[place], (1, 1, 1, 1)), size_px))
        scores.append(best)
        levels.append(torch.full_like(place, level))
    all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    real = (all_boxes[:, 2:] > all_boxes[:, :2]).all(dim=1)
    all_boxes, all_scores, all_levels = all_boxes[real], all_scores[real], all_levels[real]
    return all_boxes[batched_nms(all_boxes, all_scores, all_levels, 0.7)[:most]]


def pooled(maps: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = (4 + (area.sqrt() / 224 + 1e-8).log2()).floor().clamp(2, 5).long() - 2
    found = boxes.new_zeros(len(boxes), maps[0].shape[1], side, side)
    for place, features in enumerate(maps[:4]):
        own = (level == place).nonzero().squeeze(1)
        rois = torch.cat([boxes.new_zeros(len(own), 1), boxes[own]], dim=1)
        found[own] = roi_align(features, rois, side, 1 / (4 * 2**place), 0, aligned=True)
    return found


def detections(
    w: Weights, maps: list[Tensor], size_px: tuple[int, int], classes: int, most: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes n x 4 in pixels, scores, and classes from 0, best first."""
    rois = proposals(w, maps, size_px)
    x = pooled(maps, rois, 7).flatten(1)
    for layer in ("fc1", "fc2"):
        x = F.linear(x, w[f"roi_heads.box_head.{layer}.weight"], w[f"roi_heads.box_head.{layer}.bias"]).relu()
    of_classes, deltas = (
        F.linear(x, w[f"roi_heads.box_predictor.{name}.weight"], w[f"roi_heads.box_predictor.{name}.bias"])
        for name in ("cls_score", "bbox_pred")
    )
    of_classes = of_classes.softmax(dim=1)[:, :-1]  # the background is the last
    boxes = torch.stack(
        [clipped(moved(rois, deltas[:, 4 * c : 4 * c + 4], (10, 10, 5, 5)), size_px) for c in range(classes)], dim=1
    )
    roi, label = (of_classes > 0.05).nonzero(as_tuple=True)
    boxes, scores = boxes[roi, label], of_classes[roi, label]
    kept = batched_nms(boxes, scores, label, 0.5)[:most]
    kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(dim=1)]  # the last thing that is done
    return boxes[kept], scores[kept], label[kept]


def masks(w: Weights, maps: list[Tensor], boxes: Tensor, label: Tensor) -> Tensor:
    x = pooled(maps, boxes, 14)
    for number in (1, 2, 3, 4):
        x = biased(w, f"roi_heads.mask_head.mask_fcn{number}", x, 1).relu()
    name = "roi_heads.mask_head.deconv"
    x = F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2).relu()
    x = biased(w, "roi_heads.mask_head.predictor", x)
    return x[torch.arange(len(x)), label].sigmoid()


def heatmaps(w: Weights, maps: list[Tensor], boxes: Tensor) -> Tensor:
    x = pooled(maps, boxes, 14)
    for number in range(1, 9):
        x = biased(w, f"roi_heads.keypoint_head.conv_fcn{number}", x, 1).relu()
    name = "roi_heads.keypoint_head.score_lowres"
    x = F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def points(maps: Tensor, boxes: Tensor) -> Tensor:
    """n x P x 2 in pixels."""
    found = []
    for of_box, (left, top, right, bottom) in zip(maps, boxes.tolist(), strict=True):
        width, height = max(right - left, 1), max(bottom - top, 1)
        size = (math.ceil(height), math.ceil(width))
        big = F.interpolate(of_box.unsqueeze(0), size, mode="bicubic", align_corners=False)[0]
        place = big.flatten(1).argmax(dim=1)
        x, y = (place % size[1] + 0.5) * width / size[1] + left, (place // size[1] + 0.5) * height / size[0] + top
        found.append(torch.stack([x, y], dim=1))
    return torch.stack(found)
