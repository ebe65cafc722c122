"""YOLOv2's settings for a purpose: what a run starts from, and what --recipe names."""

import itertools
from dataclasses import replace
from typing import Any

from ssd.config import Config, Recipe
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.yolov2.darknet.cfg import parse
from ssd.detectors.yolov2.settings import YOLOv2Settings, settings_named
from ssd.errors import InputError
from ssd.schedule import REFERENCE_BATCH


def defaults(settings: YOLOv2Settings) -> Config:
    """`paper` on one rank: what a run starts from without a recipe."""
    return paper(detector=settings)


def paper(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """the cfg's rate, momentum, decay, batch and burn-in; 160 epochs, a tenth after 60 and 90"""
    settings: YOLOv2Settings = detector or settings_named("yolov2-voc")
    net = parse(settings.cfg, settings.network).net
    return Config(
        detector=settings,
        backbone_weights="none",
        batch_size=batch_size or net.batch,
        accumulate=net.subdivisions,
        learning_rate=net.learning_rate * REFERENCE_BATCH / net.batch,
        momentum=net.momentum,
        weight_decay=net.decay,
        warmup=net.burn_in,
        warmup_power=net.power,
        epochs=160,
        multistep=(60, 90),
        evaluation=tuple(range(10, 161, 10)),
        eval_batch_size=8,
        score_threshold=0.005,
        nms_iou=0.45,
    )


def darknet(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """paper, but as many steps as the cfg's max_batches, and the rate falls by its steps and scales"""
    config = paper(batch_size, world_size, detector)
    net = parse(config.detector.cfg, config.detector.network).net
    steps, scales = (net.steps, net.scales) if net.policy == "steps" else ((), ())
    # darknet counts batches from 1, looks at steps in their order, and at none of them before the burn-in has ended.
    falls = tuple(max(step, net.burn_in, 1) - 1 for step in itertools.accumulate(steps, max))
    evaluation = tuple(net.max_batches * tenth // 10 for tenth in range(1, 11))
    if not net.max_batches:
        raise InputError(f"--recipe darknet: {config.detector.name} has no max_batches; pass --recipe paper")
    length = net.max_batches
    return replace(config, steps=length, evaluation=evaluation, multistep=falls, multistep_factors=scales)


def demo(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """from scratch on the demo data, images of 256 pixels: not tuned yet"""
    settings: YOLOv2Settings = detector or settings_named("yolov2-tiny-voc")
    return demo_of(
        defaults(replace(settings, input_px=(256, 256), train_px=(256,))),
        batch_size=batch_size or 16,
        accumulate=1,
        learning_rate=0.002,
        warmup=50,
        warmup_power=1.0,
        epochs=8,
        evaluation=(2, 4, 6),
    )


RECIPES: dict[str, Recipe] = {"darknet": darknet, "paper": paper, "demo": demo}
