"""The maps of Detectron's R-CNNs as the methods of distillation look at them."""

import math

from ssd.detectors.detectron.network.bodies import map_stride
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.distillation import DistillationParts
from ssd.detectors.torchvision.distillation.parts import RCNN, maps_of


def distillation_parts(settings: DetectronSettings) -> DistillationParts:
    names = RCNN if settings.has_pyramid else {"0": f"c{int(math.log2(map_stride(settings)))}"}
    return maps_of(names)._replace(is_two_stage=True)
