"""torchvision's detectors for a purpose: what --recipe names, and each family's own thresholds."""

from collections.abc import Callable
from dataclasses import replace

from ssd.config import Config, Recipe, Thresholds
from ssd.detectors.torchvision.names import parts_of

# Of each family: torchvision's score_thresh, nms_thresh and detections_per_img. Of a class at most 1000 candidates
# enter suppression, which torchvision says of a feature map's or of an image's instead.
THRESHOLDS = {
    "retinanet": Thresholds(0.05, 0.5, 1000, 300),
    "fcos": Thresholds(0.2, 0.6, 1000, 100),
    "fasterrcnn": Thresholds(0.05, 0.5, 1000, 100),
    "maskrcnn": Thresholds(0.05, 0.5, 1000, 100),
    "keypointrcnn": Thresholds(0.05, 0.5, 1000, 100),
}
# torchvision's references/detection: the rate at its global batch of 16 images. The rate here is for one of 32.
_RATE_AT_16 = {"retinanet": 0.01, "fcos": 0.01, "fasterrcnn": 0.02, "maskrcnn": 0.02, "keypointrcnn": 0.02}
_RATE_IS_FOR = 32


def defaults(name: str) -> Config:
    """What a run with this detector begins with, before recipe and flags: torchvision's thresholds, and batches that a
    GPU of 16 GB holds."""
    thresholds = THRESHOLDS[parts_of(name).family]
    return replace(Config(batch_size=2, eval_batch_size=2), **thresholds._asdict())


def torchvision(name: str) -> Recipe:
    """The recipe of torchvision's own training script for the detector of this name."""
    family = parts_of(name).family
    epochs, drops = (46, (36, 43)) if family == "keypointrcnn" else (26, (16, 22))

    def recipe(batch_size: int | None = None, world_size: int = 1) -> Config:
        """torchvision's references/detection: 26 epochs, the rate falls after 16 and 22, 2 images on each of 8 GPUs"""
        return replace(
            defaults(name),
            batch_size=batch_size or 2,
            learning_rate=_RATE_AT_16[family] * _RATE_IS_FOR / 16,
            momentum=0.9,
            weight_decay=1e-4,
            warmup=1000,
            epochs=epochs,
            multistep=drops,
            evaluation=tuple(range(1, epochs + 1)),
        )

    return recipe


def demo(name: str) -> Recipe:
    """The recipe for a body without weights on the demo data; views of 256 pixels (`--min-size 256`) are meant."""
    is_dense = parts_of(name).family in ("retinanet", "fcos")

    def recipe(batch_size: int | None = None, world_size: int = 1) -> Config:
        """from scratch on the demo data, on two CPU cores: not tuned yet"""
        return replace(
            defaults(name),
            data="demo",
            backbone_weights="none",
            bf16=True,
            batch_size=batch_size or 4,
            learning_rate=0.08 if is_dense else 0.16,
            weight_decay=1e-4,
            clip_norm=10.0,
            warmup=100,
            epochs=8,
            schedule="cosine",
            evaluation=(2, 4, 6),
            num_workers=2,
            seed=1,
        )

    return recipe


RECIPES: dict[str, Callable[[str], Recipe]] = {"torchvision": torchvision, "demo": demo}
"""Name of the recipe -> (name of the detector) -> the recipe."""
