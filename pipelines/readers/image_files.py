"""Image files of data sets: reading one, and finding the one that cannot be read.

An image must be the same to both data paths. DALI and Pillow read still JPEG, PNG and WebP of 8 bits alike, and differ
on TIFF, BMP, JPEG 2000 and the rest, so those are refused; that also keeps hostile files away from decoders that few
use. A JPEG that libjpeg complains of is refused too: DALI fails on most of these. So are whole files of the three
formats that DALI's parsers cannot read, above all WebP with EXIF behind a chunk of odd size: what DALI cannot read
would end a run without the file's name. `tests/fuzz/fuzz_images.py` looks for such kinds.
"""

import io
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.annotations import Annotations
from ssd.errors import InputError
from ssd.images import PILLOW_ERRORS

# Pillow refuses what is larger (it warns from half of that on), before it decodes.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)

FORMATS = ("JPEG", "PNG", "WEBP")
"""What both data paths read. Pillow's reader of JPEG takes MPO files too, whose first picture is a JPEG."""
RULES = 2
"""Counts the changes of what is refused: verdicts that were kept hold for one of them."""

_OTHER_FORMATS = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xffO\xffQ"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG XL": (b"\xff\n", b"\0\0\0\x0cJXL "),
    "Photoshop": (b"8BPS",),
    "PPM": (b"P5\n", b"P6\n"),
}
"""Format -> how its files begin: enough to say that they are to be converted, which will show if they are damaged."""
_HEIF = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
"""The same at byte 8, behind "ftyp"."""
_EXIF_ORIENTATION = 0x0112
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK"}
_NAMELESS_SAMPLING = "Could not determine subsampling level"
_START_OF_SCAN = b"\xda"
_PNG_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_PNG_BACKGROUND_BYTES = {0: 2, 2: 6, 3: 1, 4: 2, 6: 6}
"""Of a bKGD chunk, by IHDR's colour type."""
_WEBP_EXIF = 0x08
"""Of VP8X's flags: there is an EXIF chunk."""
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


def read_rgb(path: Path, *, upright: bool = False) -> np.ndarray:
    """The image, H x W x 3 uint8 RGB, as it is stored, or as EXIF turns it. Raises InputError that names the file."""
    try:
        content = path.read_bytes()
        pixels = decode_rgb(content)
        return _turned(pixels, _orientation(content)) if upright else pixels
    except (OSError, BadImage) as error:
        raise unreadable(path, error) from error


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1..8, of an image whose head was read. EXIF behind a PNG's pixels is not looked for."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except PILLOW_ERRORS:  # EXIF that is no EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def _orientation(content: bytes) -> int:
    if b"Exif" not in content and b"EXIF" not in content and b"eXIf" not in content:
        return 1
    with open_image(content) as image:
        return orientation_of(image)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """H x W x 3 as EXIF's orientation, 1..8, says that it is to be shown."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def decode_rgb(content: bytes) -> np.ndarray:
    """H x W x 3 uint8 RGB. Raises BadImage.

    libjpeg-turbo directly, which is a fifth faster than through Pillow and gives the same pixels; Pillow for other
    formats, for CMYK, and for JPEGs of a sampling that libjpeg-turbo's simple interface has no name for.
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
                _require_readable_by_dali(io.BytesIO(content))
                if not is_cmyk:
                    return pixels
        except KeyError:  # simplejpeg's, of a sampling
            pass
        except ValueError as error:
            if _NAMELESS_SAMPLING in str(error):
                return _decode_by_pillow(content)
            raise BadImage(_flaw_of(content, str(error)), str(error)) from error
    if content.startswith(b"\x89PNG"):
        _require_whole_png(content)
    return _decode_by_pillow(content)


def _decode_by_pillow(content: bytes) -> np.ndarray:
    with open_image(content) as image:
        try:
            return np.array(image.convert("RGB"))
        except PILLOW_ERRORS as error:
            truncated = "truncated" in str(error).lower()
            raise BadImage(Flaw.TRUNCATED if truncated else Flaw.UNREADABLE, str(error)) from error


def _require_readable_by_dali(stream: BinaryIO) -> None:
    """Raises BadImage for what libjpeg and Pillow let pass in a file's segments or chunks and DALI does not, or reads
    otherwise, and for what libjpeg complains of in a JPEG's head. Reads no pixels, nor what is behind a PNG's."""
    start = stream.read(16)
    if start.startswith(b"\xff\xd8"):
        _require_jpeg_segments(stream)
    elif start.startswith(b"\x89PNG"):
        _require_png_chunks(stream)
    elif start.startswith(b"RIFF") and start[8:] == b"WEBPVP8X":
        _require_webp_chunks(stream)


def _require_jpeg_segments(stream: BinaryIO) -> None:
    import simplejpeg

    components, is_adobe = 0, False
    stream.seek(2)
    while (marker := stream.read(2)[1:]) not in (_START_OF_SCAN, b""):
        if marker == b"\xff":  # filling
            stream.seek(-1, io.SEEK_CUR)
            continue
        length = int.from_bytes(stream.read(2))
        if length < 2:
            raise BadImage(Flaw.DAMAGED, "JPEG segment of a false length")
        head = stream.read(min(length - 2, 6))
        if marker[0] in range(0xC0, 0xD0) and marker not in b"\xc4\xc8\xcc":  # a frame's head
            components = head[5] if len(head) == 6 else 0
        is_adobe |= marker == b"\xee" and head.startswith(b"Adobe")
        stream.seek(length - 2 - len(head), io.SEEK_CUR)
    if components == 4 and not is_adobe:  # DALI takes its values as they are, Pillow as inverted
        raise BadImage(Flaw.UNSUPPORTED, "is CMYK without Adobe's marker")
    end = stream.tell() + int.from_bytes(stream.read(2))
    stream.seek(0)
    try:
        simplejpeg.decode_jpeg_header(stream.read(end))
    except KeyError:  # a sampling without a name
        pass
    except ValueError as error:
        if _NAMELESS_SAMPLING not in str(error):
            raise BadImage(Flaw.DAMAGED, str(error)) from error


def _require_png_chunks(stream: BinaryIO, *, whole: bool = False) -> None:
    """Those before the pixels; whole: the others too."""
    stream.seek(8)
    colour_type, before = -1, b""
    pixels_ended = False
    while len(head := stream.read(8)) == 8 and (whole or head[4:] != b"IDAT"):
        name = head[4:]
        pixels_ended |= before == b"IDAT" != name
        before = name
        length = int.from_bytes(head[:4])
        start = stream.read(min(length, 10))
        if name == b"IHDR":
            colour_type = start[9] if len(start) == 10 else -1
        elif name == b"bKGD" and length != _PNG_BACKGROUND_BYTES.get(colour_type):
            raise BadImage(Flaw.UNSUPPORTED, "PNG with a background (bKGD) of a false length")
        elif name not in _PNG_CRITICAL and not name[0] & 0x20:
            raise BadImage(Flaw.UNSUPPORTED, f"PNG with a critical chunk that no standard knows ({name!r})")
        elif name == b"IDAT" and pixels_ended:
            raise BadImage(Flaw.DAMAGED, "PNG with a chunk among its pixels")
        stream.seek(length - len(start) + 4, io.SEEK_CUR)


def _require_webp_chunks(stream: BinaryIO) -> None:
    """DALI 2.4 looks for the EXIF chunk without the byte that fills up one of odd size, so that it reads on beside it:
    to the file's end, or to bytes that happen to say "EXIF"."""
    file_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(16)
    vp8x_bytes, flags = int.from_bytes(stream.read(4), "little"), stream.read(1)[0]
    at = 20 + vp8x_bytes
    while flags & _WEBP_EXIF:
        stream.seek(at)
        head = stream.read(8)
        at += 8 + int.from_bytes(head[4:], "little")
        if len(head) < 8 or at > file_bytes:
            raise BadImage(Flaw.UNSUPPORTED, "WebP whose EXIF is behind a chunk of odd size, or missing")
        if head[:4] == b"EXIF":
            return


def _require_whole_png(content: bytes) -> None:
    """Raises BadImage for what Pillow lets pass in a PNG and DALI does not."""
    if b"acTL" in content[: content.find(b"IDAT")]:  # an animation, even if its frames make no sense
        raise BadImage(Flaw.UNSUPPORTED, "is animated")
    if _PNG_END not in content:
        raise BadImage(Flaw.TRUNCATED, "PNG without an end")
    _require_png_chunks(io.BytesIO(content), whole=True)
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
        if (other := _other_format(source)) is not None:
            article = "an" if other[0] in "AEIOU" else "a"
            raise BadImage(Flaw.UNSUPPORTED, f"is {article} {other} file") from None
        reason = _what_instead(source) or f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise BadImage(Flaw.UNREADABLE, reason) from None
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
    stream = cast(BinaryIO, image.fp)
    at = stream.tell()
    try:
        stream.seek(0)
        _require_readable_by_dali(stream)
    except BadImage:
        image.close()
        raise
    stream.seek(at)
    return image


def _other_format(source: Path | bytes) -> str | None:
    """The format of a file that is none of FORMATS, as far as its first bytes tell."""
    start = _beginning(source)
    for name, starts in _OTHER_FORMATS.items():
        if start.startswith(starts):
            return name
    return _HEIF.get(start[8:12]) if start[4:8] == b"ftyp" else None


def _what_instead(source: Path | bytes) -> str:
    """What a file is that came in the place of an image, or ""."""
    start = _beginning(source)
    if not start:
        return "is empty"
    return "is a pointer of Git LFS, which git lfs pull turns into the image" if start.startswith(_LFS) else ""


_LFS = b"version https://"


def _beginning(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:16]
    with source.open("rb") as stream:
        return stream.read(16)


def require_size(annotations: Annotations, index: int, size_px: tuple[int, int]) -> None:
    """Raises InputError if the image's (width, height) is not the annotations': its boxes would be elsewhere."""
    stated_px = tuple(annotations.sizes_px[index].tolist())
    if size_px != stated_px:
        raise InputError(
            f"{annotations.image_folder / annotations.file_names[index]}: is {size_px[0]} x {size_px[1]} pixels, but "
            f"{annotations.file} says {stated_px[0]} x {stated_px[1]}; correct the one or the other"
        )


def unreadable(path: Path, error: Exception) -> InputError:
    convert = isinstance(error, BadImage) and error.flaw is Flaw.UNSUPPORTED
    remedy = "convert it to a JPEG or PNG of 8 bits a channel" if convert else "replace it"
    return InputError(
        f"{path}: cannot be {'used' if convert else 'read'} as an image ({error}); {remedy}, take it out of the split, "
        "or do without it by --on-bad-image skip (a run that had begun goes on by --resume auto)"
    )
