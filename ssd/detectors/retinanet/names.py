"""What detectron2 and Caffe2 call the weights of a RetinaNet, and what they are called here."""

from collections.abc import Iterator

_MOST_BLOCKS = 36  # of a stage: ResNet-152's third
_STAGES, _LEVELS, _TOWER = (2, 3, 4, 5), (3, 4, 5), range(4)
_BODY = "backbone.body."


def _layers() -> Iterator[tuple[str, str]]:
    """(detectron2's name of a layer with weights, ours)."""
    yield "backbone.bottom_up.stem.conv1", "backbone.body.conv1"
    yield "backbone.bottom_up.stem.conv1.norm", "backbone.body.bn1"
    for stage in _STAGES:
        for block in range(_MOST_BLOCKS):
            theirs, ours = f"backbone.bottom_up.res{stage}.{block}", f"backbone.body.layer{stage - 1}.{block}"
            yield f"{theirs}.shortcut", f"{ours}.downsample.0"
            yield f"{theirs}.shortcut.norm", f"{ours}.downsample.1"
            for place in (1, 2, 3):
                yield f"{theirs}.conv{place}", f"{ours}.conv{place}"
                yield f"{theirs}.conv{place}.norm", f"{ours}.bn{place}"
    for level in _LEVELS:
        yield f"backbone.fpn_lateral{level}", f"backbone.fpn.inner_blocks.{level - 3}.0"
        yield f"backbone.fpn_output{level}", f"backbone.fpn.layer_blocks.{level - 3}.0"
    for extra in ("p6", "p7"):
        yield f"backbone.top_block.{extra}", f"backbone.fpn.extra_blocks.{extra}"
    for place in _TOWER:  # ReLUs lie between them
        yield f"head.cls_subnet.{2 * place}", f"head.classification_head.conv.{place}.0"
        yield f"head.bbox_subnet.{2 * place}", f"head.regression_head.conv.{place}.0"
    yield "head.cls_score", "head.classification_head.cls_logits"
    yield "head.bbox_pred", "head.regression_head.bbox_reg"


def _blobs() -> Iterator[tuple[str, str]]:
    """(Caffe2's name of a body's blob, ours without what comes before the body)."""
    norm = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
    yield "conv1_w", "conv1.weight"
    yield from ((f"res_conv1_bn_{theirs}", f"bn1.{ours}") for theirs, ours in norm.items())
    for stage in _STAGES:
        for block in range(_MOST_BLOCKS):
            blob, own = f"res{stage}_{block}_branch", f"layer{stage - 1}.{block}."
            for branch, conv, bn in (
                ("1", "downsample.0", "downsample.1"),
                ("2a", "conv1", "bn1"),
                ("2b", "conv2", "bn2"),
                ("2c", "conv3", "bn3"),
            ):
                yield f"{blob}{branch}_w", f"{own}{conv}.weight"
                yield from ((f"{blob}{branch}_bn_{theirs}", f"{own}{bn}.{ours}") for theirs, ours in norm.items())


_OURS = dict(_layers())
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
OF_BLOBS = dict(_blobs())
"""By Caffe2's name of a blob of a classifier's body, torchvision's of the weight."""


def our_name(name: str) -> str:
    """Of a weight of detectron2's; one that no RetinaNet has stays."""
    layer, _, ending = name.rpartition(".")
    return f"{_OURS[layer]}.{ending}" if layer in _OURS else name


def their_name(name: str) -> str:
    """The inverse of `our_name`."""
    layer, _, ending = name.rpartition(".")
    return f"{_THEIRS[layer]}.{ending}"
