"""What is drawn for an image each time that training shows it, and how evaluation shows it: size, flip, window, colour.
Of views of images in their own shapes, once for both data paths; a square view's is in `pipelines/augmentation.py`."""

from typing import NamedTuple

import numpy as np

from pipelines.annotations import Annotations
from ssd.views import RaggedView, StretchView, every_look, fitted_ltrb_px, resized


class Sample(NamedTuple):
    """An image as a view shows it once.

    image: its index in `Annotations`. size_px: (width, height) that it is resized to. flip: whether it is mirrored.
    window_ltrb_px: the part that is shown, in pixels of the image, beyond which it may reach; None is the whole.
    colour: what is added to the hue, as a share of the circle, and the factors of saturation and value; None leaves it.
    scale: by which factor both sides are resized exactly; None is by what size_px says of each.
    placed_ltrb_px: where the whole image lies in `size_px` before it is mirrored, with gray around it; None is that it
    fills it.
    stretched_px: (width, height) that the image is stretched to before `scale`, of which boxes are then found; None is
    its own size.
    """

    image: int
    size_px: tuple[int, int]
    flip: bool
    window_ltrb_px: tuple[int, int, int, int] | None = None
    colour: tuple[float, float, float] | None = None
    scale: float | None = None
    placed_ltrb_px: tuple[int, int, int, int] | None = None
    stretched_px: tuple[int, int] | None = None


def drawn(
    annotations: Annotations, view: RaggedView, image: int, size_px: tuple[int, int] | None, rng: np.random.Generator
) -> Sample:
    """As training shows an image. size_px: of its whole step, which a `StretchView` has; None of any other view."""
    if isinstance(view, StretchView):
        assert size_px is not None
        return _stretched(annotations, view, image, size_px, rng)
    short_side_px = view.short_sides_px[rng.integers(len(view.short_sides_px))]
    flip = bool(rng.random() < 0.5) and view.flips
    width, height = annotations.sizes_px[image].tolist()
    size_px, scale = resized(view, (width, height), (short_side_px, view.long_side_px))
    return Sample(image, size_px, flip, scale=scale)


def _stretched(
    annotations: Annotations, view: StretchView, image: int, size_px: tuple[int, int], rng: np.random.Generator
) -> Sample:
    flip = bool(rng.random() < 0.5) and view.flips
    window_ltrb_px = colour = placed_ltrb_px = None
    width, height = annotations.sizes_px[image].tolist()
    if view.fits:
        placed_ltrb_px = _placed(view, size_px, (width, height), rng)
    elif view.jitter:
        # As darknet draws them: whole pixels, at most the jitter's share of a side.
        left, top, right, bottom = (
            (rng.uniform(-view.jitter, view.jitter, 4) * (width, height, width, height)).astype(int).tolist()
        )
        window_ltrb_px = (left, top, max(left + 1, width - right), max(top + 1, height - bottom))
    if view.distorts_colour:
        turn = float(rng.uniform(-view.hue, view.hue))
        colour = (turn, _factor(rng, view.saturation), _factor(rng, view.exposure))
    return Sample(image, size_px, flip, window_ltrb_px, colour, placed_ltrb_px=placed_ltrb_px)


def _placed(
    view: StretchView, size_px: tuple[int, int], image_px: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Anywhere, as large as a shape allows that differs a little from the image's: darknet's, of which only the shape
    is drawn and not the size."""
    across, down = (side + side * rng.uniform(-view.jitter, view.jitter) for side in image_px)
    width, height = size_px
    if across * height < width * down:
        inner = max(1, int(height * across / down)), height
    else:
        inner = width, max(1, int(width * down / across))
    left, top = (int(rng.uniform(0, size - side + 1)) for size, side in zip(size_px, inner, strict=True))
    return left, top, left + inner[0], top + inner[1]


def _factor(rng: np.random.Generator, largest: float) -> float:
    # Below 1 it is the smallest, as in darknet.
    factor = float(rng.uniform(min(1.0, largest), max(1.0, largest)))
    return factor if rng.random() < 0.5 else 1 / factor


def looks(view: RaggedView, image: int, image_px: tuple[int, int]) -> list[Sample]:
    """As evaluation shows an image, as often as the view says."""
    if isinstance(view, StretchView) and view.fits:
        return [Sample(image, view.size_px, False, placed_ltrb_px=fitted_ltrb_px(view.size_px, image_px))]
    return [
        Sample(image, size_px, False, scale=scale, stretched_px=stretched_px)
        for (size_px, scale), stretched_px in every_look(view, image_px)
    ]
