"""The demo data set's objects, by category id: balloon, crate, star, donut, leaf and mushroom, each drawn anew."""

from collections.abc import Callable

import numpy as np

from pipelines.demo.drawing import Floats, Mark, Placement, Shape, hsv, shade


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
    colour = hsv(rng.uniform(0.56, 0.78), rng.uniform(0.6, 0.8), rng.uniform(0.75, 0.95))
    angle = np.linspace(0.12, 2 * np.pi - 0.12, 40)  # from the knot around to the knot
    body = np.stack([0.76 * np.sin(angle) * (1 - 0.12 * np.cos(angle)), 0.9 * np.cos(angle) - 0.1], 1)
    knot = _points((-0.05, 0.82), (-0.17, 0.99), (0.0, 0.95), (0.17, 0.99), (0.05, 0.82))
    marks = [
        Mark(_points((-0.1, 0.81), (0.1, 0.81)), shade(colour, 0.55), 0.04),
        Mark(_ellipse(0.05, -0.05, 0.5, 0.62), shade(colour, 1.12)),
        Mark(_ellipse(-0.3, -0.48, 0.12, 0.24, 0.6), shade(colour, 3.5)),
        Mark(_ellipse(-0.42, -0.14, 0.045, 0.07, 0.3), shade(colour, 2.5)),
    ]
    return Shape(np.concatenate([body, knot]), colour, marks, 0.9)


def _crate(rng: np.random.Generator) -> Shape:
    colour = hsv(rng.uniform(0.065, 0.1), rng.uniform(0.5, 0.65), rng.uniform(0.62, 0.8))
    x, y = 0.86 * rng.uniform(0.85, 1.1), 0.86 * rng.uniform(0.85, 1.1)
    dark, frame = shade(colour, 0.5), shade(colour, 1.35)
    marks = []
    boards = int(rng.integers(4, 6))
    for board, edge in enumerate(np.linspace(-y, y, boards + 1)[:-1]):
        tone = shade(colour, rng.uniform(0.72, 0.95))
        bottom = edge + 2 * y / boards
        marks.append(Mark(_points((-x, edge), (x, edge), (x, bottom), (-x, bottom)), tone))
        for _ in range(3):
            grain = rng.uniform(edge, bottom)
            marks.append(Mark(_points((-x, grain), (x, grain + rng.normal(0, 0.03))), shade(tone, 0.85), 0.018))
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
    colour = hsv(rng.uniform(0.125, 0.155), rng.uniform(0.75, 0.9), rng.uniform(0.93, 1.0))
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, rng.uniform(0.5, 0.56), 1.12)
    corners = np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)
    ink = (0.35, 0.2, 0.1)
    smile = np.linspace(0.35, np.pi - 0.35, 9)
    marks = [
        Mark(_rounded(corners * 0.72), shade(colour, 1.25)),
        Mark(_ellipse(-0.19, -0.1, 0.075, 0.11), ink),
        Mark(_ellipse(0.19, -0.1, 0.075, 0.11), ink),
        Mark(_ellipse(-0.21, -0.14, 0.025, 0.035, points=8), (1, 1, 1)),
        Mark(_ellipse(0.17, -0.14, 0.025, 0.035, points=8), (1, 1, 1)),
        Mark(_ellipse(-0.34, 0.09, 0.08, 0.05), (1.0, 0.6, 0.45)),
        Mark(_ellipse(0.34, 0.09, 0.08, 0.05), (1.0, 0.6, 0.45)),
        Mark(np.stack([0.17 * np.cos(smile), 0.06 + 0.15 * np.sin(smile)], 1), ink, 0.05),
    ]
    # Its own left is on the right of who looks at it. The last are the tips of its arms and legs.
    tips = 0.9 * np.stack([np.sin(angle), -np.cos(angle)], 1)[::2]
    points = np.concatenate([_points((0.19, -0.1), (-0.19, -0.1), (0.0, 0.2)), tips[[1, 4, 2, 3]]])
    return Shape(_rounded(corners), colour, marks, 0.8, points)


def _donut(rng: np.random.Generator) -> Shape:
    dough = hsv(0.085, 0.5, rng.uniform(0.78, 0.88))
    icing = hsv(rng.uniform(0.88, 0.95), rng.uniform(0.4, 0.65), rng.uniform(0.92, 1.0))
    hole = rng.uniform(0.28, 0.34)
    angle = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    # COCO polygons have no holes: out along the rim, back along the hole, so that the two cuts cancel out.
    outline = np.concatenate([0.97 * circle, hole * circle[::-1]])
    wave = 0.83 + 0.05 * np.sin(angle * rng.integers(6, 10) + rng.uniform(0, 6))
    marks = [
        Mark(wave[:, None] * circle * 1.05, shade(dough, 0.8)),
        Mark(wave[:, None] * circle, icing),
        Mark((hole + 0.1) * circle, shade(dough, 0.8)),
    ]
    hues = rng.permutation([0.0, 0.15, 0.35, 0.55, 0.75])
    for position in range(26):
        around, distance = 2.4 * position + rng.normal(0, 0.15), rng.uniform(hole + 0.19, 0.7)
        middle = np.array([np.cos(around), np.sin(around)]) * distance
        lean = rng.uniform(0, np.pi)
        half = 0.06 * np.array([np.cos(lean), np.sin(lean)])
        colour = hsv(hues[position % 5], 0.65, 1.0) if position % 6 else (1.0, 1.0, 1.0)
        marks.append(Mark(np.stack([middle - half, middle + half]), colour, 0.055))
    return Shape(outline, dough, marks, 0.8)


def _leaf(rng: np.random.Generator) -> Shape:
    colour = hsv(rng.uniform(0.24, 0.36), rng.uniform(0.65, 0.85), rng.uniform(0.55, 0.78))
    wide = rng.uniform(0.52, 0.62)
    along = np.linspace(0, 1, 22)  # from the tip to the stalk
    teeth = 0.05 * (np.arange(22) % 2) * np.sin(np.pi * along)
    right = np.stack([wide * np.sin(np.pi * along**0.8) ** 0.85 + teeth, 1.72 * along - 1], 1)
    left = right[::-1] * (-1, 1)
    stalk = _points((0.05, 0.72), (0.1, 1.0), (0.01, 1.02), (-0.05, 0.74))
    light = shade(colour, 1.7)
    marks = [
        Mark(np.concatenate([right * (1.2, 1), _points((0.0, 0.72), (0.0, -1.0))]), shade(colour, 0.84)),
        Mark(_points((0, -0.9), (0, 0.7), (0.06, 1.02)), light, 0.06),
    ]
    for start in np.linspace(-0.5, 0.52, 5):
        reach = 0.8 * wide * np.sin(np.pi * ((start + 1) / 1.72) ** 0.8)
        for side in (-1, 1):
            marks.append(Mark(_points((0, start), (side * reach, start - 0.45 * reach - 0.08)), light, 0.035))
    return Shape(np.concatenate([right[:-1], stalk, left[1:-1]]), colour, marks, 0.5)


def _mushroom(rng: np.random.Generator) -> Shape:
    red = hsv(rng.uniform(0.985, 1.02), rng.uniform(0.8, 0.92), rng.uniform(0.78, 0.92))
    cream = hsv(0.11, 0.14, rng.uniform(0.92, 0.98))
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
        Mark(np.concatenate([gills, _points((-0.5, 0.22), (0, 0.25), (0.5, 0.22))]), shade(cream, 0.8)),
    ]
    for x in np.linspace(-0.72, 0.72, 9):
        marks.append(Mark(_points((x, 0.26), (0.85 * x, 0.36)), shade(cream, 0.6), 0.025))
    marks.append(Mark(_points((-stem, 0.4), (stem, 0.4)), shade(cream, 0.6), 0.06))
    spots = _points((-0.5, -0.2), (0.02, -0.48), (0.52, -0.25), (0.08, 0.02), (-0.82, 0.04))
    for (x, y), radius in zip(spots + rng.normal(0, 0.03, (5, 2)), (0.16, 0.2, 0.15, 0.12, 0.1), strict=True):
        radius *= rng.uniform(0.85, 1.2)
        marks.append(Mark(_ellipse(x, y, radius, 0.85 * radius), cream))
    return Shape(outline, cream, marks, 0.75)


POINTS: dict[int, tuple[tuple[str, ...], tuple[tuple[int, int], ...]]] = {
    4: (
        ("left_eye", "right_eye", "mouth", "left_hand", "right_hand", "left_foot", "right_foot"),
        ((1, 2), (1, 3), (2, 3), (3, 4), (3, 5), (3, 6), (3, 7)),
    )
}
"""By category id, of those that have named points: the names, in the order of `Shape.points`, and COCO's "skeleton",
which counts them from 1."""

CLASSES: dict[int, tuple[str, Callable[[np.random.Generator], Shape]]] = {
    1: ("balloon", _balloon),
    3: ("crate", _crate),
    4: ("star", _star),
    7: ("donut", _donut),
    9: ("leaf", _leaf),
    12: ("mushroom", _mushroom),
}
