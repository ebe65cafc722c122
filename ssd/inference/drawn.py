"""Detections drawn on the picture that they were made in, to be read at any size of it."""

import numpy as np
import pycocotools.mask
from PIL import Image, ImageDraw

from ssd.inference.predictor import ImageDetections
from ssd.keypoints import Skeleton
from ssd.pictures.drawing import Place, class_colour, draw_skeleton, drawable, place_of_text, tint
from ssd.pictures.lettering import picture_font, shown_in_picture

_LEAST_SIDE_PX = 480  # of what is drawn on: a text would cover what is smaller


def draw_detections(picture: Image.Image, detections: ImageDetections, skeleton: Skeleton | None = None) -> Image.Image:
    """A copy with boxes, names and scores, the best on top, masks tinted and keypoints linked; small pictures come back
    enlarged. skeleton: of the keypoints."""
    scale = max(1, -(-_LEAST_SIDE_PX // max(picture.size)))
    drawn = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    labels = detections.labels.tolist()
    if detections.masks is not None:
        for mask, label in reversed(list(zip(detections.masks, labels, strict=True))):
            tint(drawn, np.asarray(pycocotools.mask.decode(mask)), label)
    draw = ImageDraw.Draw(drawn)
    mean_side_px = (drawn.width * drawn.height) ** 0.5
    line_px = max(2, round(mean_side_px / 200))
    edge_px = max(1, line_px // 4)
    size_px = max(12, round(mean_side_px / 38))
    boxes = (detections.boxes_ltrb_px * scale).tolist()
    rows = list(zip(boxes, detections.labels.tolist(), detections.names, detections.scores.tolist(), strict=True))
    for (left, top, right, bottom), label, _, _ in reversed(rows):
        # A dark line around the coloured one: it shows on grounds of any colour.
        draw.rectangle(
            drawable(left - edge_px, top - edge_px, right + edge_px, bottom + edge_px),
            outline="black",
            width=line_px + 2 * edge_px,
        )
        draw.rectangle(drawable(left, top, right, bottom), outline=class_colour(label), width=line_px)
    if detections.keypoints_px is not None and skeleton is not None:
        points_px = (detections.keypoints_px * scale).tolist()
        for points, label in reversed(list(zip(points_px, labels, strict=True))):
            if not np.isnan(points).any():
                draw_skeleton(draw, [(x, y) for x, y, _ in points], skeleton, label, line_px)
    taken: list[Place] = []
    for box, label, name, score in rows:
        text = f"{shown_in_picture(name, label)} {score:.2f}"
        font = picture_font(text, size_px)
        place = place_of_text(draw, text, font, box, drawn.size, taken)
        if place is not None:
            taken.append(place)
            draw.rectangle(place, fill=class_colour(label))
            ink = "black" if _luma(class_colour(label)) > 0.45 else "white"
            middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            draw.text(middle, text, fill=ink, font=font, anchor="mm")
    return drawn


def _luma(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue
