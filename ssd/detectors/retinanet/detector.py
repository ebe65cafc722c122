"""detectron2's RetinaNet to the rest of the house."""

import torch

from ssd.batch import RaggedBatch
from ssd.detectors.contract import Detector
from ssd.detectors.retinanet.backbone import load_backbone
from ssd.detectors.retinanet.distillation import PARTS
from ssd.detectors.retinanet.export import exportable
from ssd.detectors.retinanet.model import build
from ssd.detectors.retinanet.postprocess import detect, tta_steps
from ssd.detectors.retinanet.settings import RetinaNetSettings, title_of
from ssd.detectors.retinanet.weights import CLASS_HEAD, foreign, to_pkl
from ssd.detectors.torchvision.channels.streams import streams_of
from ssd.detectors.torchvision.detector import freeze_backbone, losses_of, trace
from ssd.detectors.torchvision.synthetic import input_size_px, synthetic_batch
from ssd.detectors.tta.passes import published
from ssd.views import ShortSideView


def view_of(settings: RetinaNetSettings) -> ShortSideView:
    """Bilinear over the whole footprint, as Pillow's, and sides rounded to the nearest pixel."""
    return ShortSideView(
        settings.short_sides_px, settings.long_side_px, settings.divisor, antialias=True, resize_rule="detectron2"
    )


def _synthetic(settings: RetinaNetSettings, num_classes: int, device: torch.device, batch_size: int) -> RaggedBatch:
    return synthetic_batch(view_of(settings), num_classes, device, batch_size)


RETINANET = Detector(
    name="retinanet",
    settings=RetinaNetSettings,
    title=title_of,
    build=build,
    load_backbone=load_backbone,
    freeze_backbone=freeze_backbone,
    fresh_heads=lambda settings: (CLASS_HEAD,),
    view=view_of,
    losses_of=losses_of,
    detect=lambda settings, thresholds: detect(thresholds),
    input_size_px=lambda settings: input_size_px(view_of(settings)),
    synthetic=_synthetic,
    one_shape=lambda settings: False,
    trace=trace,
    foreign=foreign,
    exportable=lambda model, settings, thresholds: exportable(model, view_of(settings), thresholds),
    streams=streams_of,
    coverage=None,
    foreign_files={".pkl": to_pkl},
    distillation_parts=lambda settings: PARTS,
    tta=lambda settings, is_asked: published(view_of(settings)) if is_asked else None,
    tta_steps=lambda settings, thresholds, suppression: tta_steps(thresholds),
)
