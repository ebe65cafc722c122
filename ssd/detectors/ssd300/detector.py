"""SSD300 as the house knows it."""

from ssd.batch import Detections, EvalBatch
from ssd.config import Thresholds
from ssd.detectors.contract import Detect, Detector, Forward, LossesOf, Published
from ssd.detectors.ssd300 import postprocess
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX, default_boxes_cxcywh
from ssd.detectors.ssd300.channels.streams import streams_of
from ssd.detectors.ssd300.coverage import box_sizes
from ssd.detectors.ssd300.distillation.parts import PARTS
from ssd.detectors.ssd300.export import exportable
from ssd.detectors.ssd300.loss import compiled_ssd_losses, ssd_losses
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.ssd300.synthetic import synthetic_batch
from ssd.detectors.ssd300.weights import foreign, load_backbone
from ssd.views import AUGMENTATIONS, SquareView

# DeepLearningExamples' SSD300-R50 on 8 A100 with AMP, batch 128 each.
PUBLISHED = Published("NVIDIA's", seeds=15, ap=0.26795, deviation=0.00136, epochs=65)


def view(settings: SSD300Settings) -> SquareView:
    return SquareView(IMAGE_SIZE_PX, AUGMENTATIONS[settings.augmentation], default_boxes_cxcywh())


def _detect(settings: SSD300Settings, thresholds: Thresholds) -> Detect:
    def detect(forward: Forward, batch: EvalBatch) -> Detections:
        return postprocess.detect(forward(batch.images), **thresholds._asdict())

    return detect


def _losses_of(settings: SSD300Settings, compiles: bool) -> LossesOf:
    return compiled_ssd_losses() if compiles else ssd_losses


DETECTOR = Detector(
    name="ssd300",
    settings=SSD300Settings,
    title=lambda settings: f"SSD300-{settings.backbone}",
    build=lambda settings, num_classes: SSD300(settings.backbone, num_classes),
    load_backbone=lambda model, settings, source: load_backbone(model, source),
    freeze_backbone=SSD300.freeze_trunk,
    fresh_heads=lambda settings: ("class_heads.",),
    view=view,
    losses_of=_losses_of,
    detect=_detect,
    input_size_px=lambda settings: (IMAGE_SIZE_PX, IMAGE_SIZE_PX),
    synthetic=lambda settings, num_classes, device, batch_size: synthetic_batch(batch_size, num_classes, device),
    one_shape=lambda settings: True,
    trace=lambda model, images: model(images),
    foreign=foreign,
    exportable=exportable,
    streams=streams_of,
    coverage=lambda settings, boxes_ltrb: box_sizes(boxes_ltrb),
    distillation_parts=lambda settings: PARTS,
    published=lambda settings: PUBLISHED if settings == SSD300Settings() else None,
)
