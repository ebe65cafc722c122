"""Detectron's files of weights, made up: whole models and bodies with blobs named as its own networks name them."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# Small layers under real names.
SMALL = {
    "RESNETS.WIDTH_PER_GROUP": 2, "FPN.DIM": 8, "FAST_RCNN.MLP_HEAD_DIM": 6, "FAST_RCNN.CONV_HEAD_DIM": 8,
    "MRCNN.DIM_REDUCED": 8, "KRCNN.CONV_HEAD_DIM": 8, "GROUP_NORM.NUM_GROUPS": 2,
}  # fmt: skip


class AttrDict(dict[str, Any]):
    """As PyYAML sees Detectron's."""

    __module__ = "detectron.utils.collections"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.__dict__["__immutable__"] = True


def saved_text(values: dict[str, Any]) -> str:
    """A configuration as Detectron's `yaml.dump(cfg)` writes it: with tags of its dict, of tuples and of an array."""
    tree = AttrDict()
    everything = {
        "MODEL.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "PIXEL_MEANS": np.array([[[102.9801, 115.9465, 122.7717]]]),
        "TEST.BBOX_AUG.ENABLED": True, "OUTPUT_DIR": "/tmp", "OF_AN_OLD_VERSION": 1, **values,
    }  # fmt: skip
    for key, value in everything.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, AttrDict())
        place[name] = value
    return yaml.dump(tree)


def stages(last: int, width: int, norm: str, counts: tuple[int, ...], groups: int = 1) -> Iterator[tuple[str, Any]]:
    """(blob, shape) of res2 to res`last`: bottlenecks a, b, c, with a shortcut branch1 in the first of a stage."""
    seen = 64
    for stage, blocks in zip(range(2, last + 1), counts, strict=False):
        inner, made = groups * width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(blocks):
            shapes = {"2a": (inner, seen, 1, 1), "2b": (inner, inner // groups, 3, 3), "2c": (made, inner, 1, 1)}
            if block == 0:
                shapes["1"] = (made, seen, 1, 1)
            for branch, shape in shapes.items():
                name = f"res{stage}_{block}_branch{branch}"
                yield f"{name}_w", shape
                yield f"{name}_{norm}_s", shape[:1]
                yield f"{name}_{norm}_b", shape[:1]
            seen = made


def stem(norm: str) -> Iterator[tuple[str, Any]]:
    name = "conv1_gn" if norm == "gn" else "res_conv1_bn"
    yield from {"conv1_w": (64, 3, 7, 7), f"{name}_s": (64,), f"{name}_b": (64,)}.items()


def layer(name: str, *shape: int, out: int | None = None) -> Iterator[tuple[str, Any]]:
    yield f"{name}_w", shape
    yield f"{name}_b", (shape[0] if out is None else out,)


def pyramid(dim: int, counts: tuple[int, ...], *, gn: bool = False) -> Iterator[tuple[str, Any]]:
    for stage, blocks in zip((2, 3, 4, 5), counts, strict=True):
        name = f"res{stage}_{blocks - 1}_sum"
        for blob, shape in (
            (f"fpn_inner_{name}" + ("" if stage == 5 else "_lateral"), (dim, 128 * 2 ** (stage - 1), 1, 1)),
            (f"fpn_{name}", (dim, dim, 3, 3)),
        ):
            yield f"{blob}_w", shape
            yield from [(f"{blob}_gn_s", (dim,)), (f"{blob}_gn_b", (dim,))] if gn else [(f"{blob}_b", (dim,))]


def proposals(seen: int, anchors: int, ending: str = "") -> Iterator[tuple[str, Any]]:
    yield from layer(f"conv_rpn{ending}", seen, seen, 3, 3)
    yield from layer(f"rpn_cls_logits{ending}", anchors, seen, 1, 1)
    yield from layer(f"rpn_bbox_pred{ending}", 4 * anchors, seen, 1, 1)


def boxes(seen: int, classes: int) -> Iterator[tuple[str, Any]]:
    yield from layer("cls_score", classes, seen)
    yield from layer("bbox_pred", 4 * classes, seen)


def fpn_mask(counts: tuple[int, ...], classes: int, groups: int = 1, convolutions: int = 4) -> dict[str, Any]:
    """The blobs of e2e_mask_rcnn_{R-50,R-101}-FPN with the layers of SMALL, and their shapes. groups: of an X-152's.
    convolutions: 2 of v1up."""
    return dict(
        [
            *fpn_faster(counts, classes, groups).items(),
            *(each for n in range(1, 1 + convolutions) for each in layer(f"_[mask]_fcn{n}", 8, 8, 3, 3)),
            *layer("conv5_mask", 8, 8, 2, 2), *layer("mask_fcn_logits", classes, 8, 1, 1),
        ]
    )  # fmt: skip


def fpn_faster(counts: tuple[int, ...], classes: int, groups: int = 1, anchors: int = 3) -> dict[str, Any]:
    """Of e2e_faster_rcnn_R-50-FPN, or with groups of an X-101."""
    return dict(
        [
            *stem("bn"), *stages(5, 2, "bn", counts, groups), *pyramid(8, counts),
            *proposals(8, anchors, "_fpn2"), *layer("fc6", 6, 8 * 49), *layer("fc7", 6, 6), *boxes(6, classes),
        ]
    )  # fmt: skip


def fpn_mask_gn(counts: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Of e2e_mask_rcnn_R-50-FPN_2x_gn."""

    def normed(name: str) -> list[tuple[str, Any]]:
        return [(f"{name}_w", (8, 8, 3, 3)), (f"{name}_gn_s", (8,)), (f"{name}_gn_b", (8,))]

    return dict(
        [
            *stem("gn"), *stages(5, 2, "gn", counts), *pyramid(8, counts, gn=True), *proposals(8, 3, "_fpn2"),
            *(each for n in (1, 2, 3, 4) for each in normed(f"head_conv{n}")), *layer("fc6", 6, 8 * 49),
            *boxes(6, classes), *(each for n in (1, 2, 3, 4) for each in normed(f"_mask_fcn{n}")),
            *layer("conv5_mask", 8, 8, 2, 2), *layer("mask_fcn_logits", classes, 8, 1, 1),
        ]
    )  # fmt: skip


def fpn_keypoints(counts: tuple[int, ...], groups: int) -> dict[str, Any]:
    """Of e2e_keypoint_rcnn_X-101-32x8d-FPN, without the kernel kps_score that is never trained."""
    return dict(
        [
            *stem("bn"), *stages(5, 2, "bn", counts, groups), *pyramid(8, counts), *proposals(8, 3, "_fpn2"),
            *layer("fc6", 6, 8 * 49), *layer("fc7", 6, 6), *boxes(6, 2),
            *(each for n in range(1, 9) for each in layer(f"conv_fcn{n}", 8, 8, 3, 3)),
            *layer("kps_score_lowres", 8, 17, 4, 4, out=17),
        ]
    )  # fmt: skip


def c4_mask(counts: tuple[int, ...], classes: int, *, own_res5: bool = False) -> dict[str, Any]:
    """Of e2e_mask_rcnn_R-50-C4, whose res5 is the box head."""
    res5 = [(blob, shape) for blob, shape in stages(5, 2, "bn", counts) if blob.startswith("res5")]
    return dict(
        [
            *stem("bn"), *stages(5, 2, "bn", counts), *proposals(1024, 15), *boxes(2048, classes),
            *((f"_[mask]_{blob}", shape) for blob, shape in res5 if own_res5),
            *layer("conv5_mask", 2048, 8, 2, 2, out=8), *layer("mask_fcn_logits", classes, 8, 1, 1),
        ]
    )  # fmt: skip


def arrays(shapes: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {blob: rng.random(shape, dtype=np.float32) for blob, shape in shapes.items()}


def write(file: Path, content: Any) -> Path:
    """As Detectron's Python 2 wrote it, but for the form of texts."""
    file.write_bytes(pickle.dumps(content, protocol=2))
    return file
