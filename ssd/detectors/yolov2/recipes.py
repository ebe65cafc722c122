"""YOLOv2's settings for a purpose: what a run starts from, and what --recipe names."""

import itertools
from dataclasses import replace
from typing import Any

from ssd.config import Config, Recipe
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.yolov2.darknet.cfg import parse
from ssd.detectors.yolov2.darknet.sections import Region
from ssd.detectors.yolov2.settings import YOLOv2Settings, settings_named
from ssd.errors import InputError
from ssd.schedule import REFERENCE_BATCH

_FULL_BATCH = 64
"""Of darknet's files while they train. They are shipped with batch=1, for its tests, and with the rate for this one."""


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
        learning_rate=net.learning_rate * REFERENCE_BATCH / (_FULL_BATCH if net.batch == 1 else net.batch),
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


def notes_of(settings: YOLOv2Settings) -> list[str]:
    """What the user should know of how the cfg is read."""
    network, notes = parse(settings.cfg, settings.network), []
    if network.net.batch == 1:
        notes.append(
            f"{settings.network} has batch=1, as it is shipped for darknet's tests: unless --lr says another, the rate "
            f"is its learning_rate={network.net.learning_rate:g} for {_FULL_BATCH} images"
        )
    if network.region.max != Region().max:
        notes.append(f"{settings.network} has max={network.region.max}: all objects of an image are learned here")
    return notes


RECIPES: dict[str, Recipe] = {"darknet": darknet, "paper": paper, "demo": demo}
