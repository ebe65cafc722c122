"""Weights of torchvision: a body's for ImageNet, and whole detectors' in files of its own."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd.coco_categories import coco_categories
from ssd.detectors.backbones import fill, read_backbone
from ssd.detectors.torchvision.square.anchors import SQUARES
from ssd.detectors.torchvision.square.model import SSD, build
from ssd.detectors.torchvision.square.settings import MOBILENET, VGG, SquareSettings, settings_of, title_of
from ssd.detectors.torchvision.weights import COCO_LABELS, state_in
from ssd.errors import InputError

_CLASSIFIERS = {VGG: "vgg16", MOBILENET: "mobilenet_v3_large"}
_CLASS_HEADS = "head.classification_head.module_list."
# The last layer of each of a head's parts, which is what depends on the classes.
_LAST_LAYER = {VGG: "", MOBILENET: "1."}
# Of the MobileNet's last layer, whole.
_TAIL, _TAIL_CHANNELS = "backbone.features.1.3.0.weight", 960


def load_backbone(model: SSD, settings: SquareSettings, source: str) -> None:
    """Fills the body: source is "imagenet" (downloaded once; of the VGG the weights that torchvision's SSD has, which
    know values in [0, 255] less their mean), "none" (keep the fresh weights) or a file, of torch or safetensors, with
    the state dict of torchvision's classifier. Raises InputError for any other file."""
    if source == "none":
        return
    name = _CLASSIFIERS[settings.builder]
    state = {
        str(key).removeprefix("features."): value
        for key, value in read_backbone(source, name).items()
        if str(key).startswith("features.")
    }
    fill(model.body, state, f"--backbone-weights {source}: not the weights of a torchvision {name}")


def fresh_heads(settings: SquareSettings) -> tuple[str, ...]:
    """The prefixes of the weights that depend on the classes."""
    parts = range(len(SQUARES[settings.builder].cells))
    return tuple(f"{_CLASS_HEADS}{part}.{_LAST_LAYER[settings.builder]}" for part in parts)


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """A state dict of torchvision's SSDs as `torchvision.weights.foreign` takes those of its other detectors; None for
    anything else. Raises InputError for an SSD that does not fit either builder."""
    state = state_in(content)
    if state is None or not any(name.startswith(_CLASS_HEADS) for name in state):
        return None
    settings = _settings(state)
    first = f"{fresh_heads(settings)[0]}bias"
    boxes_a_cell = SQUARES[settings.builder].boxes_a_cell
    if first not in state or len(state[first]) % boxes_a_cell[0]:
        raise InputError(f"{file}: not a whole {title_of(settings)} of torchvision, its {first} is missing or cut")
    num_classes = len(state[first]) // boxes_a_cell[0]
    with torch.device("meta"):  # without drawing weights that the file's replace
        model = build(settings, num_classes)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()[:200]
        raise InputError(f"{file}: not a whole {settings.builder} of torchvision ({what}); use another") from error
    weights = model.state_dict()
    categories = [(label, f"class {label}") for label in range(1, num_classes)]
    if num_classes == COCO_LABELS:
        categories = coco_categories()
        labels = [0, *(id for id, _ in categories)]
        for name in weights:
            if name.startswith(fresh_heads(settings)):
                weights[name] = weights[name].unflatten(0, (-1, COCO_LABELS))[:, labels].flatten(0, 1)
    return {
        "detector": {"family": settings.family, **asdict(settings)},
        "categories": categories,
        "model": weights,
    }


def _settings(state: dict[str, Tensor]) -> SquareSettings:
    if "backbone.scale_weight" in state:
        return settings_of(VGG)
    tail = state.get(_TAIL)
    return replace(settings_of(MOBILENET), reduced_tail=tail is not None and len(tail) < _TAIL_CHANNELS)
