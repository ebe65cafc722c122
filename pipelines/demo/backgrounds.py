"""What the demo data set's objects lie on: float32 [height, width, 3], muted so that the objects stand out."""

import numpy as np
from PIL import Image, ImageDraw

from pipelines.demo.drawing import Colour, Floats, as_floats, hsv, to_bytes


def _noise(rng: np.random.Generator, width: int, height: int, columns: int, rows: int) -> Floats:
    """Smooth noise about 0, deviation about 1: a grid of columns x rows random values, interpolated."""
    grid = Image.fromarray(rng.normal(0, 1.3, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, width: int, height: int) -> Floats:
    return rng.standard_normal((height, width), dtype=np.float32)


def _mixed(one: Colour, two: Colour, share_of_two: Floats, brightness: Floats | float = 1.0) -> Floats:
    return _tinted(one, (1 - share_of_two) * brightness) + _tinted(two, share_of_two * brightness)


def lit(rng: np.random.Generator, surface: Floats) -> Floats:
    """Add daylight falling off towards the bottom right, and fine grain."""
    height, width, _ = surface.shape
    fall = np.linspace(1.1, 0.98, height, dtype=np.float32)[:, None] + np.linspace(0.03, -0.12, width, dtype=np.float32)
    return (surface.astype(np.float32) * fall[..., None] + 0.012 * _grain(rng, width, height)[..., None]).clip(0, 1)


def _tinted(colour: Colour, brightness: Floats) -> Floats:
    return np.asarray(colour, dtype=np.float32) * brightness[..., None].astype(np.float32)


def _wood(rng: np.random.Generator, width: int, height: int) -> Floats:
    colour = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.12, 0.35), rng.uniform(0.5, 0.85))
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
    colour = hsv(rng.uniform(0.09, 0.12), rng.uniform(0.2, 0.35), rng.uniform(0.8, 0.92))
    y, x = np.ogrid[:height, :width]
    ripples = np.sin((x * rng.uniform(-0.3, 0.3) + y) / rng.uniform(5, 9) + 1.8 * _noise(rng, width, height, 5, 5))
    grains = 0.035 * _grain(rng, width, height) + 0.03 * _noise(rng, width, height, 6, 6)
    return _tinted(colour, 1 + 0.045 * ripples + grains)


def _grass(rng: np.random.Generator, width: int, height: int) -> Floats:
    hue, saturation, value = rng.uniform(0.22, 0.3), rng.uniform(0.3, 0.42), rng.uniform(0.32, 0.45)
    lawn = Image.new("RGB", (width, height), to_bytes(hsv(hue, saturation, 0.85 * value)))
    draw = ImageDraw.Draw(lawn)
    roots = rng.uniform(0, 1, (1400, 2)) * (width, height + 15)
    tips = roots + rng.normal((0, -13), (4, 4), (1400, 2))
    greens = [to_bytes(hsv(hue, saturation, value * brightness)) for brightness in np.linspace(0.75, 1.3, 12)]
    for number, (root, tip) in enumerate(zip(roots.tolist(), tips.tolist(), strict=True)):
        draw.line([*root, *tip], fill=greens[number % len(greens)], width=2)
    return as_floats(lawn) * (1 + 0.08 * _noise(rng, width, height, 5, 5))[..., None]


def _gingham(rng: np.random.Generator, width: int, height: int) -> Floats:
    ink = hsv(rng.uniform(), rng.uniform(0.25, 0.45), rng.uniform(0.65, 0.85))
    check = rng.uniform(18, 36)
    y, x = np.ogrid[:height, :width]
    bend = 2.5 * _noise(rng, width, height, 4, 4)
    columns, rows = (np.sin(np.pi / check * (along + bend)) > 0 for along in (x, y))
    cover = 0.42 * columns + 0.42 * rows
    weave = 1 + 0.025 * ((x + y) % 3 - 1) + 0.04 * _noise(rng, width, height, 5, 5)
    return _mixed((0.95, 0.95, 0.95), ink, cover, weave)


def _stripes(rng: np.random.Generator, width: int, height: int) -> Floats:
    hue = rng.uniform()
    one, two = hsv(hue, 0.12, 0.92), hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.85))
    y, x = np.ogrid[:height, :width]
    slant = rng.uniform(-1, 1)
    across = (x + slant * y + 3 * _noise(rng, width, height, 4, 4)) / rng.uniform(16, 34)
    weave = 1 + 0.03 * (x % 2) * (y % 2) + 0.04 * _noise(rng, width, height, 5, 5)
    return _mixed(one, two, (0.5 + 4 * np.sin(across)).clip(0, 1), weave)


def _bricks(rng: np.random.Generator, width: int, height: int) -> Floats:
    colour = hsv(rng.uniform(0.02, 0.09), rng.uniform(0.1, 0.32), rng.uniform(0.5, 0.72))
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
    one, two = hsv(hue, 0.1, 0.95), hsv(hue + rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.4), 0.8)
    y, x = np.ogrid[:height, :width]
    direction = rng.uniform(0, 2 * np.pi)
    slope = np.cos(direction) * (x / width - 0.5) + np.sin(direction) * (y / height - 0.5)
    wash = 0.15 * _noise(rng, width, height, 5, 5) + 0.05 * _noise(rng, width, height, 25, 25)
    return _mixed(one, two, (0.5 + slope + wash).clip(0, 1))


BACKGROUNDS = (_wood, _sand, _grass, _gingham, _stripes, _bricks, _paper)
