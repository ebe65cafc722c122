"""What a view shows of an image: the window, resized or fitted in, and mirrored, and its colours. One piece of code for
both data paths."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.ragged.draws import Sample
from ssd.images import fitted, resize
from ssd.views import scale_of_sides


def shown(image: np.ndarray, sample: Sample, *, antialias: bool) -> Tensor:
    """H x W x 3 uint8 -> h x w x 3 uint8 of `sample.size_px`. The colours are left to `distorted`."""
    if sample.window_ltrb_px is not None:
        image = windowed(image, sample.window_ltrb_px)
    if sample.placed_ltrb_px is not None:
        pixels = torch.from_numpy(fitted(image, sample.placed_ltrb_px, sample.size_px, antialias=antialias))
    else:
        scale = scale_of_sides(sample.scale, (image.shape[1], image.shape[0]), sample.stretched_px)
        pixels = torch.from_numpy(resize(image, sample.size_px, antialias=antialias, scale=scale))
    return pixels.flip(1) if sample.flip else pixels


def windowed(image: np.ndarray, window_ltrb_px: tuple[int, int, int, int]) -> np.ndarray:
    """The window of an image H x W x 3. Beyond the image its border pixels are repeated."""
    left, top, right, bottom = window_ltrb_px
    height, width = image.shape[:2]
    rows, columns = np.arange(top, bottom).clip(0, height - 1), np.arange(left, right).clip(0, width - 1)
    return np.ascontiguousarray(image[rows[:, None], columns])


def distorted(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """B x 3 x H x W float32 RGB in [0, 1], each image with its sample's colour: hue turned, saturation and value
    multiplied, cut to [0, 1]. Images whose samples say nothing stay as they are."""
    if any(sample.colour is None for sample in samples):
        return images
    colour = torch.tensor([sample.colour for sample in samples], dtype=torch.float32)
    if images.device.type == "cuda":
        colour = colour.pin_memory().to(images.device, non_blocking=True)
    turn, saturation_factor, value_factor = colour.view(-1, 3, 1, 1, 1).unbind(1)
    red, green, blue = images.unbind(1)
    value, darkest = images.amax(dim=1), images.amin(dim=1)
    spread = value - darkest
    tiny = torch.finfo(torch.float32).tiny
    divisor = spread.clamp(min=tiny)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn.squeeze(1)
    saturation = spread / value.clamp(min=tiny) * saturation_factor.squeeze(1)
    value = value * value_factor.squeeze(1)
    # Each channel is the value but for a share of the saturation that its distance from the hue says.
    channels = []
    for place in (5, 3, 1):
        way = (sixths + place).remainder(6)
        channels.append(value - value * saturation * torch.minimum(way, 4 - way).clamp(0, 1))
    return torch.stack(channels, dim=1).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
