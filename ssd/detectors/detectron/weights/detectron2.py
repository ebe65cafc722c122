"""R-CNNs of detectron2's model zoo, in its .pkl and .pth files, as checkpoints of this program.

Such a file has no configuration: its tensors tell body, heads and classes, and all else is as the zoo's configurations
have it (facebookresearch/detectron2 at 02b5c4e, configs/COCO-*).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.configuration import of_values
from ssd.detectors.detectron.config.shipped import configurations
from ssd.detectors.detectron.config.translate import settings_of
from ssd.detectors.detectron.rcnn.boxes import cells_of
from ssd.detectors.detectron.settings import BLOCKS, DetectronSettings
from ssd.detectors.detectron.weights.accounts import account
from ssd.detectors.detectron.weights.classes import categories_of, with_points
from ssd.detectors.detectron.weights.detectron2_names import detectron2_names
from ssd.errors import InputError

_RPN, _HEADS = "proposal_generator.rpn_head.", "roi_heads."
_TELLING = f"{_RPN}objectness_logits.weight"
_CLASSES, _BOXES = f"{_HEADS}box_predictor.cls_score", f"{_HEADS}box_predictor.bbox_pred"
_MASKS, _POINTS = f"{_HEADS}mask_head.predictor", f"{_HEADS}keypoint_head.score_lowres"
_MEAN, _STD, _ANCHORS = "pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors."
_USUAL_MEAN_BGR = (103.530, 116.280, 123.675)
# Of B, G and R: of the zoo's ResNeXt-101 32x8d, whose files say it too; of all others 1.
_STD_OF_RESNEXT = (57.375, 57.120, 58.395)
_EPS = 1e-5  # that a frozen norm adds to a variance
_OTHERS = {
    "conv2_offset": "deformable convolutions",
    "box_predictor.0.": "a cascade of box heads",
    "num_batches_tracked": "batch norm that learns",
    "mask_head.coarse_head": "a PointRend head",
    "rpn_head.conv.conv": "several convolutions in a row for proposals",
}
"""Parts of names that tell what Detectron's R-CNNs have not."""
_LEFT_OUT = "sem_seg_head."
"""The semantic half of a Panoptic FPN, which the R-CNN does without."""
_ANCHOR_TOLERANCE_PX = 0.5


def foreign_detectron2(content: Any, file: Path) -> dict[str, Any] | None:
    """As `files.foreign`, of a file of detectron2. Raises InputError, too, for what its R-CNN has and Detectron's have
    not, for anchors that are not the zoo's, and for weights that nothing takes."""
    state = content.get("model", content) if isinstance(content, dict) and "format" not in content else None
    if not isinstance(state, dict) or _TELLING not in state:
        return None
    arrays = {str(name): _array(value, f"{file}: {name}") for name, value in state.items()}
    for part, what in _OTHERS.items():
        if found := next((name for name in arrays if part in name), None):
            raise InputError(f"{file}: has {what} ({found}), which no R-CNN of Detectron has; use another file")
    settings = _settings(arrays, file)
    num_classes = 2 if settings.rpn_only else len(arrays[f"{_CLASSES}.weight"])
    settings = _with_colours(with_points(settings, _points(arrays)), arrays, file)
    _require_anchors(settings, arrays, file)
    with torch.device("meta"):  # without drawing weights that the file's replace
        own = build(settings, num_classes).state_dict()
    left_out = [name for name in arrays if name.startswith(_LEFT_OUT)]
    apart = (_MEAN, _STD, _ANCHORS, _LEFT_OUT)
    weights = {name: value for name, value in arrays.items() if not name.startswith(apart)}
    weights = _background_first(_folded(weights, file), num_classes)
    stem = next(name for name in weights if name.endswith("stem.conv1.weight"))
    weights[stem] = weights[stem] / np.array(_std_bgr(arrays, settings, file)).reshape(1, 3, 1, 1)
    found_all = account(weights, detectron2_names(own, settings), own)
    if found_all.missing or found_all.mismatched or found_all.unused:
        raise InputError(f"{file}: not a whole {settings.name} of detectron2: {found_all.text()}; use another file")
    notes = [
        f"{file}: trained by detectron2, whose resizing, anchors, boxes and looks at them are used; its losses and "
        "samples are not, training on is by Detectron's",
        f"{file}: does not say how it is configured; taken to be as the zoo's COCO-* configurations: images of "
        f"{settings.test_short_side_px} px on the short side and {settings.test_long_side_px} px at most"
        f"{'' if settings.rpn_only else ', ROIAlignV2 with adaptive sampling'}",
    ]
    if left_out:
        notes.append(f"{file}: {len(left_out)} weights of {_LEFT_OUT[:-1]} are left out ({left_out[0]}, ...)")
    return {
        "detector": {"family": settings.family, **asdict(settings)},
        "categories": categories_of(settings, num_classes),
        "model": found_all.state,
        "notes": notes,
    }


def _array(value: Any, what: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy()
    if not isinstance(value, np.ndarray):
        raise InputError(f"{what} is a {type(value).__name__}, no array; use another file")
    return value


def _settings(arrays: Mapping[str, np.ndarray], file: Path) -> DetectronSettings:
    """As the shipped configuration that is nearest, with the sizes that the tensors tell and detectron2's numbers."""
    has_pyramid = any(name.startswith("backbone.fpn_") for name in arrays)
    body = "backbone.bottom_up." if has_pyramid else "backbone."
    stem, first = f"{body}stem.conv1.weight", f"{body}res2.0.conv2.weight"
    if stem not in arrays or first not in arrays or arrays[first].ndim != 4 or arrays[stem].ndim != 4:
        raise InputError(
            f"{file}: an R-CNN of detectron2 on none of its ResNets of 50 layers or more; use another file"
        )
    rpn_only = f"{_CLASSES}.weight" not in arrays
    if rpn_only and (other := next((name for name in arrays if name.startswith(_HEADS)), None)):
        raise InputError(f"{file}: not a whole R-CNN of detectron2: has {other} and no {_CLASSES}.weight; use another")
    has_res5 = f"{body}res5.0.conv1.weight" in arrays
    maps = "FPN" if has_pyramid else "C5" if has_res5 else "C4"
    counts = tuple(_count(rf"{re.escape(body)}res{stage}\.(\d+)\.conv2\.weight", arrays) for stage in (2, 3, 4))
    depth = next((depth for depth, blocks in BLOCKS.items() if blocks[:3] == counts), None)
    if depth is None or (maps == "C4" and depth > 101):
        raise InputError(
            f"{file}: its body has {counts} blocks in res2 to res4, as no ResNet of Detectron's; use another"
        )
    has_gn = f"{body}stem.conv1.norm.weight" in arrays and f"{body}stem.conv1.norm.running_mean" not in arrays
    width, groups = arrays[first].shape[1], max(1, arrays[first].shape[0] // max(1, arrays[first].shape[1]))
    heads = "rpn" if rpn_only else "faster_rcnn"
    shipped = f"{'' if rpn_only else 'e2e_'}{heads}_R-50-{'C4' if maps == 'C4' else 'FPN'}_1x"
    values = dict(configurations()[shipped].given)
    values |= {
        "MODEL.CONV_BODY": {
            "FPN": f"FPN.fpn_ResNet{depth}_conv5_body",
            "C4": f"ResNet.ResNet{depth}_conv4_body",
            "C5": f"ResNet.ResNet{depth}_conv5_body",
        }[maps],
        "RESNETS.NUM_GROUPS": groups,
        "RESNETS.WIDTH_PER_GROUP": width,
        "RESNETS.STRIDE_1X1": groups == 1 and not has_gn,  # as of the files that the zoo's training began with
        **_proposal_values(maps, rpn_only=rpn_only, finds_points=f"{_POINTS}.weight" in arrays),
    }
    if has_gn:
        values |= {
            "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
            "RESNETS.STEM_FUNC": "basic_gn_stem",
            "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut",
        }
    if has_pyramid:
        values["FPN.DIM"] = len(arrays.get("backbone.fpn_output2.weight", ()))
        values["FPN.USE_GN"] = "backbone.fpn_output2.norm.weight" in arrays
    if not rpn_only:
        values |= _head_values(maps, arrays, file)
    try:
        settings = settings_of(of_values(file.stem, values))
        return replace(
            settings, rules="detectron2", box_pooling="align v2", mask_pooling="align v2", keypoint_pooling="align v2"
        )
    except InputError as error:
        raise InputError(f"{file}: not an R-CNN of detectron2's model zoo: {error}; use another file") from None


def _proposal_values(maps: str, *, rpn_only: bool, finds_points: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"TRAIN.RPN_STRADDLE_THRESH": -1}
    if maps == "FPN":
        return values | {
            "TRAIN.RPN_PRE_NMS_TOP_N": 2000,
            "TRAIN.RPN_POST_NMS_TOP_N": 1500 if finds_points else 1000,
            "TEST.RPN_PRE_NMS_TOP_N": 1000,
            "TEST.RPN_POST_NMS_TOP_N": 2000 if rpn_only else 1000,
        }
    values |= {
        "TRAIN.RPN_PRE_NMS_TOP_N": 12000,
        "TRAIN.RPN_POST_NMS_TOP_N": 2000,
        "TEST.RPN_PRE_NMS_TOP_N": 12000 if rpn_only else 6000,
        "TEST.RPN_POST_NMS_TOP_N": 2000 if rpn_only else 1000,
        "RPN.SIZES": (32, 64, 128, 256, 512),
    }
    if maps == "C5":
        no_pyramid = dict.fromkeys(("FPN.FPN_ON", "FPN.MULTILEVEL_RPN", "FPN.MULTILEVEL_ROIS"), False)
        values |= {**no_pyramid, "RESNETS.RES5_DILATION": 2}
    return values


def _head_values(maps: str, arrays: Mapping[str, np.ndarray], file: Path) -> dict[str, Any]:
    classes = len(arrays[f"{_CLASSES}.weight"]) - 1
    rows = len(arrays.get(f"{_BOXES}.weight", ()))
    if classes < 1 or rows not in (4, 4 * classes):
        raise InputError(f"{file}: its {_BOXES} has {rows} rows for {classes} classes; use another file")
    values: dict[str, Any] = {
        "MODEL.CLS_AGNOSTIC_BBOX_REG": rows == 4 and classes > 1,
        "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": 0,
    }
    if maps != "C4":
        values["FAST_RCNN.MLP_HEAD_DIM"] = len(arrays.get(f"{_HEADS}box_head.fc1.weight", ()))
        convolutions = _count(rf"{re.escape(_HEADS)}box_head\.conv(\d+)\.weight", arrays)
        if convolutions:
            has_gn = f"{_HEADS}box_head.conv1.norm.weight" in arrays
            values |= {
                "FAST_RCNN.ROI_BOX_HEAD": f"fast_rcnn_heads.roi_Xconv1fc_{'gn_' if has_gn else ''}head",
                "FAST_RCNN.NUM_STACKED_CONVS": convolutions,
                "FAST_RCNN.CONV_HEAD_DIM": len(arrays[f"{_HEADS}box_head.conv1.weight"]),
            }
    if f"{_MASKS}.weight" in arrays:
        shipped = configurations()[f"e2e_mask_rcnn_R-50-{'C4' if maps == 'C4' else 'FPN'}_1x"].given
        values |= {key: value for key, value in shipped.items() if key.startswith(("MRCNN.", "MODEL.MASK_ON"))}
        if f"{_HEADS}mask_head.mask_fcn1.norm.weight" in arrays:
            values["MRCNN.ROI_MASK_HEAD"] = "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn"
        values |= {
            "MRCNN.ROI_XFORM_SAMPLING_RATIO": 0,
            "MRCNN.DIM_REDUCED": arrays[f"{_MASKS}.weight"].shape[1],
            "MRCNN.CLS_SPECIFIC_MASK": len(arrays[f"{_MASKS}.weight"]) > 1 or classes == 1,
        }
    if f"{_POINTS}.weight" in arrays:
        shipped = configurations()["e2e_keypoint_rcnn_R-50-FPN_1x"].given
        values |= {key: value for key, value in shipped.items() if key.startswith(("KRCNN.", "MODEL.KEYPOINTS_ON"))}
        values |= {
            "KRCNN.ROI_XFORM_SAMPLING_RATIO": 0,
            "KRCNN.NUM_STACKED_CONVS": _count(rf"{re.escape(_HEADS)}keypoint_head\.conv_fcn(\d+)\.weight", arrays),
            "KRCNN.CONV_HEAD_DIM": len(arrays[f"{_POINTS}.weight"]),
            "TRAIN.SCALES": (640, 672, 704, 736, 768, 800),
        }
    return values


def _count(pattern: str, arrays: Mapping[str, np.ndarray]) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in arrays)


def _points(arrays: Mapping[str, np.ndarray]) -> int:
    """How many there are, 0 for none."""
    return arrays[f"{_POINTS}.weight"].shape[1] if f"{_POINTS}.weight" in arrays else 0


def _with_colours(settings: DetectronSettings, arrays: Mapping[str, np.ndarray], file: Path) -> DetectronSettings:
    mean = _three(arrays.get(_MEAN), _USUAL_MEAN_BGR, f"{file}: {_MEAN}")
    return replace(settings, mean_bgr=mean)


def _std_bgr(arrays: Mapping[str, np.ndarray], settings: DetectronSettings, file: Path) -> tuple[float, float, float]:
    usual = _STD_OF_RESNEXT if (settings.groups, settings.width_per_group) == (32, 8) else (1.0, 1.0, 1.0)
    std = _three(arrays.get(_STD), usual, f"{file}: {_STD}")
    if min(std) <= 0:
        raise InputError(f"{file}: its {_STD} is {std}, not above 0; use another file")
    return std


def _three(found: np.ndarray | None, usual: tuple[float, float, float], what: str) -> tuple[float, float, float]:
    """B, G and R."""
    if found is None:
        return usual
    values = found.ravel().tolist()
    if len(values) != 3 or not np.isfinite(values).all():
        raise InputError(f"{what} is not of blue, green and red; use another file")
    # As the configuration says it, which float32 does not.
    close = all(abs(a - b) < 1e-4 for a, b in zip(values, usual, strict=True))
    return usual if close else (values[0], values[1], values[2])


def _require_anchors(settings: DetectronSettings, arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Raises InputError if a file says that its anchors are not the zoo's."""
    stated = sorted(name for name in arrays if name.startswith(_ANCHORS))
    if not stated:
        return
    expected = [np.array(anchors) for _, anchors in cells_of(settings)]
    found = [arrays[name] for name in stated]
    is_same = [each.shape for each in found] == [each.shape for each in expected] and all(
        np.abs(a - b).max() < _ANCHOR_TOLERANCE_PX for a, b in zip(found, expected, strict=True)
    )
    if not is_same:
        raise InputError(
            f"{file}: its anchors ({_ANCHORS}*) are not those of detectron2's model zoo, of 32 to 512 pixels; use "
            "another file"
        )


def _folded(arrays: Mapping[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """With frozen norms that are a scale and a shift: of mean 0, variance 1 and nothing added to that."""
    folded = dict(arrays)
    for name in arrays:
        if not name.endswith(".running_var"):
            continue
        norm = name.removesuffix(".running_var")
        try:
            weight, bias, mean, variance = (
                arrays[f"{norm}.{kind}"].astype(np.float64)
                for kind in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise InputError(f"{file}: lacks {error.args[0]}; use another file") from None
        if not weight.shape == bias.shape == mean.shape == variance.shape:
            raise InputError(f"{file}: the parts of {norm} have different shapes; use another file")
        scale = weight / np.sqrt(variance + _EPS)
        folded[f"{norm}.weight"], folded[f"{norm}.bias"] = scale, bias - mean * scale
        folded[f"{norm}.running_mean"], folded[name] = np.zeros_like(mean), np.ones_like(variance)
    return folded


def _background_first(arrays: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """detectron2 has the background behind the classes, and neither boxes nor masks of it: here these are 0."""
    moved = dict(arrays)
    for kind in ("weight", "bias"):
        if f"{_CLASSES}.{kind}" in moved:
            moved[f"{_CLASSES}.{kind}"] = np.roll(moved[f"{_CLASSES}.{kind}"], 1, axis=0)
        for name, rows in ((f"{_BOXES}.{kind}", 4), (f"{_MASKS}.{kind}", 1)):
            if name in moved and (rows == 4 or len(moved[name]) == num_classes - 1):
                of_background = np.zeros((rows, *moved[name].shape[1:]), dtype=moved[name].dtype)
                moved[name] = np.concatenate([of_background, moved[name]])
    return moved
