"""Detectron's settings for a purpose: what a run starts from, and what --recipe names."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd.config import Config, Recipe
from ssd.detectors.detectron.config.configuration import Configuration
from ssd.detectors.detectron.config.naming import configuration_of, settings_named
from ssd.detectors.detectron.settings import DetectronSettings
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.recipes.mlperf import mask_rcnn_of, not_of_mlperf
from ssd.schedule import REFERENCE_BATCH

IMAGENET_FILES = (
    "R-50.pkl", "R-101.pkl", "X-101-32x8d.pkl", "X-101-64x4d.pkl", "X-152-32x8d-IN5k.pkl", "R-50-GN.pkl",
    "R-101-GN.pkl", "resnet50_caffe.pth", "resnet101_caffe.pth", "resnet152_caffe.pth",
)  # fmt: skip
"""Names of files that configurations begin with, and that --backbone-weights imagenet stands for."""


_MOST_FALLS = 1000


def defaults(settings: DetectronSettings) -> Config:
    """`detectron` on one rank: what a run starts from without a recipe."""
    return detectron(detector=settings)


def detectron(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """the configuration's own batch, in parts of IMS_PER_BATCH, rate and steps; others follow --batch-size"""
    settings: DetectronSettings = detector or settings_named("e2e_faster_rcnn_R-50-FPN_1x")
    config = configuration_of(settings)
    an_image = config["TRAIN.IMS_PER_BATCH"]
    batch_is_for = config["NUM_GPUS"] * an_image
    if batch_size is None:
        # All of Detectron's batch on the ranks that there are, its parts as large as a GPU of Detectron's had them.
        parts, rest = divmod(config["NUM_GPUS"], world_size)
        batch_size, accumulate = (an_image * parts, parts) if parts and not rest else (an_image, 1)
    else:
        accumulate = 1
    scale = batch_is_for / (batch_size * world_size)
    base_lr, falls = _rate(config)
    steps = _scaled(config["SOLVER.MAX_ITER"], scale)
    return Config(
        detector=settings,
        backbone_weights=_backbone_weights(config, settings.freeze_at),
        freeze_backbone=config["TRAIN.FREEZE_CONV_BODY"],
        num_workers=config["DATA_LOADER.NUM_THREADS"],
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=base_lr * REFERENCE_BATCH / batch_is_for,
        momentum=config["SOLVER.MOMENTUM"],
        weight_decay=config["SOLVER.WEIGHT_DECAY"],
        norm_decay=config["SOLVER.WEIGHT_DECAY_GN"],
        bias_rate=2.0 if config["SOLVER.BIAS_DOUBLE_LR"] else 1.0,
        bias_decay=config["SOLVER.WEIGHT_DECAY"] if config["SOLVER.BIAS_WEIGHT_DECAY"] else 0.0,
        schedule="cosine" if config["SOLVER.LR_POLICY"] == "cosine_decay" else "multistep",
        steps=steps,
        multistep=tuple(_scaled(step, scale) for step, _ in falls),
        multistep_factors=tuple(factor for _, factor in falls),
        warmup=config["SOLVER.WARM_UP_ITERS"],
        warmup_factor=config["SOLVER.WARM_UP_FACTOR"] if config["SOLVER.WARM_UP_ITERS"] else None,
        evaluation=tuple(sorted({max(1, steps * tenth // 10) for tenth in range(1, 11)})),
        eval_batch_size=1,
        score_threshold=0.0 if settings.rpn_only else config["TEST.SCORE_THRESH"],
        metrics=("recall", "coco") if settings.rpn_only else ("coco",),
        nms_iou=config["TEST.NMS"],
        max_per_class=config["TEST.RPN_POST_NMS_TOP_N"],
        max_per_image=config["TEST.DETECTIONS_PER_IM"],
    )


def for_batch(settings: DetectronSettings, images: int) -> DetectronSettings:
    """With as many proposals of a part of a batch that has so many images as Detectron.pytorch would keep, so that an
    image has as many whatever the batch. Detectron keeps so many of all images of a GPU."""
    config = configuration_of(settings)
    return replace(settings, rpn_collect_scale=config["FPN.RPN_COLLECT_SCALE"] * images / config["TRAIN.IMS_PER_BATCH"])


def _scaled(steps: int, scale: float) -> int:
    """Detectron.pytorch's rule for another batch: as many images, rounded half up."""
    return max(1, math.floor(steps * scale + 0.5))


def _rate(config: Configuration) -> tuple[float, list[tuple[int, float]]]:
    """The first rate, and (steps, factor) of its falls, as Detectron's policy has them. Raises InputError."""
    policy, steps = config["SOLVER.LR_POLICY"], config["SOLVER.STEPS"]
    base_lr, gamma, length = config["SOLVER.BASE_LR"], config["SOLVER.GAMMA"], config["SOLVER.MAX_ITER"]
    if policy == "cosine_decay":
        if config["SOLVER.WARM_UP_ITERS"]:
            raise config.error(
                "SOLVER.LR_POLICY", "cosine_decay begins after the warm-up here; set SOLVER.WARM_UP_ITERS 0, or leave "
                "this key out and pass --schedule cosine"
            )  # fmt: skip
        return base_lr, []
    if policy == "step":
        if steps:
            raise config.error("SOLVER.STEPS", "says nothing with LR_POLICY step; set LR_POLICY steps_with_decay")
        size = config["SOLVER.STEP_SIZE"]
        if length // size > _MOST_FALLS:
            raise config.error(
                "SOLVER.STEP_SIZE", f"{size} lets the rate fall more than {_MOST_FALLS} times in {length}"
            )
        return base_lr, [(step, gamma) for step in range(size, length, size)]
    if not steps or steps[0] != 0 or sorted(set(steps)) != steps:
        raise config.error("SOLVER.STEPS", f"has to begin with 0 and to rise, as Detectron's does, not {steps}")
    if policy == "steps_with_decay":
        return base_lr, [(step, gamma) for step in steps[1:] if step < length]
    rates = config["SOLVER.LRS"]
    if len(rates) != len(steps) or not all(rate > 0 for rate in rates):
        raise config.error("SOLVER.LRS", f"has to have a rate above 0 for each of the {len(steps)} SOLVER.STEPS")
    factors = [rate / before for before, rate in zip(rates, rates[1:], strict=False)]
    return rates[0], list(zip(steps[1:], factors, strict=True))


def _backbone_weights(config: Configuration, freeze_at: int) -> str:
    """The default of --backbone-weights. A file of Detectron's that is not there is "imagenet"; a configuration that
    names none and freezes nothing begins with none."""
    if not config["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"]:
        return "none"
    file = config["RESNETS.IMAGENET_PRETRAINED_WEIGHTS"] or config["TRAIN.WEIGHTS"]
    if not file:
        return "imagenet" if freeze_at else "none"
    return "imagenet" if Path(file).name in IMAGENET_FILES and not Path(file).is_file() else str(file)


def demo(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """from scratch on the demo data, images of 192 pixels: not tuned yet"""
    settings: DetectronSettings = detector or settings_named("e2e_mask_rcnn_R-50-FPN_1x")
    small = replace(
        settings,
        norm="group",
        freeze_at=0,
        short_sides_px=(192,),
        long_side_px=256,
        test_short_side_px=192,
        test_long_side_px=256,
    )
    return demo_of(
        defaults(small),
        batch_size=batch_size or 4,
        accumulate=1,
        learning_rate=0.16,
        warmup=100,
        warmup_factor=None,
        steps=None,
        epochs=8,
        multistep=(),
        multistep_factors=(),
        evaluation=(2, 4, 6),
    )


def mlperf(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """MLPerf's Mask R-CNN on COCO by its closed rules, at the rate of the nearest reference batch: not trained here"""
    settings: DetectronSettings = detector or settings_named("e2e_mask_rcnn_R-50-FPN_1x")
    if not settings.mask_head:
        raise not_of_mlperf(settings)
    return mask_rcnn_of(detectron(detector=settings), batch_size, world_size)


def candidates(settings: DetectronSettings, images: int) -> int:
    """How many proposals of so many images training chooses from. Where those of a batch are joined, `for_batch` has
    put the images into the settings."""
    joins = settings.rules == "detectron" and not settings.has_one_rpn_level
    return math.floor(settings.rpn_after_nms[0] * (settings.rpn_collect_scale if joins else images) + 0.5)


RECIPES: dict[str, Recipe] = {"detectron": detectron, "demo": demo, "mlperf": mlperf}
