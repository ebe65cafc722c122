"""detectron2's RetinaNet as the methods of distillation look at it: torchvision's, with its own anchors, and with heads
that say nothing of the background."""

from ssd.detectors.retinanet.anchors import anchors_ltrb_px
from ssd.detectors.torchvision.distillation.parts import ANCHORS, retinanet_parts

PARTS = retinanet_parts(
    ANCHORS._replace(
        anchors_ltrb_px=lambda maps, images: anchors_ltrb_px(list(maps.values())),
        probabilities=lambda logits: logits.sigmoid(),
    )
)
