"""The configurations that darknet ships for YOLOv2, by name, in the cfg language.

Facts from pjreddie/darknet at f6afaabc, yolo-voc.2.0 from its history (until e84933bf). batch and subdivisions are
those that its files have for training as a comment.
"""

import functools
from collections.abc import Callable

from ssd.detectors.yolov2.darknet.cfg import checked, write
from ssd.detectors.yolov2.darknet.sections import Convolutional, Layer, MaxPool, Net, Region, Reorg, Route

_VOC = (1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071)
_VOC_2016 = (1.08, 1.19, 3.42, 4.41, 6.63, 11.38, 9.42, 5.11, 16.62, 10.52)
_COCO = (0.57273, 0.677385, 1.87446, 2.06253, 3.33843, 5.47434, 7.88282, 3.52778, 9.77052, 9.16828)

_NET = Net(
    batch=64,
    subdivisions=8,
    width=416,
    height=416,
    channels=3,
    decay=0.0005,
    saturation=1.5,
    exposure=1.5,
    hue=0.1,
    policy="steps",
)
_REGION = Region(
    num=5,
    softmax=True,
    bias_match=True,
    rescore=True,
    thresh=0.6,
    object_scale=5.0,
    jitter=0.3,
    random=True,
    absolute=True,
)


def _conv(filters: int, size: int) -> Convolutional:
    return Convolutional(
        batch_normalize=True, filters=filters, size=size, stride=1, pad=True, activation="leaky"
    )  # fmt: skip


def _convs(words: str) -> list[Layer]:
    """Such as "32x3 / 64x3": a convolution for each "filters x size", a pooling for each slash."""
    pool = MaxPool(size=2, stride=2)
    return [pool if word == "/" else _conv(*map(int, word.split("x"))) for word in words.split()]


def _head(region: Region) -> list[Layer]:
    filters = region.num * (5 + region.classes)
    return [Convolutional(filters=filters, size=1, stride=1, pad=True, activation="linear"), region]


DARKNET19 = (
    "32x3 / 64x3 / 128x3 64x1 128x3 / 256x3 128x1 256x3 / 512x3 256x1 512x3 256x1 512x3 / "
    "1024x3 512x1 1024x3 512x1 1024x3"
)
"""The convolutions of Darknet-19 but for its classifier: darknet19_448.conv.23 has their weights."""
_TINY = "16x3 / 32x3 / 64x3 / 128x3 / 256x3 / 512x3"


def _yolov2(net: Net, region: Region) -> tuple[Net, list[Layer]]:
    passed: list[Layer] = [Route(layers=(-9,)), _conv(64, 1), Reorg(stride=2), Route(layers=(-1, -4))]
    return net, [*_convs(DARKNET19), *_convs("1024x3 1024x3"), *passed, _conv(1024, 3), *_head(region)]


def _yolo_voc_2() -> tuple[Net, list[Layer]]:
    net = _NET._replace(learning_rate=0.0001, max_batches=45000, steps=(100, 25000, 35000), scales=(10.0, 0.1, 0.1))
    region = _REGION._replace(anchors=_VOC_2016, jitter=0.2, random=False)
    passed: list[Layer] = [Route(layers=(-9,)), Reorg(stride=2), Route(layers=(-1, -3))]
    return net, [*_convs(DARKNET19), *_convs("1024x3 1024x3"), *passed, _conv(1024, 3), *_head(region)]


def _tiny(net: Net, last: str, region: Region) -> tuple[Net, list[Layer]]:
    layers = [*_convs(_TINY), MaxPool(size=2, stride=1), *_convs(last), *_head(region)]
    return net._replace(subdivisions=2), layers


_OF_VOC = _NET._replace(burn_in=1000, max_batches=80200, steps=(40000, 60000), scales=(0.1, 0.1))
_OF_COCO = _NET._replace(burn_in=1000, max_batches=500200, steps=(400000, 450000), scales=(0.1, 0.1))
_OF_TINY_VOC = _NET._replace(max_batches=40200, steps=(-1, 100, 20000, 30000), scales=(0.1, 10.0, 0.1, 0.1))

_MADE: dict[str, Callable[[], tuple[Net, list[Layer]]]] = {
    "yolov2-voc": lambda: _yolov2(_OF_VOC, _REGION._replace(anchors=_VOC)),
    "yolov2": lambda: _yolov2(
        _OF_COCO._replace(width=608, height=608), _REGION._replace(anchors=_COCO, classes=80)
    ),
    "yolov2-tiny-voc": lambda: _tiny(_OF_TINY_VOC, "1024x3 1024x3", _REGION._replace(anchors=_VOC_2016, jitter=0.2)),
    "yolov2-tiny": lambda: _tiny(
        _OF_COCO, "1024x3 512x3", _REGION._replace(anchors=_COCO, classes=80, jitter=0.2, rescore=False)
    ),
    "yolo-voc.2.0": _yolo_voc_2,
}  # fmt: skip
NAMES = tuple(_MADE)


@functools.cache
def cfg_named(name: str) -> str:
    """The text of the configuration of a name of NAMES."""
    net, layers = _MADE[name]()
    return write(checked(name, net, tuple(layers)))
