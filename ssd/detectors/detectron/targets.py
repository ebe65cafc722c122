"""Batches as Detectron sees them: the edge at which pixels of an image and closed ranges of them become each other."""

import torch
from torch import Tensor

from ssd.batch import EvalBatch, RaggedBatch
from ssd.constants import on_device
from ssd.detectors.detectron.rcnn.model import Placement
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.targets import Targets, limits_px
from ssd.detectors.torchvision.targets import targets_of as targets_of_batch


def targets_of(batch: RaggedBatch) -> Targets:
    """With boxes whose first and last pixels are those of the image's file, scaled: `boxes.scaled` of the boxes there.
    Scaled as they are, they would end a little farther to the right and below."""
    targets = targets_of_batch(batch)
    if batch.scales is None:
        return targets
    of_boxes = (1 - batch.scales.to(torch.float32)).repeat_interleave(batch.counts).unsqueeze(1)
    farther = on_device(
        torch.cat([torch.zeros_like(of_boxes).expand(-1, 2), of_boxes.expand(-1, 2)], dim=1), batch.boxes_ltrb_px.device
    )
    return targets._replace(boxes_ltrb_px=targets.boxes_ltrb_px + farther)


def placement_of(batch: EvalBatch, settings: DetectronSettings) -> Placement:
    """Proposals are cut to the image with what Detectron, which tests one at a time, adds to its right and below.
    Images that nothing is said of were not resized."""
    sizes_px = batch.placed_ltrb_px[:, 2:]
    scales = torch.ones(len(sizes_px)) if batch.scales is None else batch.scales.to(torch.float32)
    stated_px = sizes_px if batch.stated_px is None else batch.stated_px
    return placement(sizes_px, scales, stated_px, settings, batch.images.device)


def placement(
    sizes_px: Tensor, scales: Tensor, stated_px: Tensor, settings: DetectronSettings, device: torch.device
) -> Placement:
    """sizes_px, stated_px: B x 2 (width, height), resized and before. scales: B float32. detectron2 cuts proposals to
    the image itself."""
    divisor = settings.divisor if settings.rules == "detectron" else 1
    padded_px = -(-sizes_px // divisor) * divisor
    return Placement(
        limits_px(padded_px, device), on_device(scales.view(-1, 1, 1), device), limits_px(stated_px, device)
    )
