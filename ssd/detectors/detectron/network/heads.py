"""What looks at a box: the heads for its class and place, its mask and its points. The names in their state dicts are
those of torchvision's detectors; res5 behind a conv4 body is `box_head.layer4`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from ssd.detectors.detectron.network.bodies import group_norm, map_channels, resnet, shape_stage
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.keypoints import Skeleton

RES5_CHANNELS = 2048
_RES5_CELLS = 7
_CONVS = {"v1up4convs": 4, "v1up": 2}


class Res5(nn.Module):
    """The last stage of a ResNet behind a pooled box: R x 1024 x S x S -> R x 2048 x 7 x 7 where S is 14."""

    def __init__(self, settings: DetectronSettings, pooled: int, dilation: int):
        super().__init__()
        self.layer4 = resnet(settings).layer4
        shape_stage(self.layer4, max(1, pooled // _RES5_CELLS), dilation, settings)

    def forward(self, pooled: Tensor) -> Tensor:
        maps: Tensor = self.layer4(pooled)
        return maps


class KeypointPredictor(nn.Module):
    """R x C x S x S -> the logits of each point in each cell, R x P x (4 S) x (4 S) as usual."""

    def __init__(self, settings: DetectronSettings, points: int):
        super().__init__()
        channels, kernel = settings.keypoint_channels, settings.keypoint_deconv_kernel
        between = settings.keypoint_deconv_channels
        if between:
            self.kps_deconv = nn.ConvTranspose2d(channels, between, kernel, stride=2, padding=kernel // 2 - 1)
        if settings.keypoint_deconv_output:
            self.kps_score_lowres: nn.Module = nn.ConvTranspose2d(
                between or channels, points, kernel, stride=2, padding=kernel // 2 - 1
            )
        else:
            self.kps_score_lowres = nn.Conv2d(between or channels, points, 1)
        self.upsampling = settings.keypoint_upsampling
        self.repeats_border = settings.rules == "detectron2"

    def forward(self, features: Tensor) -> Tensor:
        if hasattr(self, "kps_deconv"):
            features = self.kps_deconv(features).relu()
        said = self.kps_score_lowres(features)
        if self.repeats_border:
            return F.interpolate(said, scale_factor=float(self.upsampling), mode="bilinear")
        return enlarged(said, self.upsampling)


def enlarged(maps: Tensor, factor: int) -> Tensor:
    """B x C x H x W -> B x C x (H * factor) x (W * factor): a deconvolution with a bilinear kernel, beyond whose input
    there is 0. Interpolation, as detectron2 has it, repeats the border there and differs in the outer ring."""
    if factor == 1:
        return maps
    rise = 1 - (torch.arange(2 * factor, device=maps.device) - (factor - 0.5)).abs() / factor
    kernel = (rise.unsqueeze(1) * rise).to(maps.dtype).expand(maps.shape[1], 1, -1, -1)
    return F.conv_transpose2d(maps, kernel, stride=factor, padding=factor // 2, groups=maps.shape[1])


def box_modules(settings: DetectronSettings, num_classes: int) -> dict[str, nn.Module]:
    """{"box_head", "box_predictor"}. num_classes: K, background included."""
    channels, cells, hidden = map_channels(settings), settings.box_pooled, settings.box_head_channels
    head: nn.Module
    if settings.box_head == "res5":
        head, hidden = Res5(settings, cells, settings.res5_dilation), RES5_CHANNELS
    elif settings.box_head == "mlp":
        head = TwoMLPHead(channels * cells**2, hidden)
    else:
        norm = group_norm(settings) if settings.box_head_group_norm else None
        convolutions = [settings.box_head_conv_channels] * settings.box_head_convs
        head = FastRCNNConvFCHead((channels, cells, cells), convolutions, [hidden], norm_layer=norm)
    predictor: Any = FastRCNNPredictor(hidden, num_classes)
    if settings.class_agnostic_boxes:
        predictor.bbox_pred = nn.Linear(hidden, 4 * 2)  # of the background and of all else
    return {"box_head": head, "box_predictor": predictor}


def mask_modules(settings: DetectronSettings, num_classes: int) -> dict[str, nn.Module]:
    """{"mask_head", "mask_predictor"}, or no head where masks share the box head's res5."""
    if not settings.mask_head:
        return {}
    masks = num_classes if settings.mask_of_classes else 1
    channels, modules = settings.mask_channels, dict[str, nn.Module]()
    if settings.mask_head in _CONVS:
        layers = (channels,) * _CONVS[settings.mask_head]
        norm = group_norm(settings) if settings.mask_head_group_norm else None
        modules["mask_head"] = MaskRCNNHeads(map_channels(settings), layers, settings.mask_dilation, norm_layer=norm)
    elif settings.mask_head == "v0up":
        modules["mask_head"] = Res5(settings, settings.mask_pooled, settings.mask_dilation)
    seen = RES5_CHANNELS if settings.is_mask_of_res5 else channels
    return {**modules, "mask_predictor": MaskRCNNPredictor(seen, channels, masks)}


def keypoint_modules(settings: DetectronSettings, skeleton: Skeleton) -> dict[str, nn.Module]:
    """{"keypoint_head", "keypoint_predictor"}."""
    seen, kernel, layers = map_channels(settings), settings.keypoint_kernel, list[nn.Module]()
    for _ in range(settings.keypoint_convs):
        layers += [nn.Conv2d(seen, settings.keypoint_channels, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        seen = settings.keypoint_channels
    return {
        "keypoint_head": nn.Sequential(*layers),
        "keypoint_predictor": KeypointPredictor(settings, len(skeleton.names)),
    }
