"""SSD (Liu et al. 2016) with torchvision's parts. The names in its state dict are those of torchvision's builder."""

import functools
from typing import Any

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.models.vgg import cfgs, make_layers

from ssd.batch import Predictions
from ssd.detectors.torchvision.square.anchors import SQUARES
from ssd.detectors.torchvision.square.settings import MOBILENET, SquareSettings

_VGG_CHANNELS = [512, 1024, 512, 256, 256, 256]
_LITE_EXTRA_CHANNELS = [512, 256, 256, 128]


class SSD(nn.Module):
    """body: the layers of the classifier that the backbone is made of, by the names that they have there."""

    def __init__(self, body: nn.Sequential, backbone: nn.Module, head: nn.Module, size_px: int):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.size_px = size_px
        self._body = (body,)  # in a tuple, so that its weights have one name
        own = {id(module) for module in body.modules() if not list(module.children())}
        # By name, as thinning puts other layers in their places.
        self._body_names = [name for name, module in self.named_modules() if id(module) in own]
        self._body_is_frozen = False

    @property
    def body(self) -> nn.Sequential:
        """As it was built."""
        return self._body[0]

    def freeze_body(self) -> None:
        """Keeps the body's weights and its batch norm's statistics as they are, also in training mode."""
        self._body_is_frozen = True
        for name in self._body_names:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SSD":
        super().train(mode)
        for name in self._body_names:
            self.get_submodule(name).train(mode and not self._body_is_frozen)
        return self

    def forward(self, images: Tensor) -> Predictions:
        """images: as `MatchedBatch.images`. Raises ValueError for other sizes: the default boxes fit no other."""
        if images.shape[2:] != (self.size_px, self.size_px):
            raise ValueError(f"it takes images of {self.size_px} x {self.size_px} pixels, not {tuple(images.shape)}")
        said = self.head(list(self.backbone(images).values()))
        return Predictions(said["bbox_regression"], said["cls_logits"])


def build(settings: SquareSettings, num_classes: int) -> SSD:
    """With fresh weights. num_classes: K, background included."""
    square = SQUARES[settings.builder]
    head: nn.Module
    if settings.builder == MOBILENET:
        norm = functools.partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        body, fourth_stage = _mobilenet(settings, norm)
        backbone: Any = SSDLiteFeatureExtractorMobileNet(body, fourth_stage, norm)
        channels = [backbone.features[0][-1].out_channels, body[-1].out_channels, *_LITE_EXTRA_CHANNELS]
        head = SSDLiteHead(channels, square.boxes_a_cell, num_classes, norm)
    else:
        body = _vgg(settings)
        backbone = SSDFeatureExtractorVGG(body, highres=False)
        head = SSDHead(_VGG_CHANNELS, square.boxes_a_cell, num_classes)
    return SSD(body, backbone, head, square.size_px)


def _vgg(settings: SquareSettings) -> nn.Sequential:
    """VGG16's convolutions. torchvision's class would draw 120 million weights of layers that are not used."""
    body = make_layers(cfgs["D"])
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    _freeze_first(body, [0, *(i for i, layer in enumerate(body) if isinstance(layer, nn.MaxPool2d))][:-1], settings)
    return body


def _mobilenet(settings: SquareSettings, norm: Any) -> tuple[nn.Sequential, int]:
    """The layers before the classifier, and the place of the block whose inner map is the first that is looked at."""
    body: Any = mobilenet_v3_large(norm_layer=norm, reduced_tail=bool(settings.reduced_tail)).features
    if settings.reduced_tail:
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)
    begins = [0, *(place for place, block in enumerate(body) if getattr(block, "_is_cn", False)), len(body) - 1]
    _freeze_first(body, begins, settings)
    return body, begins[-2]


def _freeze_first(body: nn.Sequential, begins: list[int], settings: SquareSettings) -> None:
    """All but the last `trainable_layers` parts, which begin at these places, take no gradient."""
    learns = settings.trainable_layers
    body[: begins[-learns] if learns else len(body)].requires_grad_(False)
