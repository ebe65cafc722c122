"""Image files of data sets: reading one, and finding the one that cannot be read.

An image must be the same to both data paths. DALI and Pillow read still JPEG, PNG and WebP of 8 bits alike, and differ
on TIFF, BMP, JPEG 2000 and the rest, so those are refused; that also keeps hostile files away from decoders that few
use. A JPEG that libjpeg complains of is refused too: DALI fails on most of these.
"""

import io
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.annotations import Annotations
from ssd.errors import InputError
from ssd.images import PILLOW_ERRORS

# Pillow refuses what is larger (it warns from half of that on), before it decodes.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)

FORMATS = ("JPEG", "PNG", "WEBP")
"""What both data paths read. Pillow's reader of JPEG takes MPO files too, whose first picture is a JPEG."""
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"}
_START_OF_SCAN = b"\xda"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class Flaw(StrEnum):
    """Why an image cannot be used."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    """A JPEG of which libjpeg says that some of it is wrong, or that it cannot read."""
    UNSUPPORTED = "unsupported"
    """Fine, but of a format or depth that the data paths do not read alike."""
    OVERSIZED = "oversized"
    """More than MAX_PIXELS."""
    OTHER_SIZE = "wrongly sized"
    """Not of the size that the annotations state."""


class BadImage(Exception):
    """An image that cannot be used; the message says why, to be read after the file's name and a colon."""

    def __init__(self, flaw: Flaw, reason: str) -> None:
        super().__init__(reason)
        self.flaw = flaw


def read_rgb(path: Path) -> np.ndarray:
    """The image, H x W x 3 uint8 RGB, without regard to EXIF orientation. Raises InputError that names the file."""
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, BadImage) as error:
        raise unreadable(path, error) from error


def decode_rgb(content: bytes) -> np.ndarray:
    """H x W x 3 uint8 RGB. Raises BadImage.

    libjpeg-turbo directly, which is a fifth faster than through Pillow and gives the same pixels; Pillow for other
    formats and for CMYK.
    """
    import simplejpeg  # here, so that what reads no files runs without it

    if content.startswith(b"\xff\xd8"):
        try:
            height, width, colour_space, _ = simplejpeg.decode_jpeg_header(content)
            if height * width <= MAX_PIXELS:  # else Pillow refuses it
                is_cmyk = colour_space in ("CMYK", "YCCK")
                # Pillow's settings: the exact inverse DCT, and smooth chroma.
                pixels: np.ndarray = simplejpeg.decode_jpeg(
                    content, "CMYK" if is_cmyk else "RGB", fastdct=False, fastupsample=False
                )
                _require_whole_segments(content)
                if not is_cmyk:
                    return pixels
        except ValueError as error:
            raise BadImage(_flaw_of(content, str(error)), str(error)) from error
    if content.startswith(b"\x89PNG"):
        _require_whole_png(content)
    with open_image(content) as image:
        try:
            return np.array(image.convert("RGB"))
        except PILLOW_ERRORS as error:
            truncated = "truncated" in str(error).lower()
            raise BadImage(Flaw.TRUNCATED if truncated else Flaw.UNREADABLE, str(error)) from error


def _require_whole_segments(content: bytes) -> None:
    """Raises BadImage for a JPEG's segment shorter than its own head, which libjpeg lets pass and DALI does not."""
    at = 2
    while (marker := content[at + 1 : at + 2]) not in (_START_OF_SCAN, b""):
        if marker == b"\xff":  # filling
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4])
        if length < 2:
            raise BadImage(Flaw.DAMAGED, "JPEG segment of a false length")
        at += 2 + length


def _require_whole_png(content: bytes) -> None:
    """Raises BadImage for what Pillow lets pass in a PNG and DALI does not."""
    if b"acTL" in content[: content.find(b"IDAT")]:  # an animation, even if its frames make no sense
        raise BadImage(Flaw.UNSUPPORTED, "is animated")
    if _PNG_END not in content:
        raise BadImage(Flaw.TRUNCATED, "PNG without an end")
    with open_image(content) as image:
        try:
            image.verify()  # the checksums
        except PILLOW_ERRORS as error:
            raise BadImage(Flaw.DAMAGED, str(error)) from error


def _flaw_of(content: bytes, complaint: str) -> Flaw:
    """Of a JPEG that libjpeg complains of."""
    if "premature end" in complaint.lower() or b"\xff\xd9" not in content:
        return Flaw.TRUNCATED
    try:
        open_image(content).close()
    except BadImage as error:
        return error.flaw
    return Flaw.DAMAGED


def open_image(source: Path | bytes) -> Image.Image:
    """The image with its header read, to be closed. Raises BadImage, or OSError where the file cannot be opened."""
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(Flaw.UNREADABLE, f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
    except Image.DecompressionBombError as error:
        raise BadImage(Flaw.OVERSIZED, str(error)) from error
    except PILLOW_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadImage(Flaw.UNREADABLE, str(error)) from error
    if image.mode not in _MODES:
        image.close()
        raise BadImage(Flaw.UNSUPPORTED, f"has values of mode {image.mode}, not of 8 bits")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        image.close()
        raise BadImage(Flaw.UNSUPPORTED, "is animated")
    return image


def require_size(annotations: Annotations, index: int, size_px: tuple[int, int]) -> None:
    """Raises InputError if the image's (width, height) is not the annotations': its boxes would be elsewhere."""
    stated_px = tuple(annotations.sizes_px[index].tolist())
    if size_px != stated_px:
        raise InputError(
            f"{annotations.image_folder / annotations.file_names[index]}: is {size_px[0]} x {size_px[1]} pixels, but "
            f"{annotations.file} says {stated_px[0]} x {stated_px[1]}; correct the one or the other"
        )


def unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as an image ({error}); replace it, take it out of the split, or do without it "
        "by --on-bad-image skip (a run that had begun goes on by --resume auto)"
    )
