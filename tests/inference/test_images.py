"""Images as users have them become upright 8-bit RGB, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.batch import RGB_MEAN, RGB_STD
from ssd.errors import InputError
from ssd.images import normalise, read_upright, resize, rgb_of

ORANGE = (250, 120, 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("RGB", (7, 5), ORANGE)
    if mode in ("LA", "PA"):
        source = source.convert("L")
    found = rgb_of(source.quantize() if mode == "P" else source.convert(mode, dither=Image.Dither.NONE))
    assert found.shape == (5, 7, 3) and found.dtype == np.uint8
    gray = {"1": 255, "L": 147, "LA": 147, "PA": 147}
    assert np.abs(found[2, 3].astype(int) - gray.get(mode, ORANGE)).max() <= 4


@pytest.mark.parametrize("name", ["png", "tiff"])
def test_16_bits_keep_their_upper_half(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{name}")
    assert rgb_of(tmp_path / f"deep.{name}")[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    assert rgb_of(values)[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]


def test_a_picture_is_turned_as_viewers_show_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    found = rgb_of(tmp_path / "turned.jpg")
    assert found.shape == (40, 20, 3)
    assert found[:18].min() > 250 and found[22:].max() < 5  # what was left is above


def test_arrays_and_tensors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    for same in (pixels, pixels / 255, planes, planes / 255, np.dstack([pixels, pixels[..., 0]])):
        assert np.array_equal(rgb_of(same), pixels)
    gray = np.dstack([pixels[..., 0]] * 3)
    for same in (pixels[..., 0], pixels[..., :1], planes[0], planes[:1]):
        assert np.array_equal(rgb_of(same), gray)


def test_what_is_no_image_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="not an image: int; pass a path"):
        rgb_of(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), "not an image"),
        (np.zeros((3, 4, 2), np.uint8), "not an image"),
        (np.zeros((0, 4, 3), np.uint8), "not an image"),
        (torch.zeros(30, 40, 3), "not an image"),
        (np.zeros((3, 4), np.int64), "int64"),
        (np.full((3, 4), 255.0), "floats"),
        (np.full((3, 4), np.nan), "floats"),
        (Image.new("F", (3, 4)), "mode F"),
    ],
    ids=["four axes", "two channels", "no rows", "channels last in a tensor", "int64", "above 1", "nan", "mode F"],
)
def test_what_is_no_image_is_refused(image: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rgb_of(image)


def test_bad_files_are_named(tmp_path: Path) -> None:
    text, cut, missing = (tmp_path / name for name in ("text.jpg", "cut.jpg", "missing.jpg"))
    text.write_text("no image")
    Image.new("RGB", (300, 200), ORANGE).save(cut)
    cut.write_bytes(cut.read_bytes()[:700])
    for file, reason in ((text, "no JPEG"), (cut, "truncated"), (missing, "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=reason) as refused:
            read_upright(file)
        assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("size_px", [(200, 150), (160, 120), (400, 300)])
def test_resizing_is_pillows_to_one_level(size_px: tuple[int, int]) -> None:
    """docs/retinanet.rst says in how many values."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
    ours = resize(np.array(picture), size_px).astype(int)
    differences = np.abs(ours - np.array(picture.resize(size_px, Image.Resampling.BILINEAR)))
    assert differences.max() <= 1 and (differences > 0).mean() <= 1 / 50


def test_normalise() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    expected = [(value - mean) / std for value, mean, std in zip((0, 0.2, 1), RGB_MEAN, RGB_STD, strict=True)]
    for layout in (torch.contiguous_format, torch.channels_last):
        found = normalise(images.contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found[1, :, 2, 3], torch.tensor(expected), rtol=0, atol=1e-6)
