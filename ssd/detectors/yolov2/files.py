"""Weights of darknet to checkpoints of this program, and back."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssd.coco_categories import coco_categories
from ssd.detectors.yolov2.darknet.cfg import write
from ssd.detectors.yolov2.darknet.configurations import NAMES
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.sections import Network
from ssd.detectors.yolov2.darknet.weights import copy_into, read_weights, write_weights
from ssd.detectors.yolov2.settings import YOLOv2Settings, network_of, settings_named
from ssd.detectors.yolov2.streams import without_filters
from ssd.errors import InputError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of VOC's development kit."""


def load_backbone(model: Darknet, settings: YOLOv2Settings, source: str) -> str | None:
    """source: "none" (keep the fresh weights), or a file of darknet that ends behind any layer of the network, such as
    darknet19_448.conv.23. Returns which layers it filled. Raises InputError for any other file."""
    if source == "none":
        return None
    if source == "imagenet":
        raise InputError(
            f"--backbone-weights imagenet: torchvision has none for {settings.network}; pass a file of darknet such as "
            "darknet19_448.conv.23, or none"
        )
    file = Path(source)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"--backbone-weights {file}: cannot be read ({error.strerror}); pass another file") from None
    weights = read_weights(content, model.network, file, is_backbone=True)
    copy_into(weights, model.state_dict())
    filled, of_all = len(weights.layers), len(model.convolutions())
    return f"{file} fills {filled} of {of_all} convolutions of {settings.network}, up to layer {weights.layers[-1]}"


def foreign(content: Any, file: Path) -> dict[str, Any] | None:
    """A file of darknet's weights, whose bytes content is, as the content {"detector", "categories", "model"} of a
    checkpoint of ours; None for anything else.

    Its network is the cfg file beside it that has the same name, else the configuration whose name it has or begins
    with, as in yolov2-voc_final.weights. Its classes are those of a .names file beside it, else VOC's 20 or COCO's 80
    where such a name, which the cfg file may have too, says so, else they have numbers. Raises InputError where there
    is no network, or another one.
    """
    if not isinstance(content, bytes):
        return None
    settings = _settings_beside(file)
    network = network_of(settings)
    model = Darknet(network)
    weights = read_weights(content, network, file)
    state = model.state_dict()
    copy_into(weights, state)
    state["seen"].fill_(weights.seen)
    state["version"].copy_(state["version"].new_tensor(weights.version))
    detector = {"family": settings.family, **asdict(settings)}
    return {"detector": detector, "categories": _categories(settings, network.region.classes), "model": state}


def _settings_beside(file: Path) -> YOLOv2Settings:
    cfg = file.with_suffix(".cfg")
    if cfg.is_file():
        return settings_named(str(cfg))
    for name in NAMES:
        if file.stem == name or file.stem.startswith(f"{name}_"):
            return settings_named(name)
    raise InputError(
        f"{file}: weights do not say of which network; put its cfg file beside it as {cfg.name}, or give it one of the "
        f"names {', '.join(NAMES)}"
    )


def _categories(settings: YOLOv2Settings, classes: int) -> list[tuple[int, str]]:
    network = settings.network.removesuffix(".cfg")
    named = next((name for name in NAMES if network == name or network.startswith(f"{name}_")), "")
    if "voc" in named and classes == len(VOC_CLASSES):
        return list(enumerate(VOC_CLASSES, 1))
    if named and "voc" not in named and classes == len(coco_categories()):
        return coco_categories()
    return [(number, f"class {number}") for number in range(1, classes + 1)]


def weights_of(content: dict[str, Any]) -> bytes:
    """A checkpoint of ours as a file of darknet's weights; of a thinned one, those of its smaller cfg."""
    state = content["model"]
    major, minor, revision = state["version"].tolist()
    return write_weights(_network_of(content), state, (major, minor, revision), int(state["seen"]))


def cfg_of(content: dict[str, Any]) -> bytes:
    """The cfg file of a checkpoint of ours, with its own classes, anchors and input, and the filters that thinning has
    left it."""
    return write(_network_of(content)).encode()


def _network_of(content: dict[str, Any]) -> Network:
    network = network_of(_settings_of(content), len(content["categories"]))
    return without_filters(network, content.get("channels", {}))


def _settings_of(content: dict[str, Any]) -> YOLOv2Settings:
    values: dict[str, Any] = dict(content["detector"])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values.pop("family")
    return YOLOv2Settings(**values)


def names_of(content: dict[str, Any]) -> bytes:
    """The classes of a checkpoint of ours, a line each, as darknet takes them."""
    return "".join(f"{name}\n" for _, name in content["categories"]).encode()


FOREIGN_FILES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    ".weights": weights_of,
    ".cfg": cfg_of,
    ".names": names_of,
}
"""What `main.py convert` writes for darknet, by the end of the file's name."""
