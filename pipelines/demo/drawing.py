"""How the demo data set's pictures are drawn: colours, places, and shapes with relief and shadow.

Shapes are described in unit coordinates: centre (0, 0), radius about 1, y down. Only the renderer knows pixels.
"""

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[Any]  # float32 pictures, float64 coordinates
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

SUPERSAMPLING = 3  # shapes are drawn this much larger and averaged down, which smooths their edges


# Colours


def as_floats(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float32) / 255


def to_bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue


def hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, nearer to white above."""
    red, green, blue = (c * factor if factor <= 1 else 1 - (1 - c) / factor for c in colour)
    return red, green, blue


# Geometry


@dataclass(frozen=True)
class Placement:
    """Where unit coordinates go in the image: turned by `turn` radians, times `radius_px`, moved to `centre_px`."""

    centre_px: Floats
    radius_px: float
    turn: float

    def __call__(self, points: Floats) -> Floats:
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned: Floats = points @ np.array([[cos, sin], [-sin, cos]])
        return turned * self.radius_px + self.centre_px


def clip_to_image(polygon_px: Floats, width: int, height: int) -> Floats:
    """Sutherland and Hodgman's clipping against the four borders; float64 [points, 2], possibly no points."""
    for axis, sign, limit in ((0, 1, 0), (1, 1, 0), (0, -1, -width), (1, -1, -height)):
        inside = sign * polygon_px[:, axis] - limit  # >= 0 on the side to keep
        kept: list[Floats] = []
        for i in range(len(polygon_px)):
            before, here = inside[i - 1], inside[i]
            if (before >= 0) != (here >= 0):
                kept.append(polygon_px[i - 1] + (polygon_px[i] - polygon_px[i - 1]) * before / (before - here))
            if here >= 0:
                kept.append(polygon_px[i])
        polygon_px = np.array(kept).reshape(-1, 2)
    return polygon_px.clip(0, (width, height))


def area(polygon: Floats) -> float:
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def overlap_of_smaller(a_ltrb: Floats, b_ltrb: Floats) -> float:
    """Intersection over the area of the smaller box."""
    common = (np.minimum(a_ltrb[2:], b_ltrb[2:]) - np.maximum(a_ltrb[:2], b_ltrb[:2])).clip(0)
    smaller = min(float((a_ltrb[2:] - a_ltrb[:2]).prod()), float((b_ltrb[2:] - b_ltrb[:2]).prod()))
    return float(common.prod()) / smaller


def snap_outwards(box_ltrb_px: Floats) -> list[int]:
    return [*np.floor(box_ltrb_px[:2]).astype(int).tolist(), *np.ceil(box_ltrb_px[2:]).astype(int).tolist()]


# Rendering


@dataclass(frozen=True)
class Mark:
    """A line, or where `width` is None a filled polygon, inside a shape; unit coordinates."""

    points: Floats
    colour: Colour
    width: float | None = None


@dataclass(frozen=True)
class Shape:
    """One closed outline, float64 [points, 2] in unit coordinates, its colour and the marks painted on it in order."""

    outline: Floats
    colour: Colour
    marks: list[Mark]
    relief: float  # how strongly it bulges towards the light
    points: Floats | None = None  # [named points, 2] of a class that has such, see `shapes.POINTS`


@dataclass(frozen=True)
class Layer:
    """A drawn object, ready to be put over a picture; the arrays share [rows, columns]."""

    left: int
    top: int
    colour: Floats  # [rows, columns, 3] in [0, 1]
    alpha: Floats  # in [0, 1]
    shadow: Floats  # in [0, 1], 1 is black

    def window(self, width: int, height: int) -> tuple[slice, slice, tuple[slice, slice]]:
        """The rows and columns of the picture that the layer covers, and the part of the layer that covers them."""
        rows, columns = self.alpha.shape
        top, bottom = max(self.top, 0), max(min(self.top + rows, height), 0)
        left, right = max(self.left, 0), max(min(self.left + columns, width), 0)
        crop = (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))
        return slice(top, bottom), slice(left, right), crop

    def draw_on(self, pixels: Floats) -> None:
        height, width, _ = pixels.shape
        rows, columns, crop = self.window(width, height)
        alpha, shadow = self.alpha[crop][..., None], self.shadow[crop][..., None]
        pixels[rows, columns] = pixels[rows, columns] * (1 - shadow) * (1 - alpha) + self.colour[crop] * alpha


def render(shape: Shape, to_px: Placement) -> Layer:
    outline_px = to_px(shape.outline)
    margin = 0.3 * to_px.radius_px + 2  # room for the shadow
    left, top, right, bottom = snap_outwards(np.concatenate([outline_px.min(0) - margin, outline_px.max(0) + margin]))
    size = ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING)
    paint = Image.new("RGB", size, to_bytes(shape.colour))
    stencil = Image.new("L", size)

    def in_canvas(points: Floats) -> list[tuple[float, float]]:
        # PIL puts integer coordinates at pixel centres, COCO at pixel corners.
        return [(x, y) for x, y in ((to_px(points) - (left, top)) * SUPERSAMPLING - 0.5).tolist()]

    ImageDraw.Draw(stencil).polygon(in_canvas(shape.outline), fill=255)
    draw = ImageDraw.Draw(paint)
    for mark in shape.marks:
        if mark.width is None:
            draw.polygon(in_canvas(mark.points), fill=to_bytes(mark.colour))
        else:
            width = max(1, round(mark.width * to_px.radius_px * SUPERSAMPLING))
            draw.line(in_canvas(mark.points), fill=to_bytes(mark.colour), width=width, joint="curve")
    mask = stencil.reduce(SUPERSAMPLING)
    alpha = as_floats(mask)
    colour = as_floats(paint.reduce(SUPERSAMPLING))

    # The light comes from the top left. A blurred mask is a height map: its slope says which sides face the light.
    radius = to_px.radius_px
    height = as_floats(mask.filter(ImageFilter.GaussianBlur(0.16 * radius)))
    slope = shape.relief * (_moved(height, -0.12 * radius) - _moved(height, 0.12 * radius))
    # A narrower blur darkens a thin rim: the outline.
    rim = 1 - as_floats(mask.filter(ImageFilter.GaussianBlur(0.025 * radius + 0.4)))
    lightened, darkened = 0.6 * slope.clip(0), (1 + 0.75 * slope.clip(None, 0)) * (1 - 1.3 * rim).clip(0.3)
    colour = colour * ((1 - lightened) * darkened)[..., None] + (lightened * darkened)[..., None]
    return Layer(left, top, colour, alpha, 0.55 * _moved(height, 0.1 * radius))


def _moved(values: Floats, distance_px: float) -> Floats:
    steps = round(distance_px)
    return np.roll(values, (steps, steps), axis=(0, 1))
