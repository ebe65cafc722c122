"""RetinaNet (Lin et al. 2017) with detectron2's numbers. Parts and names of weights are torchvision's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ssd.detectors.postprocess.candidates import Candidates, best_of_maps
from ssd.detectors.retinanet.anchors import ANCHORS_A_CELL, anchors_ltrb_px
from ssd.detectors.retinanet.settings import BODIES, RetinaNetSettings
from ssd.detectors.torchvision.boxes import decode, encode
from ssd.detectors.torchvision.dense.head import Head
from ssd.detectors.torchvision.dense.losses import focal_loss
from ssd.detectors.torchvision.dense.retinanet import Outputs
from ssd.detectors.torchvision.pyramid import CHANNELS, pyramid_over
from ssd.detectors.torchvision.targets import BELOW, BETWEEN, Targets, gather, match
from ssd.running_statistics import RunningMean

_BACKGROUND_BELOW, _OBJECT_FROM = 0.4, 0.5
# What losses are divided by begins here, and this share of it stays at a step: retinanet.py's loss_normalizer.
NORMALISER_START, _NORMALISER_DECAY = 100.0, 0.9
NORMALISER = "loss_normaliser.mean"
"""Its name in a state dict, in which detectron2 has none."""


def build(settings: RetinaNetSettings, num_classes: int) -> nn.Module:
    """num_classes: K, background included, of which the head says nothing."""
    pyramid = pyramid_over(
        body_of(settings),
        settings.trainable_layers,
        (2, 3, 4),
        lambda channels: LastLevelP6P7(channels, CHANNELS),  # P6 comes from the body's last map
        None,
    )
    return RetinaNet(pyramid, Head(CHANNELS, ANCHORS_A_CELL, num_classes - 1), settings.smooth_l1_beta)


def body_of(settings: RetinaNetSettings) -> nn.Module:
    """The fresh body, with the layers after its last feature map."""
    norm: Any = FrozenBatchNorm2d if settings.norm == "frozen" else nn.BatchNorm2d
    body: nn.Module = getattr(resnet, BODIES[settings.body])(norm_layer=norm)
    if settings.stride_in == "1x1":
        for stage in ("layer2", "layer3", "layer4"):
            block: Any = body.get_submodule(stage)[0]  # type: ignore[index]
            if hasattr(block, "conv3"):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return body


class RetinaNet(nn.Module):
    def __init__(self, backbone: nn.Module, head: Head, smooth_l1_beta: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.loss_normaliser = RunningMean(NORMALISER_START, _NORMALISER_DECAY)
        self.smooth_l1_beta = smooth_l1_beta

    def outputs(self, images: Tensor) -> Outputs:
        """K - 1 logits of each anchor: of class 1 first."""
        maps = list(self.backbone(images).values())
        said = self.head(maps)
        per_map = [each.shape[2] * each.shape[3] * ANCHORS_A_CELL for each in maps]
        return Outputs(said["cls_logits"], said["bbox_regression"].float(), anchors_ltrb_px(maps), per_map)

    def forward(self, images: Tensor, about: Targets | Tensor) -> dict[str, Tensor] | Candidates:
        """The `losses` of a training batch, about which are its targets; or the `candidates`, with the limits of their
        boxes."""
        return self.losses(images, about) if isinstance(about, Targets) else self.candidates(images, about)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training batch, summed over it and divided by the running mean of how many anchors learn a
        box in a batch. As in detectron2 each rank has its own mean, and ranks weigh the same however many objects they
        have; a part of --accumulate is a batch here."""
        logits, offsets, anchors, _ = self.outputs(images)
        matched = match(targets, anchors, low=_BACKGROUND_BELOW, high=_OBJECT_FROM, each_box_learns=True)
        is_object = matched >= 0
        labels = torch.where(is_object, gather(targets.labels, matched) - 1, BELOW)
        of_classes = focal_loss(logits, labels, matched != BETWEEN).sum()
        # Where there is no object stands what has a finite loss, whose gradient is then times 0.
        boxes = torch.where(is_object.unsqueeze(2), gather(targets.boxes_ltrb_px, matched), anchors)
        errors = F.smooth_l1_loss(offsets, encode(boxes, anchors), beta=self.smooth_l1_beta, reduction="none")
        of_boxes = torch.where(is_object.unsqueeze(2), errors, 0).sum()
        normaliser = self.loss_normaliser(is_object.sum().clamp(min=1))
        return {"classification": of_classes / normaliser, "bbox_regression": of_boxes / normaliser}

    def candidates(self, images: Tensor, limits_px: Tensor) -> Candidates:
        """Boxes are not cut to their image: detectron2 cuts what is left after suppression."""
        logits, offsets, anchors, per_map = self.outputs(images)
        scores, anchor, classes = best_of_maps(logits.float(), per_map)
        boxes = decode(offsets.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4)), anchors[anchor])
        return Candidates(boxes, scores.sigmoid(), classes + 1)
