"""From an image to what the model sees: the one resize and normalisation of the data paths, prediction and export.

And reading what users have: files, PIL images, arrays and tensors of any size and mode. Evaluation reads the files of
a data set more strictly, in readers.image_files. Of a file that both read the pixels are the same, but for EXIF
orientation: a data set's images are used as its stated sizes say; here pictures are turned as viewers show them.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssd.batch import RGB_MEAN, RGB_STD
from ssd.constants import constant
from ssd.errors import InputError
from ssd.views import GRAY, RaggedView, padded_px

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
"""A file by its path, by its content or open for reading bytes; a PIL image; an array H x W, or H x W x 1, 3 or 4; a
tensor H x W, or 1, 3 or 4 x H x W. Arrays and tensors are gray, RGB or RGBA of uint8, uint16 or float in [0, 1]; of
RGBA, the colour counts and the transparency does not."""

# Pillow's decoders raise these of files that are broken in one way or another.
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
    OverflowError,
    MemoryError,
)
# Not all of Pillow's: some start other programs, and who shows pictures has these.
_EXIF_ORIENTATION = 0x0112
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
}


def resize(
    pixels: np.ndarray,
    size_px: tuple[int, int],
    *,
    antialias: bool = True,
    scale: float | tuple[float, float] | None = None,
) -> np.ndarray:
    """H x W x 3 uint8 -> uint8 of size_px (width, height), bilinear, over the source's whole footprint when it
    shrinks, unless antialias is False. scale: the factor of both sides, or of (width, height), if not what size_px says
    of each, as where OpenCV's resize is given factors; without antialias.

    Pillow's filter and DALI's TRIANGULAR; torch's differs from Pillow's by one level in 2 % of the values and takes a
    quarter of the time.
    """
    # In this order it is channels_last to torch, which spares it a copy to and fro.
    planes = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    if scale is None:
        resized = F.interpolate(planes, size_px[::-1], mode="bilinear", antialias=antialias)
    else:  # F.interpolate takes a size or a scale
        across, down = scale if isinstance(scale, tuple) else (scale, scale)
        resized = torch.ops.aten.upsample_bilinear2d(planes, size_px[::-1], False, down, across)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


def normalise(
    images: Tensor, mean: tuple[float, float, float] = RGB_MEAN, std: tuple[float, float, float] = RGB_STD
) -> Tensor:
    """B x 3 x H x W uint8 RGB -> as many float32, by the mean and standard deviation of [0, 1] RGB, in the same memory
    format."""
    means, stds = (constant(values, images.device).mul(255).view(3, 1, 1) for values in (mean, std))
    return images.to(torch.float32).sub_(means).div_(stds)


# On a CPU what lies between the steps should stay in the cache.
_ROWS_AT_ONCE_ON_CPU = 32


def fitted(
    image: np.ndarray, placed_ltrb_px: Sequence[int], size_px: tuple[int, int], *, antialias: bool
) -> np.ndarray:
    """An image H x W x 3 uint8 resized to a place within a gray one of `size_px` (width, height)."""
    left, top, right, bottom = placed_ltrb_px
    if (left, top, right, bottom) == (0, 0, *size_px):
        return resize(image, size_px, antialias=antialias)
    canvas = np.full((size_px[1], size_px[0], 3), GRAY, dtype=np.uint8)
    canvas[top:bottom, left:right] = resize(image, (right - left, bottom - top), antialias=antialias)
    return canvas


def normalise_padded(images: Sequence[Tensor], view: RaggedView) -> Tensor:
    """Images h x w x 3 uint8 RGB, all on one device -> `RaggedBatch.images` there: normalised by the view, each in the
    left top corner, and 0 right of it and below."""
    return normalise_one_by_one(images, [(image.shape[1], image.shape[0]) for image in images], view, images[0].device)


def normalise_one_by_one(
    images: Iterable[Tensor], sizes_px: Sequence[tuple[int, int]], view: RaggedView, device: torch.device
) -> Tensor:
    """`normalise_padded` of images on the device whose sizes (width, height) are known before they are there. Each is
    finished before the next is asked for."""
    width, height = padded_px(view, sizes_px)
    # A row of all channels at once: vectors of three leave the units of a CPU idle.
    mean, std = (constant(values, device).mul(255).repeat(width) for values in (view.mean, view.std))
    padded = torch.empty(len(sizes_px), height, 3 * width, device=device)
    for image, place in zip(images, padded, strict=True):
        rows = image.flatten(1)
        filled = rows.shape[1]
        place[len(rows) :].zero_()
        place[: len(rows), filled:].zero_()
        at_once = _ROWS_AT_ONCE_ON_CPU if device.type == "cpu" else len(rows)
        for first in range(0, len(rows), at_once):
            part = place[first : min(first + at_once, len(rows)), :filled]
            part.copy_(rows[first : first + at_once]).sub_(mean[:filled]).div_(std[:filled])
    return padded.view(len(sizes_px), height, width, 3).permute(0, 3, 1, 2)


def read_upright(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """The picture in RGB, turned as its EXIF orientation says; of an animation, the first frame.

    name: of the file in messages, if not its path. Raises InputError with it.
    """
    return read_picture(file, name)[0]


def read_picture(file: Path | BinaryIO, name: str | None = None, *, upright: bool = True) -> tuple[Image.Image, bool]:
    """As `read_upright`, or as the picture is stored; and whether it has an EXIF orientation other than upright."""
    name = str(file) if name is None else name
    try:
        with Image.open(file, formats=tuple(SUFFIXES)) as image:
            image.load()  # PNG's EXIF may be behind the pixels
            is_turned = image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9)
            return (upright_rgb(image) if upright else _rgb(image)), is_turned
    except UnidentifiedImageError:
        raise InputError(f"{name}: no {', '.join(SUFFIXES)} file; convert it to one of them") from None
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{name}: cannot be read as an image ({reason}); replace it") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, upright. Raises ValueError for modes whose range of values is not known."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"has values of mode {image.mode}, whose range is not known; save it with 8 or 16 bits")
    return image.convert("RGB")


def rgb_of(image: ImageLike) -> np.ndarray:
    """H x W x 3 uint8 RGB. Raises InputError that names a bad file, ValueError for an array that is no image."""
    if isinstance(image, str | os.PathLike):
        image = read_upright(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        image = read_upright(io.BytesIO(image), f"the image of {memoryview(image).nbytes} bytes")
    if is_file(image):
        image = read_upright(_bytes_of(cast(BinaryIO, image)), _name_of(cast(BinaryIO, image)))
    if isinstance(image, Image.Image):
        return np.array(upright_rgb(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy() if image.dim() == 2 else image.detach().cpu().movedim(0, -1).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"not an image: {type(image).__name__}; pass a path, bytes, a file opened with 'rb', a PIL image, "
            "an array or a tensor, or several of them"
        )
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"not an image: {image.shape}; pass an array H x W x 3, or a tensor 3 x H x W")
    return np.array(np.broadcast_to(_8_bits(image)[..., :3], (*image.shape[:2], 3)))


def is_file(image: object) -> bool:
    """Whether it is open for reading, and not one of Pillow's images."""
    return hasattr(image, "read") and not isinstance(image, Image.Image)


def _bytes_of(stream: BinaryIO) -> BinaryIO:
    """From where it stands, in a stream that can be searched: one over a network cannot."""
    content = stream.read()
    if not isinstance(content, bytes):
        raise TypeError(f"{_name_of(stream)}: a file that was opened for reading text; open it with 'rb'")
    return io.BytesIO(content)


def _name_of(stream: BinaryIO) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) else f"the open {type(stream).__name__}"


def _8_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"an image of {values.dtype}; pass uint8, uint16 or float in [0, 1]")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("an image of floats that are not all in [0, 1]; divide by their range, or pass uint8")
    return (values.astype(np.float32) * 255).round().astype(np.uint8)
