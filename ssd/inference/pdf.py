"""Pictures as the pages of one PDF."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image

from ssd.storage.files import written_whole

_PX_AN_INCH = 100


def write_pdf(file: Path, pictures: Iterable[Path]) -> None:
    """Each picture on a page of its own size, 100 of its pixels an inch; the file is whole or not there. One picture at
    a time is in memory."""
    with written_whole(file) as temporary, PdfPages(temporary) as pages:
        for picture in pictures:
            with Image.open(picture) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            height, width, _ = pixels.shape
            page = Figure(figsize=(width / _PX_AN_INCH, height / _PX_AN_INCH))
            axes = page.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.imshow(pixels, aspect="auto", interpolation="none")  # as they are, not drawn anew
            pages.savefig(page)
