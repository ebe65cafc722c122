"""Bodies with a feature pyramid, put together and named as torchvision's builders do it."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import mobilenet_v3_large, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ssd.detectors.torchvision.names import MOBILENET, parts_of
from ssd.detectors.torchvision.settings import Settings

CHANNELS = 256
"""Of each map of a pyramid."""


class Pyramid(BackboneWithFPN):
    """torchvision's, whose body can be left as it is."""

    body_is_frozen = False

    def freeze_body(self) -> None:
        """Keeps the body's weights and its batch norm's statistics as they are, also in training mode."""
        self.body_is_frozen = True
        self.body.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Pyramid":
        super().train(mode)
        self.body.train(mode and not self.body_is_frozen)
        return self


def body_of(settings: Settings) -> nn.Module:
    """The fresh body, with the layers after its last feature map."""
    norm: Callable[..., nn.Module] = nn.BatchNorm2d
    if settings.norm == "frozen":
        norm = functools.partial(FrozenBatchNorm2d, eps=settings.norm_eps)
    name = parts_of(settings.builder).body
    body: nn.Module = (mobilenet_v3_large if name == MOBILENET else getattr(resnet, name))(norm_layer=norm)
    return body


def resnet_pyramid(
    settings: Settings,
    stages: tuple[int, ...],
    extra: Callable[[int], ExtraFPNBlock],
    norm: Callable[[int], nn.Module] | None,
) -> nn.Module:
    """The maps of some of the stages 1 to 4, and what extra makes of the last, whose channels in the body it is told.
    All but the last `trainable_layers` parts of the body take no gradient."""
    return pyramid_over(body_of(settings), settings.trainable_layers, stages, extra, norm)


def pyramid_over(
    body: nn.Module,
    trainable_layers: int | None,
    stages: tuple[int, ...],
    extra: Callable[[int], ExtraFPNBlock],
    norm: Callable[[int], nn.Module] | None,
) -> nn.Module:
    """`resnet_pyramid` of a body that is there."""
    parts = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")
    learns = parts[: 6 if trainable_layers == 5 else trainable_layers]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(learns))
    channels = [body.inplanes // 8 * 2 ** (stage - 1) for stage in stages]  # type: ignore[operator]
    returned = {f"layer{stage}": str(place) for place, stage in enumerate(stages)}
    return Pyramid(body, returned, channels, CHANNELS, extra_blocks=extra(channels[-1]), norm_layer=norm)


def mobilenet_pyramid(settings: Settings) -> nn.Module:
    """The maps of the last stage's first and last block."""
    body: Any = body_of(settings).features
    # A stage begins where the stride is, and at both ends.
    begins = [0, *(place for place, block in enumerate(body) if getattr(block, "_is_cn", False)), len(body) - 1]
    for block in body[: begins[-settings.trainable_layers] if settings.trainable_layers else len(body)]:
        block.requires_grad_(False)
    returned = {str(begins[-2]): "0", str(begins[-1]): "1"}
    channels = [body[begins[-2]].out_channels, body[begins[-1]].out_channels]
    return Pyramid(body, returned, channels, CHANNELS)
