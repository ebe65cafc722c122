"""Pictures as the pages of one PDF."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ssd.inference.pdf import write_pdf


def test_each_picture_is_a_page_of_its_size_with_all_pixels(tmp_path: Path) -> None:
    pictures = []
    for number, (width, height) in enumerate([(120, 80), (50, 200)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(pictures[-1])
    write_pdf(tmp_path / "all.pdf", pictures)
    content = (tmp_path / "all.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    # 72 points an inch, 100 pixels an inch.
    boxes = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
    assert [tuple(map(float, box)) for box in boxes] == [(86.4, 57.6), (36.0, 144.0)]
    # Each with all of its pixels, whatever it is shown at.
    sizes = re.findall(rb"/Height (\d+)[^>]*?/Width (\d+)|/Width (\d+)[^>]*?/Height (\d+)", content)
    assert sorted(sorted(int(side) for side in size if side) for size in sizes) == [[50, 200], [80, 120]]
    assert list(tmp_path.glob(".*")) == []


def test_a_place_that_cannot_be_a_pdf_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    predict = ["predict", "--checkpoint", "none.pt", str(tmp_path), "--pdf"]
    assert "pass a name that ends in .pdf" in refusal(*predict, str(tmp_path / "all.png"))
    assert "not a file in an existing folder" in refusal(*predict, str(tmp_path / "none" / "all.pdf"))
