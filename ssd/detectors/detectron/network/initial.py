"""The weights that Detectron begins with. Biases are 0, norms 1 and 0."""

import math

from torch import nn

from ssd.detectors.detectron.settings import DetectronSettings

# The last map has nothing that is added to it.
_ADDED_LATERALS = tuple(f"backbone.fpn.inner_blocks.{place}." for place in range(3))


def initialise(model: nn.Module, settings: DetectronSettings) -> None:
    """Draws all but the body's, which are torchvision's, as is what they begin with."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        if name.startswith(("backbone.body.", "roi_heads.box_head.layer4", "roi_heads.mask_head.layer4")):
            continue
        if settings.fpn_zero_lateral and name.startswith(_ADDED_LATERALS):
            nn.init.zeros_(module.weight)
        else:
            _draw(name, module, settings)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _draw(name: str, module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, settings: DetectronSettings) -> None:
    weight = module.weight
    if name.startswith("rpn.") or name.endswith("cls_score"):
        nn.init.normal_(weight, std=0.01)
    elif name.endswith("bbox_pred"):
        nn.init.normal_(weight, std=0.001)
    elif name.startswith("roi_heads.mask"):
        is_msra = settings.mask_msra_init and (settings.mask_of_classes or not name.endswith("mask_fcn_logits"))
        _msra_or_gaussian(module, is_msra, 0.001)
    elif name.startswith("roi_heads.keypoint_head"):
        _msra_or_gaussian(module, settings.keypoint_msra_init, 0.01)
    elif name.endswith("kps_deconv"):
        nn.init.normal_(weight, std=0.01)
    elif name.endswith("kps_score_lowres"):
        _msra_or_gaussian(module, settings.keypoint_msra_init, 0.001)
    elif name.startswith("roi_heads.") and isinstance(module, nn.Conv2d):
        _msra_or_gaussian(module, True, 0.0)
    else:  # Caffe2's XavierFill, of the pyramid and of fully connected layers
        bound = math.sqrt(3 / (weight.numel() / weight.shape[0]))
        nn.init.uniform_(weight, -bound, bound)


def _msra_or_gaussian(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, is_msra: bool, std: float) -> None:
    weight = module.weight
    # Caffe2's MSRAFill counts the second dimension as what goes in, of deconvolutions too.
    nn.init.normal_(weight, std=math.sqrt(2 / (weight.numel() / weight.shape[1])) if is_msra else std)
