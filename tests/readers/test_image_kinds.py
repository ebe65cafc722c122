"""Kinds of image files: what is read alike by both data paths, and what is refused, with which remedy."""

import io
import json
import random
import struct
from pathlib import Path

import made_images
import numpy as np
import pytest
import torch
from PIL import Image
from square_view import VIEW

import pipelines
from pipelines.readers.coco import read_annotations
from pipelines.readers.image_files import BadImage, Flaw, decode_rgb
from pipelines.readers.scan import inspect, read_usable
from pipelines.readers.splits import find_named
from ssd.distributed import Ranks
from ssd.errors import InputError

CPU = Ranks(0, 0, 1, torch.device("cpu"))
SIZE_PX = (40, 24)
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIZE_PX[1], SIZE_PX[0], 3), np.uint8))


def saved(format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, format, **options)
    return stream.getvalue()


def webp(*, between: bytes, flags: int = 0x08) -> bytes:
    """Lossless, with a chunk of these bytes between the pixels and EXIF that asks for a turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = saved("WEBP", lossless=True)[20:]  # without their size, which then counts the byte that makes it even
    pixels = b"VP8L" + struct.pack("<I", len(pixels)) + pixels
    head = struct.pack("<I", flags) + struct.pack("<I", SIZE_PX[0] - 1)[:3] + struct.pack("<I", SIZE_PX[1] - 1)[:3]
    chunks = [(b"XMP ", between), (b"EXIF", exif.tobytes()[6:])]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + head + pixels
    for name, content in chunks:
        body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def data_of(folder: Path, files: dict[str, bytes]) -> Path:
    """A data set whose split "train" has these images, with one box each."""
    (folder / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for name, content in files.items():
        (folder / "train" / name).write_bytes(content)
    width, height = SIZE_PX
    document = {
        "images": [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(files)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 2, 20, 15]} for i in range(len(files))
        ],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return folder


def with_chunk(name: bytes, content: bytes) -> bytes:
    """A PNG with this chunk before its pixels."""
    png = saved("PNG")
    return png[:33] + made_images._png_chunk(name, content) + png[33:]


def without_adobe() -> bytes:
    """CMYK as Pillow writes it, less the marker's segment."""
    stream = io.BytesIO()
    PICTURE.convert("CMYK").save(stream, "JPEG")
    jpeg = stream.getvalue()
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 16 :]


REFUSED = {
    "TIFF": (saved("TIFF"), "TIFF"),
    "BMP": (saved("BMP"), "BMP"),
    "JPEG 2000": (saved("JPEG2000"), "JPEG 2000"),
    "GIF": (saved("GIF"), "GIF"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(64), "AVIF"),
    "EXIF behind an odd chunk": (webp(between=b"odd"), "WebP whose EXIF"),
    "no EXIF": (
        saved("WEBP", lossless=True, xmp=b"<x/>").replace(b"VP8X\x0a\0\0\0\x04", b"VP8X\x0a\0\0\0\x0c"),
        "EXIF",
    ),
    "CMYK without a marker": (without_adobe(), "CMYK"),
    "background of a false length": (with_chunk(b"bKGD", b"\0\0\0\0"), "bKGD"),
    "critical chunk": (with_chunk(b"RuST", b""), "critical"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_to_convert(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One verdict: the check's, `--on-bad-image skip`'s and both data paths', which say what to do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content, reason = REFUSED[kind]
    data = data_of(tmp_path / "data", {"bad.png": content, "good.png": saved("PNG")})
    inspection = inspect(data / "train" / "bad.png")
    assert inspection.flaw is Flaw.UNSUPPORTED and reason in inspection.reason
    assert read_usable(find_named(data, "train"), CPU).file_names == ["good.png"]
    split = read_annotations(data, "train")
    for name in ("no_dali", "dali"):
        if name == "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        for build in (
            lambda name=name: next(
                pipelines.build_train(name, split, batch_size=2, num_workers=0, seed=0, ranks=CPU, view=VIEW).batches(0)
            ),
            lambda name=name: list(
                pipelines.build_eval(name, split, batch_size=2, num_workers=0, ranks=CPU, view=VIEW)
            ),
        ):
            with pytest.raises(InputError, match=r"bad.png: cannot be used as an image .*; convert it") as refused:
                build()
            assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_exif_behind_even_chunks_is_read_by_both_paths(tmp_path: Path) -> None:
    """Nothing is refused that DALI reads, nor turned."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = data_of(tmp_path, {"even.webp": webp(between=b"even"), "flagless.webp": webp(between=b"odd", flags=0)})
    split = read_annotations(data, "train")
    ours, dalis = (
        next(iter(pipelines.build_eval(name, split, batch_size=2, num_workers=0, ranks=CPU, view=VIEW))).images
        for name in ("no_dali", "dali")
    )
    assert torch.equal(ours, dalis) and torch.equal(ours[0], ours[1])
    assert np.array_equal(decode_rgb(webp(between=b"even")), PICTURE)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "sampling", ["4x1,1x1,1x1", "1x2,1x1,1x1", "4x2,1x1,1x1", "1x4,1x1,1x1", "1x1,2x1,2x1", "3x1,1x1,1x1"]
)
def test_rare_samplings_are_read(sampling: str) -> None:
    """4:1:1, 4:4:0, 4:1:0, 4:4:1, chroma finer than luma, thirds. `test_fuzz` holds DALI's pixels against them."""
    draw = random.Random(8)
    found = []
    while len(found) < 5:
        made = made_images.jpeg(draw)
        if f" {sampling} " in made.kind and "Adobe" not in made.kind and made.content.endswith(b"\xff\xd9"):
            found.append(made.content)
    for content in found:
        assert np.array_equal(decode_rgb(content), Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_rare_sampling_that_is_cut_short_is_named() -> None:
    draw = random.Random(8)
    made = next(made for made in iter(lambda: made_images.jpeg(draw), None) if " 4x2,1x1,1x1 " in made.kind)
    with pytest.raises(BadImage) as refused:
        decode_rgb(made.content[: made.content.index(b"\xff\xda") + 20])
    assert refused.value.flaw in (Flaw.TRUNCATED, Flaw.UNREADABLE)


def test_an_icc_profile_cut_short_is_named() -> None:
    png = saved("PNG")
    end = png.index(b"\0\0\0\0IEND")
    with pytest.raises(BadImage):
        decode_rgb(png[:end] + made_images._png_chunk(b"iCCP", b"name\0") + png[end:])
