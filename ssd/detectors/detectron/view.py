"""What Detectron's R-CNNs see of an image."""

from ssd.detectors.detectron.settings import DetectronSettings
from ssd.views import ObjectParts, ShortSideView


def view_of(settings: DetectronSettings) -> ShortSideView:
    """Levels of R, G and B less their mean, divided by nothing: convolutions that were trained on B, G and R are turned
    when they are read."""
    red, green, blue = (mean / 255 for mean in reversed(settings.mean_bgr))
    is_second = settings.rules == "detectron2"
    return ShortSideView(
        settings.short_sides_px,
        settings.long_side_px,
        settings.divisor,
        flips=settings.flips,
        by_shape=settings.by_shape,
        mean=(red, green, blue),
        std=(1 / 255, 1 / 255, 1 / 255),
        parts=ObjectParts(masks=bool(settings.mask_head), keypoints=settings.finds_keypoints),
        antialias=is_second,  # as Pillow's
        resize_rule="detectron2" if is_second else "detectron",
        evaluated_sides_px=(settings.test_short_side_px, settings.test_long_side_px),
    )
