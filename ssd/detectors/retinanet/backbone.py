"""ImageNet weights of a RetinaNet's body: torchvision's, or MSRA's in Caffe2's blobs as Detectron has them."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd.detectors.backbones import fill, read_backbone
from ssd.detectors.retinanet.names import OF_BLOBS
from ssd.detectors.retinanet.settings import BODIES, RetinaNetSettings
from ssd.detectors.retinanet.weights import accounts_of, from_bgr_255, tensor_of
from ssd.errors import InputError
from ssd.storage.pickles import read_pickle

# What no body has: the classifier behind it, momentum of its training, and biases before a norm, which are all 0.
_OF_THE_CLASSIFIER = re.compile(r"fc1000_.*|pred_.*|weight_order|.*_momentum")
_OF_CONVOLUTIONS = re.compile(r"conv1_b|res\d_\d+_branch\w+(?<!bn)_b")


def load_backbone(model: Any, settings: RetinaNetSettings, source: str) -> str | None:
    """Fills the body: source is "imagenet" (torchvision's, downloaded once), "none" (keep the fresh weights), a .pkl
    file of Caffe2's blobs, or a file with the state dict of torchvision's classifier. Raises InputError for any other
    file, and for weights whose stride is in another convolution than the settings say."""
    body = model.backbone.body
    if source == "none":
        if settings.norm == "frozen":
            raise InputError("--backbone-weights none: a body with frozen norms cannot learn from scratch; pass a file")
        return None
    is_msra = source.endswith(".pkl")
    if is_msra:
        state = _of_blobs(Path(source), body.state_dict(), BODIES[settings.body])
    else:
        own = body.state_dict()
        state = {
            name: value
            for name, value in read_backbone(source, BODIES[settings.body]).items()
            if str(name).partition(".")[0] in body and (name in own or not name.endswith("num_batches_tracked"))
        }
    fill(body, state, f"--backbone-weights {source}: not the weights of a {BODIES[settings.body]}")
    usual = "1x1" if is_msra else "3x3"
    if settings.stride_in != usual and hasattr(body.layer2[0], "conv3"):
        return (
            f"--backbone-weights {source}: such weights have their strides in the {usual}, and this body in the "
            f"{settings.stride_in}; pass --stride-in {usual} unless that is meant"
        )
    return None


def _of_blobs(file: Path, own: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The body's state dict. What Caffe2 folded into its norms' scales and biases has no statistics: they are such
    that nothing is taken off and the division is by 1."""
    content = read_pickle(file, "a classifier of Caffe2")
    blobs = content.get("blobs", content) if isinstance(content, dict) else {}
    complaint = f"--backbone-weights {file}"
    if not isinstance(blobs, dict) or "conv1_w" not in blobs:
        raise InputError(f"{complaint}: not a classifier of Caffe2, whose first blob is conv1_w; use another file")
    state: dict[str, Tensor] = {}
    for blob, value in blobs.items():
        if _OF_THE_CLASSIFIER.fullmatch(blob):
            continue
        tensor = tensor_of(value, f"{complaint}: {blob}")
        if _OF_CONVOLUTIONS.fullmatch(blob) and not tensor.any():
            continue
        state[str(OF_BLOBS.get(blob, blob))] = tensor
    for key, value in own.items():
        if key.endswith("running_mean"):
            state.setdefault(key, torch.zeros_like(value))
        elif key.endswith("running_var"):
            state.setdefault(key, torch.full_like(value, 1 - _EPS))
    accounts = accounts_of(state, {key: each for key, each in own.items() if not key.endswith("num_batches_tracked")})
    if any(accounts):
        raise InputError(f"{complaint}: not the blobs of a {name}: {accounts}; use another file")
    state["conv1.weight"] = from_bgr_255(state["conv1.weight"])
    return state


_EPS = 1e-5
"""What norms add to a variance."""
