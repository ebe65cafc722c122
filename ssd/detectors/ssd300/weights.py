"""Weights of other programs: NVIDIA's DeepLearningExamples (DLE) checkpoints, and torchvision's ResNets for the trunk.

DLE's SSD300 is this project's, under other names and with the channels of its heads in another order: of a head with
S shapes a cell and V values a box, DLE's channel v * S + s is channel s * V + v here. So its output is B x V x A, this
project's B x A x V.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ssd.coco_categories import coco_categories
from ssd.detectors.backbones import fill, read_backbone
from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError

# Names in DLE (without the "module." that DistributedDataParallel adds) -> names here.
_DLE_PREFIXES = {
    "feature_extractor.feature_extractor.": "trunk.",
    "additional_blocks.": "extra_blocks.",
    "loc.": "box_heads.",
    "conf.": "class_heads.",
}
_DLE_CLASSES = 81
_DLE_VALUES_PER_BOX = {"loc.": 4, "conf.": _DLE_CLASSES}
# (blocks of layer3, whether a block has a third convolution), which no two backbones have in common.
_BACKBONE_OF_LAYER3 = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
    (36, True): "resnet152",
}
# torchvision's names of the trunk's children -> their places in the trunk (relu and maxpool have no weights).
_TRUNK_NAMES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """What a file of DLE says as a checkpoint of ours, without its format; None of any other.

    DLE's checkpoints say neither backbone nor category ids: the backbone is told by the weights, and the categories are
    COCO's 80, which DLE cannot train without. Raises InputError for a DLE file that is damaged or of other classes.
    """
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        return None
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    if not any(name.startswith("feature_extractor.") for name in state):
        return None
    return _from_dle(state, content.get("label_map"), file)


def _from_dle(state: dict[str, Any], label_map: Any, file: Path) -> dict[str, Any]:
    categories = coco_categories()
    if label_map is not None and label_map != dict(enumerate(["background", *(name for _, name in categories)])):
        raise InputError(f"{file}: its label_map is not COCO's 80 categories in order; only DLE's COCO models convert")
    layer3 = "feature_extractor.feature_extractor.6."
    blocks = {found[1] for found in (re.match(re.escape(layer3) + r"(\d+)\.", name) for name in state) if found}
    backbone = _BACKBONE_OF_LAYER3.get((len(blocks), f"{layer3}0.conv3.weight" in state))
    if backbone is None:
        raise InputError(f"{file}: names of a DLE SSD, but its layer3 is that of no ResNet; use another file")
    model = {}
    for name, value in state.items():
        prefix = next((prefix for prefix in _DLE_PREFIXES if name.startswith(prefix)), "")
        if values := _DLE_VALUES_PER_BOX.get(prefix):
            value = _reordered(value, values, name, file)
        model[_DLE_PREFIXES.get(prefix, prefix) + name.removeprefix(prefix)] = value
    detector = {"family": "ssd300", "backbone": backbone}
    return {"detector": detector, "categories": categories, "model": model}


def _reordered(value: Any, values: int, name: str, file: Path) -> Tensor:
    """A weight or bias of a DLE head with its first dimension in this project's order."""
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) % values:
        raise InputError(f"{file}: {name} is no head for boxes of {_DLE_CLASSES} classes, which DLE's SSD has")
    return value.unflatten(0, (values, -1)).transpose(0, 1).flatten(0, 1)


def load_backbone(model: SSD300, source: str) -> None:
    """Fills the trunk: source is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none" (keep the fresh
    weights) or a file, of torch or safetensors, with a torchvision ResNet state dict."""
    if source == "none":
        return
    trunk = {}
    for name, value in read_backbone(source, model.backbone).items():
        head, _, tail = str(name).partition(".")
        if head in _TRUNK_NAMES:
            trunk[f"{_TRUNK_NAMES[head]}.{tail}"] = value
    fill(model.trunk, trunk, f"--backbone-weights {source}: not the weights of a torchvision {model.backbone}")
