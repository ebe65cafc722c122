"""Whole RetinaNets of detectron2, in its .pkl and .pth files: read, and written as .pkl."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.coco_categories import coco_categories
from ssd.detectors.retinanet.anchors import ANCHORS_A_CELL
from ssd.detectors.retinanet.model import NORMALISER, NORMALISER_START, build
from ssd.detectors.retinanet.names import our_name, their_name
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.errors import InputError
from ssd.storage.pickles import pickled

# Of blue, green and red in 0 to 255: detectron2 takes off the mean and divides by 1; the views here take off the same
# mean and divide by the standard deviation.
_MEAN_BGR, _STD_RGB = (103.53, 116.28, 123.675), (58.395, 57.12, 57.375)
_FIRST = "backbone.body.conv1.weight"
CLASS_HEAD = "head.classification_head.cls_logits."
_TELLING = ("backbone.bottom_up.stem.conv1.weight", "head.cls_score.weight", "head.bbox_pred.weight")
# detectron2's names of what is fixed here.
_PASSED_OVER = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors.")
_STUDENT = "student."
_OF_A_DISTILLATION = (_STUDENT, "teacher.")
# Our own: detectron2 reads "model" alone, and has these in its configuration and data.
_STRIDE_KEY, _CATEGORIES_KEY = "stride_in", "categories"
# (blocks of the third stage, whether they have three convolutions)
_BODY_OF_STAGE_3 = {(2, False): "r18", (6, False): "r34", (6, True): "r50", (23, True): "r101", (36, True): "r152"}


class Accounts(NamedTuple):
    """Where a file's weights and a model's do not go together: names that only the file has, that only the model has,
    and that both have in other shapes."""

    unused: list[str]
    missing: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        kinds = zip(self, ("unused", "missing", "of another shape"), strict=True)
        return ", ".join(f"{len(names)} {kind} ({', '.join(names)})" for names, kind in kinds if names)


def accounts_of(state: dict[str, Tensor], own: dict[str, Tensor]) -> Accounts:
    return Accounts(
        sorted(state.keys() - own.keys()),
        sorted(own.keys() - state.keys()),
        sorted(
            f"{name}: {'x'.join(map(str, state[name].shape))}, not {'x'.join(map(str, own[name].shape))}"
            for name in state.keys() & own.keys()
            if state[name].shape != own[name].shape
        ),
    )


def from_bgr_255(weight: Tensor) -> Tensor:
    """The first convolution's weights for what the views here make of an image, from those for blue, green and red
    without their mean: float32."""
    return (weight.double().flip(1) * _std_rgb()).float()


def to_bgr_255(weight: Tensor) -> Tensor:
    """The inverse of `from_bgr_255`, but for the last bit."""
    return (weight.double() / _std_rgb()).flip(1).float()


def _std_rgb() -> Tensor:
    return torch.tensor(_STD_RGB, dtype=torch.float64).view(1, 3, 1, 1)


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """A RetinaNet of detectron2, a pickle of arrays or a checkpoint of its training, as the content {"detector",
    "categories", "model"} of a checkpoint of ours; None for anything else.

    The weights tell body and number of classes; 80 are COCO's. Of a checkpoint of Distill_GID_detectron2, which holds
    the teacher too, the student is taken. Raises InputError that lists what is unused, missing or of another shape.
    """
    state = content.get("model", content) if isinstance(content, dict) else None
    if isinstance(state, dict) and all(str(name).startswith(_OF_A_DISTILLATION) for name in state):
        state = {str(name).removeprefix(_STUDENT): each for name, each in state.items() if name.startswith(_STUDENT)}
    if not isinstance(state, dict) or not all(name in state for name in _TELLING):
        return None
    tensors = {str(name): tensor_of(value, f"{file}: {name}") for name, value in state.items()}
    _require_bgr(tensors, file)
    named = {our_name(name): value for name, value in tensors.items() if not name.startswith(_PASSED_OVER)}
    settings = _settings(named, content.get(_STRIDE_KEY, "1x1"), file)
    num_classes = len(named[f"{CLASS_HEAD}weight"]) // ANCHORS_A_CELL + 1
    with torch.device("meta"):
        own = build(settings, num_classes).state_dict()
    del own[NORMALISER]
    accounts = accounts_of(named, own)
    if any(accounts):
        raise InputError(f"{file}: not a whole RetinaNet of detectron2: {accounts}; use another file")
    model = {name: named[name].to(own[name].dtype) for name in own}
    model[_FIRST] = from_bgr_255(model[_FIRST])
    model[NORMALISER] = torch.tensor(NORMALISER_START)
    detector = {"family": settings.family, **asdict(settings)}
    return {"detector": detector, "categories": _categories(content, num_classes), "model": model}


def _categories(content: dict[str, Any], num_classes: int) -> list[tuple[int, str]]:
    """Those that `to_pkl` noted, else COCO's where their number is right, else with numbers for names."""
    noted = content.get(_CATEGORIES_KEY)
    if isinstance(noted, list) and len(noted) == num_classes - 1:
        return [(int(id), str(name)) for id, name in noted]
    categories = coco_categories()
    if len(categories) == num_classes - 1:
        return categories
    return [(label, f"class {label}") for label in range(1, num_classes)]


def tensor_of(value: Any, what: str) -> Tensor:
    """An array or tensor out of a file. Raises InputError that begins with what it is for anything else."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise InputError(f"{what} is a {type(value).__name__}, no array; use another file")
    return value


def _require_bgr(state: dict[str, Tensor], file: Path) -> None:
    """Raises InputError if a file says that its weights are for other colours than detectron2's usual ones."""
    for name, usual in (("pixel_mean", _MEAN_BGR), ("pixel_std", (1.0, 1.0, 1.0))):
        values = state[name].flatten().tolist() if name in state else usual
        if len(values) != 3 or any(abs(a - b) > 1e-3 for a, b in zip(values, usual, strict=True)):
            raise InputError(
                f"{file}: its {name} is {', '.join(f'{value:g}' for value in values)}, not that of weights for blue, "
                f"green and red in 0 to 255 ({', '.join(f'{value:g}' for value in usual)}); use another file"
            )


def _settings(state: dict[str, Tensor], stride_in: str, file: Path) -> RetinaNetSettings:
    stage = "backbone.body.layer3."
    blocks = {name.removeprefix(stage).partition(".")[0] for name in state if name.startswith(stage)}
    body = _BODY_OF_STAGE_3.get((len(blocks), f"{stage}0.conv3.weight" in state))
    if body is None:
        raise InputError(f"{file}: a RetinaNet of detectron2 on none of its ResNets; use another file")
    is_frozen = "backbone.body.bn1.num_batches_tracked" not in state
    return RetinaNetSettings(f"retinanet_{body}_fpn", norm="frozen" if is_frozen else "batch", stride_in=stride_in)


def to_pkl(content: dict[str, Any]) -> bytes:
    """The model of a checkpoint as a .pkl that detectron2 loads, for its usual colours. Raises InputError for a thinned
    one."""
    if content.get("channels"):
        raise InputError("convert: a thinned RetinaNet cannot be written for detectron2, which would not build it")
    model = {name: value for name, value in content["model"].items() if name != NORMALISER}
    model[_FIRST] = to_bgr_255(model[_FIRST])
    arrays = {their_name(name): value.numpy() for name, value in model.items()}
    own = {
        _STRIDE_KEY: content["detector"]["stride_in"],
        _CATEGORIES_KEY: [[int(id), str(name)] for id, name in content["categories"]],
    }
    return pickled({"model": arrays, "__author__": "main.py convert", **own})
