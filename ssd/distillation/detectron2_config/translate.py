"""A distillation of Distill_GID_detectron2 as this program's settings: the student, the run, and how it learns."""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import PurePath, PurePosixPath
from typing import Any, NamedTuple

from ssd.config import Config
from ssd.detectors.retinanet.recipes import defaults
from ssd.detectors.retinanet.settings import RetinaNetSettings, settings_named
from ssd.distillation.detectron2_config.files import Files, found
from ssd.distillation.detectron2_config.reading import Configuration
from ssd.distillation.settings import GID, GID_INSTANCES, words_of
from ssd.errors import InputError
from ssd.schedule import DECAY, REFERENCE_BATCH
from ssd.storage.yaml_lines import in_a_line

_NORMS = {"FrozenBN": "frozen", "BN": "batch"}
_STAGES = 5
_CLASSIFIER = re.compile(r"R-\d+\.pkl")
_OF_GID = {
    "nms_iou": "GID.GI_NMS_THRESH",
    "before_nms": "GID.GI_PRE_NMS_TOPK",
    "count": "GID.GI_POST_NMS_TOPK",
    "shares": "GID.IOU_THRESHOLDS",
    "cells": "GID.ROI.POOLER_RESOLUTION",
    "samples": "GID.ROI.POOLER_SAMPLING_RATIO",
    "shares_adapter": "GID.ADAPTER.SHARE_WEIGHTS",
    "adapter_kernel": "GID.ADAPTER.KERNEL_SIZE",
    "feature_weight": "LOSS.FEATURE.WEIGHT",
    "relation_weight": "LOSS.RELATION.WEIGHT",
    "relation_beta": "LOSS.RELATION.SMOOTH_L1_BETA",
    "class_weight": "LOSS.RESPONSE_CLS.WEIGHT",
    "box_weight": "LOSS.RESPONSE_REG.WEIGHT",
    "box_beta": "LOSS.RESPONSE_REG.SMOOTH_L1_BETA",
}
"""Settings of `GID` -> keys under DISTILL that say the same."""


class Start(NamedTuple):
    """config: what the flags start from. notes: what the user should know of it."""

    config: Config
    notes: list[str]


def start_of(files: Files, given: Collection[str], batch_size: int | None, world_size: int) -> Start:
    """given: the settings that flags say, which need no file to be there. batch_size: that of the flags. Raises
    InputError that names the key for what does not go together, and for weights that are not there."""
    run, student = files.run, files.student
    settings = student_settings(files)
    images = run["SOLVER.IMS_PER_BATCH"]
    batch_size = batch_size or max(2, images // world_size)
    # Another batch takes as many steps as make the same number of images; the rate follows it in `schedule.peak_lr`.
    share = images / (batch_size * world_size)
    steps = _scaled(run["SOLVER.MAX_ITER"], share)
    warmup = round(run["SOLVER.WARMUP_ITERS"] * share)
    falls = _falls(files, share)
    every = _scaled(run["TEST.EVAL_PERIOD"], share) if run["TEST.EVAL_PERIOD"] else 0
    weights, notes = _weights(files, given)
    config = replace(
        defaults(settings),
        **weights,
        teacher=None if "teacher" in given else _teacher_file(files),
        distill=("gid",),
        distill_settings=tuple(gid_words(files)),
        num_workers=run["DATALOADER.NUM_WORKERS"],
        batch_size=batch_size,
        learning_rate=run["SOLVER.BASE_LR"] * REFERENCE_BATCH / images,
        momentum=run["SOLVER.MOMENTUM"],
        weight_decay=run["SOLVER.WEIGHT_DECAY"],
        norm_decay=run["SOLVER.WEIGHT_DECAY_NORM"],
        bias_decay=run["SOLVER.WEIGHT_DECAY_BIAS"],
        bias_rate=run["SOLVER.BIAS_LR_FACTOR"],
        warmup=warmup,
        warmup_factor=run["SOLVER.WARMUP_FACTOR"] if warmup else None,
        steps=steps,
        multistep=falls,
        multistep_factors=() if run["SOLVER.GAMMA"] == DECAY else (run["SOLVER.GAMMA"],) * len(falls),
        evaluation=tuple(range(every, steps, every)) if every else (),
        checkpoint_every=(run["SOLVER.CHECKPOINT_PERIOD"], "steps"),
        fp16=run["SOLVER.AMP.ENABLED"],
        seed=run["SEED"] if run["SEED"] >= 0 else None,
        output=run["OUTPUT_DIR"] if "OUTPUT_DIR" in run.given else None,
        score_threshold=student["MODEL.RETINANET.SCORE_THRESH_TEST"],
        nms_iou=student["MODEL.RETINANET.NMS_THRESH_TEST"],
        max_per_image=student["TEST.DETECTIONS_PER_IMAGE"],
    )
    if "gid.adapter=true" in config.distill_settings:
        notes.append(
            f"{files.name}: DISTILL.GID.ADAPTER is obeyed; there it was built and never applied, which is "
            "--distill-settings gid.adapter=false"
        )
    return Start(config, [*run.notes(), *student.notes(), *files.teacher.notes(), *notes])


def student_settings(files: Files) -> RetinaNetSettings:
    """What depends on the weights that it begins with, and is not stated, is None. Raises InputError."""
    run, student = files.run, files.student
    sides_px, evaluated_px = list(run["INPUT.MIN_SIZE_TRAIN"]), run["INPUT.MIN_SIZE_TEST"]
    if evaluated_px not in sides_px:
        raise run.error(
            "INPUT.MIN_SIZE_TRAIN", f"has to have MIN_SIZE_TEST {evaluated_px} in it: evaluation takes one of its sizes"
        )
    sides_px.remove(evaluated_px)
    long_px = run["INPUT.MAX_SIZE_TRAIN"]
    if run["INPUT.MAX_SIZE_TEST"] != long_px:
        raise run.error("INPUT.MAX_SIZE_TEST", f"has to be MAX_SIZE_TRAIN {long_px}, not {run['INPUT.MAX_SIZE_TEST']}")
    if long_px < max(run["INPUT.MIN_SIZE_TRAIN"]):
        raise run.error("INPUT.MAX_SIZE_TRAIN", f"{long_px} is less than {max(run['INPUT.MIN_SIZE_TRAIN'])}")
    for config in (student, files.teacher):
        _require_channels(config)
    return replace(
        settings_named(f"retinanet_r{student['MODEL.RESNETS.DEPTH']}_fpn"),
        smooth_l1_beta=student["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"],
        short_sides_px=(*sides_px, evaluated_px),
        long_side_px=long_px,
        **_of_the_body(student),
    )


def _of_the_body(student: Configuration) -> dict[str, Any]:
    """Settings that depend on the weights where the file does not state them."""
    stated: dict[str, Any] = {}
    if "MODEL.RESNETS.NORM" in student.given:
        stated["norm"] = _NORMS[student["MODEL.RESNETS.NORM"]]
    if "MODEL.RESNETS.STRIDE_IN_1X1" in student.given:
        stated["stride_in"] = "1x1" if student["MODEL.RESNETS.STRIDE_IN_1X1"] else "3x3"
    if "MODEL.BACKBONE.FREEZE_AT" in student.given:
        stated["trainable_layers"] = _STAGES - student["MODEL.BACKBONE.FREEZE_AT"]
    return stated


def said_of_student(files: Files) -> set[str]:
    """The names of the settings that hold for the student also where a checkpoint has others, equal to the defaults
    or not."""
    return {"smooth_l1_beta", "short_sides_px", "long_side_px", *_of_the_body(files.student)}


def _require_channels(config: Configuration) -> None:
    key, depth = "MODEL.RESNETS.RES2_OUT_CHANNELS", config["MODEL.RESNETS.DEPTH"]
    channels = 64 if depth in (18, 34) else 256
    if key in config.given and config[key] != channels:
        raise config.error(key, f"has to be {channels} with DEPTH {depth}")


def gid_words(files: Files) -> list[str]:
    """What the keys under DISTILL say, as words of --distill-settings: of the seed's variant, where they say other than
    its defaults. Raises InputError that names the key."""
    run = files.run
    mode, has_adapter = run["DISTILL.GID.GI_MODE"].lower(), bool(run["DISTILL.GID.ADAPTER.ST_NAMES"])
    if mode not in GID_INSTANCES:
        raise run.error("DISTILL.GID.GI_MODE", f"{mode!r} is none of {', '.join(GID_INSTANCES)}")
    names = run["DISTILL.GID.ADAPTER.TE_NAMES"]
    if run["DISTILL.GID.ADAPTER.ST_NAMES"] != names:
        raise run.error("DISTILL.GID.ADAPTER.ST_NAMES", f"has to be TE_NAMES, {names}")
    if run["DISTILL.GID.ADAPTER.KERNEL_SIZE"] % 2 == 0:
        raise run.error("DISTILL.GID.ADAPTER.KERNEL_SIZE", "has to be odd, so that a map keeps its size")
    values: dict[str, Any] = {"instances": mode, "adapter": has_adapter}
    usual = GID(variant="seed")
    words = ["gid.variant=seed"]
    for name, key in {**dict.fromkeys(values, ""), **_OF_GID}.items():
        value = values[name] if name in values else run[f"DISTILL.{key}"]
        value = tuple(value) if isinstance(value, list) else value
        default = getattr(usual, name)
        if value != (usual.of_variant(name) if default is None else default):
            try:
                words += words_of({"gid": {name: list(value) if isinstance(value, tuple) else value}})
            except InputError as error:
                raise run.error(f"DISTILL.{key}", str(error)) from None
    return words


def _scaled(steps: int, share: float) -> int:
    return max(1, round(steps * share))


def _falls(files: Files, share: float) -> tuple[int, ...]:
    steps = files.run["SOLVER.STEPS"]
    if sorted(set(steps)) != list(steps):
        raise files.run.error("SOLVER.STEPS", f"has to rise, not {steps}")
    return tuple(_scaled(step, share) for step in steps if step < files.run["SOLVER.MAX_ITER"])


def _weights(files: Files, given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings of what the student begins with, and what the user should know of it."""
    student = files.student
    name: str = student["MODEL.WEIGHTS"]
    if "checkpoint" in given or "backbone_weights" in given:
        return {}, []
    if not name:
        return {"backbone_weights": "none"}, []
    is_classifier = "ImageNetPretrained" in name or _CLASSIFIER.fullmatch(PurePosixPath(name).name)
    file = None if "://" in name else found(student, "MODEL.WEIGHTS", files.run)
    if file is not None:
        return {"backbone_weights" if is_classifier else "checkpoint": str(file)}, []
    if not is_classifier:
        raise student.error(
            "MODEL.WEIGHTS",
            f"{in_a_line(name)} is not here; pass the file as --checkpoint, or others as --backbone-weights",
        )
    return {"backbone_weights": "imagenet"}, [
        f"{student.name}: MODEL.WEIGHTS: {in_a_line(name)} is not here, and torchvision's ImageNet weights take its "
        "place; pass --backbone-weights FILE.pkl to begin as there"
    ]


def _teacher_file(files: Files) -> str:
    teacher = files.teacher
    file = found(teacher, "MODEL.WEIGHTS", files.run) if teacher["MODEL.WEIGHTS"] else None
    if file is None:
        depth, name = teacher["MODEL.RESNETS.DEPTH"], PurePath(teacher.name).stem
        kind = f"a RetinaNet-R{depth}, the {name} of detectron2 or one trained here"
        if not teacher["MODEL.WEIGHTS"]:
            raise InputError(f"--distill {files.name}: from whom? pass --teacher FILE too: {kind}")
        weights = in_a_line(teacher["MODEL.WEIGHTS"])
        raise teacher.error("MODEL.WEIGHTS", f"{weights} is not here; pass --teacher FILE: {kind}")
    return str(file)


def require_student(files: Files, file: str, settings: Any) -> None:
    """Raises InputError where the checkpoint of this file holds another detector. settings: its own."""
    expected = f"retinanet_r{files.student['MODEL.RESNETS.DEPTH']}_fpn"
    if settings.name != expected:
        raise InputError(
            f"--checkpoint {file}: holds a {settings.name}; the student of --distill {files.name} is a {expected}; "
            "pass one of it"
        )


def require_teacher(files: Files, file: str, settings: Any) -> None:
    """Raises InputError where the teacher of this file is another than the configuration says. settings: its own."""
    expected = f"retinanet_r{files.teacher['MODEL.RESNETS.DEPTH']}_fpn"
    strides = {True: "1x1", False: "3x3"}
    stride_in = strides[files.teacher["MODEL.RESNETS.STRIDE_IN_1X1"]]
    if settings.name != expected:
        raise files.teacher.error("MODEL.RESNETS.DEPTH", f"--teacher {file} is a {settings.name}, not a {expected}")
    if "MODEL.RESNETS.STRIDE_IN_1X1" in files.teacher.given and settings.stride_in != stride_in:
        raise files.teacher.error(
            "MODEL.RESNETS.STRIDE_IN_1X1", f"--teacher {file} has its strides in the {settings.stride_in}"
        )
