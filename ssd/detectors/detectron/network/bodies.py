"""ResNets that end where a configuration says, with a pyramid or without. The names in their state dicts are those of
torchvision's detectors."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.torchvision.pyramid import Pyramid

FINEST_LEVEL = 2
"""Of a pyramid, whose cells have 2 to the power of the level pixels: that of res2."""


class OneMap(nn.Module):
    """The last map of a body that is cut off after one of its stages."""

    body_is_frozen = False

    def __init__(self, body: ResNet, stage: str):
        super().__init__()
        self.body = IntermediateLayerGetter(body, {stage: "0"})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.body(images)
        return maps

    def freeze_body(self) -> None:
        """Keeps the body's weights as they are, also in training mode."""
        self.body_is_frozen = True
        self.body.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "OneMap":
        super().train(mode)
        self.body.train(mode and not self.body_is_frozen)
        return self


def group_norm(settings: DetectronSettings) -> Callable[[int], nn.Module]:
    return functools.partial(nn.GroupNorm, settings.group_norm_groups, eps=settings.group_norm_eps)


def resnet(settings: DetectronSettings) -> ResNet:
    """All of it, with fresh weights. A frozen scale and shift is torchvision's frozen batch norm whose mean is 0 and
    whose variance is 1, without anything added to that."""
    norm: Callable[[int], nn.Module] = functools.partial(FrozenBatchNorm2d, eps=0.0)
    if settings.norm == "group":
        norm = group_norm(settings)
    body = ResNet(
        Bottleneck,
        list(settings.blocks),
        groups=settings.groups,
        width_per_group=settings.width_per_group,
        norm_layer=norm,
    )
    for layer in (body.layer2, body.layer3, body.layer4):
        shape_stage(layer, 2, 1, settings)
    if settings.res5_dilation > 1:
        shape_stage(body.layer4, 1, settings.res5_dilation, settings)
    return body


def shape_stage(layer: Any, stride: int, dilation: int, settings: DetectronSettings) -> None:
    """Gives a stage's first block its stride, and all of its blocks a dilation."""
    first = layer[0]
    in_1x1 = settings.stride_in_1x1
    first.conv1.stride, first.conv2.stride = ((stride if is_here else 1,) * 2 for is_here in (in_1x1, not in_1x1))
    first.downsample[0].stride = (stride, stride)
    for block in layer:
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


def backbone(settings: DetectronSettings) -> nn.Module:
    """The body that makes the maps, of which what freeze_at says takes no gradient."""
    body = resnet(settings)
    parts = ("conv1", "layer1", "layer2", "layer3", "layer4")[: settings.freeze_at]
    frozen = (*parts, "bn1") if parts else ()
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    if not settings.has_pyramid:
        return OneMap(body, "layer3" if settings.maps == "C4" else "layer4")
    channels = [256, 512, 1024, 2048]
    returned = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
    norm = group_norm(settings) if settings.fpn_group_norm else None
    extra = LastLevelMaxPool()
    pyramid = Pyramid(body, returned, channels, settings.fpn_channels, extra_blocks=extra, norm_layer=norm)
    used = {min(level, 5) for level in (*settings.rpn_levels, *settings.roi_levels)}  # the sixth is made of the fifth
    for place, block in enumerate(pyramid.fpn.layer_blocks):
        block.requires_grad_(place + FINEST_LEVEL in used)
    return pyramid


def rpn_strides(settings: DetectronSettings) -> tuple[int, ...]:
    """Of the maps that proposals are found in, in pixels."""
    if settings.has_pyramid:
        return tuple(2**level for level in settings.rpn_levels)
    return (map_stride(settings),)


def roi_strides(settings: DetectronSettings) -> tuple[int, ...]:
    """Of the maps that boxes are looked at in, in pixels."""
    if settings.has_pyramid:
        return tuple(2**level for level in settings.roi_levels)
    return (map_stride(settings),)


def map_stride(settings: DetectronSettings) -> int:
    """Of the only map."""
    if settings.maps == "C4" or settings.res5_dilation > 1:
        return 16
    return 32


def map_channels(settings: DetectronSettings) -> int:
    if settings.has_pyramid:
        return settings.fpn_channels
    return 1024 if settings.maps == "C4" else 2048
