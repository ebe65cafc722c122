"""What the tests of torchvision's detectors share: a small batch, and torchvision's own models to compare with."""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision.models.detection as theirs
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import resnet18
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ssd.batch import Detections, EvalBatch, RaggedBatch

NUM_CLASSES = 4
FAMILIES = ("retinanet", "fcos", "fasterrcnn")


def batch_of(counts: tuple[int, ...] = (3, 1), height_px: int = 96, width_px: int = 96) -> RaggedBatch:
    """Noise with boxes; all but the first image are 32 pixels narrower."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(counts), 3, height_px, width_px, generator=generator)
    sizes_px = torch.tensor([(width_px - 32 * (image > 0), height_px) for image in range(len(counts))])
    for image, (width, height) in zip(images, sizes_px.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    left_top = torch.rand(sum(counts), 2, generator=generator) * 40
    sides = 12 + torch.rand(sum(counts), 2, generator=generator) * 40
    return RaggedBatch(
        images=images.contiguous(memory_format=torch.channels_last),
        sizes_px=sizes_px,
        boxes_ltrb_px=torch.cat([left_top, left_top + sides], dim=1),
        labels=torch.randint(1, NUM_CLASSES, (sum(counts),), generator=generator),
        counts=torch.tensor(counts),
        image_ids=torch.arange(len(counts)),
    )


def their_targets(batch: RaggedBatch) -> list[dict[str, Tensor]]:
    counts = batch.counts.tolist()
    parts = zip(batch.boxes_ltrb_px.split(counts), batch.labels.split(counts), strict=True)
    return [{"boxes": boxes, "labels": labels} for boxes, labels in parts]


def assert_same_detections(found: Sequence[Any], expected: Detections) -> None:
    """What another program found, as arrays in the order of `Detections`, is what was expected, but for the order of
    nearly equal scores, and for which of these is the last that has a place."""
    boxes_ltrb, scores, labels, counts = (torch.as_tensor(part) for part in found)
    assert torch.equal(counts, expected.counts) and counts.min() > 10
    torch.testing.assert_close(scores, expected.scores, rtol=1e-3, atol=1e-4)
    for image, count in enumerate(counts.tolist()):
        # Labels are farther apart than boxes can be.
        own, others = (
            torch.cat([boxes[image, :count], 9 * label[image, :count, None]], dim=1)
            for boxes, label in ((expected.boxes_ltrb, expected.labels), (boxes_ltrb, labels))
        )
        above_the_last = expected.scores[image, :count] > expected.scores[image, count - 1] + 1e-5
        nearest = (own.unsqueeze(1) - others).abs().amax(dim=2).amin(dim=1)
        assert above_the_last.sum() > 10 and nearest[above_the_last].max() < 1e-3


class AsItIs(nn.Module):
    """In the place of torchvision's transform: the batch is finished, and boxes stay in its pixels."""

    def __init__(self, batch: RaggedBatch):
        super().__init__()
        self.images = batch.images
        self.sizes_px = [(height, width) for width, height in batch.sizes_px.tolist()]

    def forward(self, images: Any, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(self.images, self.sizes_px), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


def their_model(family: str, batch: RaggedBatch, *, norm: Any = FrozenBatchNorm2d, **options: Any) -> nn.Module:
    """torchvision's own class of the family on a ResNet-18, put together from its parts."""
    is_rcnn = family in ("fasterrcnn", "maskrcnn")
    stages = (1, 2, 3, 4) if is_rcnn else (2, 3, 4)
    extra = LastLevelMaxPool() if is_rcnn else LastLevelP6P7(256, 256)
    returned = {f"layer{stage}": str(place) for place, stage in enumerate(stages)}
    body = resnet18(norm_layer=norm)
    pyramid = BackboneWithFPN(body, returned, [64 * 2 ** (stage - 1) for stage in stages], 256, extra_blocks=extra)
    kinds = {
        "retinanet": theirs.RetinaNet,
        "fcos": theirs.FCOS,
        "fasterrcnn": theirs.FasterRCNN,
        "maskrcnn": theirs.MaskRCNN,
    }
    model: nn.Module = kinds[family](pyramid, NUM_CLASSES, **options)
    model.transform = AsItIs(batch)
    return model


def eval_batch(batch: RaggedBatch) -> EvalBatch:
    placed = torch.cat([torch.zeros(len(batch.sizes_px), 2, dtype=torch.int64), batch.sizes_px], dim=1)
    return EvalBatch(batch.images, placed, torch.arange(len(batch.images)))


def with_opinions(model: Any, images: torch.Tensor, num_classes: int = NUM_CLASSES) -> Any:
    """A fresh model whose logits and offsets differ as much as those of one that has learned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "bbox_pred.weight", "rpn.head.cls_logits.weight")):
                parameter.normal_(std=0.3 if "roi_heads" in name else 0.1)
        if hasattr(model, "head"):
            said = model.head(list(model.backbone(images).values()))
            model.head.classification_head.cls_logits.weight *= 1.5 / said["cls_logits"].std()
            model.head.classification_head.cls_logits.bias.fill_(-2)
            # Nothing is ever background by name.
            model.head.classification_head.cls_logits.weight.unflatten(0, (-1, num_classes))[:, 0] = 0
            model.head.classification_head.cls_logits.bias.unflatten(0, (-1, num_classes))[:, 0] = -20
            model.head.regression_head.bbox_reg.weight *= 0.5 / said["bbox_regression"].std()
    return model
