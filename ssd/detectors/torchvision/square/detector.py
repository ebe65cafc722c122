"""torchvision's SSDs to the rest of the house."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssd.batch import MatchedBatch
from ssd.boxes import ltrb_to_cxcywh
from ssd.detectors.contract import Detector, LossesOf
from ssd.detectors.synthetic_squares import synthetic_squares
from ssd.detectors.torchvision.square.anchors import SQUARES, default_boxes_ltrb
from ssd.detectors.torchvision.square.distillation import distillation_parts
from ssd.detectors.torchvision.square.export import exportable
from ssd.detectors.torchvision.square.loss import multibox_loss
from ssd.detectors.torchvision.square.model import SSD, build
from ssd.detectors.torchvision.square.postprocess import detect
from ssd.detectors.torchvision.square.settings import SquareSettings, title_of
from ssd.detectors.torchvision.square.streams import streams_of
from ssd.detectors.torchvision.square.weights import foreign, fresh_heads, load_backbone
from ssd.views import Augmentation, SquareView


def _view(settings: SquareSettings) -> SquareView:
    square = SQUARES[settings.builder]
    defaults_cxcywh = ltrb_to_cxcywh(default_boxes_ltrb(settings.builder))
    # torchvision's weights were trained on images that are resized without antialiasing.
    return SquareView(square.size_px, Augmentation(antialias=False), defaults_cxcywh, False, square.mean, square.std)


def _losses_of(settings: SquareSettings, compiles: bool) -> LossesOf:
    loss: Callable[..., dict[str, Tensor]] = multibox_loss
    if compiles:
        loss = torch.compile(multibox_loss, fullgraph=True, dynamic=False)
    return lambda forward, batch: loss(forward(batch.images), batch)


def _input_size_px(settings: SquareSettings) -> tuple[int, int]:
    side = SQUARES[settings.builder].size_px
    return side, side


def _synthetic(settings: SquareSettings, num_classes: int, device: torch.device, batch_size: int) -> MatchedBatch:
    return synthetic_squares(_view(settings), num_classes, device, batch_size)


TORCHVISION_SSD = Detector(
    name="torchvision_ssd",
    settings=SquareSettings,
    title=title_of,
    build=build,
    load_backbone=load_backbone,
    freeze_backbone=SSD.freeze_body,
    fresh_heads=fresh_heads,
    view=_view,
    losses_of=_losses_of,
    detect=detect,
    input_size_px=_input_size_px,
    synthetic=_synthetic,
    one_shape=lambda settings: True,
    trace=lambda model, images: model(images),
    foreign=foreign,
    exportable=exportable,
    streams=streams_of,
    coverage=None,
    distillation_parts=distillation_parts,
)
