"""darknet's cfg language, read strictly: what is not obeyed is refused, by the number of its line.

As in darknet, spaces and tabs count for nothing, a line that begins with # or ; is a comment, and of a key that stands
twice in a section the first one counts. Unlike there, a value is read to its end, so that nothing may stand behind a
number, and a key that is not known is an error.
"""

import difflib
import functools
import math
import re
import types
import typing
from typing import Any, NoReturn

from ssd.detectors.yolov2.darknet.sections import (
    ALIASES,
    KINDS,
    NAMES,
    Convolutional,
    Layer,
    MaxPool,
    Net,
    Network,
    Region,
    Reorg,
    Reorg3d,
    Route,
)
from ssd.errors import InputError

ACTIVATIONS = ("leaky", "linear", "logistic", "relu")
POLICIES = ("constant", "steps")
_INTEGER = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST_SIDE_PX = 16384
_BELOW_1 = 1 - 1e-6
# What a key may say: in [low, high], or one of a set.
_ALLOWED: dict[str, dict[str, tuple[float, float] | set[Any]]] = {
    "net": {
        "width": (1, _LARGEST_SIDE_PX), "height": (1, _LARGEST_SIDE_PX), "channels": {3}, "momentum": (0, _BELOW_1),
        "decay": (0, 1), "saturation": (0.01, 100), "exposure": (0.01, 100), "hue": (0, 1), "learning_rate": (0, 100),
        "burn_in": (0, 1e9), "power": (0, 100), "policy": set(POLICIES), "steps": (-1, 1e9), "scales": (0, 1e6),
        "max_batches": (0, 1e9),
    },
    "convolutional": {"activation": set(ACTIVATIONS)},
    "maxpool": {"padding": (0, 1e9)},
    "reorg": {"stride": {2}},
    "reorg3d": {"stride": {2}},
    "region": {
        "coords": {4}, "softmax": {True}, "thresh": (0, 1), "jitter": (0, _BELOW_1), "object_scale": (0, 1e9),
        "noobject_scale": (0, 1e9), "class_scale": (0, 1e9), "coord_scale": (0, 1e9), "max": (0, 1e9),
    },
}  # fmt: skip


class _Place(typing.NamedTuple):
    """name: of the file in messages."""

    name: str
    line: int

    def refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.name}:{self.line}: {what}")


@functools.lru_cache(maxsize=64)
def parse(text: str, name: str) -> Network:
    """The network of a cfg file's text. name: of the file in messages.

    Raises InputError, with the line's number, for anything that darknet or this program would not do as it stands.
    """
    sections = _sections(text, name)
    net, layers = sections[0], sections[1:]
    if not isinstance(net, Net):
        _Place(name, net.line).refuse("the first section has to be [net]")
    if any(isinstance(layer, Net) for layer in layers):
        again = next(layer for layer in layers if isinstance(layer, Net))
        _Place(name, again.line).refuse("a second [net]; keep one")
    network = checked(name, net, tuple(layers))
    if far := beyond_grid(network.region.anchors, network.shapes[-1][:0:-1]):
        _Place(name, network.region.line).refuse(far)
    return network


def checked(name: str, net: Net, layers: tuple[Layer, ...]) -> Network:
    """The network of these sections. Raises as `parse`."""
    _check_net(net, _Place(name, net.line))
    shapes = _shapes(name, net, layers)
    last = layers[-1] if layers else None
    if not isinstance(last, Region) or any(isinstance(layer, Region) for layer in layers[:-1]):
        _Place(name, last.line if last else net.line).refuse("the last section has to be [region], the only one")
    _check_region(last, layers[-2] if len(layers) > 1 else None, name)
    _check_all_are_used(layers, name)
    return Network(name, net, layers, shapes)


_USUAL_CELLS = 13


def beyond_grid(anchors: tuple[float, ...], grid: tuple[int, ...]) -> str:
    """What is wrong with anchors that are in pixels, where darknet's YOLOv2 has cells of the output; "" of others.

    grid: (columns, rows). An anchor may be twice as large, for tiny-voc's largest is 16.62 wide on 13 cells; one that
    suits 13 cells may also stand on fewer.
    """
    for number, side in enumerate(anchors):
        if side > 2 * max(grid[number % 2], _USUAL_CELLS):
            way = ("wide", "high")[number % 2]
            cells = f"{grid[0]} x {grid[1]} cells"
            return f"an anchor is {side:g} cells {way} and the output {cells}; give anchors in cells, not in pixels"
    return ""


def write(network: Network) -> str:
    """A cfg file's text that `parse` reads as this network, and darknet too; what is as by default is left out."""
    parts = []
    for section in (network.net, *network.layers):
        lines = [f"[{NAMES[type(section)]}]"]
        for key, default in type(section)._field_defaults.items():
            value = getattr(section, key)
            if key != "line" and value != default:
                lines.append(f"{key}={_written(value)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def _sections(text: str, name: str) -> list[Any]:
    found: list[tuple[str, int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = re.sub(r"[ \t\r]", "", line)  # darknet leaves \r, and does not know its own keys then
        place = _Place(name, number)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            found.append((_kind(line, place), number, {}))
            continue
        key, equals, value = line.partition("=")
        if not equals:
            place.refuse(f"{line[:40]!r} is neither a [section] nor key=value")
        if not found:
            place.refuse(f"{key} stands before the first [section]")
        kind, _, values = found[-1]
        read = _read(kind, key, value, place)
        if key not in values:
            _check_value(kind, key, read, place)
            values[key] = read
    if not found:
        raise InputError(f"{name}: has no [section]; pass a cfg file of darknet")
    return [KINDS[kind](line=line, **values) for kind, line, values in found]


def _kind(line: str, place: _Place) -> str:
    if not line.endswith("]"):
        place.refuse(f"{line[:40]!r} is no [section]")
    kind = line[1:-1]
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        place.refuse(f"[{kind}] is not known here; YOLOv2 has {', '.join(f'[{each}]' for each in KINDS)}")
    return kind


@functools.cache
def _types_of(kind: str) -> dict[str, Any]:
    hints = typing.get_type_hints(KINDS[kind])
    return {key: hint for key, hint in hints.items() if key != "line"}


def _read(kind: str, key: str, value: str, place: _Place) -> Any:
    known = _types_of(kind)
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else "take the line out if the network does without"
        place.refuse(f"[{kind}] has no key {key!r} that is obeyed here; {remedy}")
    hint = known[key]
    if isinstance(hint, types.GenericAlias):
        item = typing.get_args(hint)[0]
        return tuple(_value(item, key, each, place) for each in value.split(","))
    return _value(hint, key, value, place)


def _check_value(kind: str, key: str, value: Any, place: _Place) -> None:
    allowed = _ALLOWED.get(kind, {}).get(key)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(allowed, set) and each not in allowed:
            obeyed = sorted(map(_written, allowed))
            place.refuse(
                f"{key}={_written(each)} is not obeyed here; {' and '.join(obeyed)} {'are' if obeyed[1:] else 'is'}"
            )
        if isinstance(allowed, tuple) and not allowed[0] <= each <= allowed[1]:
            low, high = allowed
            above = "less than 1" if high == _BELOW_1 else f"{high:g}"
            limits = f"{low:g} or more" if high >= 1e6 else f"from {low:g} to {above}"
            place.refuse(f"{key}={_written(each)} is not obeyed here; it has to be {limits}")


def _value(kind: type, key: str, text: str, place: _Place) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text not in ("0", "1"):
            place.refuse(f"{key}={text} is neither 0 nor 1")
        return text == "1"
    if not (_INTEGER if kind is int else _NUMBER).fullmatch(text):
        what = "whole number" if kind is int else "number"
        place.refuse(f"{key}={text[:40]} is no {what}; nothing may stand behind one, a comment neither")
    number = kind(text)
    if not math.isfinite(number):
        place.refuse(f"{key}={text[:40]} is not finite")
    return number


def _check_net(net: Net, place: _Place) -> None:
    if net.channels != 3:
        place.refuse(f"channels={net.channels}: images have 3 here")
    for key in ("batch", "subdivisions", "width", "height"):
        if getattr(net, key) < 1:
            place.refuse(f"[net] needs {key}, of 1 or more")
    if net.policy not in POLICIES:
        place.refuse(f"policy={net.policy} is not obeyed here; {' and '.join(POLICIES)} are")
    if len(net.steps) != len(net.scales):
        place.refuse(f"{len(net.steps)} steps have {len(net.scales)} scales; give each step its own")
    if net.batch % net.subdivisions:
        place.refuse(f"batch={net.batch} does not part into subdivisions={net.subdivisions}")


def _shapes(name: str, net: Net, layers: tuple[Layer, ...]) -> tuple[tuple[int, int, int], ...]:
    shapes: list[tuple[int, int, int]] = []
    shape = (net.channels, net.height, net.width)
    for index, layer in enumerate(layers):
        shape = _shape_after(layer, shape, shapes, index, _Place(name, layer.line))
        if min(shape) < 1:
            _Place(name, layer.line).refuse("nothing is left of the image here; pass a larger input")
        shapes.append(shape)
    return tuple(shapes)


def _shape_after(
    layer: Layer, shape: tuple[int, int, int], before: list[tuple[int, int, int]], index: int, place: _Place
) -> tuple[int, int, int]:
    channels, height, width = shape
    if isinstance(layer, Convolutional):
        _check_convolutional(layer, channels, place)
        around = 2 * layer.padding_px - layer.size
        return layer.filters, (height + around) // layer.stride + 1, (width + around) // layer.stride + 1
    if isinstance(layer, MaxPool):
        if layer.stride < 1 or layer.size_px < 1 or layer.padding_px >= layer.size_px:
            place.refuse("[maxpool] needs a stride and a size of 1 or more, and padding less than the size")
        around = layer.padding_px - layer.size_px
        return channels, (height + around) // layer.stride + 1, (width + around) // layer.stride + 1
    if isinstance(layer, Route):
        sources = sources_of(layer, index)
        if not sources or not all(0 <= source < index for source in sources):
            place.refuse(f"layers={_written(layer.layers)}: a [route] takes layers before itself, which is {index}")
        joined = [before[source] for source in sources]
        if len({each[1:] for each in joined}) > 1:
            sizes = ", ".join(f"{each[2]} x {each[1]}" for each in joined)
            place.refuse(f"layers={_written(layer.layers)} have different sizes ({sizes})")
        return sum(each[0] for each in joined), *joined[0][1:]
    if isinstance(layer, Reorg | Reorg3d):
        divisor = 4 if isinstance(layer, Reorg) else 1
        if layer.stride != 2 or channels % divisor or height % 2 or width % 2:
            place.refuse(
                f"stride={layer.stride} on {channels} x {height} x {width}: only stride=2 on even sides is obeyed, and "
                f"channels in multiples of {divisor}"
            )
        return 4 * channels, height // 2, width // 2
    return shape


def sources_of(route: Route, index: int) -> list[int]:
    """The layers, from 0, that the route at an index joins."""
    return [number if number >= 0 else index + number for number in route.layers]


def _check_convolutional(layer: Convolutional, channels: int, place: _Place) -> None:
    if min(layer.filters, layer.size, layer.stride, layer.groups) < 1 or layer.padding < 0 or layer.numload < 0:
        place.refuse("[convolutional] needs filters, size, stride and groups of 1 or more, and no negative padding")
    if channels % layer.groups or layer.filters % layer.groups:
        place.refuse(f"groups={layer.groups} do not part {channels} channels and {layer.filters} filters")
    if layer.activation not in ACTIVATIONS:
        place.refuse(f"activation={layer.activation} is not obeyed here; {', '.join(ACTIVATIONS)} are")
    if layer.numload > layer.filters:
        place.refuse(f"numload={layer.numload} is more than filters={layer.filters}")


def _check_region(region: Region, head: Layer | None, name: str) -> None:
    place = _Place(name, region.line)
    if not isinstance(head, Convolutional):
        place.refuse("before [region] has to be the [convolutional] that predicts")
    if region.coords != 4 or not region.softmax:
        place.refuse("only coords=4 and softmax=1 are obeyed here")
    if region.num < 1 or region.classes < 1:
        place.refuse("[region] needs num and classes of 1 or more")
    if len(region.anchors) != 2 * region.num or min(region.anchors) <= 0:
        place.refuse(f"num={region.num} needs {2 * region.num} anchors above 0, and there are {len(region.anchors)}")
    needed = region.num * (5 + region.classes)
    if head.filters != needed:
        _Place(name, head.line).refuse(
            f"filters={head.filters} before [region]: {region.num} anchors and {region.classes} classes need {needed}"
        )


def _check_all_are_used(layers: tuple[Layer, ...], name: str) -> None:
    """A layer that nothing reads would get no gradient, for which other ranks wait."""
    read = {len(layers) - 1}
    for index, layer in enumerate(layers):
        read |= set(sources_of(layer, index)) if isinstance(layer, Route) else {index - 1}
    for index, layer in enumerate(layers):
        if index not in read:
            _Place(name, layer.line).refuse(f"nothing reads layer {index}, this [{NAMES[type(layer)]}]; take it out")


def fitted(network: Network, *, classes: int, anchors: tuple[float, ...], size_px: tuple[int, int]) -> Network:
    """The network for so many classes, with these anchors (pairs, as many as it has) and this input (width, height):
    the convolution before [region] gets the filters that the classes need. Raises as `parse`."""
    region = network.region._replace(classes=classes, anchors=anchors, num=len(anchors) // 2)
    head = network.layers[-2]
    assert isinstance(head, Convolutional)
    layers = (*network.layers[:-2], head._replace(filters=region.num * (5 + classes)), region)
    return checked(network.name, network.net._replace(width=size_px[0], height=size_px[1]), layers)
