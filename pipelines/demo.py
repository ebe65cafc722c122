"""A small synthetic data set in COCO layout, so that training can be tried without downloading anything.

Every image is a picnic seen from above: balloons, crates, stars, donuts, leaves and mushrooms lie on wood, sand,
grass, cloth, pavement or paper, with soft shadows, overlaps and objects cut by the border. As in COCO, category ids
have gaps, some images hold no object, and some hold a crowd: many tiny objects under one run-length mask.

Shapes are described in unit coordinates: centre (0, 0), radius about 1, y down. Only the renderer knows pixels.
"""

import colorsys
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ssd.errors import InputError

Floats = NDArray[Any]  # float32 pictures, float64 coordinates
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

VERSION = 1  # raise it when a pixel or an annotation changes: older copies are then written anew
SPLITS = ("train2017", "val2017")
MARKER = "demo-data.txt"

SUPERSAMPLING = 3  # shapes are drawn this much larger and averaged down, which smooths their edges
LEAST_VISIBLE = 0.4  # no object is placed where less than this of it, or of one below it, would be seen
# Fixed places in the sequence, so that even the smallest set has empty images and crowds; they never coincide.
EMPTY_EVERY, EMPTY_AT = 24, 5
CROWD_EVERY, CROWD_AT = 16, 3


def write_demo_data(folder: Path, train_images: int = 512, val_images: int = 128, seed: int = 0) -> Path:
    """Write the demo data set to `folder`, unless this very set is already there, and return `folder`.

    The layout is COCO's: `train2017/*.jpg`, `val2017/*.jpg`, `annotations/instances_{train2017,val2017}.json`.
    `bbox` is xywh in px, tight around the whole object, hidden parts included, clipped to the image; `segmentation`
    is the polygon of the same extent, and `area` its area in px. Crowds have uncompressed run lengths instead.

    Any number of processes may call this at once: one writes, the others wait for it. The set appears at `folder` in
    one move, complete. An older or damaged demo set is replaced; a folder holding anything else is left alone and
    raises InputError.
    """
    label = f"demo data, version {VERSION}, seed {seed}, {train_images} + {val_images} images\n"
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it even if this process is killed
        if _is_complete(folder, label, counts):
            return folder
        if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something other than the demo data set: name an empty or a new folder")
        unfinished = folder.parent / f".{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for split, count in counts.items():
            _write_split(unfinished, split, count, seed)
        (unfinished / MARKER).write_text(label)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
    return folder


def _is_complete(folder: Path, label: str, counts: dict[str, int]) -> bool:
    marker = folder / MARKER
    return (
        marker.is_file()
        and marker.read_text() == label
        and all((folder / "annotations" / f"instances_{split}.json").is_file() for split in counts)
        and all(len(list((folder / split).glob("*.jpg"))) == count for split, count in counts.items())
    )


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = _compose(np.random.default_rng([seed, SPLITS.index(split), index]), index)
        image_id = len(SPLITS) * index + SPLITS.index(split) + 1  # unique across the splits
        file_name = f"{image_id:012d}.jpg"
        height, width, _ = scene.pixels.shape
        scene.image().save(folder / split / file_name, quality=90)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1})
        for annotation in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    content = {
        "info": {"description": "Picnic: a synthetic detection data set", "version": str(VERSION), "year": 2017},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name, "supercategory": "picnic"} for category_id, (name, _) in CLASSES.items()
        ],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


# Scenes


@dataclass(frozen=True)
class _Placed:
    """An object in a scene: its outline in px, float64 [points, 2], clipped to the image."""

    category_id: int
    outline_px: Floats
    mask_px: int  # size of its mask within the image, before anything covers it

    @property
    def box_ltrb_px(self) -> Floats:
        return np.concatenate([self.outline_px.min(0), self.outline_px.max(0)])


class _Scene:
    """A picture under construction and what has been put into it."""

    def __init__(self, background: Floats) -> None:
        self.pixels = background  # [height, width, 3] in [0, 1]
        self.objects: list[_Placed] = []
        self.crowds: list[tuple[int, NDArray[np.bool_]]] = []  # category id, mask [height, width]
        # The index of the topmost object of each pixel, -1 for none.
        self.owner: NDArray[np.int16] = np.full(background.shape[:2], -1, dtype=np.int16)

    def image(self) -> Image.Image:
        return Image.fromarray((self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))

    def place(self, category_id: int, shape: "Shape", to_px: "Placement") -> bool:
        """Draw the object on top of the others, unless too little of it or of them would be seen."""
        height, width = self.owner.shape
        whole = to_px(shape.outline)
        outline_px = _clip_to_image(whole, width, height).round(2)
        if len(outline_px) < 3 or _area(outline_px) < 0.6 * _area(whole):
            return False
        new = _Placed(category_id, outline_px, 0)
        if any(_overlap_of_smaller(new.box_ltrb_px, other.box_ltrb_px) > 0.5 for other in self.objects):
            return False
        for _, crowd in self.crowds:
            left, top, right, bottom = _snap_outwards(new.box_ltrb_px)
            if crowd[top:bottom, left:right].any():
                return False
        layer = _render(shape, to_px)
        rows, columns, crop = layer.window(width, height)
        covered = layer.alpha[crop] > 0.5
        hidden = np.bincount(self.owner[rows, columns][covered] + 1, minlength=len(self.objects) + 1)[1:]
        for index, other in enumerate(self.objects):
            if not hidden[index]:
                continue
            if np.count_nonzero(self.owner == index) - hidden[index] < LEAST_VISIBLE * other.mask_px:
                return False
        self.owner[rows, columns][covered] = len(self.objects)
        self.objects.append(_Placed(category_id, outline_px, int(np.count_nonzero(covered))))
        layer.draw_on(self.pixels)
        return True

    def place_crowd(self, rng: np.random.Generator, category_id: int) -> None:
        """Scatter many tiny objects of one class over an elliptic patch."""
        members = int(rng.integers(32, 42))
        height, width = self.owner.shape
        patch_px = rng.uniform(0.15, 0.2, 2) * min(width, height)
        centre = rng.uniform(0.25, 0.75, 2) * (width, height)
        seen: NDArray[np.bool_] = np.zeros((height, width), dtype=np.bool_)
        for position in range(members):
            # A sunflower spiral fills the patch evenly, leaving neither holes nor heaps.
            angle, radius = 2.4 * position, np.sqrt((position + 0.5) / members)
            around = centre + patch_px * radius * (np.cos(angle), np.sin(angle)) + rng.normal(0, 1.5, 2)
            shape = CLASSES[category_id][1](rng)
            layer = _render(shape, Placement(around, rng.uniform(6, 9), rng.uniform(-0.5, 0.5)))
            rows, columns, crop = layer.window(width, height)
            seen[rows, columns] |= layer.alpha[crop] > 0.5
            layer.draw_on(self.pixels)
        # COCO marks crowds generously, as regions: close the gaps between neighbours.
        self.crowds.append((category_id, np.asarray(Image.fromarray(seen).convert("L").filter(_WIDEN)) > 0))

    def annotations(self) -> list[dict[str, Any]]:
        """COCO annotations, still without ids; coordinates in px."""
        found: list[dict[str, Any]] = []
        for placed in self.objects:
            left, top, right, bottom = placed.box_ltrb_px.tolist()
            found.append(
                {
                    "category_id": placed.category_id,
                    "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                    "area": round(_area(placed.outline_px), 2),
                    "segmentation": [placed.outline_px.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
        for category_id, mask in self.crowds:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            found.append(
                {
                    "category_id": category_id,
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "area": int(np.count_nonzero(mask)),
                    "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)},
                    "iscrowd": 1,
                }
            )
        return found


_WIDEN = ImageFilter.MaxFilter(5)


def _compose(rng: np.random.Generator, index: int) -> _Scene:
    long, short = int(rng.integers(360, 521)), int(rng.integers(240, 361))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    scene = _Scene(_lit(rng, background(rng, width, height)))
    if index % EMPTY_EVERY == EMPTY_AT:
        return scene
    ids = list(CLASSES)
    if index % CROWD_EVERY == CROWD_AT:
        scene.place_crowd(rng, ids[rng.integers(len(ids))])
    wanted = int(rng.integers(2, 8))
    largest = min(0.6, 1.25 / np.sqrt(wanted))  # so that they find room
    for _ in range(40 * wanted):
        if len(scene.objects) == wanted:
            break
        extent = rng.uniform(0.25, largest) if rng.random() > 0.03 else rng.uniform(0.08, 0.13)  # of the shorter side
        category_id = ids[rng.integers(len(ids))]
        centre = rng.uniform(0.02, 0.98, 2) * (width, height)
        shape = CLASSES[category_id][1](rng)
        scene.place(category_id, shape, Placement(centre, extent * short / 2, rng.normal(0, 0.25)))
    return scene


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


def _clip_to_image(polygon_px: Floats, width: int, height: int) -> Floats:
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


def _area(polygon: Floats) -> float:
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _overlap_of_smaller(a_ltrb: Floats, b_ltrb: Floats) -> float:
    """Intersection over the area of the smaller box."""
    common = (np.minimum(a_ltrb[2:], b_ltrb[2:]) - np.maximum(a_ltrb[:2], b_ltrb[:2])).clip(0)
    smaller = min(float((a_ltrb[2:] - a_ltrb[:2]).prod()), float((b_ltrb[2:] - b_ltrb[:2]).prod()))
    return float(common.prod()) / smaller


def _snap_outwards(box_ltrb_px: Floats) -> list[int]:
    return [*np.floor(box_ltrb_px[:2]).astype(int).tolist(), *np.ceil(box_ltrb_px[2:]).astype(int).tolist()]


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with the zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


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


@dataclass(frozen=True)
class _Layer:
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


def _render(shape: Shape, to_px: Placement) -> _Layer:
    outline_px = to_px(shape.outline)
    margin = 0.3 * to_px.radius_px + 2  # room for the shadow
    left, top, right, bottom = _snap_outwards(np.concatenate([outline_px.min(0) - margin, outline_px.max(0) + margin]))
    size = ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING)
    paint = Image.new("RGB", size, _to_bytes(shape.colour))
    stencil = Image.new("L", size)

    def in_canvas(points: Floats) -> list[tuple[float, float]]:
        # PIL puts integer coordinates at pixel centres, COCO at pixel corners.
        return [(x, y) for x, y in ((to_px(points) - (left, top)) * SUPERSAMPLING - 0.5).tolist()]

    ImageDraw.Draw(stencil).polygon(in_canvas(shape.outline), fill=255)
    draw = ImageDraw.Draw(paint)
    for mark in shape.marks:
        if mark.width is None:
            draw.polygon(in_canvas(mark.points), fill=_to_bytes(mark.colour))
        else:
            width = max(1, round(mark.width * to_px.radius_px * SUPERSAMPLING))
            draw.line(in_canvas(mark.points), fill=_to_bytes(mark.colour), width=width, joint="curve")
    mask = stencil.reduce(SUPERSAMPLING)
    alpha = _as_floats(mask)
    colour = _as_floats(paint.reduce(SUPERSAMPLING))

    # The light comes from the top left. A blurred mask is a height map: its slope says which sides face the light.
    radius = to_px.radius_px
    height = _as_floats(mask.filter(ImageFilter.GaussianBlur(0.16 * radius)))
    slope = shape.relief * (_moved(height, -0.12 * radius) - _moved(height, 0.12 * radius))
    # A narrower blur darkens a thin rim: the outline.
    rim = 1 - _as_floats(mask.filter(ImageFilter.GaussianBlur(0.025 * radius + 0.4)))
    lightened, darkened = 0.6 * slope.clip(0), (1 + 0.75 * slope.clip(None, 0)) * (1 - 1.3 * rim).clip(0.3)
    colour = colour * ((1 - lightened) * darkened)[..., None] + (lightened * darkened)[..., None]
    return _Layer(left, top, colour, alpha, 0.55 * _moved(height, 0.1 * radius))


def _moved(values: Floats, distance_px: float) -> Floats:
    steps = round(distance_px)
    return np.roll(values, (steps, steps), axis=(0, 1))


def _as_floats(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float32) / 255


def _to_bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, nearer to white above."""
    red, green, blue = (c * factor if factor <= 1 else 1 - (1 - c) / factor for c in colour)
    return red, green, blue


# Shapes


def _points(*xy: tuple[float, float]) -> Floats:
    return np.array(xy, dtype=np.float64)


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, turn: float = 0.0, points: int = 20) -> Floats:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return Placement(np.array([x, y]), 1, turn)(np.stack([radius_x * np.cos(angles), radius_y * np.sin(angles)], 1))


def _rounded(polygon: Floats, cut: float = 0.2) -> Floats:
    """Chaikin's corner cutting, twice: each corner loses the share `cut` of its two sides."""
    for _ in range(2):
        following = np.roll(polygon, -1, axis=0)
        polygon = np.stack([polygon + cut * (following - polygon), following + cut * (polygon - following)], 1)
        polygon = polygon.reshape(-1, 2)
    return polygon


def _balloon(rng: np.random.Generator) -> Shape:
    colour = _hsv(rng.uniform(0.56, 0.78), rng.uniform(0.6, 0.8), rng.uniform(0.75, 0.95))
    angle = np.linspace(0.12, 2 * np.pi - 0.12, 40)  # from the knot around to the knot
    body = np.stack([0.76 * np.sin(angle) * (1 - 0.12 * np.cos(angle)), 0.9 * np.cos(angle) - 0.1], 1)
    knot = _points((-0.05, 0.82), (-0.17, 0.99), (0.0, 0.95), (0.17, 0.99), (0.05, 0.82))
    marks = [
        Mark(_points((-0.1, 0.81), (0.1, 0.81)), _shade(colour, 0.55), 0.04),
        Mark(_ellipse(0.05, -0.05, 0.5, 0.62), _shade(colour, 1.12)),
        Mark(_ellipse(-0.3, -0.48, 0.12, 0.24, 0.6), _shade(colour, 3.5)),
        Mark(_ellipse(-0.42, -0.14, 0.045, 0.07, 0.3), _shade(colour, 2.5)),
    ]
    return Shape(np.concatenate([body, knot]), colour, marks, 0.9)


def _crate(rng: np.random.Generator) -> Shape:
    colour = _hsv(rng.uniform(0.065, 0.1), rng.uniform(0.5, 0.65), rng.uniform(0.62, 0.8))
    x, y = 0.86 * rng.uniform(0.85, 1.1), 0.86 * rng.uniform(0.85, 1.1)
    dark, frame = _shade(colour, 0.5), _shade(colour, 1.35)
    marks = []
    boards = int(rng.integers(4, 6))
    for board, edge in enumerate(np.linspace(-y, y, boards + 1)[:-1]):
        tone = _shade(colour, rng.uniform(0.72, 0.95))
        bottom = edge + 2 * y / boards
        marks.append(Mark(_points((-x, edge), (x, edge), (x, bottom), (-x, bottom)), tone))
        for _ in range(3):
            grain = rng.uniform(edge, bottom)
            marks.append(Mark(_points((-x, grain), (x, grain + rng.normal(0, 0.03))), _shade(tone, 0.85), 0.018))
        if board:
            marks.append(Mark(_points((-x, edge), (x, edge)), dark, 0.04))
    side = 1 if rng.random() < 0.5 else -1
    bars = [[(-side * x, y), (side * x, -y)]]
    bars += [[(-x, end), (x, end)] for end in (0.1 - y, y - 0.1)]
    bars += [[(end, -y), (end, y)] for end in (0.1 - x, x - 0.1)]
    for bar in bars:
        marks += [Mark(_points(*bar), dark, 0.27), Mark(_points(*bar), frame, 0.2)]
    for nail_x in (0.1 - x, x - 0.1):
        marks += [Mark(_ellipse(nail_x, nail_y, 0.035, 0.035, points=8), dark) for nail_y in (0.1 - y, y - 0.1)]
    return Shape(_rounded(_points((-x, -y), (x, -y), (x, y), (-x, y)), cut=0.05), colour, marks, 0.35)


def _star(rng: np.random.Generator) -> Shape:
    colour = _hsv(rng.uniform(0.125, 0.155), rng.uniform(0.75, 0.9), rng.uniform(0.93, 1.0))
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, rng.uniform(0.5, 0.56), 1.12)
    corners = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)
    ink = (0.35, 0.2, 0.1)
    smile = np.linspace(0.35, np.pi - 0.35, 9)
    marks = [
        Mark(_rounded(corners * 0.72), _shade(colour, 1.25)),
        Mark(_ellipse(-0.19, -0.1, 0.075, 0.11), ink),
        Mark(_ellipse(0.19, -0.1, 0.075, 0.11), ink),
        Mark(_ellipse(-0.21, -0.14, 0.025, 0.035, points=8), (1, 1, 1)),
        Mark(_ellipse(0.17, -0.14, 0.025, 0.035, points=8), (1, 1, 1)),
        Mark(_ellipse(-0.34, 0.09, 0.08, 0.05), (1.0, 0.6, 0.45)),
        Mark(_ellipse(0.34, 0.09, 0.08, 0.05), (1.0, 0.6, 0.45)),
        Mark(np.stack([0.17 * np.cos(smile), 0.06 + 0.15 * np.sin(smile)], 1), ink, 0.05),
    ]
    return Shape(_rounded(corners), colour, marks, 0.8)


def _donut(rng: np.random.Generator) -> Shape:
    dough = _hsv(0.085, 0.5, rng.uniform(0.78, 0.88))
    icing = _hsv(rng.uniform(0.88, 0.95), rng.uniform(0.4, 0.65), rng.uniform(0.92, 1.0))
    hole = rng.uniform(0.28, 0.34)
    angle = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    # COCO polygons have no holes: out along the rim, back along the hole, so that the two cuts cancel out.
    outline = np.concatenate([0.97 * circle, hole * circle[::-1]])
    wave = 0.83 + 0.05 * np.sin(angle * rng.integers(6, 10) + rng.uniform(0, 6))
    marks = [
        Mark(wave[:, None] * circle * 1.05, _shade(dough, 0.8)),
        Mark(wave[:, None] * circle, icing),
        Mark((hole + 0.1) * circle, _shade(dough, 0.8)),
    ]
    hues = rng.permutation([0.0, 0.15, 0.35, 0.55, 0.75])
    for position in range(26):
        around, distance = 2.4 * position + rng.normal(0, 0.15), rng.uniform(hole + 0.19, 0.7)
        middle = np.array([np.cos(around), np.sin(around)]) * distance
        lean = rng.uniform(0, np.pi)
        half = 0.06 * np.array([np.cos(lean), np.sin(lean)])
        colour = _hsv(hues[position % 5], 0.65, 1.0) if position % 6 else (1.0, 1.0, 1.0)
        marks.append(Mark(np.stack([middle - half, middle + half]), colour, 0.055))
    return Shape(outline, dough, marks, 0.8)


def _leaf(rng: np.random.Generator) -> Shape:
    colour = _hsv(rng.uniform(0.24, 0.36), rng.uniform(0.65, 0.85), rng.uniform(0.55, 0.78))
    wide = rng.uniform(0.52, 0.62)
    along = np.linspace(0, 1, 22)  # from the tip to the stalk
    teeth = 0.05 * (np.arange(22) % 2) * np.sin(np.pi * along)
    right = np.stack([wide * np.sin(np.pi * along**0.8) ** 0.85 + teeth, 1.72 * along - 1], 1)
    left = right[::-1] * (-1, 1)
    stalk = _points((0.05, 0.72), (0.1, 1.0), (0.01, 1.02), (-0.05, 0.74))
    light = _shade(colour, 1.7)
    marks = [
        Mark(np.concatenate([right * (1.2, 1), _points((0.0, 0.72), (0.0, -1.0))]), _shade(colour, 0.84)),
        Mark(_points((0, -0.9), (0, 0.7), (0.06, 1.02)), light, 0.06),
    ]
    for start in np.linspace(-0.5, 0.52, 5):
        reach = 0.8 * wide * np.sin(np.pi * ((start + 1) / 1.72) ** 0.8)
        for side in (-1, 1):
            marks.append(Mark(_points((0, start), (side * reach, start - 0.45 * reach - 0.08)), light, 0.035))
    return Shape(np.concatenate([right[:-1], stalk, left[1:-1]]), colour, marks, 0.5)


def _mushroom(rng: np.random.Generator) -> Shape:
    red = _hsv(rng.uniform(0.985, 1.02), rng.uniform(0.8, 0.92), rng.uniform(0.78, 0.92))
    cream = _hsv(0.11, 0.14, rng.uniform(0.92, 0.98))
    stem = rng.uniform(0.27, 0.34)
    angle = np.linspace(np.pi, 2 * np.pi, 28)
    dome = np.stack([0.98 * np.cos(angle), 0.15 + 1.02 * np.sin(angle)], 1)
    under = _points((0.93, 0.27), (0.7, 0.34), (stem, 0.37))
    foot = _points((stem, 0.5), (stem + 0.07, 0.82), (stem - 0.03, 0.94), (0.0, 0.97))
    half = np.concatenate([under, foot])
    outline = np.concatenate([dome, half, half[::-1][1:] * (-1, 1)])
    gills = _points((0.95, 0.15), (0.93, 0.27), (0.7, 0.34), (0, 0.38), (-0.7, 0.34), (-0.93, 0.27), (-0.95, 0.15))
    marks = [
        Mark(np.concatenate([dome, _points((0.98, 0.16), (0.5, 0.24), (0, 0.26), (-0.5, 0.24), (-0.98, 0.16))]), red),
        Mark(np.concatenate([gills, _points((-0.5, 0.22), (0, 0.25), (0.5, 0.22))]), _shade(cream, 0.8)),
    ]
    for x in np.linspace(-0.72, 0.72, 9):
        marks.append(Mark(_points((x, 0.26), (0.85 * x, 0.36)), _shade(cream, 0.6), 0.025))
    marks.append(Mark(_points((-stem, 0.4), (stem, 0.4)), _shade(cream, 0.6), 0.06))
    spots = _points((-0.5, -0.2), (0.02, -0.48), (0.52, -0.25), (0.08, 0.02), (-0.82, 0.04))
    for (x, y), radius in zip(spots + rng.normal(0, 0.03, (5, 2)), (0.16, 0.2, 0.15, 0.12, 0.1), strict=True):
        radius *= rng.uniform(0.85, 1.2)
        marks.append(Mark(_ellipse(x, y, radius, 0.85 * radius), cream))
    return Shape(outline, cream, marks, 0.75)


CLASSES: dict[int, tuple[str, Callable[[np.random.Generator], Shape]]] = {
    1: ("balloon", _balloon),
    3: ("crate", _crate),
    4: ("star", _star),
    7: ("donut", _donut),
    9: ("leaf", _leaf),
    12: ("mushroom", _mushroom),
}


# Backgrounds: float32 [height, width, 3], muted so that the objects stand out


def _noise(rng: np.random.Generator, width: int, height: int, columns: int, rows: int) -> Floats:
    """Smooth noise about 0, deviation about 1: a grid of columns x rows random values, interpolated."""
    grid = Image.fromarray(rng.normal(0, 1.3, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, width: int, height: int) -> Floats:
    return rng.standard_normal((height, width), dtype=np.float32)


def _mixed(one: Colour, two: Colour, share_of_two: Floats, brightness: Floats | float = 1.0) -> Floats:
    return _tinted(one, (1 - share_of_two) * brightness) + _tinted(two, share_of_two * brightness)


def _lit(rng: np.random.Generator, surface: Floats) -> Floats:
    """Add daylight falling off towards the bottom right, and fine grain."""
    height, width, _ = surface.shape
    fall = np.linspace(1.1, 0.98, height, dtype=np.float32)[:, None] + np.linspace(0.03, -0.12, width, dtype=np.float32)
    return (surface.astype(np.float32) * fall[..., None] + 0.012 * _grain(rng, width, height)[..., None]).clip(0, 1)


def _tinted(colour: Colour, brightness: Floats) -> Floats:
    return np.asarray(colour, dtype=np.float32) * brightness[..., None].astype(np.float32)


def _wood(rng: np.random.Generator, width: int, height: int) -> Floats:
    colour = _hsv(rng.uniform(0.06, 0.1), rng.uniform(0.12, 0.35), rng.uniform(0.5, 0.85))
    plank = int(rng.integers(60, 110))
    y = np.arange(height)[:, None] + rng.integers(plank)
    number = y // plank
    shift = rng.normal(0, 4, height // plank + 2)[number]
    tone = rng.uniform(0.88, 1.06, height // plank + 2)[number]
    rings = y / 5 + shift + 2.2 * _noise(rng, width, height, 4, 9) + 0.5 * _noise(rng, width, height, 9, 40)
    seam = np.where(y % plank < 2, 0.6, 1.0)
    grain = 0.06 * np.sin(rings) + 0.03 * _noise(rng, width, height, 12, height // 2)
    return _tinted(colour, tone * seam * (1 + grain))


def _sand(rng: np.random.Generator, width: int, height: int) -> Floats:
    colour = _hsv(rng.uniform(0.09, 0.12), rng.uniform(0.2, 0.35), rng.uniform(0.8, 0.92))
    y, x = np.ogrid[:height, :width]
    ripples = np.sin((x * rng.uniform(-0.3, 0.3) + y) / rng.uniform(5, 9) + 1.8 * _noise(rng, width, height, 5, 5))
    grains = 0.035 * _grain(rng, width, height) + 0.03 * _noise(rng, width, height, 6, 6)
    return _tinted(colour, 1 + 0.045 * ripples + grains)


def _grass(rng: np.random.Generator, width: int, height: int) -> Floats:
    hue, saturation, value = rng.uniform(0.22, 0.3), rng.uniform(0.3, 0.42), rng.uniform(0.32, 0.45)
    lawn = Image.new("RGB", (width, height), _to_bytes(_hsv(hue, saturation, 0.85 * value)))
    draw = ImageDraw.Draw(lawn)
    roots = rng.uniform(0, 1, (1400, 2)) * (width, height + 15)
    tips = roots + rng.normal((0, -13), (4, 4), (1400, 2))
    greens = [_to_bytes(_hsv(hue, saturation, value * brightness)) for brightness in np.linspace(0.75, 1.3, 12)]
    for number, (root, tip) in enumerate(zip(roots.tolist(), tips.tolist(), strict=True)):
        draw.line([*root, *tip], fill=greens[number % len(greens)], width=2)
    return _as_floats(lawn) * (1 + 0.08 * _noise(rng, width, height, 5, 5))[..., None]


def _gingham(rng: np.random.Generator, width: int, height: int) -> Floats:
    ink = _hsv(rng.uniform(), rng.uniform(0.25, 0.45), rng.uniform(0.65, 0.85))
    check = rng.uniform(18, 36)
    y, x = np.ogrid[:height, :width]
    bend = 2.5 * _noise(rng, width, height, 4, 4)
    columns, rows = (np.sin(np.pi / check * (along + bend)) > 0 for along in (x, y))
    cover = 0.42 * columns + 0.42 * rows
    weave = 1 + 0.025 * ((x + y) % 3 - 1) + 0.04 * _noise(rng, width, height, 5, 5)
    return _mixed((0.95, 0.95, 0.95), ink, cover, weave)


def _stripes(rng: np.random.Generator, width: int, height: int) -> Floats:
    hue = rng.uniform()
    one, two = _hsv(hue, 0.12, 0.92), _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.85))
    y, x = np.ogrid[:height, :width]
    slant = rng.uniform(-1, 1)
    across = (x + slant * y + 3 * _noise(rng, width, height, 4, 4)) / rng.uniform(16, 34)
    weave = 1 + 0.03 * (x % 2) * (y % 2) + 0.04 * _noise(rng, width, height, 5, 5)
    return _mixed(one, two, (0.5 + 4 * np.sin(across)).clip(0, 1), weave)


def _bricks(rng: np.random.Generator, width: int, height: int) -> Floats:
    colour = _hsv(rng.uniform(0.02, 0.09), rng.uniform(0.1, 0.32), rng.uniform(0.5, 0.72))
    brick_h = int(rng.integers(24, 38))
    brick_w = int(brick_h * rng.uniform(1.6, 2.2))
    y, x = np.ogrid[:height, :width]
    y = y + rng.integers(brick_h)
    row = y // brick_h
    x = x + rng.integers(brick_w) + (row % 2) * (brick_w // 2)
    tones = rng.uniform(0.82, 1.12, (height // brick_h + 2, width // brick_w + 3))
    rough = 1 + 0.05 * _noise(rng, width, height, 30, 30) + 0.03 * _noise(rng, width, height, width // 3, height // 3)
    bricks = _tinted(colour, tones[row, x // brick_w] * rough)
    mortar = ((y % brick_h < 3) | (x % brick_w < 3))[..., None]
    return np.where(mortar, _tinted((0.74, 0.72, 0.68), rough), bricks)


def _paper(rng: np.random.Generator, width: int, height: int) -> Floats:
    hue = rng.uniform()
    one, two = _hsv(hue, 0.1, 0.95), _hsv(hue + rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.4), 0.8)
    y, x = np.ogrid[:height, :width]
    direction = rng.uniform(0, 2 * np.pi)
    slope = np.cos(direction) * (x / width - 0.5) + np.sin(direction) * (y / height - 0.5)
    wash = 0.15 * _noise(rng, width, height, 5, 5) + 0.05 * _noise(rng, width, height, 25, 25)
    return _mixed(one, two, (0.5 + slope + wash).clip(0, 1))


BACKGROUNDS = (_wood, _sand, _grass, _gingham, _stripes, _bricks, _paper)
