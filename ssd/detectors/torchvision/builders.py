"""A detector's modules with fresh weights. The names in its state dict are those of torchvision's builder, so that
either loads what the other saved."""

import functools
from dataclasses import replace

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ssd.detectors.torchvision.dense import retinanet
from ssd.detectors.torchvision.dense.fcos import FCOS
from ssd.detectors.torchvision.dense.head import Head
from ssd.detectors.torchvision.dense.retinanet import RetinaNet
from ssd.detectors.torchvision.names import MOBILENET, Parts, parts_of
from ssd.detectors.torchvision.pyramid import CHANNELS, mobilenet_pyramid, resnet_pyramid
from ssd.detectors.torchvision.rcnn.faster_rcnn import FasterRCNN, Numbers
from ssd.detectors.torchvision.rcnn.roi_pooling import SIDE
from ssd.detectors.torchvision.settings import Settings

_ASPECTS = (0.5, 1.0, 2.0)
_HIDDEN = 1024


def build(settings: Settings, num_classes: int) -> nn.Module:
    """num_classes: K, background included. Raises InputError for an unknown builder."""
    parts = parts_of(settings.builder)
    if parts.family == "retinanet":
        return _retinanet(settings, num_classes, parts.is_v2)
    if parts.family == "fcos":
        pyramid = resnet_pyramid(settings, (2, 3, 4), lambda _: LastLevelP6P7(CHANNELS, CHANNELS), None)
        return FCOS(pyramid, FCOSHead(CHANNELS, 1, num_classes))
    return _rcnn(settings, num_classes, parts)


def _retinanet(settings: Settings, num_classes: int, is_v2: bool) -> RetinaNet:
    # P6 comes from the body's last map in the second version, from the pyramid's in the first.
    pyramid = resnet_pyramid(
        settings, (2, 3, 4), lambda channels: LastLevelP6P7(channels if is_v2 else CHANNELS, CHANNELS), None
    )
    norm = functools.partial(nn.GroupNorm, 32) if is_v2 else None
    head = Head(CHANNELS, retinanet.ANCHORS_A_CELL, num_classes, norm_layer=norm)
    return RetinaNet(pyramid, head, box_loss="giou" if is_v2 else "l1")


def _rcnn(settings: Settings, num_classes: int, parts: Parts) -> FasterRCNN:
    norm = nn.BatchNorm2d if parts.is_v2 else None
    if parts.body == MOBILENET:
        pyramid = mobilenet_pyramid(settings)
        numbers = Numbers(
            cells=(((32, 64, 128, 256, 512), _ASPECTS),) * 3,
            pooled_strides=(32, 32),
            before_nms=(2000, 150 if parts.is_320 else 1000),
            after_nms=(2000, 150 if parts.is_320 else 1000),
            least_objectness=0.05,
        )
    else:
        pyramid = resnet_pyramid(settings, (1, 2, 3, 4), lambda _: LastLevelMaxPool(), norm)
        numbers = Numbers(cells=tuple(((size,), _ASPECTS) for size in (32, 64, 128, 256, 512)))
    numbers = replace(numbers, boxes_an_image=settings.boxes_an_image)
    anchors_a_cell = len(numbers.cells[0][0]) * len(_ASPECTS)
    rpn = nn.ModuleDict({"head": RPNHead(CHANNELS, anchors_a_cell, conv_depth=2 if parts.is_v2 else 1)})
    if parts.is_v2:
        box_head = FastRCNNConvFCHead((CHANNELS, SIDE, SIDE), [CHANNELS] * 4, [_HIDDEN], norm_layer=norm)
    else:
        box_head = TwoMLPHead(CHANNELS * SIDE**2, _HIDDEN)
    roi_heads = nn.ModuleDict({"box_head": box_head, "box_predictor": FastRCNNPredictor(_HIDDEN, num_classes)})
    if parts.family == "maskrcnn":
        roi_heads["mask_head"] = MaskRCNNHeads(CHANNELS, (256, 256, 256, 256), 1, norm_layer=norm)
        roi_heads["mask_predictor"] = MaskRCNNPredictor(256, 256, num_classes)
    elif parts.family == "keypointrcnn":
        roi_heads["keypoint_head"] = KeypointRCNNHeads(CHANNELS, (512,) * 8)
        roi_heads["keypoint_predictor"] = KeypointRCNNPredictor(512, len(settings.keypoints))
    return FasterRCNN(pyramid, rpn, roi_heads, numbers)
