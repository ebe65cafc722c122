"""The settings of torchvision's SSDs for a purpose: what --recipe names."""

from typing import Any

from ssd.config import Config, Recipe, Thresholds
from ssd.detectors.torchvision.square.settings import MOBILENET, SquareSettings
from ssd.schedule import REFERENCE_BATCH

_EVERY_EPOCHS = 10


def defaults(settings: SquareSettings) -> Config:
    """`torchvision` on one rank: what a run starts from without a recipe."""
    return torchvision(detector=settings)


def torchvision(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """torchvision's references/detection: ssd300_vgg16 120 epochs, a tenth after 80 and 110; ssdlite320 660, cosine"""
    settings: SquareSettings = detector or SquareSettings()
    if settings.builder == MOBILENET:  # 24 images on each of 8 GPUs
        thresholds = Thresholds(0.001, 0.55, 300, 300)
        epochs, batch, rate, decay, schedule = 660, 24, 0.15 * REFERENCE_BATCH / 192, 4e-5, "cosine"
    else:  # 4 images on each of 8 GPUs
        thresholds = Thresholds(0.01, 0.45, 400, 200)
        epochs, batch, rate, decay, schedule = 120, 4, 0.002 * REFERENCE_BATCH / 32, 5e-4, "multistep"
    return Config(
        detector=settings,
        batch_size=batch_size or batch,
        learning_rate=rate,
        weight_decay=decay,
        bias_decay=decay,
        norm_decay=decay,
        warmup=1000,
        epochs=epochs,
        schedule=schedule,
        multistep=(80, 110),
        evaluation=tuple(range(_EVERY_EPOCHS, epochs + 1, _EVERY_EPOCHS)),
        **thresholds._asdict(),
    )


RECIPES: dict[str, Recipe] = {"torchvision": torchvision}
