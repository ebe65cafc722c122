"""The demo data set's pictures: objects placed on a background so that each can be seen, and their annotations."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipelines.demo.backgrounds import BACKGROUNDS, lit
from pipelines.demo.drawing import (
    Floats,
    Placement,
    Shape,
    area,
    clip_to_image,
    overlap_of_smaller,
    render,
    snap_outwards,
)
from pipelines.demo.shapes import CLASSES

LEAST_VISIBLE = 0.4  # no object is placed where less than this of it, or of one below it, would be seen
# Fixed places in the sequence, so that even the smallest set has empty images and crowds; they never coincide.
EMPTY_EVERY, EMPTY_AT = 24, 5
CROWD_EVERY, CROWD_AT = 16, 3


@dataclass(frozen=True)
class _Placed:
    """An object in a scene: its outline in px, float64 [points, 2], clipped to the image."""

    category_id: int
    outline_px: Floats
    mask_px: int  # size of its mask within the image, before anything covers it
    points_px: Floats | None = None  # [named points, 2], perhaps beyond the image

    @property
    def box_ltrb_px(self) -> Floats:
        return np.concatenate([self.outline_px.min(0), self.outline_px.max(0)])


class Scene:
    """A picture under construction and what has been put into it."""

    def __init__(self, background: Floats) -> None:
        self.pixels = background  # [height, width, 3] in [0, 1]
        self.objects: list[_Placed] = []
        self.crowds: list[tuple[int, NDArray[np.bool_]]] = []  # category id, mask [height, width]
        # The index of the topmost object of each pixel, -1 for none.
        self.owner: NDArray[np.int16] = np.full(background.shape[:2], -1, dtype=np.int16)

    def image(self) -> Image.Image:
        return Image.fromarray((self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))

    def place(self, category_id: int, shape: Shape, to_px: Placement) -> bool:
        """Draw the object on top of the others, unless too little of it or of them would be seen."""
        height, width = self.owner.shape
        whole = to_px(shape.outline)
        outline_px = clip_to_image(whole, width, height).round(2)
        if len(outline_px) < 3 or area(outline_px) < 0.6 * area(whole):
            return False
        new = _Placed(category_id, outline_px, 0)
        if any(overlap_of_smaller(new.box_ltrb_px, other.box_ltrb_px) > 0.5 for other in self.objects):
            return False
        for _, crowd in self.crowds:
            left, top, right, bottom = snap_outwards(new.box_ltrb_px)
            if crowd[top:bottom, left:right].any():
                return False
        layer = render(shape, to_px)
        rows, columns, crop = layer.window(width, height)
        covered = layer.alpha[crop] > 0.5
        hidden = np.bincount(self.owner[rows, columns][covered] + 1, minlength=len(self.objects) + 1)[1:]
        for index, other in enumerate(self.objects):
            if not hidden[index]:
                continue
            if np.count_nonzero(self.owner == index) - hidden[index] < LEAST_VISIBLE * other.mask_px:
                return False
        self.owner[rows, columns][covered] = len(self.objects)
        points_px = None if shape.points is None else to_px(shape.points)
        self.objects.append(_Placed(category_id, outline_px, int(np.count_nonzero(covered)), points_px))
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
            layer = render(shape, Placement(around, rng.uniform(6, 9), rng.uniform(-0.5, 0.5)))
            rows, columns, crop = layer.window(width, height)
            seen[rows, columns] |= layer.alpha[crop] > 0.5
            layer.draw_on(self.pixels)
        # COCO marks crowds generously, as regions: close the gaps between neighbours.
        self.crowds.append((category_id, np.asarray(Image.fromarray(seen).convert("L").filter(_WIDEN)) > 0))

    def annotations(self) -> list[dict[str, Any]]:
        """COCO annotations, still without ids; coordinates in px."""
        found: list[dict[str, Any]] = []
        for index, placed in enumerate(self.objects):
            left, top, right, bottom = placed.box_ltrb_px.tolist()
            found.append(
                {
                    "category_id": placed.category_id,
                    "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                    "area": round(area(placed.outline_px), 2),
                    "segmentation": [placed.outline_px.ravel().tolist()],
                    "iscrowd": 0,
                    **self._keypoints(index, placed.points_px),
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

    def _keypoints(self, index: int, points_px: Floats | None) -> dict[str, Any]:
        """COCO's numbers of the object's named points: visible, hidden by another object, or beyond the image."""
        if points_px is None:
            return {}
        height, width = self.owner.shape
        numbers: list[float] = []
        for x, y in points_px.round(2).tolist():
            if not (0 <= x < width and 0 <= y < height):
                numbers += [0, 0, 0]
            else:
                numbers += [x, y, 2 if self.owner[int(y), int(x)] == index else 1]
        return {"keypoints": numbers, "num_keypoints": sum(visibility > 0 for visibility in numbers[2::3])}


_WIDEN = ImageFilter.MaxFilter(5)


def compose(rng: np.random.Generator, index: int) -> Scene:
    long, short = int(rng.integers(360, 521)), int(rng.integers(240, 361))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    scene = Scene(lit(rng, background(rng, width, height)))
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


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with the zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
