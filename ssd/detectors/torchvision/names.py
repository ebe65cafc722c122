"""The detectors by name, without importing torch: a name is that of torchvision's builder, with any ResNet in it."""

import difflib
import re
from dataclasses import replace
from typing import NamedTuple

from ssd.detectors.torchvision.settings import Settings, parts_of_body
from ssd.errors import InputError
from ssd.keypoints import PERSON

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
MOBILENET = "mobilenet_v3_large"
# Family -> endings of its builders' names.
_ENDINGS = {
    "retinanet": ("_fpn", "_fpn_v2"),
    "fasterrcnn": ("_fpn", "_fpn_v2"),
    "fcos": ("_fpn",),
    "maskrcnn": ("_fpn", "_fpn_v2"),
    "keypointrcnn": ("_fpn",),
}
_OF_MOBILENET = (f"fasterrcnn_{MOBILENET}_fpn", f"fasterrcnn_{MOBILENET}_320_fpn")

NAMES: tuple[str, ...] = (
    *(f"{family}_{body}{ending}" for family, endings in _ENDINGS.items() for ending in endings for body in RESNETS),
    *_OF_MOBILENET,
)
"""What `settings_of` takes. Those that torchvision has no builder of are put together as it puts its own together."""


class Parts(NamedTuple):
    """What a name says. is_v2: the builder's second version, with norms in pyramid and heads. is_320: MobileNet's for
    images of 320 pixels."""

    family: str
    body: str
    is_v2: bool
    is_320: bool


def parts_of(name: str) -> Parts:
    """Raises InputError for a name that is none of NAMES, in one line that has the nearest."""
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1)
        raise InputError(
            f"--detector {name}: there is no such detector; pass "
            + (f"{nearest[0]}, for example" if nearest else "a name of torchvision's builders")
        )
    family, body, is_320, ending = re.fullmatch(r"([a-z]+)_(.+?)(_320)?_fpn(_v2)?", name).groups()  # type: ignore[union-attr]
    return Parts(family, body, ending is not None, is_320 is not None)


def has_second_stage(name: str) -> bool:
    """Whether it looks at proposals. Raises InputError for an unknown name."""
    return parts_of(name).family.endswith("rcnn")


def settings_of(name: str, backbone_weights: str = "imagenet") -> Settings:
    """What torchvision's builder would make of its arguments' defaults.

    backbone_weights: as `--backbone-weights`. With "none" the body learns from scratch, all of it and with batch norm;
    otherwise its first parts and all of its norms stay as they are in the file. Raises InputError for an unknown name.
    """
    parts = parts_of(name)
    from_scratch = backbone_weights == "none"
    short_sides_px = (640, 672, 704, 736, 768, 800) if parts.family == "keypointrcnn" else (800,)
    return Settings(
        builder=name,
        norm="batch" if from_scratch or parts.is_v2 else "frozen",
        trainable_layers=parts_of_body(name) if from_scratch else 3,
        short_sides_px=(320,) if parts.is_320 else short_sides_px,
        long_side_px=640 if parts.is_320 else 1333,
        keypoints=PERSON.names if parts.family == "keypointrcnn" else (),
        keypoint_links=PERSON.links if parts.family == "keypointrcnn" else (),
    )


def title_of(settings: Settings) -> str:
    """Such as "RetinaNet-resnet50-FPN"."""
    parts = parts_of(settings.builder)
    family = {
        "retinanet": "RetinaNet",
        "fasterrcnn": "Faster R-CNN",
        "fcos": "FCOS",
        "maskrcnn": "Mask R-CNN",
        "keypointrcnn": "Keypoint R-CNN",
    }[parts.family]
    return f"{family}-{parts.body}{'-320' if parts.is_320 else ''}-FPN{' v2' if parts.is_v2 else ''}"


def unsettled(name: str) -> Settings:
    """`settings_of` the name, but for what depends on --backbone-weights: None."""
    return replace(settings_of(name), norm=None, trainable_layers=None)


def settled(settings: Settings, backbone_weights: str) -> Settings:
    """With what is None as `settings_of` has it for these weights."""
    usual = settings_of(settings.builder, backbone_weights)
    return replace(
        settings,
        norm=usual.norm if settings.norm is None else settings.norm,
        trainable_layers=usual.trainable_layers if settings.trainable_layers is None else settings.trainable_layers,
    )
