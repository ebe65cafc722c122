"""SSD300's settings for a purpose: what --recipe names."""

from dataclasses import replace
from typing import Any, NamedTuple

from ssd.config import Config, Recipe
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.ssd300.settings import SSD300Settings


def demo(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """SSD300-R18 from scratch on the demo data: a detector in minutes on two CPU cores"""
    return demo_of(
        Config(detector=SSD300Settings(backbone="resnet18")),
        batch_size=batch_size or 8,
        learning_rate=0.04,
        warmup=50,
        epochs=8,
        evaluation=(1, 2, 4, 6),  # the first after a minute or two: there are detections to look at
        log_interval=10,
    )


def own(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """SSD300-R18 on data of one's own in 20 minutes, or as many as --minutes says; --backbone resnet50 finds more"""
    batch_size = batch_size or 4  # where minutes are few, it is steps that count
    return Config(
        detector=SSD300Settings(backbone="resnet18"),
        batch_size=batch_size,
        learning_rate=0.08 * min(1, 16 / (batch_size * world_size)),  # 0.04 at most, however many GPUs there are
        warmup=200,
        schedule="cosine",
        ema=0.99,
        clip_norm=10.0,
        bf16=True,
        minutes=20.0,
        epochs=50,  # what evaluation is a share of
        evaluation=(10, 20, 30, 40),
    )


def coco(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """NVIDIA's DeepLearningExamples on COCO 2017 (R50, AP .267-.272), for 1 GPU (batch 64) or 8 (128 each)"""
    batch_size = batch_size or (64 if world_size == 1 else 128)
    if batch_size * world_size <= 512:  # the largest global batch of the scripts with the example's own rate
        return Config(batch_size=batch_size, learning_rate=2.6e-3, warmup=300, fp16=True)
    return Config(batch_size=batch_size, learning_rate=2.7e-3, warmup=1200, fp16=True)


def published(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """coco with DeepLearningExamples' own augmentation, to tell a mistake from a difference to theirs"""
    return replace(coco(batch_size, world_size), detector=SSD300Settings(augmentation="published"))


MLPERF_QUALITY = 0.23
"""The AP that MLPerf's SSD benchmark is trained to."""


class _Submission(NamedTuple):
    """What a run that reached MLPERF_QUALITY was trained with. learning_rate: at a global batch of 32, as Config's."""

    global_batch_size: int
    learning_rate: float
    warmup: int
    weight_decay: float
    multistep: tuple[int, int]
    epochs: int


# NVIDIA's: v0.7 in PyTorch (config_DGXA100, epoch 50), v1.1 in MXNet (config_DGXA100_multi_8x8x24x2, 15 epochs of
# warm-up, epoch 65) and v0.7 in MXNet (config_DGXA100_multi_64x8x4x4, 26 epochs of warm-up, epoch 65 or 70).
_SUBMISSIONS = (
    _Submission(912, 3.2e-3, 650, 1.3e-4, (44, 55), 65),
    _Submission(1536, 4e-3, 15 * 77, 1.7e-4, (48, 60), 70),
    _Submission(2048, 4.57e-3, 26 * 58, 4e-5, (60, 75), 80),
)


def mlperf(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """SSD300-R34 to AP 0.23 by MLPerf's closed rules, scaled from NVIDIA's submission of the nearest global batch"""
    batch_size = batch_size or 114
    global_batch_size = batch_size * world_size
    nearest = min(_SUBMISSIONS, key=lambda submission: abs(submission.global_batch_size - global_batch_size))
    return Config(
        detector=SSD300Settings(backbone="resnet34"),
        batch_size=batch_size,
        learning_rate=nearest.learning_rate,
        # The same share of an epoch.
        warmup=round(nearest.warmup * nearest.global_batch_size / global_batch_size),
        weight_decay=nearest.weight_decay,
        multistep=nearest.multistep,
        epochs=nearest.epochs,
        evaluation=tuple(range(40, nearest.epochs + 1, 5)),
        target=MLPERF_QUALITY,
        fp16=True,
    )


RECIPES: dict[str, Recipe] = {"demo": demo, "own": own, "coco": coco, "published": published, "mlperf": mlperf}
