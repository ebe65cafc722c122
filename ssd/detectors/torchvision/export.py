"""RetinaNet and FCOS with their post-processing as one graph of fixed shapes, for any number and size of images."""

import torch
from torch import Tensor, nn

from ssd.batch import Detections
from ssd.config import Thresholds
from ssd.detectors.contract import Exportable
from ssd.detectors.graph_nms import greedy_nms
from ssd.detectors.torchvision.names import parts_of, title_of
from ssd.detectors.torchvision.settings import Settings
from ssd.errors import InputError
from ssd.images import normalise


class DetectsInGraph(nn.Module):
    """Images to detections: uint8 B x 3 x H x W RGB and int64 B x 2, (width, height) of each image in them, to a dict
    of `batch.Detections`, with boxes in [0, 1] of the image. H and W are multiples of the view's divisor and 160 at
    least; the images are resized as `ShortSideView` has it and lie in the left top corner, and what is beside them may
    hold anything.

    Where scores are equal, another one may come first than in `detect`.
    """

    def __init__(self, model: nn.Module, num_classes: int, thresholds: Thresholds) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.thresholds = thresholds

    def forward(self, images: Tensor, sizes_px: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[2:]
        inside = torch.arange(width) < sizes_px[:, 0].view(-1, 1, 1)
        inside = inside & (torch.arange(height).unsqueeze(1) < sizes_px[:, 1].view(-1, 1, 1))
        limits = sizes_px.to(torch.float32).repeat(1, 2).unsqueeze(1)
        boxes_ltrb_px, scores, labels = self.model.candidates(  # type: ignore[operator]
            normalise(images) * inside.unsqueeze(1), limits
        )
        scores = torch.where(scores > self.thresholds.score_threshold, scores, 0)
        boxes_ltrb = boxes_ltrb_px / limits
        own = labels.unsqueeze(1) == torch.arange(1, self.num_classes).view(1, -1, 1)
        per_class = min(self.thresholds.max_per_class, scores.shape[1])
        scores, place = torch.where(own, scores.unsqueeze(1), 0).topk(per_class, dim=2)
        of_class = boxes_ltrb.unsqueeze(1).expand(-1, own.shape[1], -1, -1)
        boxes_ltrb = of_class.gather(2, place.unsqueeze(3).expand(-1, -1, -1, 4))
        scores = torch.where(greedy_nms(boxes_ltrb, scores > 0, self.thresholds.nms_iou), scores, 0)

        per_image = min(self.thresholds.max_per_image, per_class * (self.num_classes - 1))
        scores, place = scores.flatten(1).topk(per_image, dim=1)
        boxes_ltrb = boxes_ltrb.flatten(1, 2).gather(1, place.unsqueeze(2).expand(-1, -1, 4)).clamp(0, 1)
        real = scores > 0
        detections = Detections(
            boxes_ltrb=torch.where(real.unsqueeze(2), boxes_ltrb, 0),
            scores=scores,
            labels=torch.where(real, place // per_class + 1, 0),
            counts=real.sum(dim=1),
        )
        return detections._asdict()


def exportable(model: nn.Module, settings: Settings, thresholds: Thresholds) -> Exportable:
    """Raises InputError for R-CNNs, whose second look at proposals is in no graph yet."""
    head = getattr(model, "head", None)
    if head is None:
        raise InputError(
            f"--checkpoint: {title_of(settings)} cannot be exported yet, as its proposals are in no graph; "
            f"export a RetinaNet or an FCOS, not a {parts_of(settings.builder).family}"
        )
    divisor = settings.divisor
    # So large that no feature map has one row or column, which torch.export takes for a constant.
    height, width = 9 * divisor, 10 * divisor
    inputs = {
        "images": torch.zeros(2, 3, height, width, dtype=torch.uint8),
        "sizes_px": torch.tensor([[width, height]] * 2),
    }
    batch = torch.export.Dim("batch", min=1)
    rows, columns = (divisor * torch.export.Dim(name, min=5, max=128) for name in ("rows", "columns"))
    return Exportable(
        DetectsInGraph(model, head.classification_head.num_classes, thresholds).eval(),
        inputs,
        {"images": {0: batch, 2: rows, 3: columns}, "sizes_px": {0: batch}},
        f"images: uint8 B x 3 x H x W RGB, H and W multiples of {divisor}, {5 * divisor} at least; each the whole "
        f"image, its short side resized to {settings.short_sides_px[-1]} or its long side to {settings.long_side_px}, "
        "whichever is less, bilinear without antialiasing, in the left top corner; sizes_px: int64 B x 2, (width, "
        "height) of each image in them",
    )
