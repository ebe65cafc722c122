"""Class names in pictures and plots: a font that has their letters, or where this machine has none, their numbers.

matplotlib is a second to load, so that is done only for names that are not ASCII.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import ImageFont, features

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Scripts whose letters change their form or order by their neighbours: Hebrew to Arabic Extended, the Indic ones,
# Tibetan, Myanmar, Khmer, and the presentation forms of Hebrew and Arabic.
_SHAPED = re.compile("[\u0590-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff\ufb1d-\ufdff\ufe70-\ufeff]")
# Fonts that have "every" letter, as the same box or as nothing.
_PLACEHOLDERS = ("lastresort", "adobeblank")
_LESS_LEGIBLE = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed")
_OF_SCORES = frozenset("0123456789. ")  # which stand behind a name, in its font
_MANY = 5


def shown_in_picture(name: str, number: int) -> str:
    """The name, or "class <number>" where it cannot be drawn. number: the label, in [1, K)."""
    return name if _is_drawable(name, shapes=bool(features.check("raqm"))) else f"class {number}"


def shown_in_plot(name: str, instead: str) -> str:
    """The name, or what stands in its place where matplotlib cannot draw it with the `plot_families`."""
    return name if name.isascii() or _is_drawable(name, shapes=_matplotlib_shapes()) else instead


def picture_font(text: str, size_px: int) -> Font:
    """The font for a text that is drawn by Pillow, in which it can be drawn if in any."""
    others = frozenset(letter for letter in text if not letter.isascii())
    file = (_font_file(frozenset(text)) or _font_file(others | _OF_SCORES)) if others else None
    return ImageFont.load_default(size=size_px) if file is None else ImageFont.truetype(str(file), size_px)


def plot_families(names: Iterable[str]) -> list[str]:
    """What matplotlib's font.family must be for those of the names that can be drawn; it learns of these fonts."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    for name in names:
        file = None if name.isascii() else _font_file(frozenset(name) | _OF_SCORES)
        if file is not None:
            family = font_manager.FontProperties(fname=str(file)).get_name()
            if all(known.fname != str(file) for known in font_manager.fontManager.ttflist):
                font_manager.fontManager.addfont(str(file))
            families += [family] * (family not in families)
    return families


def note_on_numbers(shown: Mapping[str, str]) -> str:
    """One line on the names that are shown as numbers, '' if none is. shown: name -> what is drawn for it."""
    others = [f"{number} is {name}" for name, number in shown.items() if number != name]
    if not others:
        return ""
    more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
    return (
        "no font of this machine can draw some class names, so pictures show their numbers: "
        f"{', '.join(others[:_MANY])}{more}; install a font that has their letters"
    )


def _is_drawable(name: str, *, shapes: bool) -> bool:
    if name.isascii():
        return True
    return (shapes or not _SHAPED.search(name)) and _font_file(frozenset(name) | _OF_SCORES) is not None


def _matplotlib_shapes() -> bool:
    import matplotlib

    return matplotlib.__version_info__[:2] >= (3, 11)


@functools.cache
def _font_file(letters: frozenset[str]) -> Path | None:
    """The first font that has all of them."""
    return next((file for file in _font_files() if {ord(letter) for letter in letters} <= _letters_of(file)), None)


@functools.cache
def _font_files() -> list[Path]:
    """matplotlib's own, then the machine's, the most legible first."""
    import matplotlib
    from matplotlib import font_manager

    found = [Path(name) for name in font_manager.findSystemFonts()]
    found = [file for file in found if not file.stem.lower().startswith(_PLACEHOLDERS)]
    found.sort(key=lambda file: (any(word in file.stem.lower() for word in _LESS_LEGIBLE), file.name, str(file)))
    return [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", *found]


@functools.cache
def _letters_of(file: Path) -> frozenset[int]:
    """Code points; none of a file that is damaged, or of bitmaps of one size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(file))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (RuntimeError, OSError, ValueError):
        return frozenset()
