"""Every detector by its family's name: the only place, beside `names`, that knows them all."""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from ssd.config import Thresholds
from ssd.detectors.contract import Detector
from ssd.detectors.tta.detect import DetectSeveral, detect_several
from ssd.detectors.tta.passes import TTA, text_of
from ssd.errors import InputError
from ssd.views import ShortSideView, View, parts_of


def _ssd300() -> Detector:
    from ssd.detectors.ssd300.detector import DETECTOR

    return DETECTOR


def _torchvision() -> Detector:
    from ssd.detectors.torchvision.detector import TORCHVISION

    return TORCHVISION


def _yolov2() -> Detector:
    from ssd.detectors.yolov2.detector import YOLOV2

    return YOLOV2


def _retinanet() -> Detector:
    from ssd.detectors.retinanet.detector import RETINANET

    return RETINANET


def _detectron() -> Detector:
    from ssd.detectors.detectron.detector import DETECTRON

    return DETECTRON


def _torchvision_ssd() -> Detector:
    from ssd.detectors.torchvision.square.detector import TORCHVISION_SSD

    return TORCHVISION_SSD


DETECTORS: dict[str, Callable[[], Detector]] = {
    "retinanet": _retinanet,
    "detectron": _detectron,
    "ssd300": _ssd300,
    "torchvision": _torchvision,
    "torchvision_ssd": _torchvision_ssd,
    "yolov2": _yolov2,
}


def detector_of(settings: Any) -> Detector:
    """settings: those of a detector."""
    return DETECTORS[settings.family]()


def num_classes_of(settings: Any) -> int:
    """K of a model that no data were chosen for, with the background: of COCO's classes, or of those with keypoints."""
    stated = detector_of(settings).num_classes
    if stated is not None:
        return stated(settings)
    return 2 if parts_of(view_of(settings)).keypoints else 81


def view_of(settings: Any) -> View:
    """What the detector sees of images. settings: its own."""
    return detector_of(settings).view(settings)


def tta_of(settings: Any, is_asked: bool | None) -> TTA | None:
    """The test-time augmentation of a detector, or None for one pass. is_asked: what --tta or --no-tta says; None is
    as the detector's own settings have it. Raises InputError for a detector that has none, and for settings of it that
    cannot be."""
    detector = detector_of(settings)
    if is_asked is False or (detector.tta is None and not is_asked):
        return None
    if detector.tta is None:
        raise InputError(f"--tta: {detector.title(settings)} looks at an image in one pass only; leave it out")
    found = detector.tta(settings, bool(is_asked))
    return None if found is None or found.is_one_pass else found


def tta_text(settings: Any, tta: TTA | None) -> str:
    """What results say of it; "" of one pass."""
    if tta is None:
        return ""
    view, skeleton = view_of(settings), detector_of(settings).skeleton(settings)
    return text_of(tta, masks=parts_of(view).masks, keypoints=parts_of(view).keypoints and skeleton is not None)


def detect_several_of(settings: Any, thresholds: Thresholds, tta: TTA | None) -> DetectSeveral:
    """How a detector finds objects in the batches of its view's looks, of which without tta there is one."""
    detector = detector_of(settings)
    if tta is None:
        detect = detector.detect(settings, thresholds)
        return lambda forward, batches: detect(forward, *batches)
    assert detector.tta_steps is not None
    return detect_several(detector.tta_steps(settings, thresholds, tta.suppression), tta)


def view_with(settings: Any, tta: TTA | None) -> View:
    """`view_of`, with the looks of tta."""
    view = view_of(settings)
    return view if tta is None or not isinstance(view, ShortSideView) else view._replace(further_looks=tta.looks)


def to_dict(settings: Any) -> dict[str, Any]:
    """A detector's settings as plain values with its family's name, for files."""
    return {"family": settings.family, **asdict(settings)}


def _plain(value: Any) -> Any:
    """Lists, also within each other, as tuples: JSON knows no other."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def from_dict(content: dict[str, Any]) -> Any:
    """The settings that `to_dict` wrote; a field that is not there has its default. Raises ValueError for a family or a
    field that is not known."""
    values = {name: _plain(value) for name, value in content.items()}
    family = values.pop("family", None)
    if family not in DETECTORS:
        raise ValueError(f"unknown detector {family!r}")
    kind = DETECTORS[family]().settings
    if unknown := values.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"{family} has no setting {min(unknown)!r}")
    return kind(**values)
