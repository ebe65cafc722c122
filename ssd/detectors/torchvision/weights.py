"""Weights of torchvision: a body's for ImageNet, and whole detectors' in files of its own."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd.coco_categories import coco_categories
from ssd.detectors.backbones import fill, read_backbone
from ssd.detectors.torchvision.builders import build
from ssd.detectors.torchvision.dense.retinanet import ANCHORS_A_CELL
from ssd.detectors.torchvision.names import MOBILENET, RESNETS, parts_of, settings_of
from ssd.detectors.torchvision.pyramid import body_of
from ssd.detectors.torchvision.settings import Settings
from ssd.errors import InputError

# torchvision's labels are COCO's ids, of which 80 of 1 to 90 are in use.
COCO_LABELS = 91
_BODY = "backbone.body."
_DENSE_HEAD = "head.classification_head.cls_logits."
_BOX_HEAD = "roi_heads.box_predictor."
_MASK_HEAD = "roi_heads.mask_predictor.mask_fcn_logits."


def load_backbone(model: nn.Module, settings: Settings, source: str) -> None:
    """Fills the body: source is "imagenet" (downloaded once), "none" (keep the fresh weights) or a file, of torch or
    safetensors, with the state dict of torchvision's classifier. Raises InputError for any other file."""
    name = parts_of(settings.builder).body
    if source == "none":
        if settings.norm == "frozen":
            raise InputError("--backbone-weights none: a body with frozen norms cannot learn from scratch; pass a file")
        return
    body: Any = model.backbone.body  # type: ignore[union-attr]
    own = body.state_dict()
    state = {}
    for key, value in read_backbone(source, name).items():
        key = str(key).removeprefix("features.")
        # Frozen norms count no batches; the classifier behind the body is not used.
        if key.partition(".")[0] in body and (key in own or not key.endswith("num_batches_tracked")):
            state[key] = value
    fill(body, state, f"--backbone-weights {source}: not the weights of a torchvision {name}")


def fresh_heads(settings: Settings) -> tuple[str, ...]:
    """The prefixes of the weights that depend on the classes."""
    family = parts_of(settings.builder).family
    if family in ("retinanet", "fcos"):
        return (_DENSE_HEAD,)
    return (_BOX_HEAD, _MASK_HEAD) if family == "maskrcnn" else (_BOX_HEAD,)


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """A state dict of torchvision's detectors, alone or as "model" as its training script saves it, as the content
    {"detector", "categories", "model"} of a checkpoint of ours; None for anything else.

    The builder is told by the tensors, but for MobileNet's of 320 pixels, whose file's name must have 320 in it. With
    91 classes it was trained on COCO, whose 80 categories are made of them. Of others only the number is known. Raises
    InputError for a detector of torchvision that does not fit any of its builders.
    """
    state = state_in(content)
    if state is None:
        return None
    family = _family(state)
    if family is None or not any(name.startswith(_BODY) for name in state):
        return None
    settings = _settings(state, family, file)
    num_classes = _num_classes(state, family, file)
    with torch.device("meta"):  # without drawing weights that the file's replace
        model = build(settings, num_classes)
    try:
        model.load_state_dict(state, assign=True)  # which renames what is from before torchvision 0.13
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()[:200]
        raise InputError(f"{file}: not a whole {settings.builder} of torchvision ({what}); use another") from error
    weights = model.state_dict()
    categories = [(label, f"class {label}") for label in range(1, num_classes)]
    if num_classes == COCO_LABELS:
        categories = coco_categories()
        _keep_labels(weights, [0, *(id for id, _ in categories)])
    elif family == "keypointrcnn" and num_classes == 2:
        categories = [(1, "person")]
    detector = {"family": settings.family, **asdict(settings)}
    return {"detector": detector, "categories": categories, "model": weights}


def state_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a file of torchvision's: the file is it, or has it as "model". None of anything else."""
    if not isinstance(content, dict) or "format" in content:
        return None
    state = content.get("model", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _family(state: dict[str, Tensor]) -> str | None:
    telling = {
        "roi_heads.mask_predictor.mask_fcn_logits.weight": "maskrcnn",
        "roi_heads.keypoint_predictor.kps_score_lowres.weight": "keypointrcnn",
        "roi_heads.box_predictor.cls_score.weight": "fasterrcnn",
        "head.regression_head.bbox_ctrness.weight": "fcos",
        "head.regression_head.bbox_reg.weight": "retinanet",
    }
    return next((family for name, family in telling.items() if name in state), None)


def _settings(state: dict[str, Tensor], family: str, file: Path) -> Settings:
    is_v2 = not state.keys().isdisjoint({"rpn.head.conv.1.0.weight", "head.regression_head.conv.0.1.weight"})
    body = _body(state, file)
    ending = "_fpn_v2" if is_v2 else "_fpn"
    if body == MOBILENET and "320" in file.name:
        ending = "_320_fpn"
    settings = settings_of(f"{family}_{body}{ending}")
    if any(name.startswith(_BODY) and name.endswith("num_batches_tracked") for name in state):
        return replace(settings, norm="batch")
    # torchvision 0.13 changed these names. The files from before were trained with 0 added to a variance.
    is_old = family != "fcos" and not state.keys().isdisjoint(
        {"rpn.head.conv.weight", "head.classification_head.conv.0.weight"}
    )
    return replace(settings, norm_eps=0.0 if is_old and body != MOBILENET else 1e-5)


def _body(state: dict[str, Tensor], file: Path) -> str:
    shapes = {
        name.removeprefix(_BODY): value.shape
        for name, value in state.items()
        if name.startswith(_BODY) and not name.endswith("num_batches_tracked")
    }
    if "0.0.weight" in shapes:
        return MOBILENET
    for name in RESNETS:
        with torch.device("meta"):
            own = body_of(Settings(f"fasterrcnn_{name}_fpn")).state_dict()
        if {key: value.shape for key, value in own.items() if not key.startswith("fc.")} == shapes:
            return name
    raise InputError(f"{file}: a detector of torchvision whose body is none of its ResNets; use another file")


def _num_classes(state: dict[str, Tensor], family: str, file: Path) -> int:
    name = {"retinanet": _DENSE_HEAD, "fcos": _DENSE_HEAD}.get(family, f"{_BOX_HEAD}cls_score.") + "bias"
    a_class = ANCHORS_A_CELL if family == "retinanet" else 1
    if name not in state or len(state[name]) % a_class:
        raise InputError(f"{file}: not a whole {family} of torchvision, its {name} is missing; use another file")
    return len(state[name]) // a_class


def _keep_labels(weights: dict[str, Tensor], labels: list[int]) -> None:
    """Leaves of each head that knows classes those of these labels, in this order."""
    rows_of = {
        f"{_DENSE_HEAD}weight": 1,
        f"{_DENSE_HEAD}bias": 1,
        f"{_BOX_HEAD}cls_score.weight": 1,
        f"{_BOX_HEAD}cls_score.bias": 1,
        f"{_BOX_HEAD}bbox_pred.weight": 4,
        f"{_BOX_HEAD}bbox_pred.bias": 4,
        f"{_MASK_HEAD}weight": 1,
        f"{_MASK_HEAD}bias": 1,
    }
    for name, rows in rows_of.items():
        if name in weights:
            by_label = weights[name].unflatten(0, (-1, COCO_LABELS, rows))
            weights[name] = by_label[:, labels].flatten(0, 2)
