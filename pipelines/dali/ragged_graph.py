"""DALI's graph of a `RaggedView`. It draws nothing: which images come, their sizes and flips are fed to it.

Without a GPU it only decodes. The rest is torch's then, as in the PyTorch path: DALI's CPU kernels take 13 ms to resize
an image to 800 x 1066 and 12 to finish it, torch's 2 and 4.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from pipelines.annotations import Annotations
from pipelines.dali.graph import decode_on_gpu
from pipelines.ragged.draws import Sample
from ssd.distributed import Ranks
from ssd.views import GRAY, RaggedView, StretchView, padded_px, scale_of_sides


def inputs_of(
    samples: list[Sample], encoded: list[np.ndarray], view: RaggedView, annotations: Annotations
) -> tuple[list[np.ndarray], ...]:
    """What the graph for a GPU is fed with for a batch. encoded: the files' bytes."""
    width, height = padded_px(view, [sample.size_px for sample in samples])
    places = [sample.placed_ltrb_px or (0, 0, *sample.size_px) for sample in samples]
    return (
        encoded,
        [np.array([bottom - top, right - left], dtype=np.float32) for left, top, right, bottom in places],
        [np.array([height, width], dtype=np.float32)] * len(samples),
        [np.array(sample.flip, dtype=np.int32) for sample in samples],
        *_own_inputs(samples, view, annotations),
    )


def _own_inputs(samples: list[Sample], view: RaggedView, annotations: Annotations) -> tuple[list[np.ndarray], ...]:
    if _fits(view):
        return (_shares_before(samples),)
    return _windows(samples, annotations) if _has_windows(view) else ()


def _shares_before(samples: list[Sample]) -> list[np.ndarray]:
    """Which share of what is left around each image lies left of it and above: (x, y)."""
    found = []
    for sample in samples:
        assert sample.placed_ltrb_px is not None
        left, top, right, bottom = sample.placed_ltrb_px
        around = sample.size_px[0] - (right - left), sample.size_px[1] - (bottom - top)
        share = [first / both if both else 0.0 for first, both in zip((left, top), around, strict=True)]
        found.append(np.array(share, dtype=np.float32))
    return found


def _windows(samples: list[Sample], annotations: Annotations) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Where each sample's window begins and ends: (y, x) in pixels of the image."""
    windows = [sample.window_ltrb_px or _whole(sample, annotations) for sample in samples]
    return (
        [np.array(window[1::-1], dtype=np.float32) for window in windows],
        [np.array(window[:1:-1], dtype=np.float32) for window in windows],
    )


def _fits(view: RaggedView) -> bool:
    return isinstance(view, StretchView) and view.fits


def _has_windows(view: RaggedView) -> bool:
    return isinstance(view, StretchView) or view.one_scale


def _whole(sample: Sample, annotations: Annotations) -> tuple[float, float, float, float]:
    """The image. Scaled by one factor, what is shown may end up to half a pixel before or behind the image's end."""
    image_px = annotations.sizes_px[sample.image].tolist()
    scale = scale_of_sides(sample.scale, image_px, sample.stretched_px)
    if scale is None:
        return (0, 0, *image_px)
    return (0, 0, sample.size_px[0] / scale[0], sample.size_px[1] / scale[1])


@pipeline_def
def ragged_graph(source: Iterator[Any], view: RaggedView, ranks: Ranks, upright: bool) -> Any:
    """source: for a GPU of what `inputs_of` makes, otherwise of lists of files' bytes alone. upright: as EXIF has it.

    Returns finished images for a GPU, H x W x 3 float32, all of one size; otherwise decoded ones, uint8.
    """
    if ranks.device.type != "cuda":
        return fn.decoders.image(
            fn.external_source(source=source, batch=True),
            device="cpu",
            output_type=types.RGB,
            adjust_orientation=upright,
            jpeg_fancy_upsampling=True,
        )
    num_inputs = 5 if _fits(view) else 6 if _has_windows(view) else 4
    encoded, *inputs = fn.external_source(source=source, num_outputs=num_inputs, batch=True)
    return finish(decode_on_gpu(encoded, upright=upright), *inputs, view=view)


def finish(images: Any, size_px: Any, padded_size_px: Any, flip: Any, *own: Any, view: RaggedView) -> Any:
    """Resized, mirrored, normalised and padded: what `shown.shown` and `images.normalise_padded` make.

    size_px, padded_size_px: (height, width). flip: 0 or 1. own: of a `StretchView`, or of one scale, the window's
    (y, x) where it begins and where it ends, in pixels, beyond which DALI repeats the border; if it fits images in,
    `_shares_before`.
    """
    fits = _fits(view)
    region = {} if fits else dict(zip(("roi_start", "roi_end"), own, strict=False))
    before_x, before_y = (own[0][0], own[0][1]) if fits else (fn.cast(flip, dtype=types.FLOAT), 0.0)
    resized = fn.resize(images, size=size_px, interp_type=types.INTERP_LINEAR, antialias=view.antialias, **region)
    # A crop that is larger than the image pads it, after it is normalised. The crop is mirrored as a whole: so that the
    # image lies on the left, what is to be mirrored has to lie on the right.
    return fn.crop_mirror_normalize(
        resized,
        crop=padded_size_px,
        crop_pos_x=before_x,
        crop_pos_y=before_y,
        out_of_bounds_policy="pad",
        fill_values=[(GRAY / 255 - mean) / std if fits else 0.0 for mean, std in zip(view.mean, view.std, strict=True)],
        mirror=flip,
        mean=[255 * value for value in view.mean],
        std=[255 * value for value in view.std],
        dtype=types.FLOAT,
        output_layout="HWC",
    )
