"""What Detectron calls the weights of a detector: blobs, by the names of their places in a state dict here.

Facts from facebookresearch/Detectron at 04155a0 (detectron/modeling). Nothing is permuted but conv1's input channels,
which are B, G and R there.
"""

import re
from collections.abc import Iterable

from ssd.detectors.detectron.settings import DetectronSettings

CONV1 = "backbone.body.conv1.weight"
"""Its second dimension is R, G, B here."""

_STAGE = re.compile(
    r"(backbone\.body|roi_heads\.box_head|roi_heads\.mask_head)\.layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(weight|bias)"
)
_MASK_RES5 = "_[mask]_res5_"
"""Of a mask head that has a res5 of its own. In a file without, it begins as the box head's."""


def blob_names(names: Iterable[str], settings: DetectronSettings) -> dict[str, str]:
    """The blob of each of a model's own names that has one. A frozen norm's mean and variance, 0 and 1, have none.

    names: of the state dict of a model of `builders.build` whose norms are not batch norm.
    """
    return {name: blob for name in names if (blob := _blob(name, settings)) is not None}


def fallback(blob: str) -> str | None:
    """The blob that Detectron takes where a file has not this one."""
    return f"res5_{blob.removeprefix(_MASK_RES5)}" if blob.startswith(_MASK_RES5) else None


def _blob(name: str, settings: DetectronSettings) -> str | None:
    if name.endswith(("running_mean", "running_var")):
        return None
    prefix, _, kind = name.rpartition(".")
    if name == CONV1:
        return "conv1_w"
    if prefix == "backbone.body.bn1":
        return ("conv1_gn" if settings.norm == "group" else "res_conv1_bn") + _of_norm(kind)
    if found := _STAGE.fullmatch(name):
        return _of_stage(found, settings)
    rooms = {
        "backbone.fpn.": _of_pyramid,
        "rpn.head.": _of_rpn,
        "roi_heads.box_head.": _of_box_head,
        "roi_heads.mask_head.": _of_mask_head,
        "roi_heads.keypoint_head.": _of_keypoint_head,
    }
    for room, blob_of in rooms.items():
        if prefix.startswith(room):
            return blob_of(prefix.removeprefix(room).split("."), kind, settings)
    if prefix == "roi_heads.keypoint_predictor.kps_score_lowres" and settings.keypoint_upsampling == 1:
        return "kps_score" + _of_layer(kind)
    # box_predictor, mask_predictor and keypoint_predictor, whose layers Detectron calls the same.
    return prefix.rpartition(".")[2] + _of_layer(kind)


def _of_layer(kind: str) -> str:
    return {"weight": "_w", "bias": "_b"}[kind]


def _of_norm(kind: str) -> str:
    return {"weight": "_s", "bias": "_b"}[kind]


def _of_stage(found: re.Match[str], settings: DetectronSettings) -> str:
    room, layer, block, part, number, kind = found.groups()
    branch = "branch1" if part == "downsample." else f"branch2{'_abc'[int(number)]}"
    is_norm = part == "bn" or (part == "downsample." and number == "1")
    norm = "_gn" if settings.norm == "group" else "_bn"
    prefix = "_[mask]_" if room == "roi_heads.mask_head" else ""
    ending = norm + _of_norm(kind) if is_norm else _of_layer(kind)
    return f"{prefix}res{int(layer) + 1}_{block}_{branch}{ending}"


def _with_norm(blob: str, part: str, kind: str) -> str:
    """Of a convolution, part 0, and its group norm, part 1."""
    return blob + (_of_layer(kind) if part == "0" else "_gn" + _of_norm(kind))


def _of_pyramid(path: list[str], kind: str, settings: DetectronSettings) -> str:
    blocks, place, part = path
    stage = int(place) + 2
    blob = f"res{stage}_{settings.blocks[int(place)] - 1}_sum"
    if blocks == "inner_blocks":
        blob = f"inner_{blob}" + ("" if stage == 5 else "_lateral")
    return _with_norm(f"fpn_{blob}", part, kind)


def _of_rpn(path: list[str], kind: str, settings: DetectronSettings) -> str:
    blob = {"conv": "conv_rpn", "cls_logits": "rpn_cls_logits", "bbox_pred": "rpn_bbox_pred"}[path[0]]
    level = "" if settings.has_one_rpn_level else f"_fpn{settings.rpn_levels[0]}"
    return blob + level + _of_layer(kind)


def _of_box_head(path: list[str], kind: str, settings: DetectronSettings) -> str:
    if settings.box_head == "mlp":
        return path[0] + _of_layer(kind)
    # The convolutions, their flattening, then one layer.
    if len(path) == 1:
        return "fc6" + _of_layer(kind)
    return _with_norm(f"head_conv{int(path[0]) + 1}", path[1], kind)


def _of_mask_head(path: list[str], kind: str, settings: DetectronSettings) -> str:
    blob = "_mask_fcn" if settings.mask_head_group_norm else "_[mask]_fcn"
    return _with_norm(f"{blob}{int(path[0]) + 1}", path[1], kind)


def _of_keypoint_head(path: list[str], kind: str, settings: DetectronSettings) -> str:
    return f"conv_fcn{int(path[0]) // 2 + 1}" + _of_layer(kind)  # a ReLU lies behind each


# What such a file has beside the weights of a detector.
_NOT_WEIGHTS = re.compile(
    r".*_momentum|weight_order|lr|(fc1000|pred)_.*|conv1_b|(_\[mask\]_)?res\d_\d+_branch\w+?_b|.*_bn_(rm|riv)"
    r"|(kps_score|mask_fcn_logits_up)_[wb]"
)


def is_no_weight(blob: str) -> bool:
    """Whether a blob is left out without a word: momentum, ImageNet's classifier, biases of 0 before a norm, statistics
    that are folded into scale and shift, and the fixed kernels that enlarge logits."""
    return _NOT_WEIGHTS.fullmatch(blob) is not None and not blob.endswith(("_bn_b", "_gn_b"))
