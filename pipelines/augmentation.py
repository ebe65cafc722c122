"""The augmentation of square views, SSD's: every constant and random range, once, for both data paths, and the torch
path's implementation of it on numpy and torch. What other views draw is in `pipelines/ragged/draws.py`.

Order: crop -> resize to 300 x 300 -> flip -> hue and saturation -> brightness and contrast -> normalise. The colour
steps have DALI's definitions, but for the level that contrast turns about: one affine map of RGB in [0, 255], clipped
once at its end.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.batch import RGB_MEAN, RGB_STD
from ssd.constants import constant

# Crop, as in SSD (Liu et al. 2016) and MLPerf's reference with max_samples 1: each round draws one of seven options
# with equal odds (the whole image, or a crop whose IoU with every box reaches a threshold) and tries it once.
CROP_MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
CROP_SIDE = (0.3, 1.0)
"""Each side, as a fraction of the image's."""
CROP_ASPECT = (0.5, 2.0)
"""Width / height, both as fractions of the image's."""
CROP_ATTEMPTS = 1
# After so many rounds the whole image is taken. One round in seven takes it anyway, so this is reached once in 1e13
# images; it only bounds the loop.
CROP_MAX_ROUNDS = 200

FLIP_PROBABILITY = 0.5
# MLPerf's reference jitters hue by 0.05 of a turn. The DALI example has +-0.5 degrees, which is no augmentation.
HUE_DEGREES = (-18.0, 18.0)
SATURATION = (0.5, 1.5)
CONTRAST = (0.5, 1.5)
"""About the image's own mean luma, as in torchvision's ColorJitter, which MLPerf's reference and NVIDIA's torch path
use. About 128, as in the DALI example, it clips the bright ground of microscope images, which costs 0.03 AP on BCCD."""
BRIGHTNESS = (0.875, 1.125)


# NTSC's matrix, the one DALI uses; hue is a rotation and saturation a scaling of the I-Q plane.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


class _Constants(NamedTuple):
    """Colour constants on one device: making them anew for each batch would have the host wait for the device."""

    rgb_to_yiq: Tensor
    yiq_to_rgb: Tensor


@functools.cache
def _constants(device: torch.device) -> _Constants:
    values = (_RGB_TO_YIQ, np.linalg.inv(_RGB_TO_YIQ))
    return _Constants(*(torch.tensor(np.asarray(value), dtype=torch.float32, device=device) for value in values))


class Crop(NamedTuple):
    """A crop window as fractions of the image, and the boxes that live in it.

    window_ltrb: 4 float32 in [0, 1]. boxes_ltrb: n x 4 float32 in [0, 1] of the window. kept: which boxes those are,
    N bool. option: 0 is the whole image, i > 0 is CROP_MIN_IOUS[i - 1].
    """

    window_ltrb: np.ndarray
    boxes_ltrb: np.ndarray
    kept: np.ndarray
    option: int


_WHOLE_IMAGE_LTRB = np.array([0, 0, 1, 1], dtype=np.float32)


def random_crop(boxes_ltrb: np.ndarray, rng: np.random.Generator) -> Crop:
    """DALI's random_bbox_crop. boxes_ltrb: N x 4 float32 in [0, 1], N >= 1; at least one box stays."""
    for _ in range(CROP_MAX_ROUNDS):
        option = int(rng.integers(len(CROP_MIN_IOUS) + 1))
        if option == 0:
            break
        for _ in range(CROP_ATTEMPTS):
            crop = _try_crop(boxes_ltrb, option, rng)
            if crop is not None:
                return crop
    return Crop(_WHOLE_IMAGE_LTRB, boxes_ltrb, np.ones(len(boxes_ltrb), dtype=bool), 0)


def _try_crop(boxes_ltrb: np.ndarray, option: int, rng: np.random.Generator) -> Crop | None:
    width, height = rng.uniform(*CROP_SIDE, size=2)
    if not CROP_ASPECT[0] <= width / height <= CROP_ASPECT[1]:
        return None
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    window = np.array([left, top, left + width, top + height], dtype=np.float32)

    left_top, right_bottom = np.maximum(boxes_ltrb[:, :2], window[:2]), np.minimum(boxes_ltrb[:, 2:], window[2:])
    overlap = np.maximum(right_bottom - left_top, 0).prod(axis=1)
    union = (boxes_ltrb[:, 2:] - boxes_ltrb[:, :2]).prod(axis=1) + width * height - overlap
    if (overlap < CROP_MIN_IOUS[option - 1] * union).any():
        return None

    centre = (boxes_ltrb[:, :2] + boxes_ltrb[:, 2:]) / 2
    kept = ((centre >= window[:2]) & (centre <= window[2:])).all(axis=1)
    if not kept.any():
        return None
    inside = np.concatenate([left_top, right_bottom], axis=1)[kept]
    remapped = (inside - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)
    return Crop(window, remapped.clip(0, 1), kept, option)


def window_px(window_ltrb: np.ndarray, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The pixels of a crop window, as DALI's slice rounds them: each edge to the nearest, halves away from 0."""
    left, top, right, bottom = (
        math.floor(edge * size + 0.5)
        for edge, size in zip(window_ltrb.tolist(), (width_px, height_px, width_px, height_px), strict=True)
    )
    return left, top, max(right, left + 1), max(bottom, top + 1)


def random_colour(rng: np.random.Generator, hue_degrees: tuple[float, float] | None = None) -> np.ndarray:
    """4 float32: hue in degrees, saturation, brightness and contrast as factors."""
    ranges = np.array([hue_degrees or HUE_DEGREES, SATURATION, BRIGHTNESS, CONTRAST], dtype=np.float32)
    return rng.uniform(ranges[:, 0], ranges[:, 1]).astype(np.float32)


def random_flip(rng: np.random.Generator) -> bool:
    return bool(rng.random() < FLIP_PROBABILITY)


def colour_maps(colour: Tensor) -> tuple[Tensor, Tensor]:
    """What `random_colour`'s numbers do to RGB in [0, 255]: x -> pixel map @ x + mean map @ (the image's mean RGB).

    colour: B x 4 float32. Returns two B x 3 x 3 float32 on the same device.
    """
    hue, saturation, brightness, contrast = colour.unbind(1)
    cos, sin = saturation * torch.deg2rad(hue).cos(), saturation * torch.deg2rad(hue).sin()
    zero, one = torch.zeros_like(hue), torch.ones_like(hue)
    twist = torch.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], dim=1).view(-1, 3, 3)
    constants = _constants(colour.device)
    pixel_map = constants.yiq_to_rgb @ twist @ constants.rgb_to_yiq
    luma = constants.rgb_to_yiq[0].expand(3, 3)
    return (
        (brightness * contrast).view(-1, 1, 1) * pixel_map,
        (brightness * (1 - contrast)).view(-1, 1, 1) * luma,
    )


_PIXELS_A_ROW = 4
# On a CPU what lies between the steps should stay in the cache, and be memory that the last round has used before.
_IMAGES_AT_ONCE_ON_CPU = 2


def finish(
    images: Tensor,
    colour: Tensor,
    flip: Tensor | None = None,
    contrast_centre: float | None = None,
    *,
    mean: tuple[float, float, float] = RGB_MEAN,
    std: tuple[float, float, float] = RGB_STD,
) -> Tensor:
    """Flip, colour, clipping to [0, 255] and normalisation of a whole batch on its device.

    images: B x H x W x 3 uint8 RGB, H x W a multiple of 4. colour: B x 4 of `random_colour`.
    flip: B of 0 or 1, or None for none. contrast_centre: of `Augmentation`. mean, std: of the view. Returns
    B x 3 x H x W float32, channels_last in memory.
    """
    batch, height, width, _ = images.shape
    means, stds = constant(mean, images.device), constant(std, images.device)
    pixel_map, mean_map = colour_maps(colour)
    # (map(x) / 255 - mean) / std is affine too, and the limits 0 and 255 move with it.
    scale = (1 / (255 * stds)).unsqueeze(1)
    low, high = (-means / stds).repeat(_PIXELS_A_ROW), ((1 - means) / stds).repeat(_PIXELS_A_ROW)
    # Four pixels a row and the matrix four times on the diagonal: 12 x 12 is six times as fast as 3 x 3 on a CPU, where
    # a product with so few columns leaves the vector units idle.
    columns = 3 * _PIXELS_A_ROW
    blocks = pixel_map.new_zeros(batch, _PIXELS_A_ROW, 3, _PIXELS_A_ROW, 3)
    blocks.diagonal(dim1=1, dim2=3).copy_((scale * pixel_map).transpose(1, 2).unsqueeze(3))
    blocks = blocks.view(batch, columns, columns)

    finished = torch.empty(batch, height * width // _PIXELS_A_ROW, columns, device=images.device)
    at_once = batch if images.is_cuda else _IMAGES_AT_ONCE_ON_CPU
    for first in range(0, batch, at_once):
        part = slice(first, first + at_once)
        pixels = images[part] if flip is None else _flipped(images[part], flip[part])
        values = pixels.to(torch.float32)
        if contrast_centre is None:
            image_mean = values.flatten(2).mean(dim=1).view(-1, width, 3).mean(dim=1)  # by rows first: longer vectors
        else:  # as an image of that grey would have it
            image_mean = values.new_full((len(values), 3), contrast_centre)
        offset = (scale * mean_map[part] @ image_mean.unsqueeze(2)).squeeze(2) - means / stds
        offset = offset.repeat(1, _PIXELS_A_ROW).unsqueeze(1)
        rows = values.reshape(len(values), -1, columns)
        torch.baddbmm(offset, rows, blocks[part], out=finished[part]).clamp_(min=low, max=high)
    return finished.view(batch, height, width, 3).permute(0, 3, 1, 2)


def _flipped(images: Tensor, flip: Tensor) -> Tensor:
    if images.is_cuda:  # without asking the device which
        return torch.where(flip.view(-1, 1, 1, 1) > 0, images.flip(2), images)
    return torch.stack([image.flip(1) if flipped else image for image, flipped in zip(images, flip, strict=True)])
