"""A RetinaNet's settings for a purpose: what --recipe names."""

from dataclasses import replace
from typing import Any

from ssd.config import Config, Recipe
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.recipes.mlperf import retinanet_of
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.schedule import REFERENCE_BATCH

# detectron2's SOLVER: a step's images, its rate, and steps of rising from a thousandth.
_BATCH, _RATE, _WARMUP = 16, 0.01, 1000


def defaults(settings: RetinaNetSettings) -> Config:
    """The schedule of the name in epochs, so that it suits data of any size: what a run starts from without a
    recipe."""
    schedule = settings.schedule
    return Config(
        detector=settings,
        batch_size=2,
        learning_rate=_RATE * REFERENCE_BATCH / _BATCH,
        weight_decay=1e-4,
        warmup=_WARMUP,
        epochs=schedule.epochs,
        multistep=schedule.falls_epochs,
        evaluation=tuple(range(1, schedule.epochs + 1)),
        eval_batch_size=2,
        # Of a class at most 1000 candidates enter suppression, where detectron2 takes all: those behind them could only
        # be among the best 100 if so many fell.
        score_threshold=0.05,
        nms_iou=0.5,
        max_per_class=1000,
        max_per_image=100,
    )


def detectron2(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """detectron2's steps for 1x, 2x or 3x; at another batch than 16, as many as make the same number of images"""
    settings: RetinaNetSettings = detector or RetinaNetSettings()
    batch_size = batch_size or max(2, _BATCH // world_size)
    # As its auto_scale_workers does; the rate follows the batch in `schedule.peak_lr`.
    share = _BATCH / (batch_size * world_size)
    return replace(
        defaults(settings),
        batch_size=batch_size,
        warmup=round(_WARMUP * share),
        warmup_factor=1e-3,
        bias_decay=1e-4,  # its WEIGHT_DECAY_BIAS
        steps=round(settings.schedule.steps * share),
        multistep=tuple(round(fall * share) for fall in settings.schedule.falls),
        evaluation=(),
        checkpoint_every=(5000, "steps"),
    )


def demo(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """from scratch on the demo data, images of 192 pixels: not tuned"""
    settings: RetinaNetSettings = detector or RetinaNetSettings()
    return demo_of(
        defaults(replace(settings, short_sides_px=(192,), long_side_px=256)),
        batch_size=batch_size or 4,
        learning_rate=0.08,
        warmup=100,
        epochs=4,
        evaluation=(2,),
    )


def mlperf(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """MLPerf's RetinaNet on OpenImages, with SGD in the place of Adam: open division, not trained here"""
    return retinanet_of(defaults(detector or RetinaNetSettings()), batch_size, world_size)


RECIPES: dict[str, Recipe] = {"detectron2": detectron2, "demo": demo, "mlperf": mlperf}
