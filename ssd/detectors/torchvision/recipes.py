"""torchvision's detectors' settings for a purpose: what --recipe names, and each family's own thresholds."""

from dataclasses import replace
from typing import Any

from ssd.config import Config, Recipe, Thresholds
from ssd.detectors.recipes.demo import demo_of
from ssd.detectors.recipes.mlperf import mask_rcnn_of, not_of_mlperf, retinanet_of
from ssd.detectors.torchvision.names import parts_of, unsettled
from ssd.detectors.torchvision.settings import Settings
from ssd.schedule import REFERENCE_BATCH

# Of each family: torchvision's score_thresh, nms_thresh and detections_per_img. Of a class at most 1000 candidates
# enter suppression, which torchvision says of a feature map's or of an image's instead.
THRESHOLDS = {
    "retinanet": Thresholds(0.05, 0.5, 1000, 300),
    "fcos": Thresholds(0.2, 0.6, 1000, 100),
    "fasterrcnn": Thresholds(0.05, 0.5, 1000, 100),
    "maskrcnn": Thresholds(0.05, 0.5, 1000, 100),
    "keypointrcnn": Thresholds(0.05, 0.5, 1000, 100),
}
# torchvision's references/detection: the rate at its global batch, 2 images on each of 8 GPUs.
_RATE = {"retinanet": 0.01, "fcos": 0.01, "fasterrcnn": 0.02, "maskrcnn": 0.02, "keypointrcnn": 0.02}
_RATE_IS_FOR = 16
# Of all parameters there, biases and norms among them: --norm-weight-decay is not given.
_DECAY = 1e-4


def defaults(settings: Settings) -> Config:
    """`torchvision` on one rank: what a run starts from without a recipe."""
    return torchvision(detector=settings)


def torchvision(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """torchvision's references/detection: 26 epochs, a tenth after 16 and 22; keypoints: 46, 36 and 43"""
    settings: Settings = detector or Settings()
    family = parts_of(settings.builder).family
    epochs, drops = (46, (36, 43)) if family == "keypointrcnn" else (26, (16, 22))
    return Config(
        detector=settings,
        batch_size=batch_size or 2,
        learning_rate=_RATE[family] * REFERENCE_BATCH / _RATE_IS_FOR,
        weight_decay=_DECAY,
        bias_decay=_DECAY,
        norm_decay=_DECAY,
        warmup=1000,
        epochs=epochs,
        multistep=drops,
        evaluation=tuple(range(1, epochs + 1)),
        eval_batch_size=2,
        **THRESHOLDS[family]._asdict(),
    )


def demo(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """from scratch on the demo data, images of 192 pixels, four epochs"""
    settings: Settings = detector or Settings()
    family = parts_of(settings.builder).family
    is_dense = family in ("retinanet", "fcos")
    # The heads of masks and keypoints are most of a step's work, and an image has four objects.
    boxes_an_image = 64 if family in ("maskrcnn", "keypointrcnn") else settings.boxes_an_image
    return demo_of(
        defaults(replace(settings, short_sides_px=(192,), long_side_px=256, boxes_an_image=boxes_an_image)),
        batch_size=batch_size or 4,
        learning_rate=0.08 if is_dense else 0.16,
        bias_decay=0.0,
        norm_decay=0.0,
        warmup=100,
        epochs=4,
        evaluation=(2,),
    )


def mlperf(batch_size: int | None = None, world_size: int = 1, detector: Any = None) -> Config:
    """MLPerf's Mask R-CNN on COCO, by its closed rules, or RetinaNet on OpenImages with SGD: not trained here"""
    settings: Settings = detector or unsettled("maskrcnn_resnet50_fpn")
    own = torchvision(detector=settings)
    if benchmark(settings) == "maskrcnn":
        return mask_rcnn_of(own, batch_size, world_size)
    if benchmark(settings) == "retinanet":
        return retinanet_of(own, batch_size, world_size)
    raise not_of_mlperf(settings)


def benchmark(settings: Settings) -> str:
    """MLPerf's of that family, or ""."""
    return {"maskrcnn": "maskrcnn", "retinanet": "retinanet"}.get(parts_of(settings.builder).family, "")


_PROPOSALS_AN_IMAGE = 2000  # that leave suppression in training


def candidates(settings: Settings, images: int) -> int:
    """How many proposals of so many images training chooses from."""
    return _PROPOSALS_AN_IMAGE * images


RECIPES: dict[str, Recipe] = {"torchvision": torchvision, "demo": demo, "mlperf": mlperf}
