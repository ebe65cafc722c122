"""Image files: reading one, resizing one, and finding the one that cannot be read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from pipelines.annotations import Annotations
from ssd.batch import IMAGE_SIZE_PX
from ssd.errors import InputError

_HEADER_THREADS = 8  # waiting for a disk or a network, mostly
# Pillow refuses what is larger (it warns from half of that on), before it decodes.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)


def read_rgb(path: Path) -> np.ndarray:
    """The image, H x W x 3 uint8 RGB, without regard to EXIF orientation. Raises InputError that names the file.

    libjpeg-turbo directly where it can, which is a fifth faster than through Pillow and gives the same pixels; Pillow
    for all else: other formats, CMYK, and the verdict on what is broken.
    """
    try:
        content = path.read_bytes()
        pixels = _decode_jpeg(content)
        return np.array(Image.open(path).convert("RGB")) if pixels is None else pixels
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _decode_jpeg(content: bytes) -> np.ndarray | None:
    """H x W x 3 uint8 RGB, or None where libjpeg-turbo has anything to object to."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > MAX_PIXELS or colour_space in ("CMYK", "YCCK"):
            return None
        # Pillow's settings: the exact inverse DCT, and smooth chroma.
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    return pixels


def resize(pixels: np.ndarray) -> np.ndarray:
    """H x W x 3 uint8 -> 300 x 300 x 3 uint8, bilinear, over the source's whole footprint when it shrinks.

    Pillow's filter and DALI's TRIANGULAR; torch's differs from Pillow's by one level in 2 % of the values and takes a
    quarter of the time.
    """
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(planes, (IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bilinear", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


def require_headers(annotations: Annotations, indices: np.ndarray) -> None:
    """Reads these images' headers. Raises InputError that names one that is no image or not of the stated size."""

    def check(index: int) -> None:
        path = annotations.image_folder / annotations.file_names[index]
        try:
            with Image.open(path) as image:
                size_px = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _unreadable(path, error) from error
        require_size(annotations, index, size_px)

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        for _ in pool.map(check, indices.tolist()):
            pass


def require_size(annotations: Annotations, index: int, size_px: tuple[int, int]) -> None:
    """Raises InputError if the image's (width, height) is not the annotations': its boxes would be elsewhere."""
    stated_px = tuple(annotations.sizes_px[index].tolist())
    if size_px != stated_px:
        raise InputError(
            f"{annotations.image_folder / annotations.file_names[index]}: is {size_px[0]} x {size_px[1]} pixels, but "
            f"{annotations.file} says {stated_px[0]} x {stated_px[1]}; correct the one or the other"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as an image ({error}); replace it or take it out of the split")


def require_readable(annotations: Annotations) -> None:
    """Reads image after image until one raises InputError."""
    for name in annotations.file_names:
        read_rgb(annotations.image_folder / name)
