"""What shapes a YOLOv2 and what it sees of an image: plain values, without torch."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ssd.detectors.yolov2.darknet.cfg import beyond_grid, fitted, parse
from ssd.detectors.yolov2.darknet.configurations import NAMES, cfg_named
from ssd.detectors.yolov2.darknet.difference import first_difference
from ssd.detectors.yolov2.darknet.sections import Network
from ssd.errors import InputError

RESIZES = ("stretch", "letterbox")
REGION_LOSSES = ("darknet", "square-root")
AUTO = ("auto",)


@dataclass(frozen=True)
class YOLOv2Settings:
    """One network. `settings_named` makes it of a name or a file."""

    family: ClassVar[str] = "yolov2"
    network: str
    """One of darknet's configurations, or the name of the file that the network came from."""
    cfg: str
    """The text of its cfg file."""
    input_px: tuple[int, ...] = ()
    """The (width, height) that an image becomes; () is the cfg's."""
    train_px: tuple[int, ...] = ()
    """The side of training images, or the least and the largest of those that are drawn; () is as the cfg's random
    says."""
    anchors: tuple[Any, ...] = ()
    """Pairs of width and height in cells of the output; () is the cfg's, and AUTO those that suit the data, which a run
    puts in its place."""
    region_loss: str = "darknet"
    """One of REGION_LOSSES."""
    resize: str = ""
    """One of RESIZES; "" is as the cfg's letter_box says."""

    def __post_init__(self) -> None:
        """Raises InputError, a ValueError, for values that make no sense."""
        network = parse(self.cfg, self.network)
        if self.region_loss not in REGION_LOSSES:
            raise InputError(f"--region-loss {self.region_loss}: is none of {', '.join(REGION_LOSSES)}")
        if self.resize not in ("", *RESIZES):
            raise InputError(f"--resize {self.resize}: is none of {', '.join(RESIZES)}")
        if len(self.input_px) not in (0, 2):
            raise InputError("--input-size: takes a width and a height")
        if any(side % network.downsampling for side in self.input_px):
            raise InputError(
                f"--input-size {' '.join(map(str, self.input_px))}: sides have to be multiples of "
                f"{network.downsampling}, the pixels of a cell of {self.network}"
            )
        if len(self.train_px) > 2 or any(side % network.downsampling or side < 1 for side in self.train_px):
            raise InputError(
                f"--train-size {' '.join(map(str, self.train_px))}: takes one side, or the least and the largest, in "
                f"multiples of {network.downsampling}"
            )
        if self.anchors == AUTO:
            return
        if "auto" in self.anchors or len(self.anchors) % 2 or any(side <= 0 for side in self.anchors):
            raise InputError("--anchors: takes pairs of width and height above 0, or auto")
        if far := beyond_grid(self.anchors, tuple(side // network.downsampling for side in input_size_px(self))):
            raise InputError(f"--anchors: {far}")

    @property
    def name(self) -> str:
        return self.network


def settings_named(name: str) -> YOLOv2Settings:
    """Of one of darknet's configurations, or of a cfg file. Raises InputError for one that cannot be read."""
    if name in NAMES:
        return YOLOv2Settings(name, cfg_named(name))
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"--detector {name}: cannot be read ({reason}); pass a cfg file of darknet") from None
    return YOLOv2Settings(Path(name).name, text)


def with_words(settings: YOLOv2Settings, words: Sequence[str]) -> YOLOv2Settings:
    """words: of --set, `width` and `height` of a cfg's [net], each before its pixels: YOLOv2 looks at images of other
    sizes than those it was trained at. Raises InputError for other keys, which a checkpoint's weights decide or which
    have flags of their own, and for sizes that the network cannot have."""
    sides = dict(zip(("width", "height"), input_size_px(settings), strict=True))
    if len(words) % 2:
        raise InputError(f"--set {' '.join(words)}: takes pairs of KEY and VALUE")
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key not in sides:
            raise InputError(f"--set {key}: of {settings.name} only width and height can be set")
        if not (value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS and int(value) > 0):
            raise InputError(f"--set {key} {value[:20]}: is no number of pixels up to {10**_MOST_DIGITS - 1:,}")
        sides[key] = int(value)
    try:
        return replace(settings, input_px=(sides["width"], sides["height"]))
    except InputError as error:
        said = str(error).removeprefix(f"--input-size {sides['width']} {sides['height']}: ").removeprefix("--anchors: ")
        raise InputError(f"--set width {sides['width']} height {sides['height']}: {said}") from None


_MOST_DIGITS = 5  # of a side's pixels, as --input-size has it


# The key of a cfg file that a setting of the command line overrules.
_OVERRULED = {"input_px": ("width", "height"), "anchors": ("anchors", "num"), "resize": ("letter_box",)}


def require_same(asked: YOLOv2Settings, held: YOLOv2Settings, given: Collection[str]) -> None:
    """asked: of --detector. held: of the checkpoint, whose cfg is the one that counts. given: names of the settings
    that the command line says. Raises InputError where the cfg files differ in what the checkpoint decides."""
    if asked.cfg == held.cfg:
        return
    overruled = [key for name, keys in _OVERRULED.items() if name in given for key in keys]
    found = first_difference(parse(asked.cfg, asked.network), asked.cfg, parse(held.cfg, held.network), overruled)
    if found is not None:
        raise InputError(
            f"--detector {asked.network}:{found.line}: {found.is_and_was} in the checkpoint, which decides it; leave "
            "--detector out, or convert the checkpoint to .weights and put this cfg beside them"
        )


@functools.lru_cache(maxsize=64)
def network_of(settings: YOLOv2Settings, classes: int | None = None) -> Network:
    """The network for so many classes, without the background; None: those of the cfg."""
    network = parse(settings.cfg, settings.network)
    network = network._replace(net=network.net._replace(letter_box=is_letterboxed(settings)))
    region = network.region
    return fitted(
        network,
        classes=region.classes if classes is None else classes,
        anchors=region.anchors if settings.anchors in ((), AUTO) else settings.anchors,
        size_px=input_size_px(settings),
    )


# darknet's, where random=1.
_DRAWN_CELLS = range(10, 20)


def train_sizes_px(settings: YOLOv2Settings) -> tuple[tuple[int, int], ...]:
    """(width, height) of training images; each run of ten steps draws one of them."""
    network = parse(settings.cfg, settings.network)
    if settings.train_px:
        step = network.downsampling
        sides = range(settings.train_px[0], settings.train_px[-1] + step, step)
    elif network.region.random:
        first, last = _DRAWN_CELLS[0] * network.downsampling, _DRAWN_CELLS[-1] * network.downsampling
        sides = range(first, last + network.downsampling, network.downsampling)
    else:
        return (input_size_px(settings),)
    return tuple((side, side) for side in sides)


def is_letterboxed(settings: YOLOv2Settings) -> bool:
    """Whether images keep their shape and are fitted in, instead of stretched."""
    if settings.resize:
        return settings.resize == "letterbox"
    return parse(settings.cfg, settings.network).net.letter_box


def input_size_px(settings: YOLOv2Settings) -> tuple[int, int]:
    """(width, height)."""
    net = parse(settings.cfg, settings.network).net
    return (settings.input_px[0], settings.input_px[1]) if settings.input_px else (net.width, net.height)
