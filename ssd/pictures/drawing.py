"""Boxes on pictures: detections beside the ground truth."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from ssd.batch import RGB_MEAN, RGB_STD
from ssd.keypoints import Skeleton
from ssd.pictures.lettering import Font, picture_font

# Okabe and Ito's colours: told apart by colour-blind readers too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_TINT = 0.45
"""Of a class's colour in its masks."""
_GOLDEN_RATIO = 0.618033988749895
_TEXT_PX = 13
Place = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the picture."""


class Box(NamedTuple):
    """A box to draw. ltrb: in [0, 1] of the picture. label: in [1, K); it chooses the colour. text: with the name as
    `lettering.shown_in_picture` has it."""

    ltrb: tuple[float, float, float, float]
    label: int
    text: str


def picture_of(
    image: Tensor,
    size_px: tuple[int, int],
    mean: tuple[float, float, float] = RGB_MEAN,
    std: tuple[float, float, float] = RGB_STD,
) -> Image.Image:
    """3 x H x W float32, normalised by mean and std -> a picture of that width and height."""
    values = image.float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    pixels = (values * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize(size_px, Image.Resampling.BICUBIC)


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> None:
    """Draws on the picture. The first boxes come to lie on top, and choose first where their texts lie."""
    draw = ImageDraw.Draw(picture)
    places_px = [[side * picture.size[i % 2] for i, side in enumerate(box.ltrb)] for box in boxes]
    for box, (left, top, right, bottom) in reversed(list(zip(boxes, places_px, strict=True))):
        draw.rectangle(drawable(left - 1, top - 1, right + 1, bottom + 1), outline="black")
        draw.rectangle(drawable(left, top, right, bottom), outline=class_colour(box.label), width=3)
    taken: list[Place] = []
    for box, place_px in zip(boxes, places_px, strict=True):
        font = picture_font(box.text, _TEXT_PX)
        place = place_of_text(draw, box.text, font, place_px, picture.size, taken)
        if place is not None:
            taken.append(place)
            left, top, right, bottom = place
            draw.rectangle(place, fill="black")
            draw.rectangle([left, top, left + 2, bottom], fill=class_colour(box.label))
            draw.text((left + 5, (top + bottom) / 2), box.text, fill="white", font=font, anchor="lm")


def place_of_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: Font,
    box_ltrb_px: Sequence[float],
    size_px: tuple[int, int],
    taken: Sequence[Place],
) -> Place | None:
    """Above the box, else within it, else below: the first place in the picture that no better box's text has; None
    where there is none, and the box has to do without."""
    _, text_top, _, text_bottom = draw.textbbox((0, 0), f"{text}Áy", font=font)
    height = text_bottom - text_top + 4
    width = draw.textlength(text, font=font) + 8
    left, top, right, bottom = (min(max(0.0, side), float(size_px[i % 2])) for i, side in enumerate(box_ltrb_px))
    for candidate_left in (left, right - width):
        for candidate_top in (top - height, top, bottom - height, bottom):
            x = min(max(0.0, candidate_left), max(0.0, size_px[0] - width))
            place = (x, candidate_top, x + width, candidate_top + height)
            inside = candidate_top >= 0 and candidate_top + height <= size_px[1]
            if inside and not any(_overlap(place, other) for other in taken):
                return place
    return None


def _overlap(a: Place, b: Place) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def drawable(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """A box for Pillow, which refuses one whose edges have changed places: Detectron finds such, less than a pixel wide
    in the network, and a thin one loses its inside to a line around it."""
    return left, top, max(left, right), max(top, bottom)


def tint(picture: Image.Image, mask: np.ndarray, label: int) -> None:
    """Colours the picture where a mask is, with a line around it. mask: height x width, not 0 where the object is, of
    the picture's shape or of another size of it."""
    stencil = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    stencil = stencil.resize(picture.size, Image.Resampling.BILINEAR).point(lambda value: 255 if value > 127 else 0)
    colour = Image.new("RGB", picture.size, class_colour(label))
    picture.paste(Image.blend(picture, colour, _TINT), mask=stencil)
    edge = ImageChops.difference(stencil, stencil.filter(ImageFilter.MinFilter(3)))
    picture.paste(colour, mask=edge)


def draw_skeleton(
    draw: ImageDraw.ImageDraw,
    points_px: Sequence[tuple[float, float] | None],
    skeleton: Skeleton,
    label: int,
    line_px: int,
) -> None:
    """Links in the class's colour and points in white, both with a dark edge. points: None of what is not stated."""
    edge_px = max(1, line_px // 2)
    ends = [(points_px[first], points_px[second]) for first, second in skeleton.links]
    for colour, width_px in (("black", line_px + 2 * edge_px), (class_colour(label), line_px)):
        for first, second in ends:
            if first is not None and second is not None:
                draw.line([first, second], fill=colour, width=width_px)
    for point in points_px:
        if point is not None:
            for colour, radius_px in (("black", line_px + edge_px), ("white", line_px)):
                x, y = point
                draw.ellipse([x - radius_px, y - radius_px, x + radius_px, y + radius_px], fill=colour)


def class_colour(label: int) -> str:
    """#RRGGBB of a label in [1, K): first PALETTE, then hues far from each other."""
    if label <= len(PALETTE):
        return PALETTE[label - 1]
    hue, value = label * _GOLDEN_RATIO % 1, (1.0, 0.75)[label % 2]
    return "#" + "".join(f"{round(255 * part):02X}" for part in colorsys.hsv_to_rgb(hue, 0.8, value))


def mosaic(rows: Sequence[tuple[str, Sequence[Image.Image]]], tile_px: int, gap_px: int = 8) -> np.ndarray:
    """Rows of pictures of at most tile_px x tile_px, each row under its title: H x W x 3 uint8."""
    title_px = 22
    columns = max(len(pictures) for _, pictures in rows)
    heights_px = [max(picture.height for picture in pictures) + title_px + gap_px for _, pictures in rows]
    sheet = Image.new("RGB", (columns * (tile_px + gap_px) + gap_px, sum(heights_px) + gap_px), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap_px // 2
    for (title, pictures), height_px in zip(rows, heights_px, strict=True):
        draw.text((gap_px, top), title, fill="black", font=picture_font(title, 15))
        for column, picture in enumerate(pictures):
            left = gap_px + column * (tile_px + gap_px) + (tile_px - picture.width) // 2
            sheet.paste(picture, (left, top + title_px))
        top += height_px
    return np.asarray(sheet)
