"""Sizes that a file does not state, or states as 0: those of the images."""

from typing import Any

from pipelines.readers.headers import Header, read_headers
from pipelines.readers.image_files import BadImage, Flaw
from pipelines.readers.rows import Document, place_of, shown

WHAT = "sizes read from the images"


def repair_sizes(document: Document) -> None:
    """Sets width and height of the rows that lack one, as EXIF turns the image: tools that state no size mostly show
    images so. What hinders that is noted as the row's problem."""
    rows = document.rows("images")
    lacking = [
        (i, row)
        for i, row in rows
        if "problem" not in row
        and (_is_nothing(row.get("width")) or _is_nothing(row.get("height")))
        and type(row.get("file_name")) is str
    ]
    places = []
    paths = [document.image_folder / row["file_name"] for _, row in lacking]
    for (i, row), header in zip(lacking, read_headers(paths), strict=True):
        if isinstance(header, Header):
            row["width"], row["height"] = header.upright_size_px
            places.append(place_of("images", i, row))
        else:
            row["problem"] = f"states no size, and its image {shown(row['file_name'])} {_hindrance(header)}"
    document.note(WHAT, places)
    document.has_stated_sizes &= len(places) < len(rows)


def _hindrance(error: BadImage | OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    remedy = "convert it to JPEG or PNG" if error.flaw is Flaw.UNSUPPORTED else "replace it"
    return f"cannot be read ({error}; {remedy})"


def _is_nothing(value: Any) -> bool:
    return value is None or value in (0, "", "0") and value is not False
