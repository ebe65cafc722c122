"""A detector with its post-processing as one graph of fixed shapes, for any number and size of images."""

from typing import Any

import torch
from torch import Tensor, nn

from ssd.batch import Detections, of_boxes
from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.detectron.config.testing import suppression_of, tta_of
from ssd.detectors.detectron.postprocess import thresholds_of
from ssd.detectors.detectron.rcnn.boxes import closed, scaled
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.detectron.targets import placement
from ssd.detectors.detectron.view import view_of
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.postprocess.graph_nms import detections_in_graph
from ssd.detectors.torchvision.postprocess import without_empty
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps, boxes_of
from ssd.detectors.torchvision.rcnn.parts_in_graph import outputs_of, with_parts
from ssd.detectors.tta.passes import ONE_PASS
from ssd.errors import InputError
from ssd.images import normalise


class DetectsInGraph(nn.Module):
    """Images to detections, as torchvision's `DetectsInGraph`. A graph is not told what size an image had before it was
    resized, and takes the one that it sees for that: its boxes differ by up to half a pixel."""

    def __init__(self, model: Any, settings: DetectronSettings, thresholds: Thresholds) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.thresholds = thresholds_of(settings, thresholds)
        self.classes = 1 if settings.rpn_only else model.roi_heads["box_predictor"].cls_score.out_features - 1

    def forward(self, images: Tensor, sizes_px: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[2:]
        inside = torch.arange(width) < sizes_px[:, 0].view(-1, 1, 1)
        inside = inside & (torch.arange(height).unsqueeze(1) < sizes_px[:, 1].view(-1, 1, 1))
        view = view_of(self.settings)
        seen = normalise(images, view.mean, view.std) * inside.unsqueeze(1)
        scales = torch.ones_like(sizes_px[:, 0], dtype=torch.float32)
        placed = placement(sizes_px, scales, sizes_px, self.settings, images.device)
        said: Candidates | CandidatesOfMaps = self.model(seen, placed)
        boxes, scores, _ = said.candidates if isinstance(said, CandidatesOfMaps) else said
        boxes_ltrb = (boxes / placed.stated_limits_px).unflatten(1, (-1, self.classes)).transpose(1, 2)
        scores = scores.unflatten(1, (-1, self.classes)).transpose(1, 2)
        scores, place = scores.topk(min(self.thresholds.max_per_class, scores.shape[2]), dim=2)
        boxes_ltrb = boxes_ltrb.gather(2, place.unsqueeze(3).expand(-1, -1, -1, 4))
        detections = detections_in_graph(boxes_ltrb, scores, self.thresholds)
        if self.settings.rules == "detectron2":
            detections = of_boxes(without_empty(Detections(**detections)))
        if not isinstance(said, CandidatesOfMaps):
            return detections
        edge_px = self.settings.edge_px
        boxes_ltrb_px = detections["boxes_ltrb"] * placed.stated_limits_px
        boxes_ltrb_resized_px = scaled(boxes_ltrb_px, placed.scales, edge_px)
        looked_at = boxes_of(boxes_ltrb_resized_px, detections["labels"], self.settings.skeleton)
        parts: PartMaps = self.model(said.maps, looked_at)
        of_points = closed(boxes_ltrb_px, edge_px)
        canvas_px = (height, width)
        return with_parts(detections, parts, looked_at.have_points, of_points, placed.stated_limits_px, canvas_px)


def _not_in_a_graph(settings: DetectronSettings) -> list[str]:
    """The keys that are on and that ask for what a graph does not do."""
    if settings.rpn_only:
        return []
    passes, suppression = tta_of(settings, False), suppression_of(settings)
    is_on = {
        "BBOX_AUG": passes is not None and passes.boxes != ONE_PASS,
        "MASK_AUG": passes is not None and passes.masks != ONE_PASS,
        "KPS_AUG": passes is not None and passes.keypoints != ONE_PASS,
        "SOFT_NMS": bool(suppression.soft),
        "BBOX_VOTE": suppression.votes,
    }
    return [f"TEST.{section}.ENABLED" for section, on in is_on.items() if on]


def exportable(model: nn.Module, settings: DetectronSettings, thresholds: Thresholds) -> Exportable:
    """Of any number of images, of any size that the inputs' text allows. Raises InputError for a configuration that
    looks at images in several passes, or whose boxes do not simply fall."""
    if on := _not_in_a_graph(settings):
        words = " ".join(f"{key} False" for key in on)
        raise InputError(
            f"{settings.name}: {on[0]} is not in an exported file, which looks at an image in one pass and lets the "
            f"weaker of two boxes fall; pass --set {words}"
        )
    # Sides of images without a pyramid may be of any length, which a graph of strides cannot say.
    divisor, antialias = 32, view_of(settings).antialias
    # So large that no feature map has one row or column, which torch.export takes for a constant.
    height, width = 9 * divisor, 10 * divisor
    inputs = {
        "images": torch.zeros(2, 3, height, width, dtype=torch.uint8),
        "sizes_px": torch.tensor([[width, height]] * 2),
    }
    batch = torch.export.Dim("batch", min=1)
    rows, columns = (divisor * torch.export.Dim(name, min=5, max=128) for name in ("rows", "columns"))
    return Exportable(
        DetectsInGraph(model, settings, thresholds).eval(),
        inputs,
        {"images": {0: batch, 2: rows, 3: columns}, "sizes_px": {0: batch}},
        f"images: uint8 B x 3 x H x W RGB, H and W multiples of {divisor}, {5 * divisor} at least; each the whole "
        f"image, its short side resized to {settings.test_short_side_px} or its long side to "
        f"{settings.test_long_side_px}, whichever is less, bilinear with{'' if antialias else 'out'} antialiasing, in "
        "the left top corner; "
        "sizes_px: int64 B x 2, (width, height) of each image in them",
        outputs_of(masks=bool(settings.mask_head), keypoints=settings.finds_keypoints),
    )
