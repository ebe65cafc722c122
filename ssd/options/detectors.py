"""--detector on the command line: which one is meant, its own flags, and settings that follow it."""

import argparse
import os
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ssd.config import Config
from ssd.detectors.names import FAMILIES, family_of, settings_named
from ssd.detectors.retinanet.settings import STRIDES_IN
from ssd.detectors.ssd300.settings import AUGMENTATIONS, BACKBONES, SSD300Settings
from ssd.detectors.torchvision.names import has_second_stage
from ssd.detectors.torchvision.settings import NORMS
from ssd.detectors.yolov2.settings import REGION_LOSSES, RESIZES
from ssd.errors import InputError
from ssd.options.flags import (
    ABOVE_0,
    COUNT,
    COUNT_FROM_0,
    POSITIVE,
    Parser,
    flag,
    for_its_batch,
    number,
    require_one_length,
)


def add_detector_flags(parser: Parser, settings: Any, *, training: bool = True) -> None:
    """--detector, and the flags of this one's own settings. settings: of the detector that the command line names."""
    names = ", ".join(sorted(family.names[0] for family in FAMILIES.values()))
    group = parser.add_argument_group(f"detector ({settings.name})")
    flag(
        group,
        "--detector",
        dest="detector",
        metavar="NAME",
        help=f"such as {names}, a cfg file of darknet or a YAML file of Detectron; with --help: its own flags; "
        "main.py summary lists all names",
    )
    OWN_FLAGS[settings.family](group, training)
    others = {FAMILIES[family].names[0]: add for family, add in OWN_FLAGS.items() if family != settings.family}
    if settings.family == "torchvision" and has_second_stage(settings.builder):
        _add_second_stage_flags(group, training)
    else:
        others[_WITH_SECOND_STAGE] = _add_second_stage_flags
    for name, add in others.items():
        other = argparse.ArgumentParser(add_help=False)
        add(other.add_argument_group(), True)
        parser.of_others.update(dict.fromkeys(other._option_string_actions, name))
    if settings.family in ("torchvision", "retinanet", "detectron"):
        parser.refused["--backbone"] = "--detector's name or file says the body, such as retinanet_resnet18_fpn"


def _add_ssd300_flags(group: Any, training: bool) -> None:
    flag(group, "--backbone", dest="backbone", choices=BACKBONES, help="the ResNet under the detector")
    if training:
        flag(
            group, "--augmentation", dest="augmentation", choices=AUGMENTATIONS,
            help="published: half a degree of hue, contrast about 128, no antialiasing, crowd regions learned",
        )  # fmt: skip


def _add_short_side_flags(group: Any) -> None:
    flag(
        group, "--min-size", dest="short_sides_px", type=SIDE, nargs="+", metavar="PX",
        help="the short side of an image; each training image draws one of several, evaluation takes the last",
    )  # fmt: skip
    flag(group, "--max-size", dest="long_side_px", type=SIDE, metavar="PX", help="the longest that a side may become")
    flag(
        group, "--divisor", dest="divisor", type=COUNT, metavar="PX",
        help="a batch's height and width are multiples of it",
    )  # fmt: skip


def _add_norm_flag(group: Any) -> None:
    flag(
        group, "--norm", dest="norm", choices=NORMS,
        help="of the body; frozen: as in its file, batch: learned (default: frozen, with no weights batch)",
    )  # fmt: skip


def _add_torchvision_flags(group: Any, training: bool) -> None:
    _add_short_side_flags(group)
    if training:
        _add_norm_flag(group)
        flag(
            group, "--norm-eps", dest="norm_eps", type=POSITIVE, metavar="X",
            help="what frozen norms add to a variance; 0 for files from before torchvision 0.13",
        )  # fmt: skip
        _add_trainable_layers_flag(group, "3")


def _add_second_stage_flags(group: Any, training: bool) -> None:
    if training:
        flag(
            group, "--boxes-an-image", dest="boxes_an_image", type=number(int, 4), metavar="N",
            help="proposals of an image that an R-CNN's heads learn from, a quarter of them of objects at most; fewer "
            "take less time and memory",
        )  # fmt: skip


def _add_retinanet_flags(group: Any, training: bool) -> None:
    _add_short_side_flags(group)
    if training:
        _add_norm_flag(group)
        flag(
            group, "--stride-in", dest="stride_in", choices=STRIDES_IN,
            help="the convolution of a bottleneck that has the stride (default: 3x3 as torchvision's weights, 1x1 as "
            "a .pkl of MSRA's and with no weights)",
        )  # fmt: skip
        flag(
            group, "--smooth-l1-beta", dest="smooth_l1_beta", type=POSITIVE, metavar="X",
            help="errors of a box's offsets count by their squares below it; 0: all as they are",
        )  # fmt: skip
        _add_trainable_layers_flag(group, "3")


def _add_torchvision_ssd_flags(group: Any, training: bool) -> None:
    if training:
        _add_trainable_layers_flag(group, "4, of the MobileNet all")


def _add_trainable_layers_flag(group: Any, usual: str) -> None:
    flag(
        group, "--trainable-layers", dest="trainable_layers", type=COUNT_FROM_0, metavar="N",
        help=f"parts of the body that learn, from its end (default: {usual}, with no weights all)",
    )  # fmt: skip


def _add_yolov2_flags(group: Any, training: bool) -> None:
    flag(
        group, "--input-size", dest="input_px", type=SIDE, nargs=2, metavar=("WIDTH", "HEIGHT"),
        help="what an image is stretched to (default: the cfg's)",
    )  # fmt: skip
    if training:
        flag(
            group, "--train-size", dest="train_px", type=SIDE, nargs="+", metavar="PX",
            help="side of training images; of a least and a largest, one is drawn every ten steps (default: 10 to 19 "
            "cells where the cfg says random=1, else --input-size)",
        )  # fmt: skip
        flag(
            group, "--anchors", dest="anchors", type=_anchor, nargs="+", metavar="{auto,CELLS}",
            help="pairs of width and height, in cells of the output; auto: k-means of the training boxes (default: the "
            "cfg's)",
        )  # fmt: skip
        flag(
            group, "--resize", dest="resize", choices=RESIZES,
            help="letterbox: images keep their shape, with gray around them, as darknet's since 2017 (default: the "
            "cfg's letter_box, else stretch)",
        )  # fmt: skip
        flag(
            group, "--region-loss", dest="region_loss", choices=REGION_LOSSES,
            help="square-root: sides by their roots and classes by squares, as in YOLOv1's paper, for comparison",
        )  # fmt: skip


def _add_detectron_flags(group: Any, training: bool) -> None:
    add_set_flag(group)


def add_set_flags(parser: Parser) -> None:
    """Of a command that uses a checkpoint's detector."""
    add_set_flag(parser.add_argument_group("detector"))
    parser.refused["--input-size"] = "a YOLOv2 looks at images of other sizes with --set width 544 height 544"


def add_set_flag(group: Any) -> None:
    flag(
        group, "--set", dest="set", nargs="+", action="extend", metavar="KEY VALUE",
        help="keys of Detectron's configuration with other values, such as TEST.SCALE 600; of YOLOv2, width and height "
        "of the cfg",
    )  # fmt: skip


def _anchor(text: str) -> Any:
    return text if text == "auto" else ABOVE_0(text)


SIDE = number(int, 8, 100_000)
_WITH_SECOND_STAGE = "fasterrcnn_resnet50_fpn"
OWN_FLAGS = {
    "retinanet": _add_retinanet_flags,
    "detectron": _add_detectron_flags,
    "ssd300": _add_ssd300_flags,
    "torchvision": _add_torchvision_flags,
    "torchvision_ssd": _add_torchvision_ssd_flags,
    "yolov2": _add_yolov2_flags,
}
"""By family: (group, whether the command trains) adds them."""


def detector_in(arguments: Sequence[str]) -> Any:
    """The settings of the detector that --detector names, or else the --recipe file, or else SSD300's; with the words
    of --set."""
    name, words = _named_in(arguments)
    return SSD300Settings() if name is None else settings_named(name, words)


def set_in(arguments: Sequence[str]) -> set[str]:
    """The names of those settings of the detector that --set changes."""
    name, words = _named_in(arguments)
    if name is None or not words:
        return set()
    plain, changed = settings_named(name), settings_named(name, words)
    return {field.name for field in fields(plain) if getattr(plain, field.name) != getattr(changed, field.name)}


def _named_in(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--detector", "--recipe"):
        parser.add_argument(name, nargs="?")
    parser.add_argument("--set", nargs="*", action="extend", default=[])
    try:
        found, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # the command's own parser says it better
        return None, ()
    if found.detector is not None:
        return found.detector, found.set
    try:
        named = tomllib.loads(Path(found.recipe or "").read_text(encoding="utf-8")).get("detector")
    except (OSError, ValueError):  # `recipes.base_of` says what is wrong with a file
        named = None
    return (named, found.set) if isinstance(named, str) else (None, ())


def for_detector(settings: Any, config: Config, given: set[str]) -> Config:
    """The config of a command whose detector a checkpoint says. Of the given settings, those of the command line or a
    recipe, the values stay; the others are the checkpoint's, or what its kind of detector starts from.

    A detector that a file describes is as --detector and --set say, where the checkpoint holds one of its kind.
    Raises InputError where a setting is given that the checkpoint's detector has not.
    """
    family = family_of(settings)
    is_described = family.with_words is not None and settings.family == config.detector.family
    if is_described and "detector" in given:
        return for_its_batch(config)
    if settings.name != config.detector.name and "detector" in given:
        raise InputError(
            f"--detector {config.detector.name}: the checkpoint holds a {settings.name}; leave --detector out, or pass "
            "that"
        )
    if "detector" in given and family.require_same is not None:
        family.require_same(config.detector, settings, given)
    if "detector" in given and getattr(config.detector, "is_multi_scale", False):
        given = given | {"short_sides_px"}  # a name can say them too
    own = {field.name for field in fields(settings)}
    values = {}
    for name in given - {"detector", "set"}:
        if hasattr(config, name):
            values[name] = getattr(config, name)
        elif name in own:
            values[name] = getattr(config.detector, name)
        else:
            flag_name = name.replace("_", "-")
            raise InputError(f"--{flag_name}: means nothing for {settings.name}, which the checkpoint holds")
    base = config
    if settings.family != config.detector.family:
        usual = family.recipes.get(family.usual)
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        base = usual(values.get("batch_size"), world_size, settings) if usual else family.defaults(settings)
    config = base.with_detector(settings).overlaid(values)
    # A recipe gives both lengths, of which steps are the one that counts; config_of has looked at them.
    require_one_length(config, given - {"epochs"} if "steps" in given else given)
    return for_its_batch(config)
