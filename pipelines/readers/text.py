"""Text of tools that do not write UTF-8: what it says, and in which encoding.

A file of another encoding says so itself, by a byte order mark or XML's declaration, or it is one of two that are
common without: GBK, which Chinese Windows writes, or Windows' Western European one.
"""

import codecs
import re
from collections.abc import Callable
from pathlib import Path

from ssd.errors import InputError

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"'][^>]*\?>", re.ASCII)
_ABOVE_ASCII = re.compile(rb"[\x80-\xff]+")
_COMMON_HANZI = re.compile(rb"(?:[\xb0-\xd7][\xa1-\xfe])+")
"""Pairs of bytes that are one of GB 2312's 3755 common characters. In Western text two accented letters in a row are
rare, and such that all runs are of these pairs hardly happen."""


def without_mark(content: bytes) -> tuple[bytes, str]:
    """The content behind its byte order mark, and the encoding that the mark states, '' where there is none. UTF-16 of
    which the first letter is an ASCII one, as JSON's and XML's are, is known without a mark too."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :], encoding
    if len(content) > 1 and (content[0] == 0) != (content[1] == 0):
        return content, "utf-16-be" if content[0] == 0 else "utf-16-le"
    return content, ""


def decode(content: bytes) -> tuple[str, str]:
    """The text, without a byte order mark, and what its encoding is called: "UTF-8", "GBK", ...

    Raises UnicodeDecodeError of a text in UTF-16 that is cut.
    """
    content, marked = without_mark(content)
    if marked and marked != "utf-8":
        return content.decode(marked), "UTF-16"
    try:
        return content.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        pass
    if all(_COMMON_HANZI.fullmatch(run) for run in _ABOVE_ASCII.findall(content)):
        return content.decode("gbk"), "GBK"
    try:
        return content.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def decode_xml(content: bytes) -> tuple[str, str]:
    """As `decode`, without XML's declaration, which is believed where it names an encoding that the bytes are of.

    Raises LookupError for one that Python does not know.
    """
    behind_mark, marked = without_mark(content)
    declared = "" if marked else _declared(behind_mark)
    if declared:
        codecs.lookup(declared)
        try:
            text, encoding = behind_mark.decode(declared), declared
        except UnicodeError:
            text, encoding = decode(content)
    else:
        text, encoding = decode(content)
    return _DECLARATION.sub("", text, count=1), encoding


def _declared(content: bytes) -> str:
    found = _DECLARATION.match(content[:200].decode("latin-1"))
    return found.group(1) if found else ""


Note = Callable[[str, list[str]], None]
"""Takes what was mended, and where."""


def no_note(what: str, places: list[str]) -> None:
    pass


def stated_encoding(content: bytes) -> str:
    """What a byte order mark or XML's declaration says, '' where that is UTF-8 without a mark, or nothing."""
    behind_mark, marked = without_mark(content)
    if marked:
        return _MARKED_UTF8 if marked == "utf-8" else "UTF-16"
    declared = _declared(behind_mark)
    return "" if declared.lower() in ("utf-8", "utf8", "us-ascii", "ascii") else declared


_MARKED_UTF8 = "UTF-8 with a byte order mark"


def read_text(file: Path, note: Note = no_note) -> str:
    """note: is told of an encoding that is not UTF-8 without a byte order mark. Raises InputError."""
    try:
        content = file.read_bytes()
        text, encoding = decode(content)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: UTF-16 that is cut short; save it as UTF-8") from None
    if encoding != "UTF-8" or without_mark(content)[1]:
        note(f"{_MARKED_UTF8 if encoding == 'UTF-8' else encoding} read", [file.name])
    return text


def read_lines(file: Path, note: Note = no_note) -> list[str]:
    """The lines of a text file, without white space at their ends; empty ones left out. As `read_text`."""
    return [line.strip() for line in read_text(file, note).splitlines() if line.strip()]
