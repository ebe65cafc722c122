"""Sizes that a file does not state, or states as 0: those of the images."""

from typing import Any

from pipelines.readers.headers import Header, read_headers
from pipelines.readers.image_files import BadImage, Flaw
from pipelines.readers.rows import Document, place_of

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
        and "\0" not in row["file_name"]
    ]
    places = []
    paths = [document.image_folder / row["file_name"] for _, row in lacking]
    for (i, row), header in zip(lacking, read_headers(paths), strict=True):
        if isinstance(header, Header):
            row["width"], row["height"] = header.upright_size_px
            places.append(place_of("images", i, row))
        elif isinstance(header, BadImage):
            convert = header.flaw is Flaw.UNSUPPORTED
            remedy = "convert it to JPEG or PNG" if convert else "replace it"
            row["problem"] = f"states no size, and its image {row['file_name']} cannot be read ({header}; {remedy})"
    document.note(WHAT, places)
    document.has_stated_sizes &= len(places) < len(rows)


def _is_nothing(value: Any) -> bool:
    return value is None or value in (0, "", "0") and value is not False
