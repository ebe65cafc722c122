"""A small clean data set, and what makes one dirty: shared by the tests of the check and of leaving images out."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 64, 48
NAMES = [f"{letter}.jpg" for letter in "abcdefgh"]
Change = Callable[[dict[str, Any]], object]


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT_PX // 8, WIDTH_PX // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.NEAREST)


def write_clean_data(folder: Path) -> Path:
    """Splits 'train' and 'val' of eight images with two boxes each."""
    for split, seed in (("train", 0), ("val", 100)):
        (folder / split).mkdir(parents=True)
        for number, name in enumerate(NAMES):
            picture(seed + number).save(folder / split / name)
        document = {
            "images": [
                {"id": i, "file_name": name, "width": WIDTH_PX, "height": HEIGHT_PX} for i, name in enumerate(NAMES)
            ],
            "categories": [{"id": 1, "name": "kite"}, {"id": 2, "name": "car"}],
            "annotations": [
                {"id": 2 * i + k, "image_id": i, "category_id": k, "bbox": [4 * k, 4, 20, 30], "iscrowd": 0}
                for i in range(len(NAMES))
                for k in (1, 2)
            ],
        }
        file = annotation_file(folder, split)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    return folder


def annotation_file(folder: Path, split: str = "train") -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def edit(folder: Path, change: Change, split: str = "train") -> None:
    document = json.loads(annotation_file(folder, split).read_text())
    change(document)
    annotation_file(folder, split).write_text(json.dumps(document))


def truncated(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: len(content) * 2 // 3]


def damaged(file: Path) -> bytes:
    """With bytes too many before a segment: Pillow reads it without a word, and DALI fails on it."""
    content = file.read_bytes()
    at = content.index(b"\xff\xdb")
    return content[:at] + b"junk" + content[at:]


def segment_of_no_length(file: Path) -> bytes:
    """With a segment that states 0 bytes, not even the two of its length: libjpeg reads it without a word."""
    content = file.read_bytes()
    at = content.index(b"\xff\xdb")
    return content[:at] + b"\xff\xe1\x00\x00" + content[at:]


def saved(format: str, image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def with_orientation(file: Path, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved("JPEG", Image.open(file), exif=exif)


def jpeg_bomb(file: Path) -> bytes:
    """The same JPEG, stating 65,000 x 65,000 pixels."""
    content = file.read_bytes()
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", 65_000, 65_000) + content[at + 9 :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def animated_without_frames(png: bytes) -> bytes:
    """Pillow takes it for a still image; DALI fails on it."""
    at = png.index(b"IDAT") - 4
    return png[:at] + _chunk(b"acTL", struct.pack(">II", 0, 0)) + png[at:]


def png_bomb() -> bytes:
    """A few kB that stand for 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
