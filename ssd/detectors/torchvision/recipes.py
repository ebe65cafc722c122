"""torchvision's detectors' settings for a purpose: what --recipe names."""

from dataclasses import replace
from typing import Any

from ssd.config import Config, Recipe
from ssd.detectors.torchvision.names import parts_of
from ssd.detectors.torchvision.settings import Settings
from ssd.schedule import REFERENCE_BATCH

# torchvision's references/detection state their rates for 8 GPUs with 2 images each.
_REFERENCE_BATCH_OF_TORCHVISION = 16


def defaults(settings: Settings) -> Config:
    """`torchvision` on one rank: what a run starts from without a recipe."""
    return torchvision(detector=settings)


def torchvision(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """torchvision's references/detection: 26 epochs, the rate scaled to the batch, a tenth after 16 and 22"""
    settings: Settings = detector or Settings()
    family = parts_of(settings.builder).family
    rate = 0.01 if family in ("retinanet", "fcos") else 0.02
    config = Config(
        detector=settings,
        batch_size=batch_size or 2,
        learning_rate=rate * REFERENCE_BATCH / _REFERENCE_BATCH_OF_TORCHVISION,
        weight_decay=1e-4,
        epochs=26,
        multistep=(16, 22),
        warmup=1000,
        evaluation=tuple(range(1, 26)),
        eval_batch_size=2,
        max_per_class=5000,  # none that torchvision has
    )
    if family == "retinanet":
        return replace(config, score_threshold=0.05, nms_iou=0.5, max_per_image=300)
    if family == "fcos":
        return replace(config, score_threshold=0.2, nms_iou=0.6, max_per_image=100)
    return replace(config, score_threshold=0.05, nms_iou=0.5, max_per_image=100)


RECIPES: dict[str, Recipe] = {"torchvision": torchvision}
