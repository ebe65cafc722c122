"""Image files: reading one, and finding the one that cannot be read."""

from pathlib import Path

from PIL import Image

from pipelines.annotations import Annotations
from ssd.errors import InputError


def read_rgb(path: Path) -> Image.Image:
    """The image in RGB, decoded whole, without regard to EXIF orientation. Raises InputError that names the file."""
    try:
        return Image.open(path).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot be read as an image ({error}); replace it or take it out of the split"
        ) from error


def require_readable(annotations: Annotations) -> None:
    """Reads image after image until one raises InputError."""
    for name in annotations.file_names:
        read_rgb(annotations.image_folder / name)
