"""SSD300 on a ResNet trunk, as NVIDIA's DALI example and DeepLearningExamples have it.

The trunk is torchvision's ResNet up to layer3, whose first block keeps its resolution, so that 38 x 38 comes out.
Five extra blocks make five smaller maps; on each of the six maps one 3x3 convolution says boxes and one says classes.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet

from ssd.batch import Predictions
from ssd.detectors.ssd300.anchors import BOXES_PER_CELL, IMAGE_SIZE_PX
from ssd.detectors.ssd300.heads import predict

# Channels of the six feature maps (38, 19, 10, 5, 3, 1), from NVIDIA's models.
_WIDE = (1024, 512, 512, 256, 256, 256)
FEATURE_CHANNELS = {
    "resnet18": (256, 512, 512, 256, 256, 128),
    "resnet34": (256, 512, 512, 256, 256, 256),
    "resnet50": _WIDE,
    "resnet101": _WIDE,
    "resnet152": _WIDE,
}
_EXTRA_MID_CHANNELS = (256, 256, 128, 128, 128)


def _trunk(backbone: str) -> nn.Sequential:
    whole: resnet.ResNet = getattr(resnet, backbone)(weights=None)
    conv, norm, relu, pool, *stages = list(whole.children())[:7]
    # torchvision has the ReLU before the pool. After it, both do the same to a quarter of the values.
    layers = nn.Sequential(conv, norm, pool, relu, *stages)
    first_block: Any = whole.layer3[0]
    for conv in (first_block.conv1, first_block.conv2, first_block.downsample[0]):
        conv.stride = (1, 1)
    return layers


def _extra_block(in_channels: int, mid_channels: int, out_channels: int, *, halve: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, mid_channels, 1, bias=False),
        nn.BatchNorm2d(mid_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(mid_channels, out_channels, 3, stride=2 if halve else 1, padding=1 if halve else 0, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SSD300(nn.Module):
    """The detector.

    backbone: a key of FEATURE_CHANNELS. num_classes: K, background included.
    """

    def __init__(self, backbone: str, num_classes: int):
        super().__init__()
        channels = FEATURE_CHANNELS[backbone]
        self.backbone = backbone
        self.num_classes = num_classes
        self.trunk = _trunk(backbone)
        self.extra_blocks = nn.ModuleList(
            _extra_block(channels[i], mid, channels[i + 1], halve=i < 3) for i, mid in enumerate(_EXTRA_MID_CHANNELS)
        )
        per_level = list(zip(channels, BOXES_PER_CELL, strict=True))
        self.box_heads = nn.ModuleList(nn.Conv2d(c, n * 4, 3, padding=1) for c, n in per_level)
        self.class_heads = nn.ModuleList(nn.Conv2d(c, n * num_classes, 3, padding=1) for c, n in per_level)
        self._trunk_is_frozen = False
        for module in (self.extra_blocks, self.box_heads, self.class_heads):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def freeze_trunk(self) -> None:
        """Keeps the trunk's weights and its batch norm's statistics as they are, also in training mode."""
        self._trunk_is_frozen = True
        self.trunk.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SSD300":
        super().train(mode)
        self.trunk.train(mode and not self._trunk_is_frozen)
        return self

    def forward(self, images: Tensor) -> Predictions:
        """images: as `MatchedBatch.images`. Raises ValueError for other sizes: the default boxes fit no other."""
        if images.shape[2:] != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
            raise ValueError(
                f"SSD300 takes images of {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX} pixels, not {tuple(images.shape)}"
            )
        x = self.trunk(images)
        maps = [x]
        for block in self.extra_blocks:
            x = block(x)
            maps.append(x)
        return predict(maps, self.box_heads, self.class_heads, self.num_classes)
