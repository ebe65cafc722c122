"""The augmentation of SSD training: every constant and random range, once, for both data paths, and the torch path's
implementation of it on numpy and torch.

Order: crop -> resize to 300 x 300 -> flip -> hue and saturation -> brightness and contrast -> normalise. The colour
steps have DALI's definitions: one affine map of RGB in [0, 255], clipped once at its end.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd.batch import RGB_MEAN, RGB_STD

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
BRIGHTNESS = (0.875, 1.125)
CONTRAST_CENTRE = 128.0

# NTSC's matrix, the one DALI uses; hue is a rotation and saturation a scaling of the I-Q plane.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


class _Constants(NamedTuple):
    """Colour constants on one device: making them anew for each batch would have the host wait for the device."""

    rgb_to_yiq: Tensor
    yiq_to_rgb: Tensor
    mean: Tensor
    std: Tensor
    identity: Tensor


@functools.cache
def _constants(device: torch.device) -> _Constants:
    values = (_RGB_TO_YIQ, np.linalg.inv(_RGB_TO_YIQ), RGB_MEAN, RGB_STD, np.eye(3, 4))
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


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """4 float32: hue in degrees, saturation, brightness and contrast as factors."""
    ranges = np.array([HUE_DEGREES, SATURATION, BRIGHTNESS, CONTRAST], dtype=np.float32)
    return rng.uniform(ranges[:, 0], ranges[:, 1]).astype(np.float32)


def random_flip(rng: np.random.Generator) -> bool:
    return bool(rng.random() < FLIP_PROBABILITY)


def colour_affine(colour: Tensor) -> Tensor:
    """The maps of RGB in [0, 255] that DALI's color_twist makes of `random_colour`'s numbers.

    colour: B x 4 float32. Returns B x 3 x 4 float32, [matrix | offset] each, on the same device.
    """
    hue, saturation, brightness, contrast = colour.unbind(1)
    cos, sin = saturation * torch.deg2rad(hue).cos(), saturation * torch.deg2rad(hue).sin()
    zero, one = torch.zeros_like(hue), torch.ones_like(hue)
    twist = torch.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], dim=1).view(-1, 3, 3)
    constants = _constants(colour.device)
    matrix = constants.yiq_to_rgb @ twist @ constants.rgb_to_yiq
    offset = (brightness * CONTRAST_CENTRE * (1 - contrast)).view(-1, 1, 1).expand(-1, 3, 1)
    return torch.cat([(brightness * contrast).view(-1, 1, 1) * matrix, offset], dim=2)


_PIXELS_A_ROW = 4


def finish(images: Tensor, affine: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
    """Flip, colour, clipping to [0, 255] and ImageNet's normalisation of a whole batch on its device.

    images: B x H x W x 3 uint8 RGB, H x W a multiple of 4. affine: B x 3 x 4 of `colour_affine`, or None for none.
    flip: B of 0 or 1, or None for none. Returns B x 3 x H x W float32, channels_last in memory.
    """
    batch, height, width, _ = images.shape
    if flip is not None:
        images = torch.where(flip.view(batch, 1, 1, 1) > 0, images.flip(2), images)
    _, _, mean, std, identity = _constants(images.device)
    if affine is None:
        affine = identity.expand(batch, 3, 4)
    scale = 1 / (255 * std)
    # (affine(x) / 255 - mean) / std is affine too, and the limits 0 and 255 move with it.
    matrix = affine[:, :, :3] * scale[:, None]
    offset = affine[:, :, 3] * scale - mean / std
    # Four pixels a row and the matrix four times on the diagonal: 12 x 12 is six times as fast as 3 x 3 on a CPU, where
    # a product with so few columns leaves the vector units idle.
    blocks = matrix.new_zeros(batch, _PIXELS_A_ROW, 3, _PIXELS_A_ROW, 3)
    blocks.diagonal(dim1=1, dim2=3).copy_(matrix.transpose(1, 2).unsqueeze(3))
    pixels = images.reshape(batch, -1, 3 * _PIXELS_A_ROW).to(torch.float32)
    normalised = torch.baddbmm(
        offset.repeat(1, _PIXELS_A_ROW).unsqueeze(1), pixels, blocks.view(batch, 3 * _PIXELS_A_ROW, 3 * _PIXELS_A_ROW)
    )
    low, high = (-mean / std).repeat(_PIXELS_A_ROW), ((1 - mean) / std).repeat(_PIXELS_A_ROW)
    normalised = normalised.clamp_(min=low, max=high)
    return normalised.view(batch, height, width, 3).permute(0, 3, 1, 2)
