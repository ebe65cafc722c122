"""A detector with its post-processing as one graph of fixed shapes, for any number and size of images."""

from typing import Any

import torch
from torch import Tensor, nn

from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.postprocess.candidates import Candidates, PartMaps
from ssd.detectors.postprocess.graph_nms import detections_in_graph
from ssd.detectors.torchvision.rcnn.faster_rcnn import FasterRCNN
from ssd.detectors.torchvision.rcnn.parts import CandidatesOfMaps, boxes_of
from ssd.detectors.torchvision.rcnn.parts_in_graph import outputs_of, with_parts
from ssd.detectors.torchvision.settings import Settings
from ssd.images import normalise
from ssd.keypoints import Skeleton
from ssd.views import ShortSideView


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x H x W RGB and int64 B x 2, (width, height) of each image in them, to a dict
    of `batch.Detections`, with boxes in [0, 1] of the image. H and W are multiples of the view's divisor and 160 at
    least; the images are resized as `ShortSideView` has it and lie in the left top corner, and what is beside them may
    hold anything.

    Where scores are equal, another one may come first than in `detect`.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, thresholds: Thresholds, skeleton: Skeleton | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.thresholds = thresholds
        self.skeleton = skeleton

    def forward(self, images: Tensor, sizes_px: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[2:]
        inside = torch.arange(width) < sizes_px[:, 0].view(-1, 1, 1)
        inside = inside & (torch.arange(height).unsqueeze(1) < sizes_px[:, 1].view(-1, 1, 1))
        limits = sizes_px.to(torch.float32).repeat(1, 2).unsqueeze(1)
        said: Candidates | CandidatesOfMaps = self.model(normalise(images) * inside.unsqueeze(1), limits)
        candidates = said.candidates if isinstance(said, CandidatesOfMaps) else said
        boxes_ltrb, scores = self._of_classes(candidates._replace(boxes_ltrb_px=candidates.boxes_ltrb_px / limits))
        scores, place = scores.topk(min(self.thresholds.max_per_class, scores.shape[2]), dim=2)
        boxes_ltrb = boxes_ltrb.gather(2, place.unsqueeze(3).expand(-1, -1, -1, 4))
        detections = detections_in_graph(boxes_ltrb, scores, self.thresholds)
        if not isinstance(said, CandidatesOfMaps):
            return detections
        boxes_ltrb_px = detections["boxes_ltrb"] * limits
        looked_at = boxes_of(boxes_ltrb_px, detections["labels"], self.skeleton)
        parts: PartMaps = self.model(said.maps, looked_at)
        return with_parts(detections, parts, looked_at.have_points, boxes_ltrb_px, limits, (height, width))

    def _of_classes(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """The candidates of each class but background: boxes B x C x N x 4 and scores B x C x N, 0 of what is none."""
        boxes, scores, labels = candidates
        classes = self.num_classes - 1
        if isinstance(self.model, FasterRCNN):  # each proposal has a box for each class, one class after the other
            boxes, scores = boxes.unflatten(1, (-1, classes)), scores.unflatten(1, (-1, classes))
            return boxes.transpose(1, 2), scores.transpose(1, 2)
        own = labels.unsqueeze(1) == torch.arange(1, self.num_classes).view(1, -1, 1)
        return boxes.unsqueeze(1).expand(-1, classes, -1, -1), torch.where(own, scores.unsqueeze(1), 0)


def exportable(model: nn.Module, settings: Settings, thresholds: Thresholds) -> Exportable:
    view = ShortSideView(settings.short_sides_px, settings.long_side_px, settings.divisor)
    return exportable_of(DetectsInGraph(model, _num_classes(model), thresholds, settings.skeleton).eval(), view)


def exportable_of(module: DetectsInGraph, view: ShortSideView) -> Exportable:
    """Of any number of images, of any size that the inputs' text allows."""
    divisor = view.divisor
    # So large that no feature map has one row or column, which torch.export takes for a constant.
    height, width = 9 * divisor, 10 * divisor
    inputs = {
        "images": torch.zeros(2, 3, height, width, dtype=torch.uint8),
        "sizes_px": torch.tensor([[width, height]] * 2),
    }
    batch = torch.export.Dim("batch", min=1)
    rows, columns = (divisor * torch.export.Dim(name, min=5, max=128) for name in ("rows", "columns"))
    return Exportable(
        module,
        inputs,
        {"images": {0: batch, 2: rows, 3: columns}, "sizes_px": {0: batch}},
        f"images: uint8 B x 3 x H x W RGB, H and W multiples of {divisor}, {5 * divisor} at least; each the whole "
        f"image, its short side resized to {view.short_sides_px[-1]} or its long side to {view.long_side_px}, "
        f"whichever is less, bilinear with{'' if view.antialias else 'out'} antialiasing, in the left top corner; "
        "sizes_px: int64 B x 2, (width, height) of each image in them",
        _outputs(module.model),
    )


def _outputs(model: nn.Module) -> tuple[str, ...]:
    heads: Any = model.roi_heads if isinstance(model, FasterRCNN) else ()
    return outputs_of(masks="mask_head" in heads, keypoints="keypoint_head" in heads)


def _num_classes(model: Any) -> int:
    """K, background included."""
    if isinstance(model, FasterRCNN):
        classes: int = model.roi_heads["box_predictor"].cls_score.out_features  # type: ignore[union-attr, assignment]
    else:
        classes = model.head.classification_head.num_classes
    return classes
