"""What the recipes "mlperf" of several families share: schedules of MLPerf's Mask R-CNN and RetinaNet benchmarks.

Nothing has been trained with them here.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from ssd.config import Config
from ssd.errors import InputError
from ssd.schedule import REFERENCE_BATCH


class _Convergence(NamedTuple):
    """How the reference was trained at a global batch. decay_steps: of the first fall; the second is after 4/3 of it.
    warmup_factor: the share of the rate that the warm-up starts from."""

    global_batch_size: int
    rate: float
    warmup_steps: int
    warmup_factor: float
    decay_steps: int


# The reference convergence points of Mask R-CNN, rulesets 1.0.0 to 3.1.0, which reached the quality in 12 to 20 epochs.
# The rules: decay after 60000 and 80000 steps x (1 + K / 10) x 16 / batch, of any whole K of at least 0. Here K is 2,
# and 5 at 256.
_CONVERGENCE = (
    _Convergence(8, 0.01, 500, 2e-5, 144_000),
    _Convergence(48, 0.06, 800, 9.6e-5, 24_000),
    _Convergence(64, 0.08, 800, 1e-4, 18_000),
    _Convergence(96, 0.12, 625, 1.92e-4, 12_000),
    _Convergence(128, 0.16, 625, 2.56e-4, 9_000),
    _Convergence(256, 0.24, 1800, 1.33e-4, 5_625),
)
_RATE_UNIT = 0.02
_MASK_RCNN_IMAGES = 117_266  # of COCO's train2017 those that have objects
_MASK_RCNN_EPOCHS = 20
_RETINANET_IMAGES = 1_170_301  # of OpenImages-MLPerf's training split


def mask_rcnn_of(own: Config, batch_size: int | None, world_size: int) -> Config:
    """own with the schedule of the nearest reference batch, in steps of COCO's images, evaluated after each epoch.
    batch_size: of a rank; None is 8."""
    batch_size = batch_size or 8
    global_batch_size = batch_size * world_size
    nearest = min(_CONVERGENCE, key=lambda point: abs(point.global_batch_size - global_batch_size))
    scale = nearest.global_batch_size / global_batch_size
    steps_per_epoch = -(-_MASK_RCNN_IMAGES // global_batch_size)
    return replace(
        own,
        batch_size=batch_size,
        accumulate=1,
        learning_rate=_allowed(nearest.rate / scale, global_batch_size) * REFERENCE_BATCH / global_batch_size,
        weight_decay=1e-4,
        bias_decay=0.0,
        norm_decay=0.0,
        bias_rate=2.0,
        warmup=round(nearest.warmup_steps * scale),  # the same share of an epoch
        warmup_factor=nearest.warmup_factor,
        multistep=(round(nearest.decay_steps * scale), round(nearest.decay_steps * scale * 4 / 3)),
        multistep_factors=(),
        steps=_MASK_RCNN_EPOCHS * steps_per_epoch,
        evaluation=tuple(epoch * steps_per_epoch for epoch in range(1, _MASK_RCNN_EPOCHS + 1)),
        target=0.377,
        target_masks=0.339,
    )


def _allowed(rate: float, global_batch_size: int) -> float:
    """The nearest of the rates that the closed division allows: k x 0.02, and 0.02 / k below 16 images."""
    if global_batch_size < 16 and rate < _RATE_UNIT:
        return _RATE_UNIT / round(_RATE_UNIT / rate)
    return _RATE_UNIT * max(1, round(rate / _RATE_UNIT))


def retinanet_of(own: Config, batch_size: int | None, world_size: int) -> Config:
    """own with the reference's weight decay, its evaluations, and its warm-up of one epoch of OpenImages-MLPerf. The
    rate and its course are SGD's, not the reference's of Adam. batch_size: of a rank; None is 8."""
    batch_size = batch_size or 8
    return replace(
        own,
        batch_size=batch_size,
        weight_decay=0.0,
        bias_decay=0.0,
        norm_decay=0.0,
        warmup=-(-_RETINANET_IMAGES // (batch_size * world_size)),
        warmup_factor=1e-3,
        epochs=8,
        multistep=(5, 7),
        evaluation=tuple(range(1, 9)),
        target=0.34,
    )


def not_of_mlperf(detector: Any) -> InputError:
    return InputError(f"--recipe mlperf: MLPerf has no benchmark of {detector.name}; pass another recipe")
