"""Which layers of torchvision's SSDs share channels: what has to change together when a filter goes."""

from typing import Any

from torch import nn

from ssd.detectors.channels import Stream
from ssd.detectors.mobilenet_streams import MobileNetWalk
from ssd.detectors.torchvision.square.model import SSD

_HEADS = ("head.classification_head.module_list", "head.regression_head.module_list")


def streams_of(model: SSD) -> list[Stream]:
    """All of them but the heads' outputs, which the classes and shapes fix."""
    backbone: Any = model.backbone
    return _of_vgg(backbone) if hasattr(backbone, "scale_weight") else _of_mobilenet(backbone)


def _of_vgg(backbone: Any) -> list[Stream]:
    parts = [("backbone.features", backbone.features)]
    parts += [(f"backbone.extra.{i}", block) for i, block in enumerate(backbone.extra)]
    streams: list[Stream] = []
    for level, (name, part) in enumerate(parts):
        for child, layer in part.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            if streams:
                streams[-1].readers.append(f"{name}.{child}")
            streams.append(Stream([[(f"{name}.{child}", "")]], []))
        streams[-1].readers.extend(f"{head}.{level}" for head in _HEADS)
        if level == 0:  # the heads see this map with each place at length 1
            streams[-1] = streams[-1]._replace(vectors=("backbone.scale_weight",), joins=False)
    return streams


def _of_mobilenet(backbone: Any) -> list[Stream]:
    walk = MobileNetWalk()
    (*firsts, expansion), (rest, *lasts) = backbone.features[0].named_children(), backbone.features[1].named_children()
    for child, layer in (*firsts, expansion):
        walk.follow(f"backbone.features.0.{child}", layer)
    _heads(walk, 0)
    walk.block(f"backbone.features.1.{rest[0]}", rest[1], adds=False)
    for child, layer in lasts:
        walk.follow(f"backbone.features.1.{child}", layer)
    _heads(walk, 1)
    for number, block in enumerate(backbone.extra):
        for child, layer in block.named_children():
            walk.convolution(f"backbone.extra.{number}.{child}", layer)
        _heads(walk, number + 2)
    return walk.streams()


def _heads(walk: MobileNetWalk, level: int) -> None:
    """Two that read what is there now, each by a depthwise convolution first."""
    assert walk.now is not None
    for head in _HEADS:
        walk.now.depthwise.append((f"{head}.{level}.0.0", f"{head}.{level}.0.1"))
        walk.now.readers.append(f"{head}.{level}.1")
        walk.now.behind.append(f"{head}.{level}.1")
