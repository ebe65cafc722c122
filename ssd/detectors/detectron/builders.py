"""A detector's modules with fresh weights. The names in its state dict are those of torchvision's builders, as far as
these have the layer."""

from torch import nn
from torchvision.models.detection.rpn import RPNHead

from ssd.detectors.detectron.network.bodies import backbone, map_channels
from ssd.detectors.detectron.network.heads import box_modules, keypoint_modules, mask_modules
from ssd.detectors.detectron.network.initial import initialise
from ssd.detectors.detectron.rcnn.boxes import cells_of
from ssd.detectors.detectron.rcnn.model import RCNN
from ssd.detectors.detectron.settings import DetectronSettings


def build(settings: DetectronSettings, num_classes: int) -> RCNN:
    """num_classes: K, background included."""
    _, anchors = cells_of(settings)[0]
    rpn = nn.ModuleDict({"head": RPNHead(map_channels(settings), len(anchors))})
    roi_heads = nn.ModuleDict()
    if not settings.rpn_only:
        roi_heads.update(box_modules(settings, num_classes))
        roi_heads.update(mask_modules(settings, num_classes))
    if settings.skeleton is not None:
        roi_heads.update(keypoint_modules(settings, settings.skeleton))
    model = RCNN(backbone(settings), rpn, roi_heads, settings)
    initialise(model, settings)
    return model
