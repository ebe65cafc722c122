"""What detectron2 calls the weights of an R-CNN, by the names of their places in a state dict here.

Facts from facebookresearch/detectron2 at 02b5c4e (detectron2/modeling): GeneralizedRCNN and ProposalNetwork on its own
ResNets.
"""

import re
from collections.abc import Iterable

from ssd.detectors.detectron.settings import DetectronSettings

_STAGE = re.compile(r"(backbone\.body|roi_heads\.box_head)\.layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_LAYERS = {
    "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
    "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
    "roi_heads.keypoint_predictor.kps_score_lowres": "roi_heads.keypoint_head.score_lowres",
}
# Of convolutions in a row the place here, and 0 or 1 for the convolution or its norm.
_ROWS = (
    (re.compile(r"backbone\.fpn\.inner_blocks\.(\d)\.([01])"), "backbone.fpn_lateral", 2),
    (re.compile(r"backbone\.fpn\.layer_blocks\.(\d)\.([01])"), "backbone.fpn_output", 2),
    (re.compile(r"roi_heads\.box_head\.(\d+)\.([01])"), "roi_heads.box_head.conv", 1),
    (re.compile(r"roi_heads\.mask_head\.(\d+)\.([01])"), "roi_heads.mask_head.mask_fcn", 1),
)
_AFTER_CONVOLUTIONS = re.compile(r"roi_heads\.box_head\.\d+")
_OF_POINTS = re.compile(r"roi_heads\.keypoint_head\.(\d+)")


def detectron2_names(names: Iterable[str], settings: DetectronSettings) -> dict[str, str]:
    """detectron2's name of each of a model's own. names: as of `blob_names`."""
    return {name: _theirs(name, settings) for name in names}


def _theirs(name: str, settings: DetectronSettings) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{_layer(name, layer, settings)}.{kind}"


def _layer(name: str, layer: str, settings: DetectronSettings) -> str:
    body = "backbone.bottom_up" if settings.has_pyramid else "backbone"
    if layer in ("backbone.body.conv1", "backbone.body.bn1"):
        return f"{body}.stem.conv1" + (".norm" if layer.endswith("bn1") else "")
    if found := _STAGE.fullmatch(name):
        room, stage, block, part, number, _ = found.groups()
        of_room = body if room == "backbone.body" else "roi_heads"
        is_norm = part == "bn" or (part == "downsample." and number == "1")
        convolution = "shortcut" if part == "downsample." else f"conv{number}"
        return f"{of_room}.res{int(stage) + 1}.{block}.{convolution}" + (".norm" if is_norm else "")
    for pattern, theirs, first in _ROWS:
        if row := pattern.fullmatch(layer):
            return f"{theirs}{int(row[1]) + first}" + (".norm" if row[2] == "1" else "")
    if found := _OF_POINTS.fullmatch(layer):  # a ReLU lies behind each
        return f"roi_heads.keypoint_head.conv_fcn{int(found[1]) // 2 + 1}"
    if _AFTER_CONVOLUTIONS.fullmatch(layer):
        return "roi_heads.box_head.fc1"
    return _LAYERS[layer]
