"""Which layers of torchvision's detectors share channels: what has to change together when a filter goes.

The pyramid's own channels stay, as all that reads it shares them, and so do the convolutions in groups of a ResNeXt. In
towers with group norm, where a filter changes what its neighbours say, a norm's whole groups go. Of the towers for
masks and keypoints the last map stays, which a transposed convolution reads.
"""

import itertools
from typing import Any

from torch import nn

from ssd.detectors.channels import Stream
from ssd.detectors.mobilenet_streams import MobileNetWalk
from ssd.detectors.resnet_streams import resnet_streams

_BODY = "backbone.body"


def streams_of(model: Any) -> list[Stream]:
    streams = of_body(model)
    if "rpn" in dict(model.named_children()):
        heads = model.roi_heads
        towers = [
            _of_tower(f"roi_heads.{name}", heads[name]) for name in ("mask_head", "keypoint_head") if name in heads
        ]
        return [*streams, *of_rpn(model), *of_box_head(heads["box_head"]), *itertools.chain(*towers)]
    for head, readers in (("classification_head", ["cls_logits"]), ("regression_head", None)):
        module = getattr(model.head, head)
        layers = {f"head.{head}.conv.{name}": each for name, each in module.conv.named_modules()}
        convolutions = [name for name, each in layers.items() if isinstance(each, nn.Conv2d)]
        norms = [name for name, each in layers.items() if isinstance(each, nn.GroupNorm)] or [""] * len(convolutions)
        if readers is None:
            readers = [name for name in ("bbox_reg", "bbox_ctrness") if hasattr(module, name)]
        found = _chain(list(zip(convolutions, norms, strict=True)), [f"head.{head}.{name}" for name in readers])
        streams += [stream._replace(unit=_unit(layers.get(stream.writers[0][1]))) for stream in found]
    return streams


def of_rpn(model: Any) -> list[Stream]:
    tower = [f"rpn.head.conv.{i}.0" for i in range(len(model.rpn["head"].conv))]
    return _chain([(name, "") for name in tower], ["rpn.head.cls_logits", "rpn.head.bbox_pred"])


def _unit(norm: Any) -> int:
    """The channels of a group of a norm."""
    return norm.num_channels // norm.num_groups if norm is not None else 1


def of_body(model: Any) -> list[Stream]:
    if not hasattr(model.backbone.body, "layer1"):
        return _of_mobilenet(model)
    names = [f"{_BODY}.layer{i}" for i in (1, 2, 3, 4)]
    found = resnet_streams(model, (f"{_BODY}.conv1", f"{_BODY}.bn1"), names)
    levels = model.backbone.fpn.inner_blocks
    for place, name in enumerate(names[-len(levels) :]):
        found.stages[name].readers.append(f"backbone.fpn.inner_blocks.{place}.0")
    extra = model.backbone.fpn.extra_blocks
    if getattr(extra, "use_P5", True) is False:
        found.stages[names[-1]].readers.append("backbone.fpn.extra_blocks.p6")
    return [*found.within, *{id(each): each for each in found.stages.values()}.values()]


def _of_mobilenet(model: Any) -> list[Stream]:
    walk, read = MobileNetWalk(), iter(range(len(model.backbone.fpn.inner_blocks)))
    for child, layer in model.backbone.body.named_children():
        walk.follow(f"{_BODY}.{child}", layer)
        if child in model.backbone.body.return_layers:
            walk.read(f"backbone.fpn.inner_blocks.{next(read)}.0")
    return walk.streams()


def of_box_head(head: Any) -> list[Stream]:
    name, readers = "roi_heads.box_head", ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
    if hasattr(head, "fc6"):
        return _chain([(f"{name}.fc6", ""), (f"{name}.fc7", "")], readers)
    convolutions = [i for i, each in enumerate(head) if isinstance(each, nn.Sequential)]
    linear = [i for i, each in enumerate(head) if isinstance(each, nn.Linear)]
    pairs = [(f"{name}.{i}.0", f"{name}.{i}.1" if len(head[i]) > 2 else "") for i in convolutions]
    # The last map is flattened, so that a channel of it is many inputs: it stays.
    streams = [Stream([[pair]], [reader]) for pair, (reader, _) in zip(pairs, pairs[1:], strict=False)]
    return streams + _chain([(f"{name}.{i}", "") for i in linear], readers)


def _of_tower(name: str, tower: nn.Module) -> list[Stream]:
    layers = [(f"{name}.{each}", module) for each, module in tower.named_modules()]
    convolutions = [each for each, module in layers if isinstance(module, nn.Conv2d)]
    norms = [each for each, module in layers if isinstance(module, nn.BatchNorm2d)] or [""] * len(convolutions)
    return _chain(list(zip(convolutions, norms, strict=True))[:-1], convolutions[-1:])


def _chain(writers: list[tuple[str, str]], readers: list[str]) -> list[Stream]:
    """Layers of which each reads the one before; readers: of the last."""
    nexts = [[name] for name, _ in writers[1:]]
    return [Stream([[writer]], each) for writer, each in zip(writers, [*nexts, readers], strict=True)]
