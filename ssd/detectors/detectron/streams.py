"""Which layers of Detectron's R-CNNs share channels.

A pyramid's channels stay, and so does a map that is flattened or that a transposed convolution reads. All of a body
with group norm stays.
"""

from typing import Any

from ssd.detectors.channels import Stream
from ssd.detectors.resnet_streams import resnet_streams
from ssd.detectors.torchvision.channels.streams import of_body, of_box_head, of_rpn

_BODY = "backbone.body"


def streams_of(model: Any) -> list[Stream]:
    settings, streams = model.settings, of_rpn(model)
    if settings.norm == "affine" and not settings.fpn_group_norm:
        streams += of_body(model) if settings.has_pyramid else _of_body_with_one_map(model)
    if settings.box_head == "mlp" and not settings.rpn_only:
        streams += of_box_head(model.roi_heads["box_head"])
    return streams


def _of_body_with_one_map(model: Any) -> list[Stream]:
    """Where the box head is res5, it goes on where the body ends: both are one ResNet."""
    settings = model.settings
    layers = dict(model.backbone.body.named_children())
    stages = [f"{_BODY}.{name}" for name in layers if name.startswith("layer")]
    map_stage, has_res5_head = stages[-1], settings.box_head == "res5" and not settings.rpn_only
    if has_res5_head:
        stages.append("roi_heads.box_head.layer4")
    found = resnet_streams(model, (f"{_BODY}.conv1", f"{_BODY}.bn1"), stages)
    of_map = found.stages.pop(map_stage)
    of_map.readers.append("rpn.head.conv.0.0")
    streams = [*found.within]
    if has_res5_head:
        of_res5 = found.stages.pop(stages[-1])
        of_res5.readers.extend(f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred"))
        if not settings.is_mask_of_res5:
            streams.append(of_res5)
    reads_map_elsewhere = settings.finds_keypoints or settings.mask_head not in ("", "v0upshare")
    if settings.rpn_only or (has_res5_head and not reads_map_elsewhere):
        streams.append(of_map)
    return [*streams, *found.stages.values()]
