"""detectron2's files of R-CNNs, made up: weights named as its own modules name them, with few channels."""

from collections.abc import Iterator
from typing import Any

import numpy as np

MEAN_BGR = (103.53, 116.28, 123.675)
NORM = {"weight": 0.5, "bias": 0.0, "running_mean": 0.0, "running_var": 0.5}
Shapes = dict[str, tuple[int, ...]]


def conv(name: str, *shape: int, norm: str = "frozen") -> Iterator[tuple[str, tuple[int, ...]]]:
    """norm: frozen, group, or none for a bias."""
    yield f"{name}.weight", shape
    if norm == "none":
        yield f"{name}.bias", shape[:1]
    kinds = {"frozen": list(NORM), "group": ["weight", "bias"], "none": []}[norm]
    yield from ((f"{name}.norm.{kind}", shape[:1]) for kind in kinds)


def stage(room: str, number: int, blocks: int, *, groups: int = 1, width: int = 2, norm: str = "frozen") -> Shapes:
    """res2, ... of bottlenecks, in a body or in the heads."""
    inner, out = groups * width * 2 ** (number - 2), 256 * 2 ** (number - 2)
    seen, shapes = (64 if number == 2 else out // 2), Shapes()
    for block in range(blocks):
        name = f"{room}.res{number}.{block}"
        if block == 0:
            shapes |= conv(f"{name}.shortcut", out, seen, 1, 1, norm=norm)
        shapes |= conv(f"{name}.conv1", inner, seen, 1, 1, norm=norm)
        shapes |= conv(f"{name}.conv2", inner, inner // groups, 3, 3, norm=norm)
        shapes |= conv(f"{name}.conv3", out, inner, 1, 1, norm=norm)
        seen = out
    return shapes


def body(room: str, blocks: tuple[int, ...], **options: Any) -> Shapes:
    shapes = dict(conv(f"{room}.stem.conv1", 64, 3, 7, 7, norm=options.get("norm", "frozen")))
    for number, count in enumerate(blocks, start=2):
        shapes |= stage(room, number, count, **options)
    return shapes


def rpn(seen: int, anchors: int) -> Shapes:
    name = "proposal_generator.rpn_head"
    return dict(
        [
            *conv(f"{name}.conv", seen, seen, 3, 3, norm="none"),
            *conv(f"{name}.objectness_logits", anchors, seen, 1, 1, norm="none"),
            *conv(f"{name}.anchor_deltas", 4 * anchors, seen, 1, 1, norm="none"),
        ]
    )


def fpn(blocks: tuple[int, ...], dim: int = 8, *, fpn_norm: str = "none", **options: Any) -> Shapes:
    shapes = body("backbone.bottom_up", blocks, **options)
    for level in (2, 3, 4, 5):
        shapes |= conv(f"backbone.fpn_lateral{level}", dim, 64 * 2**level, 1, 1, norm=fpn_norm)
        shapes |= conv(f"backbone.fpn_output{level}", dim, dim, 3, 3, norm=fpn_norm)
    return shapes | rpn(dim, 3)


def linear(name: str, out: int, seen: int) -> Shapes:
    return {f"{name}.weight": (out, seen), f"{name}.bias": (out,)}


def boxes(seen: int, classes: int, *, pooled: int = 0, hidden: int = 6) -> Shapes:
    """pooled: numbers that go into two layers before, 0 for none."""
    shapes = Shapes()
    if pooled:
        shapes |= linear("roi_heads.box_head.fc1", hidden, pooled) | linear("roi_heads.box_head.fc2", hidden, hidden)
        seen = hidden
    shapes |= linear("roi_heads.box_predictor.cls_score", classes + 1, seen)
    return shapes | linear("roi_heads.box_predictor.bbox_pred", 4 * classes, seen)


def masks(seen: int, classes: int, *, convolutions: int = 4, dim: int = 8, norm: str = "none") -> Shapes:
    shapes, name = Shapes(), "roi_heads.mask_head"
    for number in range(1, convolutions + 1):
        shapes |= conv(f"{name}.mask_fcn{number}", dim, seen, 3, 3, norm=norm)
        seen = dim
    shapes |= {f"{name}.deconv.weight": (seen, dim, 2, 2), f"{name}.deconv.bias": (dim,)}
    return shapes | dict(conv(f"{name}.predictor", classes, dim, 1, 1, norm="none"))


def points(seen: int, count: int = 17, *, dim: int = 8) -> Shapes:
    shapes, name = Shapes(), "roi_heads.keypoint_head"
    for number in range(1, 9):
        shapes |= conv(f"{name}.conv_fcn{number}", dim, seen, 3, 3, norm="none")
        seen = dim
    return shapes | {f"{name}.score_lowres.weight": (dim, count, 4, 4), f"{name}.score_lowres.bias": (count,)}


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
C4 = {**body("backbone", R50[:3]), **rpn(1024, 15)}
ZOO: dict[str, Shapes] = {
    "faster FPN": fpn(R50) | boxes(0, 80, pooled=8 * 49),
    "faster FPN R-101": fpn(R101) | boxes(0, 3, pooled=8 * 49),
    "faster FPN X-101": fpn(R101, groups=4) | boxes(0, 3, pooled=8 * 49),
    "faster C4": C4 | stage("roi_heads", 5, 3) | boxes(2048, 80),
    "faster DC5": body("backbone", R50) | rpn(2048, 15) | boxes(0, 80, pooled=2048 * 49),
    "mask FPN": fpn(R50) | boxes(0, 5, pooled=8 * 49) | masks(8, 5),
    "mask C4": C4 | stage("roi_heads", 5, 3) | boxes(2048, 5) | masks(2048, 5, convolutions=0),
    "mask FPN GN": {
        **fpn(R50, 32, fpn_norm="group", norm="group", width=32),
        **{
            name: shape
            for number in (1, 2, 3, 4)
            for name, shape in conv(f"roi_heads.box_head.conv{number}", 32, 32, 3, 3, norm="group")
        },
        **linear("roi_heads.box_head.fc1", 6, 32 * 49),
        **boxes(6, 5),
        **masks(32, 5, dim=32, norm="group"),
    },
    "keypoint FPN": fpn(R50) | boxes(0, 1, pooled=8 * 49) | points(8),
    "RPN FPN": fpn(R50),
    "RPN C4": C4,
}


def arrays(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Of such sizes that what goes through a body stays about as large as it is."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if ".norm." in name or name.startswith("pixel"):
            made[name] = (NORM.get(name.rpartition(".")[2], 0.0) + 0.2 * rng.random(shape)).astype(np.float32)
        elif name.endswith(".bias"):
            made[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        else:
            # Levels of up to 255 come in, and boxes are to move by a part of their sides.
            size = 0.01 if "stem" in name else 0.1 if "deltas" in name else 1.0
            size *= float(2 / np.prod(shape[1:])) ** 0.5
            made[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(size)
    made["pixel_mean"] = np.array(MEAN_BGR, dtype=np.float32).reshape(3, 1, 1)
    made["pixel_std"] = np.ones((3, 1, 1), dtype=np.float32)
    return made
