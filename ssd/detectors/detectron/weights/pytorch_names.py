"""Checkpoints of Detectron.pytorch as Detectron's blobs.

Facts from roytseng-tw/Detectron.pytorch at 1b1c4ba: the detectron_weight_mapping of each of its modules.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ssd.detectors.detectron.settings import DetectronSettings

_STAGE = re.compile(
    r"(Conv_Body\.(?:conv_body\.)?|Box_Head\.|Mask_Head\.)res(\d)\.(\d+)\.(conv|bn|gn|downsample\.)(\d)\.(\w+)"
)
_LAYERS = {
    "Conv_Body.res1.conv1": "conv1",
    "RPN.FPN_RPN_conv": "conv_rpn_fpn{level}",
    "RPN.FPN_RPN_cls_score": "rpn_cls_logits_fpn{level}",
    "RPN.FPN_RPN_bbox_pred": "rpn_bbox_pred_fpn{level}",
    "RPN.RPN_conv": "conv_rpn",
    "RPN.RPN_cls_score": "rpn_cls_logits",
    "RPN.RPN_bbox_pred": "rpn_bbox_pred",
    "Box_Head.fc": "fc6",
    "Box_Head.fc1": "fc6",
    "Box_Head.fc2": "fc7",
    "Box_Outs.cls_score": "cls_score",
    "Box_Outs.bbox_pred": "bbox_pred",
    "Mask_Head.upconv": "conv5_mask",
    "Mask_Head.upconv5": "conv5_mask",
    "Mask_Outs.classify": "mask_fcn_logits",
    "Keypoint_Outs.deconv": "kps_deconv",
    "Keypoint_Outs.classify": "kps_score{lowres}",
}
_SUFFIXES = {"weight": "_w", "bias": "_b"}
_OF_NORM = {"weight": "_s", "bias": "_b"}


def state_of_pytorch(content: Any) -> dict[str, Tensor] | None:
    """The state dict of such a checkpoint; None of anything else."""
    state = content.get("model") if isinstance(content, dict) and "format" not in content else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    names = {str(name).removeprefix("module."): value for name, value in state.items()}
    return names if any(name.startswith("Conv_Body.") for name in names) else None


def blobs_of_pytorch(state: Mapping[str, Tensor], settings: DetectronSettings) -> dict[str, np.ndarray]:
    """By blob; what has none keeps its name, and is listed as unused."""
    return {
        _blob(name, settings) or name: value.float().numpy()
        for name, value in state.items()
        if ".upsample." not in name and not (settings.mask_head == "v0upshare" and name.startswith("Mask_Head.res5."))
    }


def _blob(name: str, settings: DetectronSettings) -> str | None:
    prefix, _, kind = name.replace("Conv_Body.conv_body.res1", "Conv_Body.res1").rpartition(".")
    if kind not in _SUFFIXES:
        return None
    norm = "_gn" if settings.norm == "group" else "_bn"
    if prefix in ("Conv_Body.res1.bn1", "Conv_Body.res1.gn1"):
        return ("conv1_gn" if norm == "_gn" else "res_conv1_bn") + _OF_NORM[kind]
    if found := _STAGE.fullmatch(name):
        room, stage, block, part, number, _ = found.groups()
        branch = "branch1" if part == "downsample." else f"branch2{'_abc'[int(number)]}"
        is_norm = part in ("bn", "gn") or (part == "downsample." and number == "1")
        of_mask = "_[mask]_" if room == "Mask_Head." else ""
        return f"{of_mask}res{stage}_{block}_{branch}" + (norm + _OF_NORM[kind] if is_norm else _SUFFIXES[kind])
    if prefix in _LAYERS:
        lowres = "_lowres" if settings.keypoint_upsampling > 1 else ""
        return _LAYERS[prefix].format(level=settings.rpn_levels[0], lowres=lowres) + _SUFFIXES[kind]
    for pattern, blob_of in _ROWS:
        if row := re.fullmatch(pattern, prefix):
            return blob_of(row, kind, settings)
    return None


def _normed(blob: str, part: str | None, kind: str) -> str:
    """part: "1" of a group norm behind a convolution."""
    return blob + (f"_gn{_OF_NORM[kind]}" if part == "1" else _SUFFIXES[kind])


def _of_pyramid(stage: int, blob: str, part: str | None, kind: str, settings: DetectronSettings) -> str:
    return _normed(blob.format(f"res{stage}_{settings.blocks[stage - 2] - 1}_sum"), part, kind)


def _of_head(row: "re.Match[str]", kind: str, blob: str, has_norm: bool) -> str:
    """Of a sequence of convolutions, with ReLU and perhaps a norm behind each."""
    place, rest = divmod(int(row[1]), 3 if has_norm else 2)
    return _normed(f"{blob}{place + 1}", str(rest), kind)


_ROWS: tuple[tuple[str, Callable[[Any, str, DetectronSettings], str]], ...] = (
    (r"Conv_Body\.conv_top(?:\.(\d))?", lambda row, kind, own: _of_pyramid(5, "fpn_inner_{}", row[1], kind, own)),
    (
        r"Conv_Body\.topdown_lateral_modules\.(\d)\.conv_lateral(?:\.(\d))?",
        lambda row, kind, own: _of_pyramid(4 - int(row[1]), "fpn_inner_{}_lateral", row[2], kind, own),
    ),
    (
        r"Conv_Body\.posthoc_modules\.(\d)(?:\.(\d))?",
        lambda row, kind, own: _of_pyramid(5 - int(row[1]), "fpn_{}", row[2], kind, own),
    ),
    (r"Box_Head\.convs\.(\d+)", lambda row, kind, own: _of_head(row, kind, "head_conv", own.box_head_group_norm)),
    (
        r"Mask_Head\.conv_fcn\.(\d+)",
        lambda row, kind, own: _of_head(
            row, kind, "_mask_fcn" if own.mask_head_group_norm else "_[mask]_fcn", own.mask_head_group_norm
        ),
    ),
    (r"Keypoint_Head\.conv_fcn\.(\d+)", lambda row, kind, own: _of_head(row, kind, "conv_fcn", False)),
)
