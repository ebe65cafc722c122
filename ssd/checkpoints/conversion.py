"""Weights of other programs: NVIDIA's DeepLearningExamples (DLE) checkpoints, torchvision's ResNets, safetensors files.

DLE's SSD300 is this project's, under other names and with the channels of its heads in another order: of a head with
S shapes a cell and V values a box, DLE's channel v * S + s is channel s * V + v here. So its output is B x V x A, this
project's B x A x V.
"""

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ssd.checkpoints import checkpoint
from ssd.detectors.backbones import fill, read_backbone
from ssd.detectors.coco_categories import coco_categories
from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError
from ssd.files import written_whole
from ssd.weight_files import read

_A_MODEL = "a checkpoint of this program or of NVIDIA's DLE SSD"
# The entry of a safetensors file's metadata that holds, as JSON, what a checkpoint has beside its weights.
_METADATA_KEY = "ssd300"

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


def load(file: Path) -> dict[str, Any]:
    """The model of a file as `checkpoint.load` returns it: a checkpoint of this program or of DLE, or either's weights
    in a safetensors file. Raises InputError for any other file.

    DLE's checkpoints say neither backbone nor category ids: the backbone is told by the weights, and the categories are
    COCO's 80, which DLE cannot train without.
    """
    content = _read(file, _A_MODEL)
    state = content.get("model") if isinstance(content, dict) else None
    if isinstance(state, dict):
        state = {str(name).removeprefix("module."): value for name, value in state.items()}
        if any(name.startswith("feature_extractor.") for name in state):
            return _from_dle(state, content.get("label_map"), file)
    return checkpoint.require_model(content, file)


def save(file: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint's model, whole or not at all: as a safetensors file if its name ends so, else as ours."""
    about = {key: content[key] for key in ("format", "backbone", "categories")}
    if file.suffix != ".safetensors":
        checkpoint.save(file, {**about, "model": content["model"]})
        return
    tensors = {name: value.contiguous() for name, value in content["model"].items()}
    with written_whole(file) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"format": "pt", _METADATA_KEY: json.dumps(about)}))


def _read(file: Path, what: str) -> Any:
    """A torch file's content; of a safetensors file {"model": its tensors} with what `save` noted of them, if it did.
    Raises InputError for any other file."""
    if file.suffix != ".safetensors" or not file.is_file():
        return read(file, what)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get(_METADATA_KEY, "{}"))
            return {**about, "model": {name: opened.get_tensor(name) for name in opened.keys()}}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: cannot be read as {what} ({reason[:200]}); use another file") from error


# NVIDIA's DeepLearningExamples


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
    return {"format": checkpoint.FORMAT, "backbone": backbone, "categories": categories, "model": model}


def _reordered(value: Any, values: int, name: str, file: Path) -> Tensor:
    """A weight or bias of a DLE head with its first dimension in this project's order."""
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) % values:
        raise InputError(f"{file}: {name} is no head for boxes of {_DLE_CLASSES} classes, which DLE's SSD has")
    return value.unflatten(0, (values, -1)).transpose(0, 1).flatten(0, 1)


# torchvision's ResNets


def load_backbone(model: SSD300, source: str) -> None:
    """Fills the trunk: source is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none" (keep the fresh
    weights) or a file, of torch or safetensors, with a torchvision ResNet state dict."""
    if source == "none":
        return
    state = read_backbone(source, model.backbone)
    trunk = {}
    for name, value in state.items():
        head, _, tail = str(name).partition(".")
        if head in _TRUNK_NAMES:
            trunk[f"{_TRUNK_NAMES[head]}.{tail}"] = value
    fill(model.trunk, trunk, f"--backbone-weights {source}: not the weights of a torchvision {model.backbone}")
